// XXH3-128 of 16 bytes and more, without a seed: what ID-1 asks for under `xxh3_128`.
//
// The algorithm is Yann Collet's; doc/xxhash_spec.md of github.com/Cyan4973/xxHash describes it.
// Nothing that ID-2 and ID-3 hash is shorter than 16 bytes. BigInts make it slow, and short.

const SECRET = Buffer.from(
  "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f" +
  "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c" +
  "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8" +
  "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364" +
  "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e" +
  "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e",
  "hex",
);
const [P32_1, P32_2, P32_3] = [0x9e3779b1n, 0x85ebca77n, 0xc2b2ae3dn];
const [P64_1, P64_2] = [0x9e3779b185ebca87n, 0xc2b2ae3d27d4eb4fn];
const [P64_3, P64_4, P64_5] = [0x165667b19e3779f9n, 0x85ebca77c2b2ae63n, 0x27d4eb2f165667c5n];

const u64 = (value) => BigInt.asUintN(64, value);
const low32 = (value) => BigInt.asUintN(32, value);
const word = (bytes, at) => bytes.readBigUInt64LE(at);
const swapped = (value) => word(bigEndian(value), 0);
const folded = (product) => u64(product) ^ (product >> 64n);

function bigEndian(value) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(u64(value));
  return bytes;
}

function avalanche(value) {
  const mixed = u64((value ^ (value >> 37n)) * 0x165667919e3779f9n);
  return mixed ^ (mixed >> 32n);
}

/** The hash of `data`, 16 bytes in canonical order. */
export function xxh3_128(data) {
  const hash = data.length > 240 ? long : data.length > 16 ? medium : short;
  const [low, high] = hash(data);
  return Buffer.concat([bigEndian(high), bigEndian(low)]);
}

function short(data) {
  const [first, last] = [word(data, 0), word(data, data.length - 8)];
  const product = (first ^ last ^ word(SECRET, 32) ^ word(SECRET, 40)) * P64_1;
  const other = last ^ word(SECRET, 48) ^ word(SECRET, 56);
  const high = u64((product >> 64n) + other + low32(other) * (P32_2 - 1n));
  const low = u64(product + (BigInt(data.length - 1) << 54n)) ^ swapped(high);
  const wide = low * P64_2;
  return [avalanche(u64(wide)), avalanche(u64((wide >> 64n) + high * P64_2))];
}

function medium(data) {
  const length = BigInt(data.length);
  let [a, b] = [u64(length * P64_1), 0n];
  const keyed = (at, secret) => word(data, at) ^ word(SECRET, secret);
  const mix = (at, secret) => folded(keyed(at, secret) * keyed(at + 8, secret + 8));
  const sum = (at) => u64(word(data, at) + word(data, at + 8));
  const mixTwo = (one, two, secret) => {
    a = u64(a + mix(one, secret)) ^ sum(two);
    b = u64(b + mix(two, secret + 16)) ^ sum(one);
  };
  if (data.length <= 128) {
    for (let n = (data.length - 1) >> 5; n >= 0; n--) {
      mixTwo(16 * n, data.length - 16 * (n + 1), 32 * n);
    }
  } else {
    for (let n = 0; n < 4; n++) mixTwo(32 * n, 32 * n + 16, 32 * n);
    [a, b] = [avalanche(a), avalanche(b)];
    for (let n = 4; n < data.length >> 5; n++) mixTwo(32 * n, 32 * n + 16, 32 * (n - 4) + 3);
    mixTwo(data.length - 16, data.length - 32, 103);
  }
  return [avalanche(u64(a + b)), u64(-avalanche(u64(a * P64_1 + b * P64_4 + length * P64_2)))];
}

function long(data) {
  const acc = [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1];
  const accumulate = (at, secret) => {
    for (let lane = 0; lane < 8; lane++) {
      const value = word(data, at + 8 * lane);
      const keyed = value ^ word(SECRET, secret + 8 * lane);
      acc[lane ^ 1] = u64(acc[lane ^ 1] + value);
      acc[lane] = u64(acc[lane] + low32(keyed) * (keyed >> 32n));
    }
  };
  const scrambled = (value, lane) =>
    u64((value ^ (value >> 47n) ^ word(SECRET, 128 + 8 * lane)) * P32_1);
  for (let stripe = 0; 64 * (stripe + 1) < data.length; stripe++) {
    accumulate(64 * stripe, 8 * (stripe % 16));
    const endsBlock = stripe % 16 === 15;
    if (endsBlock) acc.forEach((value, lane) => (acc[lane] = scrambled(value, lane)));
  }
  accumulate(data.length - 64, 121);
  const merged = (secret, start) => {
    const keyed = (lane) => acc[lane] ^ word(SECRET, secret + 8 * lane);
    const pairs = [0, 2, 4, 6].map((lane) => folded(keyed(lane) * keyed(lane + 1)));
    return avalanche(u64(pairs.reduce((sum, pair) => sum + pair, start)));
  };
  const length = BigInt(data.length);
  return [merged(11, length * P64_1), merged(117, ~(length * P64_2))];
}
