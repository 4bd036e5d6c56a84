"""Nothing from before a reset is hit."""

import numpy as np
from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef
from max.nn.kv_cache import MHAKVCacheParams
from max.pipelines.context import TextContext, TokenBuffer
from max.pipelines.kv_cache import PagedKVCacheManager
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


def test_nothing_from_before_a_reset_is_hit():
    """The prefix cache was reset, and b still hits 1 block from before that.

    A reset is asked for when old KV must not be used any more, as after an update
    of the weights. If it is hit all the same, answers mix two models, without any
    error.

    Seen in MAX 26.5.0.
    """
    manager = make_manager(total_num_pages=8)
    manager.claim(RequestID("a"), 0)
    a = make_context("a", list(range(5)))
    assert alloc(manager, a) == 0
    a.update(5)
    manager.step([[a]])
    manager.reset_prefix_cache()

    manager.claim(RequestID("b"), 0)
    b = make_context("b", [*range(4), 8])
    num_cached_tokens = alloc(manager, b)
    assert num_cached_tokens == 0, "b hits what was cached before the reset"
