"""A pytest plugin: what vLLM's manager would do without some of its deviations."""

# mypy: disable-error-code="import-not-found"
# pyright: reportMissingImports=false

from functools import partialmethod

from vllm.v1.core.block_pool import BlockHashToBlockMap, BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager


def reset_prefix_cache(self: BlockPool) -> bool:
    """Forget all hashes, whoever holds the blocks."""
    self.cached_block_hash_to_block = BlockHashToBlockMap()
    self.cached_block_hashes_by_block.clear()
    for block in self.blocks:
        block.reset_hash()
    return True


BlockPool.reset_prefix_cache = reset_prefix_cache

# Blocks are cached when cache_blocks() says that they were computed, not before.
KVCacheManager.allocate_slots = partialmethod(
    KVCacheManager.allocate_slots, delay_cache_blocks=True
)
