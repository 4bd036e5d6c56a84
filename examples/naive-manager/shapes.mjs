// What the requests of each call look like.

export const isObject = (value) =>
  typeof value === "object" && value !== null && !Array.isArray(value);
export const isText = (value) => typeof value === "string";
const isFlag = (value) => typeof value === "boolean";
const isWhole = (value) => Number.isSafeInteger(value);
const isCount = (value) => isWhole(value) && value >= 0;
const isPositive = (value) => isWhole(value) && value > 0;
const isInt64 = (value) => BigInt.asIntN(64, value) === value;
const isToken = (value) => isWhole(value) || (typeof value === "bigint" && isInt64(value));
const isDecimal = (value) => isText(value) && /^-?\d+$/.test(value);
const isAnything = () => true;
const listOf = (isOne) => (value) => Array.isArray(value) && value.every(isOne);
const orNull = (isOne) => (value) => value === null || isOne(value);
const shaped = (shape) => (value) => isObject(value) && wrongField(value, shape) === undefined;
const having = (shape) => (value) =>
  isObject(value) && Object.keys(shape).every((name) => shape[name](value[name]));

/** The first field that is missing, of a wrong type, or unknown. */
export function wrongField(object, shape) {
  const isWrong = (name) => !Object.hasOwn(object, name) || !shape[name](object[name]);
  const isUnknown = (name) => !Object.hasOwn(shape, name);
  return Object.keys(shape).find(isWrong) ?? Object.keys(object).find(isUnknown);
}

const hasContextFields = shaped({
  request_id: isText,
  tokens: listOf(isToken),
  prompt_length: isCount,
  processed: isCount,
  position: isCount,
  placeholders: isCount,
  drafts_to_verify: isCount,
  maybe_accepted_drafts: isCount,
  cache_salt: orNull(isText),
  adapter: orNull(isText),
  overrides: listOf(shaped({ position: isCount, hash: orNull(isDecimal), source: isText })),
  given_digests: orNull(listOf(isText)),
  external_block_metadata: isAnything,
  preempted: isFlag,
  cached_prefix_length: orNull(isCount),
});
const isWithin = (low, value, high) => low <= value && value <= high;
const isContext = (value) =>
  hasContextFields(value) &&
  isWithin(1, value.prompt_length, value.tokens.length) &&
  isWithin(value.processed + 1, value.position, value.tokens.length);

const isSetup = having({
  page_size: isPositive,
  total_num_pages: isPositive,
  replicas: isPositive,
  shards: isPositive,
  max_batch_size: isPositive,
  enable_prefix_caching: isFlag,
  num_draft_tokens: isCount,
  speculative_method: orNull(isText),
  hash_algorithm: isText,
  hash_seed: orNull(isText),
}); // the rest is for managers that do more

const bounds = { batch_size: isCount, max_prompt_length: isCount, max_cache_valid_length: isCount };
const replica = { replica_idx: isWhole };
const request = { request_id: isText, ...replica };
const context = { context: isContext, ...replica };
const batches = { batches: listOf(listOf(isContext)) };
const inputs = { max_cache_length: orNull(isWhole), batch_characteristics: orNull(shaped(bounds)) };

/** By call of a manager: the fields of its requests, besides `call` and `manager`. */
export const CALLS = {
  claim: request,
  alloc_dummy: request,
  contains: request,
  get_req_blocks: request,
  release: request,
  alloc: context,
  reserve: { reservation: isWhole, ...batches },
  end_reserve: { reservation: isWhole },
  step: batches,
  runtime_inputs: { ...batches, ...inputs },
  get_prefix_cache_hit_counts: { context: isContext },
  get_pct_used_blocks_after_allocation: context,
  num_free_blocks: replica,
  total_num_blocks: replica,
  get_num_used_pages: replica,
  poll_transfers: {},
  pending_transfers_exist: replica,
  get_metrics_aggregated: {},
  reset_metrics: {},
  reset_prefix_cache: {},
  shutdown: {},
};

const manager = { manager: isWhole };
const ofManagers = Object.entries(CALLS).map(([call, fields]) => [call, { ...manager, ...fields }]);

/** By call: all fields of its requests, besides `call`. */
export const SHAPES = new Map([
  ["hello", { version: isWhole }],
  ["open", { ...manager, setup: isSetup, events: isFlag }],
  ["close", manager],
  ...ofManagers,
]);
