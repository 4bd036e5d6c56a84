"""What is written is read, in one life of a directory."""

import asyncio
import errno
import os
import resource
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from tests.engine.disk.held_files import HeldWrites
from tests.engine.disk.held_index import HeldIndex
from tests.engine.disk.stored_rows import stored_rows

from pagedkv.engine.disk import directory as directories
from pagedkv.engine.disk.block import Block
from pagedkv.engine.disk.errors import BlockDamagedError, BlockMissingError
from pagedkv.engine.disk.faulty_files import FaultyFiles, FileCall
from pagedkv.engine.disk.files import RealFiles

Disk = Any  # the fixture of conftest.py, which cannot be imported


async def test_what_was_written_is_read(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=0, b=7)
    assert await disk.holds(directory, "a", 0)
    assert await disk.holds(directory, "b", 7)


async def test_a_slot_is_overwritten(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=0, b=0)
    assert await disk.holds(directory, "b", 0)
    with pytest.raises(BlockDamagedError):
        await disk.holds(directory, "a", 0)


async def test_a_slot_that_holds_nothing_is_not_read(disk: Disk) -> None:
    directory = disk.open()
    with pytest.raises(BlockMissingError, match="61 is there no more"):
        await disk.holds(directory, "a", 0)


async def test_the_key_is_part_of_what_is_verified(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, ab=0)
    with pytest.raises(BlockDamagedError):
        await disk.holds(directory, "a", 0)


async def test_a_forgotten_block_is_gone_for_good(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=0, b=1)
    directory.forget(0)
    with pytest.raises(BlockMissingError):
        await disk.holds(directory, "a", 0)
    await directory.aclose()
    assert await disk.survivors() == [(1, "b")]


async def test_forgetting_all_leaves_nothing(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=0, b=1)
    await directory.flush()
    await disk.write(directory, c=2)
    directory.forget_all()
    await directory.flush()
    await disk.write(directory, d=1)
    await directory.aclose()
    assert await disk.survivors() == [(1, "d")]


