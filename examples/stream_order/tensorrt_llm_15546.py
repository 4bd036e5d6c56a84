"""The order in which TensorRT-LLM filled and copied its block offsets (TensorRT-LLM#15546).

The tables of block offsets were written into one pinned buffer and copied to the device from there,
asynchronously, in every iteration. Such a copy reads its source when it runs, not when it is
enqueued. With the overlap scheduler the host is an iteration ahead: it filled the buffer for the
next batch while the copy of the last one was still waiting, and the kernels of one batch read the
blocks of another. The fix takes a fresh buffer for each iteration.

Run it, and check the log; give ``--fixed`` for the order since then::

    python examples/stream_order/tensorrt_llm_15546.py > order.jsonl
    pagedkv streams check order.jsonl
"""

import argparse
import sys
from typing import TextIO

from pagedkv.conformance.stream_order import OrderLogWriter


def write_log(file: TextIO, *, fixed: bool) -> None:
    log = OrderLogWriter(file)
    for iteration in range(2):
        # A row of "pinned" is a buffer of its own, in which the tables of one batch have room.
        buffer = iteration if fixed else 0
        log.host(writes={"pinned": [buffer]}, note=f"offsets of batch {iteration}")
        log.copy(
            "compute",
            reads={"pinned": [buffer]},
            writes={"offsets": [0]},
            note=f"copy for batch {iteration}",
        )
        # The kernels index the cache by these offsets. On one stream, copy and kernels are ordered.
        log.launch("compute", reads={"offsets": [0]}, note=f"forward of batch {iteration}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fixed", action="store_true", help="the order in which it is right")
    write_log(sys.stdout, fixed=parser.parse_args().fixed)
