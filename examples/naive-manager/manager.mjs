// A paged KV cache manager in plain JavaScript: device pages, a prefix cache, and the books.
//
// It was written from reference/SPEC.md, whose rules are cited where they are carried out. Where
// they leave a choice it does not choose as the reference does: the highest page id is taken first,
// what was cached first is evicted first however often it was hit, and equal pages of two requests
// stay apart.

import { CallError, malformed } from "./errors.mjs";
import { keysOf } from "./identity.mjs";
import { Pool } from "./pool.mjs";

// How many tokens a request has where (LEN-1 to LEN-4)

const identifiable = (ctx) => ctx.tokens.length - Math.max(1, ctx.placeholders);
const written = (ctx) => Math.min(ctx.processed, identifiable(ctx));
const cacheLength = (ctx) => ctx.processed + ctx.maybe_accepted_drafts;
const queryLength = (ctx) => ctx.position - ctx.processed + ctx.drafts_to_verify;

function requiredPages(ctx, { page_size, num_draft_tokens, speculative_method }) {
  const block = speculative_method === "dflash" ? 1 : 0;
  const drafts = ctx.maybe_accepted_drafts + 2 * num_draft_tokens + block;
  return Math.ceil((ctx.position + drafts + 1 - Math.max(1, ctx.placeholders)) / page_size);
}

// Names of counters (reference/metrics.py)

const TIERS = ["device", "peer", "host", "disk", "store"];
const REASONS = ["never_seen", "evicted", "not_stored", "failed", "too_slow", "other_namespace"];
const COUNTERS = [
  "input_tokens", "cache_tokens", "preempted_input_tokens", "preempted_cache_tokens",
  "preempted_blocks_served", ...TIERS.map((tier) => `${tier}_blocks_served`),
  ...REASONS.map((reason) => `missed_blocks_${reason}`), // not told apart here (METRIC-6)
  "device_blocks_evicted", "host_blocks_evicted", "disk_blocks_evicted",
  "h2d_blocks_copied", "d2h_blocks_copied",
  "cross_replica_blocks_copied", "cross_replica_bytes_copied",
  "disk_blocks_written", "disk_blocks_read", "store_blocks_written", "store_blocks_read",
  "offload_blocks_dropped", "load_blocks_failed", "inflight_disk_ops",
];

// One method per call; an object with the call's fields goes in, its result comes out.
export class Manager {
  constructor(setup) {
    this.setup = setup;
    this.pools = Array.from({ length: setup.replicas }, () => new Pool(setup.total_num_pages));
    this.requests = new Map();
    this.reservations = new Map();
    this.closed = false;
    this.reset_metrics();
  }

  // What several calls check

  pool(replica_idx) {
    const pool = this.pools[replica_idx];
    if (pool !== undefined) return pool;
    const fields = { replica_idx, num_replicas: this.pools.length };
    const message = `there is no replica ${replica_idx}; there are ${this.pools.length}`;
    throw new CallError("ReplicaIndexError", message, fields);
  }

  request(request_id, replica_idx) {
    this.pool(replica_idx);
    const request = this.requests.get(request_id);
    if (request?.replica === replica_idx) return request;
    const fields = { request_id, replica_idx, lives_on: request?.replica ?? null };
    const message = `request ${request_id} is not claimed on replica ${replica_idx}`;
    throw new CallError("UnknownRequestError", message, fields);
  }

  checkOnePerReplica(batches) {
    if (batches.length === this.pools.length) return;
    const message = `got ${batches.length} batches for ${this.pools.length} replicas`;
    throw new CallError("BatchesError", message);
  }

  /** By replica: the contexts of its batch, each with its request (INPUT-1, INPUT-2, STEP-1). */
  rows(batches) {
    this.checkOnePerReplica(batches);
    const seen = new Set();
    return batches.map((batch, replica) =>
      batch.map((ctx) => {
        const request = this.request(ctx.request_id, replica);
        if (seen.has(request)) throw new CallError("BatchesError", `twice: ${ctx.request_id}`);
        seen.add(request);
        return { ctx, request };
      }),
    );
  }

