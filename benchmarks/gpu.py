"""How close copies come to plain pinned ones on a GPU, and what they cost the forwards beside them.

    python -m benchmarks.gpu [--mib 512] [--rounds 15] [--json FILE]
    python -m benchmarks.gpu --dry-run

Pages move as the engine moves them: on ``CudaStreams``, to and from a pinned ``HostPool``, 64 in a
transfer. The plain copy knows neither pages nor events: one pinned tensor each way, on a stream of
its own. Forwards are timed by events of the GPU. Rounds are interleaved, and medians count.

Where there is no CUDA, one line says so. With ``--dry-run`` the same code runs on threads of the
CPU with tiny sizes, to see that it works: its numbers mean nothing.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from random import Random
from statistics import median
from time import perf_counter
from typing import Literal, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.report import Report, arguments
from pagedkv.engine.host_pool import HostPool
from pagedkv.engine.movers.units import copies
from pagedkv.engine.streams.batch_copies import BatchCopies
from pagedkv.engine.streams.cuda import CudaStreams
from pagedkv.engine.streams.cuda_driver import TorchCudaDriver
from pagedkv.engine.streams.stream import Memory, StreamEvent, StreamName, Streams
from pagedkv.engine.streams.threads import ThreadStreams
from pagedkv.reference.device import DeviceRef, InferenceSession

TRANSFER = 64
"""Pages of one transfer."""

IN_FLIGHT = 8
"""Transfers that are on a stream at a time, beside forwards."""

WAYS: dict[str, Sequence[StreamName]] = {
    "to the device": ["onload"],
    "from the device": ["offload"],
    "both ways": ["onload", "offload"],
}
"""Streams that are busy at once, by what a report calls them."""

Layout: TypeAlias = Literal["adjacent", "scattered"]
LAYOUTS: tuple[Layout, ...] = ("adjacent", "scattered")

SMALL_KIB, LARGE_KIB = 16, 512
"""Pages that ask most of the host; and those from which on copies are held to their budget."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    nbytes: int = 512 * 2**20
    """Bytes that a round moves each way."""
    page_kib: Sequence[int] = (16, 64, 256, 512, 1024, 4096)
    """Sizes of pages, in KiB."""
    rounds: int = 15
    """How often everything is measured, after one round that does not count."""
    layers: int = 20
    """Matrix products and attentions of a forward."""
    width: int = 8192
    """Rows and columns of the matrices."""
    tokens: int = 4096
    """Tokens that attend to each other, in 8 sequences and 32 heads of 128."""


TINY = Sizes(nbytes=2**20, page_kib=(16, 512), rounds=2, layers=2, width=32, tokens=8)
"""For a dry run."""


class OneByOne(TorchCudaDriver):
    """A driver that copies every row by itself, as those before CUDA 12.8 have to."""

    def __init__(self, session: InferenceSession) -> None:
        super().__init__(session)
        self._batch_copies = None


class PlainCopies:
    """One tensor each way, as large as a round."""

    def __init__(self, device: DeviceRef, nbytes: int) -> None:
        self._tensors: dict[StreamName, tuple[torch.Tensor, torch.Tensor]] = {}
        # A session each: it has a stream of its own.
        self._sessions: dict[StreamName, InferenceSession] = {}
        for way in ("onload", "offload"):
            on_device = torch.zeros(nbytes, dtype=torch.uint8, device=device.to_device())
            on_host = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=device.is_gpu())
            pair = (on_device, on_host) if way == "onload" else (on_host, on_device)
            self._tensors[way] = pair
            self._sessions[way] = InferenceSession([device])

    def seconds(self, ways: Sequence[StreamName]) -> float:
        """Copy, and say how long it took."""
        began = perf_counter()
        for way in ways:
            target, source = self._tensors[way]
            self._sessions[way].launch(target.copy_, source, True)
        for way in ways:
            if (stream := self._sessions[way].stream()) is not None:
                stream.synchronize()
        return perf_counter() - began


