// The pages of one replica: who holds them, and what they contain (POOL-1, POOL-2, POOL-10).

import { CallError } from "./errors.mjs";

// Set to 1, it forgets to forget: evicted content stays findable. The suite has to notice.
const BROKEN = process.env.NAIVE_MANAGER_BROKEN === "1";

export class Pool {
  constructor(total) {
    this.total = total;
    this.nullPage = total;
    this.empty = Array.from({ length: total }, (_, page) => page); // taken from the end
    this.holders = new Array(total).fill(0);
    this.held = 0; // pages that have a holder
    this.content = new Array(total).fill(null); // by page: its key, if it can be hit
    this.pageOf = new Map(); // by key; what was cached first comes first
    this.evictions = 0;
  }

  get free() {
    return this.total - this.held;
  }

  hold(page) {
    if (this.holders[page]++ === 0) this.held++;
  }

  letGo(page) {
    if (!this.holders[page]) throw new CallError("PoolCorruptedError", `nobody holds page ${page}`);
    if (--this.holders[page] > 0) return;
    this.held--;
    if (this.content[page] === null) this.empty.push(page);
  }

  /** A page for one holder; there has to be a free one. */
  take() {
    const page = this.empty.length > 0 ? this.empty.pop() : this.evict();
    this.hold(page);
    return page;
  }

  evict() {
    const [key, page] = this.pageOf.entries().find(([, page]) => this.holders[page] === 0);
    if (!BROKEN) this.pageOf.delete(key);
    this.content[page] = null;
    this.evictions++;
    return page;
  }

  /** Make a page findable; if another one has the same content, that one stays the one. */
  commit(page, key) {
    if (this.pageOf.has(key)) return;
    this.pageOf.set(key, page);
    this.content[page] = key;
  }

  reset() {
    for (const page of this.pageOf.values()) {
      this.content[page] = null;
      if (this.holders[page] === 0) this.empty.push(page);
    }
    this.pageOf.clear();
  }
}
