"""What a request costs on the host: ours, vLLM's and MAX's managers, in turns, in one process.

A request has 1,024 tokens in pages of 16; half of them are cached, the pool is full, so every page
that is taken evicts another. Measured are hash, look-up, allocation, commit and release; for MAX,
``runtime_inputs`` as well, and then for ours too.

    python -m benchmarks.host_cost [--requests N] [--json FILE]
"""

# The peers are optional, and untyped where they are missing.
# mypy: disable-error-code="import-not-found"
# pyright: reportMissingImports=false

import gc
import importlib.util
from collections.abc import Callable, Coroutine
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.report import Report, arguments
from benchmarks.requests import bookkeeper, now
from pagedkv.reference import TextContext, TokenBuffer
from pagedkv.reference.params import HashAlgorithm

PAGE_SIZE = 16
NUM_TOKENS = 1024
NUM_PAGES = 10_000
NUM_PREFIXES = 64

Subject = Callable[[int], dict[str, float]]
"""Serves a numbered request; seconds by phase."""


def prompt(number: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """The first half is shared with every 64th other request, the second is its own."""
    half = NUM_TOKENS // 2
    shared = np.random.default_rng(number % NUM_PREFIXES).integers(0, 50_000, half)
    own = np.random.default_rng(10_000 + number).integers(0, 50_000, half)
    return np.concatenate([shared, own])


# Any: MAX's manager, whose methods are those of ours, and its context.
def phases_of(manager: Any, ctx: Any, *, with_inputs: bool) -> dict[str, float]:
    """Serve one request on our manager, or on MAX's; seconds by phase."""
    start = perf_counter()
    manager.claim(ctx.request_id, 0)
    allocation = manager.alloc(ctx, 0)
    if isinstance(allocation, Coroutine):
        now(allocation)
    allocated = perf_counter()
    if with_inputs:
        manager.runtime_inputs([[ctx]])
    prepared = perf_counter()
    ctx.update(5)
    sampled = perf_counter()
    manager.step([[ctx]])
    stepped = perf_counter()
    manager.release(ctx.request_id, 0)
    released = perf_counter()
    return {
        "alloc": allocated - start,
        "inputs": prepared - allocated,
        "step": stepped - sampled,
        "release": released - stepped,
    }


def engine(algorithm: HashAlgorithm, *, with_inputs: bool = False) -> Subject:
    """Ours, without tiers below the device."""
    manager = bookkeeper(NUM_PAGES, page_size=PAGE_SIZE, kv_hash_algo=algorithm)

    def serve(number: int) -> dict[str, float]:
        ctx = TextContext(
            max_length=2 * NUM_TOKENS, tokens=TokenBuffer(prompt(number)), request_id=f"r{number}"
        )
        return phases_of(manager, ctx, with_inputs=with_inputs)

    return serve


def vllm(hash_name: str) -> Subject:
    """vLLM's ``KVCacheManager``: it commits when it allocates."""
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.request import Request

    function = get_hash_fn_by_name(hash_name)
    init_none_hash(function)
    spec = FullAttentionSpec(block_size=PAGE_SIZE, num_kv_heads=1, head_size=1, dtype=torch.int8)
    manager = KVCacheManager(
        KVCacheConfig(
            num_blocks=NUM_PAGES + 1,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["attention"], spec)],
        ),
        max_model_len=4 * NUM_TOKENS,
        scheduler_block_size=PAGE_SIZE,
        hash_block_size=PAGE_SIZE,
        enable_caching=True,
        log_stats=False,
    )
    hasher = get_request_block_hasher(PAGE_SIZE, function)
    sampling = SamplingParams()

    def serve(number: int) -> dict[str, float]:
        request = Request(f"r{number}", prompt(number).tolist(), sampling, None)
        start = perf_counter()
        request.block_hashes = hasher(request)
        hashed = perf_counter()
        found, tokens, _ = manager.get_computed_blocks(request, NUM_TOKENS - 1)
        if manager.allocate_slots(request, NUM_TOKENS - tokens, tokens, found) is None:
            raise RuntimeError("vLLM has no pages left")
        allocated = perf_counter()
        manager.free(request)
        released = perf_counter()
        return {
            "hash": hashed - start,
            "alloc": allocated - hashed,
            "release": released - allocated,
        }

    return serve


def max_manager() -> Subject:
    """MAX's ``PagedKVCacheManager``, with its ``runtime_inputs``."""
    from max.driver import CPU
    from max.dtype import DType
    from max.engine import InferenceSession as MaxSession
    from max.graph import DeviceRef
    from max.nn.kv_cache import MHAKVCacheParams
    from max.pipelines.context import TextContext as MaxContext
    from max.pipelines.context import TokenBuffer as MaxTokenBuffer
    from max.pipelines.kv_cache import PagedKVCacheManager as MaxManager
    from max.pipelines.request import RequestID

    params = MHAKVCacheParams(
        dtype=DType.int8,
        n_kv_heads=1,
        head_dim=1,
        num_layers=1,
        devices=[DeviceRef.CPU()],
        page_size=PAGE_SIZE,
        enable_prefix_caching=True,
    )
    manager = MaxManager(
        params=params,
        session=MaxSession(devices=[CPU()]),
        total_num_pages=NUM_PAGES,
        max_batch_size=1,
    )

    def serve(number: int) -> dict[str, float]:
        ctx = MaxContext(
            request_id=RequestID(f"r{number}"),
            max_length=2 * NUM_TOKENS,
            tokens=MaxTokenBuffer(prompt(number)),
        )
        return phases_of(manager, ctx, with_inputs=True)

    return serve


def main() -> None:
    """Measure, print, and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="requests to measure")
    options = parser.parse_args()

    subjects: dict[str, Subject] = {
        "engine, sha256": engine("sha256"),
        "engine, xxh3_128": engine("xxh3_128"),
        "engine, with inputs": engine("sha256", with_inputs=True),
    }
    if importlib.util.find_spec("vllm"):
        subjects["vllm, sha256"] = vllm("sha256")
        subjects["vllm, xxhash"] = vllm("xxhash")
    if importlib.util.find_spec("max"):
        subjects["max, with inputs"] = max_manager()

    # Every page cached, twice over.
    warm_up = 2 * NUM_PAGES // (NUM_TOKENS // PAGE_SIZE // 2)
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
    for number in range(warm_up + options.requests):
        # Each follows each of the others: after a large one the caches are cold.
        for name in Random(number).sample(list(subjects), len(subjects)):
            phases = subjects[name](number)
            if number >= warm_up:
                seconds[name].append(phases)
        if number == warm_up:
            gc.collect()

    report = Report("host cost of a request, microseconds (median)")
    for name, rows in seconds.items():
        phases = {phase: median(row[phase] for row in rows) * 1e6 for phase in rows[0]}
        report.measured(name, median(sum(row.values()) for row in rows) * 1e6, "us", phases)
    report.compared("engine, sha256", "vllm, sha256", at_most=1 / 3)
    report.compared("engine, xxh3_128", "vllm, xxhash", at_most=1 / 4)
    report.compared("engine, with inputs", "max, with inputs", at_most=1 / 5)
    report.finish(options.json)


if __name__ == "__main__":
    main()
