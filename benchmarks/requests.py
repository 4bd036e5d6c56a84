"""Managers and requests for the benchmarks, and calls without an event loop around them."""

from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np
import torch

from pagedkv.engine import PagedKVCacheManager
from pagedkv.reference import DeviceRef, InferenceSession, KVCacheParams, TextContext, Tracer
from pagedkv.reference.params import HashAlgorithm
from pagedkv.reference.tokens import TokenBuffer


def bookkeeper(
    pages: int,
    *,
    page_size: int,
    max_batch_size: int = 1,
    tracer: Tracer | None = None,
    kv_hash_algo: HashAlgorithm = "sha256",
) -> PagedKVCacheManager:
    """An engine with next to no memory behind its pages, on the CPU and without lower tiers."""
    params = KVCacheParams(
        dtype=torch.int8,
        n_kv_heads=1,
        head_dim=1,
        num_layers=1,
        devices=[DeviceRef.CPU()],
        page_size=page_size,
        enable_prefix_caching=True,
        kv_hash_algo=kv_hash_algo,
    )
    return PagedKVCacheManager(
        params,
        InferenceSession(devices=["cpu"]),
        pages,
        max_batch_size=max_batch_size,
        tracer=tracer,
    )


def request(
    name: str, num_tokens: int, digests: Sequence[bytes] | None = None, first_token: int = 0
) -> TextContext:
    """A request with as many tokens; with ``digests``, nothing is hashed."""
    tokens = np.arange(first_token, first_token + num_tokens, dtype=np.int64)
    return TextContext(
        max_length=2 * num_tokens + 8,
        tokens=TokenBuffer(tokens),
        request_id=name,
        given_digests=digests,
    )


def now(call: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine that has nothing to wait for: a loop around it would be measured too."""
    try:
        call.send(None)
    except StopIteration:
        return
    raise RuntimeError("it waits")