class Pages:
    """Pages of a device and slots of host memory, different ones for each way."""

    def __init__(self, device: DeviceRef, page_nbytes: int, count: int) -> None:
        self._pool = HostPool(2 * count, page_nbytes, pin=device.is_gpu(), field="mib")
        self._pool.wait_registered()
        rows = torch.zeros(2 * count, page_nbytes, dtype=torch.uint8, device=device.to_device())
        self._host = Memory("host", self._pool.rows)
        self._device = Memory("device", rows)
        self._count = count
        self.nbytes = count * page_nbytes
        """Bytes that a round moves each way."""
        self.transfer_nbytes = min(TRANSFER, count) * page_nbytes
        """Bytes of one transfer."""

    def transfers(self, way: StreamName, layout: Layout) -> list[tuple[list[int], list[int]]]:
        """Pages and slots of all transfers of a round."""
        first = 0 if way == "onload" else self._count
        pages = list(range(first, first + self._count))
        slots = pages.copy()
        if layout == "scattered":
            Random("pages").shuffle(pages)
            Random("slots").shuffle(slots)
        starts = range(0, self._count, TRANSFER)
        return [(pages[n : n + TRANSFER], slots[n : n + TRANSFER]) for n in starts]

    def enqueue(
        self, streams: Streams, way: StreamName, pages: Sequence[int], slots: Sequence[int]
    ) -> StreamEvent:
        """Enqueue one transfer."""
        if way == "onload":
            moved = copies(self._device, pages, self._host, slots)
        else:
            moved = copies(self._host, slots, self._device, pages)
        return streams.copy(0, way, moved)

    async def seconds(self, streams: Streams, ways: Sequence[StreamName], layout: Layout) -> float:
        """Move everything, and say how long it took."""
        rounds = [[(way, *transfer) for transfer in self.transfers(way, layout)] for way in ways]
        last: dict[StreamName, StreamEvent] = {}
        began = perf_counter()
        for transfers in zip(*rounds, strict=True):
            for way, pages, slots in transfers:
                last[way] = self.enqueue(streams, way, pages, slots)
        for event in last.values():
            await streams.finished(event)
        return perf_counter() - began

    def close(self) -> None:
        """Give the host memory back; nothing may be in flight."""
        self._pool.close()


@dataclass
class Traffic:
    """Transfers that go on both ways until they are told to stop."""

    pages: Pages
    """What they move."""
    streams: Streams
    """Where."""
    nbytes: int = 0
    """Bytes that have arrived."""
    stopping: bool = field(default=False, init=False)
    """Whether they have been told."""

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Traffic for the length of a scope, full from its beginning."""
        async with asyncio.TaskGroup() as tasks:
            for way in WAYS["both ways"]:
                tasks.create_task(self._move(way))
            while not self.nbytes:
                await asyncio.sleep(0)
            yield
            self.stopping = True

    async def _move(self, way: StreamName) -> None:
        in_flight: deque[StreamEvent] = deque()
        for pages, slots in cycle(self.pages.transfers(way, "scattered")):
            if self.stopping:
                break
            in_flight.append(self.pages.enqueue(self.streams, way, pages, slots))
            await asyncio.sleep(0)  # an event that is done does not let others run
            if len(in_flight) == IN_FLIGHT:
                await self.streams.finished(in_flight.popleft())
                self.nbytes += self.pages.transfer_nbytes
        for event in in_flight:
            await self.streams.finished(event)


class Forwards:
    """Matrix products and attentions, launched on the session's compute stream."""

    def __init__(self, session: InferenceSession, sizes: Sizes) -> None:
        self._session = session
        self._layers = sizes.layers
        gpu = session.devices[0].is_gpu()
        like = torch.empty(
            0,
            dtype=torch.bfloat16 if gpu else torch.float32,
            device=session.devices[0].to_device(),
        )
        # Not constants: those take a GPU so little power that it runs faster than it ever does.
        self._matrix = like.new_empty(sizes.width, sizes.width).normal_()
        self._product = torch.empty_like(self._matrix)
        self._attending = like.new_empty(8, 32, sizes.tokens, 128).normal_()

    async def milliseconds(self, streams: Streams) -> float:
        """Run one forward, and say how long the device took for it."""
        begin = self._point()
        self._session.launch(self._run)
        end = self._point()
        await streams.finished(streams.record(0))
        if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            return float(begin.elapsed_time(end))
        assert isinstance(begin, float) and isinstance(end, float), "both on the same device"
        return (end - begin) * 1e3

    def _run(self) -> None:
        for _ in range(self._layers):
            torch.mm(self._matrix, self._matrix, out=self._product)
            scaled_dot_product_attention(
                self._attending, self._attending, self._attending, is_causal=True
            )

    def _point(self) -> torch.cuda.Event | float:
        """Now, on the compute stream's clock."""
        if self._session.devices[0].is_cpu():
            return perf_counter()
        # torch declares no types for this constructor.
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._session.launch(event.record)
        return event


class Medians:
    """What was measured over and over, by subject."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self.counting = False
        """Whether the first round, which warms everything up, is over."""

    def add(self, subject: str, value: float) -> None:
        """Note one round's value."""
        if self.counting:
            self._values.setdefault(subject, []).append(value)

    def report(self, report: Report, unit: str) -> None:
        """Put the medians into a report."""
        for subject, values in self._values.items():
            report.measured(subject, median(values), unit)


