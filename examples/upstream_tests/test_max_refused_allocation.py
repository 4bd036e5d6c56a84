"""Refused allocation keeps nothing."""

import numpy as np
import pytest
from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef
from max.nn.kv_cache import MHAKVCacheParams
from max.pipelines.context import TextContext, TokenBuffer
from max.pipelines.kv_cache import InsufficientBlocksError, PagedKVCacheManager
from max.pipelines.request import RequestID


def make_manager(total_num_pages):
    params = MHAKVCacheParams(
        dtype=DType.float32,
        n_kv_heads=1,
        head_dim=1,
        num_layers=1,
        page_size=4,
        devices=[DeviceRef.CPU()],
        enable_prefix_caching=True,
        kv_hash_algo="sha256",
    )
    return PagedKVCacheManager(
        params=params,
        session=InferenceSession(devices=[CPU()]),
        total_num_pages=total_num_pages,
        max_batch_size=1,
    )


def make_context(request_id, tokens):
    return TextContext(
        request_id=RequestID(request_id),
        max_length=1 << 20,
        tokens=TokenBuffer(np.array(tokens, dtype=np.int64)),
    )


def alloc(manager, context, replica_idx=0):
    """Allocate; returns how many tokens were found cached."""
    start = context.tokens.processed_length
    manager.alloc(context, replica_idx)
    return context.tokens.processed_length - start


def test_refused_allocation_keeps_nothing():
    """The allocation of b is refused, but the pages that it had hit until then stay
    with it.

    A request that waits for room holds pages that the others could use, so that one
    which fits is refused as well; if all wait, the server stands still.

    Seen in MAX 26.5.0.
    """
    manager = make_manager(total_num_pages=8)
    manager.claim(RequestID("a"), 0)
    a = make_context("a", list(range(9)))
    assert alloc(manager, a) == 0
    a.update(9)
    manager.step([[a]])
    manager.release(RequestID("a"), 0)
    manager.claim(RequestID("b"), 0)
    b = make_context("b", [*range(8), *range(12, 103)])
    with pytest.raises(InsufficientBlocksError):
        manager.alloc(b, 0)

    manager.claim(RequestID("c"), 0)
    c = make_context("c", list(range(104, 134)))
    assert manager.num_free_blocks(0) == 8, "the refused allocation of b holds pages"
    assert alloc(manager, c) == 0