  checkHolds({ request_id }, request, needed) {
    const allocated = request.pages.length;
    if (request.dummy || needed <= allocated) return;
    const message = `request ${request_id} needs ${needed} pages and holds ${allocated}`;
    throw new CallError("BlocksNotAllocatedError", message, { request_id, needed, allocated });
  }

  // Requests (CLAIM-1 to CLAIM-4, REL-1)

  claim({ request_id, replica_idx }, dummy = false) {
    const { nullPage } = this.pool(replica_idx);
    const known = this.requests.get(request_id);
    if (known !== undefined) {
      const fields = { request_id, replica_idx, lives_on: known.replica };
      const message = `request ${request_id} is claimed on replica ${known.replica}`;
      throw new CallError("AlreadyClaimedError", message, fields);
    }
    this.requests.set(request_id, {
      replica: replica_idx,
      dummy,
      pages: dummy ? [nullPage] : [],
      committed: 0, // leading pages that are identified
      fenced: false, // whether the cache was reset since (RESET-2)
      admitted: false, // whether an allocation has returned
      counted: 0, // leading tokens that the counters include
      repeated: 0, // leading tokens that it had when it was preempted
    });
  }

  alloc_dummy(names) {
    this.claim(names, true);
  }

  contains({ request_id, replica_idx }) {
    this.pool(replica_idx);
    return this.requests.get(request_id)?.replica === replica_idx;
  }

  get_req_blocks({ request_id, replica_idx }) {
    return this.request(request_id, replica_idx).pages;
  }

  release({ request_id, replica_idx }) {
    const { dummy, pages } = this.request(request_id, replica_idx);
    if (!dummy) pages.forEach((page) => this.pools[replica_idx].letGo(page));
    this.requests.delete(request_id);
  }

  // Allocation (ALLOC-1 to ALLOC-9)

  /** What an allocation would do, worked out without changing anything. */
  need(ctx, request, pool) {
    const needed = requiredPages(ctx, this.setup);
    const held = request.pages.length;
    if (request.dummy || needed <= held) {
      return { hits: [], kept: held, moved: 0, fresh: 0, idle: 0 };
    }
    let hits = this.hits(ctx, request, pool);
    if ((request.committed + hits.length) * this.setup.page_size <= ctx.processed) hits = [];
    const kept = hits.length > 0 ? request.committed : held;
    const moved = Math.min(held - kept, needed - kept - hits.length); // for the tokens after a hit
    const fresh = needed - kept - moved - hits.length;
    return { hits, kept, moved, fresh, idle: hits.filter((page) => !pool.holders[page]).length };
  }

  /** Pages of the cached blocks that follow the committed ones, up to the first gap. */
  hits(ctx, request, pool) {
    if (!this.setup.enable_prefix_caching || request.fenced) return [];
    if (ctx.overrides.some((override) => override.hash === null)) {
      throw new CallError("ValueError", "an image has no hash, which prefix caching needs");
    }
    if (ctx.position - ctx.processed === 1) return [];
    const tokens = Math.min(identifiable(ctx), ctx.position - 1); // one active token stays
    const count = Math.max(request.committed, Math.floor(tokens / this.setup.page_size));
    const keys = keysOf(ctx, count, this.setup).slice(request.committed);
    const pages = keys.map((key) => pool.pageOf.get(key));
    const found = pages.includes(undefined) ? pages.slice(0, pages.indexOf(undefined)) : pages;
    // The draft KV of the last block was written before another token (DRAFT-1).
    return ["eagle", "mtp"].includes(this.setup.speculative_method) ? found.slice(0, -1) : found;
  }