class Bench:
    """A device, its streams, and what has been measured on it."""

    def __init__(self, device: DeviceRef, sizes: Sizes) -> None:
        self.session = InferenceSession([device])
        self.sizes = sizes
        self.report = Report(f"copies and forwards on {name_of(device)}")
        self.streams: dict[str, Streams] = {}
        """By the way in which rows are copied."""
        if device.is_cpu():
            self.streams = {"batched": ThreadStreams(1), "one by one": ThreadStreams(1)}
            return
        if BatchCopies.load() is not None:
            self.streams["batched"] = CudaStreams(self.session)
        self.streams["one by one"] = CudaStreams(self.session, OneByOne(self.session))

    @property
    def usual(self) -> str:
        """How the engine copies rows on this machine."""
        return next(iter(self.streams))

    async def run(self) -> Report:
        """Measure everything."""
        await self.measure_copies()
        await self.measure_forwards()
        for streams in self.streams.values():
            await streams.aclose()
        return self.report

    async def measure_copies(self) -> None:
        """Bandwidth by size of the pages, each way alone and both at once."""
        sizes, rates = self.sizes, Medians()
        plain = PlainCopies(self.session.devices[0], sizes.nbytes)
        for kib in sizes.page_kib:
            pages = Pages(self.session.devices[0], kib * 1024, sizes.nbytes // (kib * 1024))
            for round_number in range(sizes.rounds + 1):
                rates.counting = round_number > 0
                for direction, ways in WAYS.items():
                    gib = len(ways) / 2**30
                    plain_rate = gib * sizes.nbytes / plain.seconds(ways)
                    rates.add(plainly(kib, direction), plain_rate)
                    for subject, streams, layout in self._cases(kib, direction):
                        seconds = await pages.seconds(streams, ways, layout)
                        rates.add(subject, gib * pages.nbytes / seconds)
            pages.close()
        rates.report(self.report, "GiB/s")
        for kib in sizes.page_kib:
            if kib >= LARGE_KIB:
                for layout in LAYOUTS:
                    subject = copied(kib, layout, self.usual, "both ways")
                    self.report.compared(subject, plainly(kib, "both ways"), at_least=0.95)

    async def measure_forwards(self) -> None:
        """What traffic both ways costs a forward: large pages, and small ones in every way."""
        times, rates, comparisons = Medians(), Medians(), list[tuple[str, str]]()
        forwards = Forwards(self.session, self.sizes)
        cases = [(LARGE_KIB, self.usual), *((SMALL_KIB, name) for name in self.streams)]
        for kib, name in cases:
            streams = self.streams[name]
            pages = Pages(self.session.devices[0], kib * 1024, self.sizes.nbytes // (kib * 1024))
            subject = f"forward beside copies of {kib} KiB pages, {name}"
            alone = f"forward alone, in turns with {kib} KiB pages, {name}"
            for round_number in range(self.sizes.rounds + 1):
                times.counting = rates.counting = round_number > 0
                times.add(alone, await forwards.milliseconds(streams))
                traffic = Traffic(pages, streams)
                async with traffic.flowing():
                    before, began = traffic.nbytes, perf_counter()
                    times.add(subject, await forwards.milliseconds(streams))
                    rate = (traffic.nbytes - before) / (perf_counter() - began)
                rates.add(f"copies beside forwards, {kib} KiB pages, {name}", rate / 2**30)
            pages.close()
            comparisons.append((subject, alone))
        times.report(self.report, "ms")
        rates.report(self.report, "GiB/s")
        for subject, alone in comparisons:
            self.report.compared(subject, alone, at_most=1.03)

    def _cases(self, kib: int, direction: str) -> Iterator[tuple[str, Streams, Layout]]:
        """What is measured for pages of a size: all ways to copy rows for the small ones."""
        for name in self.streams if kib == SMALL_KIB else [self.usual]:
            for layout in LAYOUTS:
                yield copied(kib, layout, name, direction), self.streams[name], layout


def copied(kib: int, layout: Layout, name: str, direction: str) -> str:
    """What a report calls the rate of our copies."""
    return f"{kib} KiB pages, {layout}, {name}, {direction}"


def plainly(kib: int, direction: str) -> str:
    """What a report calls the rate of plain copies in the same rounds."""
    return f"plain copies beside {kib} KiB pages, {direction}"


def name_of(device: DeviceRef) -> str:
    """What a report calls a device."""
    if device.is_cpu():
        return "threads of the CPU, A DRY RUN: these numbers mean nothing"
    return f"{torch.cuda.get_device_name(device.to_device())}, CUDA {torch.version.cuda}"


def main() -> None:
    """Measure, print, and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--mib", type=int, default=512, help="moved each way in a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU; means nothing")
    options = parser.parse_args()
    if options.dry_run:
        bench = Bench(DeviceRef.CPU(), TINY)
    elif torch.cuda.is_available():
        sizes = replace(Sizes(), nbytes=options.mib * 2**20, rounds=options.rounds)
        bench = Bench(DeviceRef.GPU(), sizes)
    else:
        print("skipped: torch finds no CUDA device; --dry-run tries the code without one")
        return
    asyncio.run(bench.run()).finish(options.json)


if __name__ == "__main__":
    main()
