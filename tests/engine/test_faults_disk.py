"""Real files that fail, fill up or are damaged: a miss, never a wrong byte, a leak or a hang."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from tests.engine.real_disk_runs import PROMPTS, opened, serve, tiered_setup
from tests.engine.stage import staged

from pagedkv.conformance.clients import Clients
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.disk.errors import DirectoryInUseError
from pagedkv.engine.disk.faulty_files import FaultyFiles
from pagedkv.engine.disk.io_queue import IoQueue
from pagedkv.engine.disk.warm_start import SLAB_FILE
from pagedkv.engine.simulated import clock
from pagedkv.engine.tiers import PASSING_SLOTS
from pagedkv.reference import LayoutMismatchError, TextContext, TokenBuffer
from pagedkv.reference.metrics import KVCacheMetrics


@pytest.fixture(autouse=True)
def nothing_unforeseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    unforeseen = [record.getMessage() for record in caplog.records if record.exc_info]
    assert not unforeseen


@pytest.mark.parametrize("seed", range(6))
async def test_a_disk_that_is_short_torn_and_flipped(seed: int, tmp_path: Path) -> None:
    files = FaultyFiles(seed, short=0.2, torn=0.1, flipped=0.1, delay_s=0.001)
    served = await serve(tmp_path, files=files, seed=seed, requests=30)
    assert "corrupt" in served.failures
    assert served.clients.finished > 0


async def test_a_disk_that_is_full(tmp_path: Path) -> None:
    files = FaultyFiles()

    async def fill(manager: PagedKVCacheManager) -> None:
        files.capacity_nbytes = 3 * manager.params.bytes_per_offloaded_block

    served = await serve(tmp_path, files=files, meanwhile=fill)
    assert "no_space" in served.failures
    assert served.metrics.disk_blocks_written <= 3


@pytest.mark.parametrize("call", ["preadv", "pwritev"])
async def test_a_disk_with_bad_sectors(call: str, tmp_path: Path) -> None:
    files = FaultyFiles()
    for nth in range(2, 200, 5):
        files.fail("preadv" if call == "preadv" else "pwritev", errno.EIO, nth=nth)
    served = await serve(tmp_path, files=files)
    assert "io_error" in served.failures


async def test_a_disk_that_is_pulled_out(tmp_path: Path) -> None:
    files = FaultyFiles(crash_at=30)
    served = await serve(tmp_path, files=files)
    assert served.clients.finished > 40
    again = await serve(tmp_path)
    assert again.clients.finished > 40


def flipped_bytes(slab: Path) -> None:
    rng = Random(0)
    content = bytearray(slab.read_bytes())
    for first in range(0, len(content), 8):  # a block has as many bytes, or more
        content[first + rng.randrange(8)] ^= 1
    with slab.open("r+b") as file:
        file.write(content)


def blocks_in_each_others_places(slab: Path) -> None:
    content = slab.read_bytes()
    middle = len(content) // 2
    with slab.open("r+b") as file:
        file.write(content[middle:] + content[:middle])


def truncated(slab: Path) -> None:
    os.truncate(slab, 0)


Damage = Callable[[Path], None]
DAMAGES: list[Damage] = [flipped_bytes, blocks_in_each_others_places, truncated]
every_damage = pytest.mark.parametrize("damage", DAMAGES)


@every_damage
async def test_a_slab_that_is_damaged_while_it_is_open(damage: Damage, tmp_path: Path) -> None:
    async def go_wrong(manager: PagedKVCacheManager) -> None:
        while manager.get_num_used_disk_pages(0) < 10:
            await asyncio.sleep(0.001)
        damage(tmp_path / SLAB_FILE)

    served = await serve(tmp_path, meanwhile=go_wrong, requests=40)
    assert served.failures & {"corrupt", "io_error"}


@every_damage
async def test_a_slab_that_is_damaged_between_two_runs(damage: Damage, tmp_path: Path) -> None:
    await serve(tmp_path)
    damage(tmp_path / SLAB_FILE)
    again = await serve(tmp_path)
    assert again.failures or damage is truncated  # what is cut off is not even looked for


@pytest.mark.parametrize("share", [0.0, 0.5])
async def test_an_index_that_is_damaged_between_two_runs(
    share: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await serve(tmp_path)
    index = tmp_path / "index.sqlite"
    content = bytearray(index.read_bytes())
    start = int(share * len(content))
    content[start : start + 200] = Random(0).randbytes(200)
    index.write_bytes(content)
    again = await serve(tmp_path)
    assert again.clients.finished > 0
    caplog.clear()


async def test_a_warm_start_hits_what_was_written(tmp_path: Path) -> None:
    before = await serve(tmp_path)
    again = await serve(tmp_path)
    assert before.metrics.disk_blocks_written > 0
    assert again.metrics.disk_blocks_served > before.metrics.disk_blocks_served // 2


async def test_other_weights_hit_nothing_of_it(tmp_path: Path) -> None:
    await serve(tmp_path)
    manager = opened(tiered_setup(tmp_path, model_fingerprint="other weights"))
    assert manager.get_num_used_disk_pages(0) == 0
    await manager.aclose()


async def test_another_layout_is_refused_and_the_directory_stays(tmp_path: Path) -> None:
    await serve(tmp_path)
    with pytest.raises(LayoutMismatchError):
        opened(tiered_setup(tmp_path, page_size=8))
    again = await serve(tmp_path)
    assert again.metrics.disk_blocks_served > 0


async def test_a_second_manager_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async def open_again(_manager: PagedKVCacheManager) -> None:
        with pytest.raises(DirectoryInUseError, match=str(os.getpid())):
            opened(tiered_setup(tmp_path))

    served = await serve(tmp_path, meanwhile=open_again)
    assert served.clients.finished > 0


async def served_alone(manager: PagedKVCacheManager, pages: int, first_token: int = 0) -> int:
    """A single request of so many full pages; how many tokens of it were cached."""
    tokens = np.arange(first_token, first_token + 4 * pages + 1, dtype=np.int64)
    ctx = TextContext(max_length=1000, tokens=TokenBuffer(tokens))
    async with manager.admit(ctx):
        manager.runtime_inputs([[ctx]])
        ctx.update(7)
        manager.step([[ctx]])
    while manager.in_flight():
        await asyncio.sleep(0.001)
    return ctx.cached_prefix_length or 0


async def test_more_blocks_than_rows_pass_through_host_memory(tmp_path: Path) -> None:
    pages = 2 * PASSING_SLOTS
    manager = opened(tiered_setup(tmp_path, total_num_pages=40, host_pages=pages))
    await served_alone(manager, pages)
    await manager.aclose()
    manager = opened(tiered_setup(tmp_path, total_num_pages=40, host_pages=1))
    assert await served_alone(manager, pages) == 4 * pages
    await manager.aclose()


async def test_loads_share_the_rows_that_their_blocks_pass_through(tmp_path: Path) -> None:
    pages, others = PASSING_SLOTS + 2, 1000
    manager = opened(tiered_setup(tmp_path, total_num_pages=40, host_pages=2 * pages))
    await served_alone(manager, pages)
    await served_alone(manager, pages, others)
    await manager.aclose()
    manager = opened(tiered_setup(tmp_path, total_num_pages=40, host_pages=1))
    loads = served_alone(manager, pages), served_alone(manager, pages, others)
    assert set(await asyncio.gather(*loads)) == {4 * pages}
    await manager.aclose()


async def test_all_blocks_that_could_not_be_read_are_given_up(tmp_path: Path) -> None:
    manager = opened(tiered_setup(tmp_path))
    await served_alone(manager, 3)
    await manager.aclose()
    content = (tmp_path / SLAB_FILE).read_bytes()
    (tmp_path / SLAB_FILE).write_bytes(bytes(byte ^ 1 for byte in content))
    files = FaultyFiles()
    files.fail("preadv", errno.EIO)
    manager = opened(tiered_setup(tmp_path), files)
    assert await served_alone(manager, 3) == 0
    assert manager.get_metrics_aggregated().load_blocks_failed == 3
    await manager.aclose()


async def test_a_disk_call_that_is_cancelled_returns_when_it_is_over() -> None:
    queue, begun, go_on = IoQueue(depth=1), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        go_on.wait(60)

    task = asyncio.create_task(queue.run("read", [call]))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    early = task.done()  # until it is over, it writes to the caller's memory
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    queue.close()
    assert not early


def test_the_load_makes_the_tiers_work() -> None:
    # Under a virtual clock: what threads do in time is up to the machine.
    setup = tiered_setup(Path("simulated"))
    sizes = ("total_num_pages", "host_pages", "disk_pages", "disk_dir", "model_fingerprint")

    async def load() -> KVCacheMetrics:
        async with staged(**{name: getattr(setup, name) for name in sizes}) as stage:
            clients = Clients(stage.manager, setup, 0, num_prompts=PROMPTS, max_pages=4)
            await clients.run(clients=4, requests=40)
            await stage.settled()
            metrics = stage.manager.get_metrics_aggregated()
            await stage.manager.aclose()
            return metrics

    metrics = clock.run(load())
    assert metrics.host_blocks_served > 0
    assert metrics.disk_blocks_served > 0
