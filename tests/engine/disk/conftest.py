"""A small disk tier in a temporary directory."""

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pagedkv.engine.disk.block import Block, Failures
from pagedkv.engine.disk.directory import BlockDirectory
from pagedkv.engine.disk.files import REAL_FILES, Files


class Disk:
    """Opens one directory again and again; what is still open at the end of a test is closed."""

    block_nbytes = 4096

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened: list[BlockDirectory] = []

    def open(
        self,
        *,
        path: Path | None = None,
        layout: str = "layout",
        model: str | None = "model",
        capacity: int = 8,
        block_nbytes: int = block_nbytes,
        direct_io: bool = False,
        depth: int = 4,
        files: Files = REAL_FILES,
    ) -> BlockDirectory:
        directory = BlockDirectory.open(
            path or self.path,
            layout=layout,
            model=model,
            capacity=capacity,
            block_nbytes=block_nbytes,
            direct_io=direct_io,
            depth=depth,
            files=files,
        )
        self.opened.append(directory)
        return directory

    def content(self, name: str) -> memoryview:
        """The bytes of the block of this name."""
        return memoryview(hashlib.shake_128(name.encode()).digest(self.block_nbytes))

    async def write(self, directory: BlockDirectory, **slots: int) -> None:
        """Write blocks, one after the other; each is named by its key. Raises what goes wrong."""
        for name, slot in slots.items():
            block = Block(slot, name.encode(), self.content(name))
            for error in (await directory.write([block])).values():
                raise error

    async def write_together(self, directory: BlockDirectory, **slots: int) -> Failures:
        """Write blocks in one call."""
        return await directory.write(
            [Block(slot, name.encode(), self.content(name)) for name, slot in slots.items()]
        )

    async def holds(self, directory: BlockDirectory, name: str, slot: int) -> bool:
        """Whether a slot gives back the block of this name. Raises what goes wrong."""
        into = bytearray(self.block_nbytes)
        block = Block(slot, name.encode(), memoryview(into))
        for error in (await directory.read([block])).values():
            raise error
        return into == self.content(name)

    async def standstill(self, directory: BlockDirectory) -> None:
        """Return when all has happened that nothing holds; for a directory of depth 1."""
        for _ in range(10):
            await asyncio.sleep(0)
        await directory._io.run("write", [lambda: None])  # behind all others

    async def survivors(self, capacity: int = 8) -> list[tuple[int, str]]:
        """What a clean close and another opening have left, oldest first."""
        directory = self.open(capacity=capacity)
        found = [(slot, key.decode()) for slot, key in directory.survivors]
        for slot, name in found:
            assert await self.holds(directory, name, slot)
        await directory.aclose()
        return found


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    disk = Disk(tmp_path / "tier")
    yield disk
    for directory in disk.opened:
        await directory.aclose()
    assert [thread.name for thread in threading.enumerate() if "pagedkv" in thread.name] == []


@pytest.fixture(autouse=True)
def nothing_is_left_open(tmp_path: Path) -> Iterator[None]:
    yield
    descriptors = Path("/proc/self/fd").iterdir()
    targets = [os.readlink(fd) for fd in descriptors if os.path.lexists(fd)]
    assert [target for target in targets if target.startswith(str(tmp_path))] == []


@pytest.fixture(autouse=True)
def the_event_loop_reports_nothing(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What goes wrong in a callback, or in a task that nobody looks at, reaches only the log."""
    yield
    records = [*caplog.get_records("call"), *caplog.get_records("teardown")]
    assert [record.getMessage() for record in records if record.name == "asyncio"] == []