  alloc({ context: ctx, replica_idx }) {
    const request = this.request(ctx.request_id, replica_idx);
    const pool = this.pools[replica_idx];
    const { hits, kept, moved, fresh, idle } = this.need(ctx, request, pool);
    const free = pool.free - idle;
    if (fresh > free) {
      const can_ever_fit = requiredPages(ctx, this.setup) <= pool.total;
      const fields = { needed: fresh, free, total: pool.total, can_ever_fit };
      const message = `${fresh} pages are needed, ${free} of ${pool.total} are free`;
      throw new CallError("InsufficientBlocksError", message, fields);
    }
    hits.forEach((page) => pool.hold(page)); // first, so that taking the rest cannot evict them
    const taken = Array.from({ length: fresh }, () => pool.take());
    const own = request.pages.slice(kept);
    request.pages = [...request.pages.slice(0, kept), ...hits, ...own.slice(0, moved), ...taken];
    own.slice(moved).forEach((page) => pool.letGo(page));
    request.committed += hits.length;
    const processed = hits.length ? request.committed * this.setup.page_size : ctx.processed;
    const cached_prefix_length = this.recordAlloc(ctx, request, hits.length, processed);
    return { processed, cached_prefix_length };
  }

  /** Count what was hit (METRIC-1, METRIC-4), and give the cached prefix length (ALLOC-9). */
  recordAlloc(ctx, request, hits, processed) {
    if (request.dummy) return ctx.cached_prefix_length;
    let cached = ctx.cached_prefix_length;
    if (!request.admitted) {
      const repeated = ctx.preempted ? ctx.tokens.length : 0;
      Object.assign(request, { admitted: true, counted: ctx.processed, repeated });
      cached ??= processed - ctx.processed;
    }
    const isAgain = ctx.processed < request.repeated;
    this.counters[isAgain ? "preempted_blocks_served" : "device_blocks_served"] += hits;
    if (hits > 0) {
      this.count(request, ctx.processed, "input_tokens");
      this.count(request, processed, "cache_tokens");
    }
    return cached;
  }

  /** Count the tokens before `end` that were not counted; those from before a preemption apart. */
  count(request, end, counter) {
    const start = request.counted;
    request.counted = Math.max(start, end);
    const again = Math.max(0, Math.min(request.counted, request.repeated) - start);
    this.counters[`preempted_${counter}`] += again;
    this.counters[counter] += request.counted - start - again;
  }

  // Reservations (CLAIM-5)

  reserve({ reservation, batches }) {
    this.checkOnePerReplica(batches);
    const before = { ...this.counters };
    const claimed = [];
    try {
      const windows = batches.map((batch, replica_idx) =>
        batch.map((context) => {
          const { request_id, processed, cached_prefix_length } = context;
          this.claim({ request_id, replica_idx });
          const window = { processed, cached_prefix_length };
          claimed.push({ request_id, replica_idx, window });
          return this.alloc({ context, replica_idx });
        }),
      );
      this.reservations.set(reservation, claimed);
      return windows;
    } catch (error) {
      claimed.forEach((request) => this.release(request));
      this.counters = before;
      throw error;
    }
  }

  end_reserve({ reservation }) {
    const claimed = this.reservations.get(reservation);
    if (claimed === undefined) throw malformed(`there is no reservation ${reservation}`);
    this.reservations.delete(reservation);
    claimed.filter((request) => this.contains(request)).forEach((request) => this.release(request));
    const windowsOn = (replica) => claimed.filter((request) => request.replica_idx === replica);
    return this.pools.map((_, replica) => windowsOn(replica).map(({ window }) => window));
  }

  // Forwards (STEP-1 to STEP-3, INPUT-1 to INPUT-6)

  step({ batches }) {
    const { page_size: size, enable_prefix_caching: caching } = this.setup;
    const rows = this.rows(batches).flat().filter(({ request }) => !request.dummy);
    const plans = rows.map(({ ctx, request }) => {
      this.checkHolds(ctx, request, Math.ceil(written(ctx) / size));
      const full = Math.floor(written(ctx) / size);
      const keys = caching && !request.fenced ? keysOf(ctx, full, this.setup) : [];
      return { ctx, request, keys };
    });
    for (const { ctx, request, keys } of plans) {
      const pool = this.pools[request.replica];
      for (; request.committed < keys.length; request.committed++) {
        pool.commit(request.pages[request.committed], keys[request.committed]);
      }
      this.count(request, ctx.processed, "input_tokens");
    }
  }