class CountedWrites(RealFiles):
    """Files that remember where each call has written, and how many blocks."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def pwritev(self, fd: int, content: Sequence[memoryview], offset: int) -> int:
        self.calls.append((offset // 4096, len(content)))
        return super().pwritev(fd, content, offset)


async def test_blocks_in_adjacent_slots_are_one_call_of_the_system(disk: Disk) -> None:
    files = CountedWrites()
    directory = disk.open(files=files)
    assert not await disk.write_together(directory, a=3, b=1, c=2, d=6)
    assert files.calls == [(1, 3), (6, 1)]
    for name, slot in {"a": 3, "b": 1, "c": 2, "d": 6}.items():
        assert await disk.holds(directory, name, slot)


async def test_a_large_transfer_is_shared_among_the_threads(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_there = threading.Barrier(4)

    class Meeting(CountedWrites):
        def pwritev(self, fd: int, content: Sequence[memoryview], offset: int) -> int:
            all_there.wait(60)  # which needs all of them
            return super().pwritev(fd, content, offset)

    monkeypatch.setattr(directories, "MIN_PIECE_NBYTES", 0)
    files = Meeting()
    directory = disk.open(files=files, depth=4)
    assert not await disk.write_together(directory, **{f"block {n}": n for n in range(8)})
    assert sorted(files.calls) == [(0, 2), (2, 2), (4, 2), (6, 2)]


async def test_a_transfer_may_have_more_blocks_than_the_system_takes_in_a_call(disk: Disk) -> None:
    count = 2 * os.sysconf("SC_IOV_MAX") + 3
    directory = disk.open(capacity=count, block_nbytes=2)
    content = [slot.to_bytes(2) for slot in range(count)]
    into = [bytearray(2) for _ in range(count)]

    def blocks(buffers: Sequence[bytes | bytearray]) -> list[Block]:
        return [Block(slot, content[slot], memoryview(buffers[slot])) for slot in range(count)]

    assert not await directory.write(blocks(content))
    assert not await directory.read(blocks(into))
    assert into == content


async def test_a_block_that_cannot_be_written_takes_no_other_along(disk: Disk) -> None:
    files = FaultyFiles()
    directory = disk.open(files=files)
    files.fail("pwritev", errno.EIO, nth=2)
    failures = await disk.write_together(directory, a=0, b=1, c=2)
    assert [(key, error.errno) for key, error in failures.items()] == [(b"b", errno.EIO)]
    assert await disk.holds(directory, "a", 0)
    assert await disk.holds(directory, "c", 2)
    await directory.aclose()
    assert await disk.survivors() == [(0, "a"), (2, "c")]


async def test_blocks_that_cannot_be_read_or_are_damaged_take_no_other_along(disk: Disk) -> None:
    files = FaultyFiles()
    directory = disk.open(files=files)
    assert not await disk.write_together(directory, a=0, b=1, c=2, d=3)
    with open(disk.path / "blocks.slab", "r+b") as slab:
        slab.write(b"rubbish")
    files.fail("preadv", errno.EIO, nth=3)
    into = [bytearray(disk.block_nbytes) for _ in range(5)]
    names = ["d", "c", "b", "a", "missing"]
    blocks = [
        Block(slot, name.encode(), memoryview(buffer))
        for slot, name, buffer in zip((3, 2, 1, 0, 4), names, into, strict=True)
    ]
    failures = await directory.read(blocks)
    assert list(failures) == [b"c", b"a", b"missing"]
    assert isinstance(failures[b"c"], OSError)
    assert isinstance(failures[b"a"], BlockDamagedError)
    assert isinstance(failures[b"missing"], BlockMissingError)
    assert (into[0], into[2]) == (disk.content("d"), disk.content("b"))


async def test_a_slot_is_not_named_twice_in_one_call(disk: Disk) -> None:
    directory = disk.open()
    await disk.write(directory, a=0)
    with pytest.raises(ValueError, match="slot 0 is named twice"):
        await disk.write_together(directory, b=1, c=0, d=0)
    assert await disk.holds(directory, "a", 0)


@pytest.mark.parametrize("everything", [False, True])
async def test_a_block_forgotten_while_it_is_written_does_not_come_back(
    disk: Disk, everything: bool
) -> None:
    files = HeldWrites()
    directory = disk.open(files=files)
    write = asyncio.create_task(disk.write(directory, a=0))
    await asyncio.to_thread(files.begun.wait)
    if everything:
        directory.forget_all()
        await directory.flush()
    else:
        directory.forget(0)
    files.go_on.set()
    await write
    with pytest.raises(BlockMissingError):
        await disk.holds(directory, "a", 0)
    await directory.aclose()
    assert await disk.survivors() == []


@pytest.mark.parametrize("everything", [False, True])
async def test_a_block_forgotten_before_it_is_written_does_not_come_back(
    disk: Disk, everything: bool
) -> None:
    directory = disk.open()
    await disk.write(directory, a=0)
    await directory.flush()
    index = HeldIndex(directory._opened.index)
    write = asyncio.create_task(disk.write(directory, b=0))
    await index.begun()  # and the bytes of the block wait for it
    if everything:
        directory.forget_all()
    else:
        directory.forget(0)
    index.let_go()
    await write
    await directory.aclose()
    assert await disk.survivors() == []


async def test_a_cancelled_write_returns_when_the_memory_is_free_again(disk: Disk) -> None:
    files = HeldWrites()
    directory = disk.open(files=files)
    write = asyncio.create_task(disk.write(directory, a=0))
    await asyncio.to_thread(files.begun.wait)
    write.cancel()
    await asyncio.sleep(0)
    assert not write.done()
    write.cancel()  # impatience does not help
    await asyncio.sleep(0)
    assert not write.done()
    files.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await write
    assert files.offsets == [0]
    await directory.aclose()
    assert await disk.survivors() == []


async def test_a_slot_can_be_written_after_a_cancelled_write(disk: Disk) -> None:
    files = HeldWrites()
    directory = disk.open(files=files)
    write = asyncio.create_task(disk.write(directory, a=0))
    await asyncio.to_thread(files.begun.wait)
    write.cancel()
    files.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await write
    await disk.write(directory, b=0)
    assert await disk.holds(directory, "b", 0)


async def test_a_slot_is_not_written_twice_at_a_time(disk: Disk) -> None:
    files = HeldWrites()
    directory = disk.open(files=files)
    write = asyncio.create_task(disk.write(directory, a=0))
    await asyncio.to_thread(files.begun.wait)
    with pytest.raises(ValueError, match="slot 0 is being written"):
        await disk.write(directory, b=0)
    files.go_on.set()
    await write
    assert await disk.holds(directory, "a", 0)


@pytest.mark.parametrize("slot", [-1, 8])
async def test_a_slot_that_does_not_exist_is_refused(disk: Disk, slot: int) -> None:
    directory = disk.open()
    with pytest.raises(ValueError, match=f"slot is {slot}; use 0 to 7"):
        await disk.write(directory, a=slot)


async def test_a_block_of_another_size_is_refused(disk: Disk) -> None:
    directory = disk.open()
    with pytest.raises(ValueError, match="a block has 4096 bytes, but 3 were given"):
        await directory.write([Block(0, b"a", memoryview(b"abc"))])


async def test_a_full_disk_fails_the_write_and_nothing_else(disk: Disk) -> None:
    files = FaultyFiles()
    directory = disk.open(files=files)
    await disk.write(directory, a=0, b=1)
    files.capacity_nbytes = 0
    with pytest.raises(OSError) as failure:
        await disk.write(directory, c=1)
    assert failure.value.errno == errno.ENOSPC
    assert await disk.holds(directory, "a", 0)
    files.capacity_nbytes = None
    await disk.write(directory, c=2)
    await directory.aclose()
    assert await disk.survivors() == [(0, "a"), (2, "c")]


async def test_a_write_over_the_largest_file_fails_with_the_reason(disk: Disk) -> None:
    directory = disk.open()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * disk.block_nbytes, before[1]))
    try:
        with pytest.raises(OSError) as failure:
            await disk.write(directory, a=7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failure.value.errno == errno.EFBIG


@pytest.mark.parametrize("call", ["preadv", "pwritev"])
async def test_an_error_of_the_disk_is_told_as_it_is(disk: Disk, call: FileCall) -> None:
    files = FaultyFiles()
    directory = disk.open(files=files)
    await disk.write(directory, a=0)
    files.fail(call, errno.EIO)
    with pytest.raises(OSError) as failure:
        await disk.write(directory, b=1)
        await disk.holds(directory, "a", 0)
    assert failure.value.errno == errno.EIO
    assert await disk.holds(directory, "a", 0)


async def test_short_transfers_are_continued(disk: Disk) -> None:
    directory = disk.open(files=FaultyFiles(short=0.7))
    assert not await disk.write_together(directory, **{f"block {slot}": slot for slot in range(8)})
    for slot in range(8):
        assert await disk.holds(directory, f"block {slot}", slot)


@pytest.mark.parametrize("files", [FaultyFiles(torn=1.0), FaultyFiles(flipped=1.0)])
async def test_a_write_that_lied_is_noticed(disk: Disk, files: FaultyFiles) -> None:
    directory = disk.open(files=files)
    await disk.write(directory, a=0)
    files.torn = files.flipped = 0
    with pytest.raises(BlockDamagedError):
        await disk.holds(directory, "a", 0)


async def test_a_flip_on_the_way_in_is_noticed(disk: Disk) -> None:
    files = FaultyFiles()
    directory = disk.open(files=files)
    await disk.write(directory, a=0)
    files.flipped = 1.0
    with pytest.raises(BlockDamagedError):
        await disk.holds(directory, "a", 0)


async def test_an_index_that_cannot_be_written_fails_no_block(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    directory = disk.open()
    directory._opened.index._database.execute("PRAGMA query_only = ON")
    await disk.write(directory, a=0)
    await directory.flush()
    await disk.write(directory, b=0, c=1)
    await directory.flush()
    assert await disk.holds(directory, "b", 0)
    assert caplog.text.count("cannot be written") == 1
    directory._opened.index._database.execute("PRAGMA query_only = OFF")
    await directory.aclose()
    assert await disk.survivors() == [(0, "b"), (1, "c")]


async def test_the_row_of_the_old_block_is_gone_before_its_bytes(disk: Disk) -> None:
    rows_at_write: list[dict[int, bytes]] = []

    class Watching(RealFiles):
        def pwritev(self, fd: int, content: Sequence[memoryview], offset: int) -> int:
            rows_at_write.append(stored_rows(disk.path))
            return super().pwritev(fd, content, offset)

    directory = disk.open(files=Watching())
    await disk.write(directory, a=0)
    await directory.flush()
    await disk.write(directory, b=0)
    assert rows_at_write == [{}, {}]


@pytest.mark.parametrize("end", ["overwritten", "forgotten", "reset"])
async def test_a_slot_is_not_overwritten_before_its_old_row_is_gone(disk: Disk, end: str) -> None:
    """Or a process killed in between leaves a row that stands for other bytes."""
    directory = disk.open(depth=1)
    await disk.write(directory, a=0)
    await directory.flush()
    index = HeldIndex(directory._opened.index)
    if end == "forgotten":
        directory.forget(0)
        await index.begun()
    elif end == "reset":
        directory.forget_all()
    write = asyncio.create_task(disk.write(directory, b=0))
    await disk.standstill(directory)
    on_disk = memoryview(bytearray(disk.block_nbytes))
    directory._slab.read(0, [on_disk])
    still_there = on_disk == disk.content("a")
    index.let_go()
    await write
    assert still_there
    assert await disk.holds(directory, "b", 0)
