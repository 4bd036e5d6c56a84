"""The package's own workload format; see :mod:`pagedkv.traces.workload`."""

from pagedkv.traces.formats.format import Format, LineParser
from pagedkv.traces.oddities import Oddities
from pagedkv.traces.workload import WorkloadRequest


def _parser(first_line: str, block_size: int, oddities: Oddities) -> LineParser:
    return lambda text, number: WorkloadRequest.parse(text)


NATIVE = Format(
    name="pagedkv",
    signature=frozenset({"format", "version"}),
    block_size=None,
    first_line_is_header=True,
    ids_are_chained=True,
    parser=_parser,
)
