// Identity of a page: a hash chained over everything that its KV depends on (ID-1 to ID-9).

import { createHash } from "node:crypto";
import { CallError } from "./errors.mjs";
import { xxh3_128 } from "./xxh3.mjs";

const sha256 = (data) => createHash("sha256").update(data).digest();
// Keys never leave this process: nobody sees whether those of sha256_64 are cut to 8 bytes.
const HASHES = { sha256, sha256_64: sha256, xxh3_128 };

const text = (value) => Buffer.from(value, "utf8");
const hex = (value) => Buffer.from(value, "hex");
const sized = (data) => Buffer.concat([u32(data.length), data]);

function u32(number) {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(number);
  return bytes;
}

function i64s(numbers) {
  const bytes = Buffer.alloc(8 * numbers.length);
  numbers.forEach((number, n) => bytes.writeBigInt64LE(BigInt(number), 8 * n));
  return bytes;
}

function optional(value, bytesOf) {
  return value === null ? Buffer.of(0) : Buffer.concat([Buffer.of(1), sized(bytesOf(value))]);
}

/** Keys of the first `count` full pages of a request, in hexadecimal. */
export function keysOf(ctx, count, { page_size: size, hash_algorithm, hash_seed }) {
  if (ctx.given_digests !== null) {
    const given = ctx.given_digests.slice(0, count);
    if (given.length === count) return given;
    throw new CallError("ValueError", `given_digests has ${given.length} of ${count} digests`);
  }
  const hash = (...parts) => HASHES[hash_algorithm](Buffer.concat(parts));
  const [seed, salt] = [optional(hash_seed, hex), optional(ctx.cache_salt, text)];
  let parent = hash(text("pagedkv root 1"), seed, salt);
  return Array.from({ length: count }, (_, page) => {
    const tokens = ctx.tokens.slice(page * size, (page + 1) * size);
    const overrides = overridesOf(ctx, page, size);
    parent = hash(
      ...[text("pagedkv page 1"), parent, u32(size), i64s(tokens)],
      ...[u32(overrides.length), ...overrides, optional(ctx.adapter, text)],
    );
    return parent.toString("hex");
  });
}

/** What stands behind placeholder tokens of a page: by position, source and hash (ID-5). */
function overridesOf(ctx, page, size) {
  const order = (a, b) => Number(a > b) - Number(a < b);
  return ctx.overrides
    .filter(({ position }) => Math.floor(position / size) === page)
    .map(({ position, source, hash }) => ({ offset: position % size, source: text(source), hash }))
    .sort(
      (a, b) =>
        a.offset - b.offset ||
        Buffer.compare(a.source, b.source) ||
        order(BigInt(a.hash), BigInt(b.hash)),
    )
    .map((o) => Buffer.concat([u32(o.offset), sized(text(o.hash)), sized(o.source)]));
}
