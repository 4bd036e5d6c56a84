"""The order in which vLLM's SimpleCPUOffloadConnector enqueued a store (vllm#45704).

A block counts as computed once the scheduler has accounted for its tokens. The worker took that to
mean that its KV is in memory, and started the copy to the host on a stream of its own. The kernel
that writes the block may still be waiting on the compute stream: then the host gets what was there
before, and whoever loads the block later gets garbled output. Since vllm#46278 the store waits for
an event that is recorded on the compute stream.

Run it, and check the log; give ``--fixed`` for the order since then::

    python examples/stream_order/vllm_45704.py > order.jsonl
    pagedkv streams check order.jsonl
"""

import argparse
import sys
from typing import TextIO

from pagedkv.conformance.stream_order import OrderLogWriter


def write_log(file: TextIO, *, fixed: bool) -> None:
    log = OrderLogWriter(file)
    # Step 1: the prompt fills block 7. The host does not wait for the forward.
    log.launch("compute", writes={"gpu blocks": [7]}, note="forward of step 1")
    # Step 2, a decode step: by the scheduler's books, block 7 is computed now.
    log.launch(
        "compute", reads={"gpu blocks": [7]}, writes={"gpu blocks": [8]}, note="forward of step 2"
    )
    # get_finished(), after the forward of step 2 was launched, submits the store of block 7.
    if fixed:
        compute_done = log.record("compute")
        log.wait("store", compute_done)
    log.copy(
        "store", reads={"gpu blocks": [7]}, writes={"cpu blocks": [0]}, note="store of block 7"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fixed", action="store_true", help="the order in which it is right")
    write_log(sys.stdout, fixed=parser.parse_args().fixed)
