"""The order in which vLLM's SimpleCPUOffloadConnector enqueued a load (vllm#47282).

A request ends, and its blocks are handed out again as the targets of a load while the forward that
reads them is still waiting on the compute stream. Stores waited for the compute stream by then
(vllm#46278), loads did not: they overwrote what the earlier request was still attending to. The
fix that the issue asks for (vllm#47324, vllm#50863) is to let loads wait for the same event.

Run it, and check the log; give ``--fixed`` for the order with that fix::

    python examples/stream_order/vllm_47282.py > order.jsonl
    pagedkv streams check order.jsonl
"""

import argparse
import sys
from typing import TextIO

from pagedkv.conformance.stream_order import OrderLogWriter


def write_log(file: TextIO, *, fixed: bool) -> None:
    log = OrderLogWriter(file)
    # Step 1: request a attends to blocks 1 to 3, and writes its last token. Then it has ended.
    log.launch(
        "compute",
        reads={"gpu blocks": [1, 2, 3]},
        writes={"gpu blocks": [3]},
        note="last forward of request a",
    )
    # Step 2: request b gets blocks 1 and 2, and hits two blocks in host memory. The store of a's
    # last block and the load of b's blocks are submitted together.
    compute_done = log.record("compute")
    log.wait("store", compute_done)
    log.copy(
        "store", reads={"gpu blocks": [3]}, writes={"cpu blocks": [9]}, note="store for request a"
    )
    if fixed:
        log.wait("load", compute_done)
    log.copy(
        "load",
        reads={"cpu blocks": [4, 5]},
        writes={"gpu blocks": [1, 2]},
        note="load for request b",
    )
    # Step 3: the scheduler was told that the load has ended, which it learns from its event.
    loaded = log.record("load")
    log.wait("host", loaded)
    log.launch(
        "compute",
        reads={"gpu blocks": [1, 2]},
        writes={"gpu blocks": [4]},
        note="first forward of request b",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fixed", action="store_true", help="the order in which it is right")
    write_log(sys.stdout, fixed=parser.parse_args().fixed)
