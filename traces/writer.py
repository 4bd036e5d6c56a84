"""Writes workload files."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from pagedkv.traces.atomic_file import replace_file
from pagedkv.traces.workload import WorkloadHeader, WorkloadRequest


def write_workload(
    path: Path | str, header: WorkloadHeader, requests: Iterable[WorkloadRequest]
) -> int:
    """Write a workload file, compressed if its name ends in ``.gz``; never half of one.

    Equal content gives equal bytes: nothing of the time or the file's name goes into it.

    Returns:
        The number of requests written.

    Raises:
        OSError: The file cannot be written; what was there before stays.
        TraceError: The requests come from a file that turns out to be malformed; likewise.
    """
    path = Path(path)
    with replace_file(path) as file:
        if path.suffix != ".gz":
            return write_lines(file, header, requests)
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            return write_lines(packed, header, requests)


def write_lines(
    file: BinaryIO | gzip.GzipFile, header: WorkloadHeader, requests: Iterable[WorkloadRequest]
) -> int:
    """Write the lines of a workload to an open binary file, and return the number of requests.

    Raises:
        InvalidFieldError: A request is one that a reader would refuse.
    """
    count = 0
    file.write(_line(header))
    for request in requests:
        request.check(header.block_size)
        file.write(_line(request))
        count += 1
    return count


def _line(record: WorkloadHeader | WorkloadRequest) -> bytes:
    return json.dumps(record.model_dump(exclude_none=True), separators=(",", ":")).encode() + b"\n"