  runtime_inputs({ batches, max_cache_length, batch_characteristics }) {
    const inputs = this.rows(batches).map((rows, replica) =>
      this.inputs(rows, this.pools[replica], max_cache_length, batch_characteristics),
    );
    return inputs.flatMap((inputs) => new Array(this.setup.shards).fill(inputs));
  }

  inputs(rows, pool, max_cache_length, bounds) {
    const { page_size: size, max_batch_size, num_draft_tokens: drafts } = this.setup;
    if (rows.length > max_batch_size) {
      throw new CallError("BatchesError", `a batch of ${rows.length}; at most ${max_batch_size}`);
    }
    const needs = rows.map(({ ctx, request }) => {
      if (request.dummy) return 1;
      const writes = Math.ceil((cacheLength(ctx) + queryLength(ctx)) / size);
      const needed = Math.max(requiredPages(ctx, this.setup), writes);
      this.checkHolds(ctx, request, needed);
      return needed;
    });
    const least = Math.max(1, ...needs);
    const columns = max_cache_length === null ? least : Math.ceil(max_cache_length / size);
    if (columns < least || columns > pool.total) {
      const message = `max_cache_length makes ${columns} columns; use ${least} to ${pool.total}`;
      throw new CallError("BatchesError", message);
    }
    const shape = {
      batch_size: rows.length,
      max_prompt_length: Math.max(0, ...rows.map(({ ctx }) => queryLength(ctx))),
      max_cache_valid_length: Math.max(
        ...[0, ...rows.map(({ ctx }) => cacheLength(ctx) + queryLength(ctx) + drafts)],
      ),
    };
    for (const [name, bound] of Object.entries(bounds ?? {})) {
      if (shape[name] <= bound) continue;
      throw new CallError("ValueError", `${name} is ${bound}, but the batch has ${shape[name]}`);
    }
    const told = bounds ?? shape;
    return {
      columns,
      lookup_table: rows.map(({ request }, row) => {
        const used = request.dummy ? [] : request.pages.slice(0, needs[row]);
        return [...used, ...new Array(columns - used.length).fill(pool.nullPage)];
      }),
      cache_lengths: rows.map(({ ctx }) => cacheLength(ctx)),
      max_prompt_length: told.max_prompt_length,
      max_cache_length: told.max_cache_valid_length,
    };
  }

  // Probes (ALLOC-14), counters, reset and end

  get_prefix_cache_hit_counts({ context: ctx }) {
    const stranger = { dummy: false, pages: [], committed: 0, fenced: false };
    const none = Object.fromEntries(TIERS.map((tier) => [`${tier}_blocks`, 0]));
    return this.pools.map((pool) => {
      const { hits } = this.need(ctx, stranger, pool);
      return { ...none, device_blocks: hits.length };
    });
  }

  get_pct_used_blocks_after_allocation({ context: ctx, replica_idx }) {
    const request = this.request(ctx.request_id, replica_idx);
    const pool = this.pools[replica_idx];
    const { kept, moved, fresh, idle } = this.need(ctx, request, pool);
    const givenBack = request.pages.length - kept - moved;
    return Math.min(1, (pool.held + fresh + idle - givenBack) / pool.total);
  }

  num_free_blocks({ replica_idx }) {
    return this.pool(replica_idx).free;
  }

  total_num_blocks({ replica_idx }) {
    return this.pool(replica_idx).total;
  }

  get_num_used_pages({ replica_idx }) {
    return this.pool(replica_idx).held;
  }

  poll_transfers() {}

  pending_transfers_exist({ replica_idx }) {
    this.pool(replica_idx);
    return false;
  }

  get_metrics_aggregated() {
    const evictions = this.pools.map((pool) => pool.evictions);
    return { ...this.counters, device_blocks_evicted: evictions.reduce((a, b) => a + b) };
  }

  reset_metrics() {
    this.counters = Object.fromEntries(COUNTERS.map((name) => [name, 0]));
    for (const pool of this.pools) pool.evictions = 0;
  }

  reset_prefix_cache() {
    for (const pool of this.pools) pool.reset();
    for (const request of this.requests.values()) request.fenced = request.pages.length > 0;
  }

  shutdown() {
    this.closed = true;
  }
}
