"""The disk tier's storage: blocks in one preallocated slab, and an index that survives kill -9."""
