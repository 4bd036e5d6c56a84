"""A small offloader on CUDA streams that logs what it enqueues; it needs a GPU.

Every method enqueues one thing, and says in the log what that was::

    python examples/stream_order/torch_offload.py > order.jsonl
    pagedkv streams check order.jsonl

With ``--forgetful`` the onload does not wait for the forward that still reads its pages.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TextIO

import torch

from pagedkv.conformance.stream_order import OrderLogWriter

NUM_PAGES, NUM_SLOTS, PAGE_NBYTES = 8, 8, 1 << 20


class Offloader:
    def __init__(self, file: TextIO) -> None:
        self.pages = torch.zeros(NUM_PAGES, PAGE_NBYTES, dtype=torch.uint8, device="cuda")
        self.slots = torch.zeros(NUM_SLOTS, PAGE_NBYTES, dtype=torch.uint8).pin_memory()
        self.streams = {name: torch.cuda.Stream() for name in ("compute", "offload", "onload")}
        self.log = OrderLogWriter(file)
        torch.cuda.synchronize()  # what was enqueued so far is over, and needs no line

    def forward(self, reads: Sequence[int], writes: Sequence[int]) -> None:
        """Stands for a model: what it reads decides what it writes."""
        with torch.cuda.stream(self.streams["compute"]):
            self.pages[list(writes)] = self.pages[list(reads)].sum(0, dtype=torch.uint8) + 1
        self.log.launch("compute", reads={"pages": reads}, writes={"pages": writes})

    def offload(self, page: int, slot: int) -> None:
        with torch.cuda.stream(self.streams["offload"]):
            self.slots[slot].copy_(self.pages[page], non_blocking=True)
        self.log.copy("offload", reads={"pages": [page]}, writes={"slots": [slot]})

    def onload(self, slot: int, page: int) -> None:
        with torch.cuda.stream(self.streams["onload"]):
            self.pages[page].copy_(self.slots[slot], non_blocking=True)
        self.log.copy("onload", reads={"slots": [slot]}, writes={"pages": [page]})

    def wait(self, stream: str, other: str) -> None:
        """What is enqueued on ``stream`` from now on runs after all that is on ``other`` now."""
        event = torch.cuda.Event()
        event.record(self.streams[other])
        number = self.log.record(other)
        self.streams[stream].wait_event(event)
        self.log.wait(stream, number)

    def read(self, slot: int) -> int:
        """A byte of a slot, read by the CPU once what was offloaded has arrived."""
        self.streams["offload"].synchronize()
        self.log.wait_stream("host", "offload")
        self.log.host(reads={"slots": [slot]})
        return int(self.slots[slot, 0])


def main(file: TextIO, *, forgetful: bool) -> None:
    cache = Offloader(file)
    cache.forward(reads=[0], writes=[1, 2])
    cache.wait("offload", "compute")
    cache.offload(page=1, slot=0)
    cache.forward(reads=[1, 2], writes=[3])
    # Page 2 is handed out again: the forward above may not have read it yet.
    if not forgetful:
        cache.wait("onload", "compute")
    cache.wait("onload", "offload")
    cache.onload(slot=0, page=2)
    cache.wait("compute", "onload")
    cache.forward(reads=[2], writes=[4])
    assert cache.read(slot=0) == 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--forgetful", action="store_true", help="leave a wait out")
    main(sys.stdout, forgetful=parser.parse_args().forgetful)
