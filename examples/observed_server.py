"""A small server with host and disk tiers that is watched in every way the engine has.

It serves chats that share their beginnings, prints why requests hit or missed, scrapes its own
metrics over HTTP, and writes a timeline for https://ui.perfetto.dev.

Run it with ``python examples/observed_server.py [folder]``; it needs ``pagedkv[server]``, no GPU.
"""

import asyncio
import logging
import random
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
from prometheus_client import CollectorRegistry, start_http_server

from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.observability.explainer import Explainer
from pagedkv.engine.observability.overlap import copy_overlaps
from pagedkv.engine.observability.prometheus import PrometheusCollector
from pagedkv.engine.observability.timeline import Timeline
from pagedkv.reference import (
    DeviceRef,
    InferenceSession,
    KVCacheParams,
    KVConnectorConfig,
    KVConnectorType,
    TextContext,
    TokenBuffer,
)

PAGE, PAGES, HOST_PAGES, CHATS, TURNS, RUNNING = 16, 96, 96, 12, 3, 4


def make_params(folder: Path) -> KVCacheParams:
    config = {
        "disk_offload_dir": str(folder / "blocks"),
        "disk_offload_max_gb": 0.2,
        "model_fingerprint": "example",
    }
    return KVCacheParams(
        dtype=torch.float16,
        n_kv_heads=4,
        head_dim=64,
        num_layers=8,
        devices=[DeviceRef.CPU()],
        page_size=PAGE,
        enable_prefix_caching=True,
        host_kvcache_swap_space_gb=0,  # HOST_PAGES decides
        kv_connector=KVConnectorType.tiered,
        kv_connector_config=KVConnectorConfig.model_validate(config),
    )


class Server:
    """Prefills a prompt, then decodes eight tokens; the forwards only take time."""

    def __init__(self, manager: PagedKVCacheManager, timeline: Timeline) -> None:
        self.manager, self.timeline = manager, timeline
        self.running = asyncio.Semaphore(RUNNING)  # so that whoever decodes finds a page
        self.device = asyncio.Lock()  # one forward at a time

    async def serve(self, ctx: TextContext) -> None:
        async with self.running, self.manager.admit(ctx, wait_s=30):
            await self.forward("prefill", ctx, 4e-5 * ctx.tokens.active_length)
            for token in range(8):
                await self.manager.alloc(ctx, 0)
                await self.forward("decode", ctx, 1e-3)
                ctx.update(token)
                self.manager.step([[ctx]])

    async def forward(self, name: str, ctx: TextContext, seconds: float) -> None:
        async with self.device:
            self.manager.runtime_inputs([[ctx]])
            with self.timeline.forward(0, name, request=str(ctx.request_id)):
                await asyncio.sleep(seconds)
            if name == "prefill":
                ctx.update(0)
                self.manager.step([[ctx]])


def make_chat(rng: random.Random, number: int) -> list[np.ndarray]:
    """The prompts of one chat: each turn repeats the one before it and adds to it."""
    system = np.arange(8 * PAGE, dtype=np.int64)
    own = np.array([rng.randrange(1_000, 50_000) for _ in range(TURNS * 6 * PAGE)], dtype=np.int64)
    return [np.concatenate([system, own[: turn * 6 * PAGE]]) for turn in range(1, TURNS + 1)]


async def main(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    rng = random.Random(7)
    session = InferenceSession(devices=[DeviceRef.CPU()])
    chats = [make_chat(rng, number) for number in range(CHATS)]
    async with PagedKVCacheManager.open(
        make_params(folder), session, PAGES, HOST_PAGES, max_batch_size=8
    ) as manager:
        timeline, explainer = Timeline(), Explainer()
        manager.attach(timeline)
        manager.attach(explainer)
        registry = CollectorRegistry()
        registry.register(PrometheusCollector(manager))
        http, _ = start_http_server(0, addr="127.0.0.1", registry=registry)

        server = Server(manager, timeline)
        names: list[str] = []
        for turn in range(TURNS):
            contexts = [
                TextContext(
                    max_length=4_096,
                    tokens=TokenBuffer(chat[turn]),
                    request_id=f"chat {number}, turn {turn + 1}",
                )
                for number, chat in enumerate(chats)
            ]
            names += [str(ctx.request_id) for ctx in contexts]
            await asyncio.gather(*map(server.serve, contexts))

        print("\nWhy did they hit or miss?\n")
        for name in (names[0], names[CHATS], names[-1]):
            print(explainer.explain(name))
        print(f"\n{manager.overview()}\n")
        url = f"http://127.0.0.1:{http.server_port}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        shown = ("pagedkv_hit_blocks_total", "pagedkv_moved_bytes_total", "pagedkv_pages{")
        print("\n".join(line for line in page.splitlines() if line.startswith(shown)))
        http.shutdown()
        http.server_close()
        while manager.in_flight():
            await asyncio.sleep(0.01)
        await timeline.settle()
    timeline.write(folder / "timeline.json")
    print()
    for overlap in copy_overlaps(folder / "timeline.json"):
        print(overlap)
    print(f"\nOpen {folder / 'timeline.json'} in https://ui.perfetto.dev")


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="pagedkv-"))
    asyncio.run(main(given))
