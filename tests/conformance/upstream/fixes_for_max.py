"""A pytest plugin: what MAX's manager would do without some of its deviations."""

# mypy: disable-error-code="import-not-found"
# pyright: reportMissingImports=false

from max.pipelines.context import TextContext
from max.pipelines.kv_cache import InsufficientBlocksError, PagedKVCacheManager
from max.pipelines.kv_cache.paged_kv_cache.block_pool import BlockPool
from max.pipelines.request import RequestID

original_alloc, original_claim = PagedKVCacheManager.alloc, PagedKVCacheManager.claim


def alloc(self: PagedKVCacheManager, data: TextContext, replica_idx: int = 0) -> object:
    """Only for requests that are claimed, and all or nothing."""
    if not self.contains(data.request_id, replica_idx):
        raise KeyError(data.request_id)
    had_pages = bool(self.get_req_blocks(data.request_id, replica_idx))
    processed = data.tokens.processed_length
    try:
        return original_alloc(self, data, replica_idx)
    except InsufficientBlocksError:
        if not had_pages:
            self.release(data.request_id, replica_idx)
            self.claim(data.request_id, replica_idx)
            data.tokens.rewind_processing(data.tokens.processed_length - processed)
        raise


def claim(self: PagedKVCacheManager, request_id: RequestID, replica_idx: int) -> None:
    """Once, on whatever replica."""
    if any(self.contains(request_id, replica) for replica in range(len(self._replica))):
        raise ValueError(f"{request_id} is claimed already")
    original_claim(self, request_id, replica_idx)


def reset_prefix_cache(self: BlockPool) -> None:
    """Forget all hashes, whoever holds the blocks."""
    for block in self.prefix_cache.values():
        block.block_hash = None
    self.prefix_cache.clear()


PagedKVCacheManager.alloc, PagedKVCacheManager.claim = alloc, claim
BlockPool.reset_prefix_cache = reset_prefix_cache
