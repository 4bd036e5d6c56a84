# SPDX-License-Identifier: Apache-2.0
"""Nothing from before a reset is hit."""

import torch

from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
)
from vllm.v1.request import Request

BLOCK_SIZE = 4

HASH = get_hash_fn_by_name("sha256")
init_none_hash(HASH)


def make_manager(num_blocks):
    """A manager with so many blocks besides the null block."""
    spec = FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=1, head_size=1, dtype=torch.float16
    )
    return KVCacheManager(
        KVCacheConfig(
            num_blocks=num_blocks + 1,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        max_model_len=1 << 20,
        scheduler_block_size=BLOCK_SIZE,
        hash_block_size=BLOCK_SIZE,
        enable_caching=True,
    )


def make_request(request_id, tokens):
    return Request(
        request_id=request_id,
        prompt_token_ids=tokens,
        sampling_params=SamplingParams(max_tokens=1024),
        pooling_params=None,
        block_hasher=get_request_block_hasher(BLOCK_SIZE, HASH),
    )


def schedule(manager, request, end=None):
    """Get slots for the tokens up to `end`, by default for all, as the scheduler does.

    Returns how many tokens were found cached, or None if there are no slots.
    """
    end = request.num_tokens if end is None else end
    blocks, num_cached = None, 0
    if request.num_computed_tokens == 0:
        blocks, num_cached, _ = manager.get_computed_blocks(request, end - 1)
    num_new_tokens = end - request.num_computed_tokens - num_cached
    if manager.allocate_slots(request, num_new_tokens, num_cached, blocks) is None:
        return None
    request.num_computed_tokens += num_cached
    return num_cached


def test_nothing_from_before_a_reset_is_hit():
    """The prefix cache was reset, and b still hits 1 block from before that.

    A reset is asked for when old KV must not be used any more, as after an update
    of the weights. If it is hit all the same, answers mix two models, without any
    error.

    Seen in vLLM 0.33.0.
    """
    manager = make_manager(num_blocks=8)
    a = make_request("a", list(range(5)))
    assert schedule(manager, a) == 0
    a.append_output_token_ids([5])
    a.num_computed_tokens = 5
    manager.cache_blocks(a, a.num_computed_tokens)
    manager.reset_prefix_cache()

    b = make_request("b", [*range(4), 8])
    num_cached_tokens = schedule(manager, b)
    assert num_cached_tokens == 0, "b hits what was cached before the reset"
