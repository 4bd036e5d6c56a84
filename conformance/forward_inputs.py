"""What a forward gets from the manager: tables and lengths, as they have to be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pagedkv.conformance.violation import expect
from pagedkv.reference.context import Context
from pagedkv.reference.inputs import MultiKVCacheInputs
from pagedkv.reference.lengths import cache_length, ceil_div, query_length
from pagedkv.traces.manager_setup import ManagerSetup


# Any: inputs of a cache or of a tree, of whatever class the implementation has.
def inputs_per_device(inputs: Any) -> Iterator[Any]:
    """The inputs of every device of every cache."""
    if isinstance(inputs, MultiKVCacheInputs):
        for child in inputs.children.values():
            yield from inputs_per_device(child)
    else:
        yield from inputs.inputs


@dataclass(frozen=True)
class WantedRow:
    """What a forward has to be told of one request."""

    name: str
    """The request, for people."""
    pages: tuple[int, ...]
    """The pages that its row begins with; those of a dummy are none."""
    columns: int
    """Columns that it needs."""
    cached: int
    """Tokens before its window."""
    query: int
    """Tokens that the forward computes."""

    @classmethod
    def of(cls, ctx: Context, pages: Sequence[int], required: int, page_size: int) -> "WantedRow":
        """Of a request as it is now, before its context goes on; ``required``: pages of LEN-1."""
        cached, query = cache_length(ctx), query_length(ctx)
        columns = max(required, ceil_div(cached + query, page_size))
        return cls(str(ctx.request_id), tuple(pages[:columns]), columns, cached, query)

    @classmethod
    def of_dummy(cls, ctx: Context) -> "WantedRow":
        """Of a request that only fills a batch (CLAIM-4)."""
        return cls(str(ctx.request_id), (), 1, cache_length(ctx), query_length(ctx))


# Any: see inputs_per_device.
def check_inputs(inputs: Any, setup: ManagerSetup, replica: int, rows: Sequence[WantedRow]) -> None:
    """Check every table and length of a replica (INPUT-4, INPUT-5).

    Args:
        inputs: What the manager has given for all replicas.
        setup: How it was set up.
        replica: Which one is looked at.
        rows: What its forward has to be told.

    Raises:
        Violation: Something of it is wrong.
    """
    for number, device in enumerate(inputs_per_device(inputs)):
        if number // setup.shards % setup.replicas == replica:
            _check_device(device, setup, rows)


def _check_device(device: Any, setup: ManagerSetup, rows: Sequence[WantedRow]) -> None:
    null_page = setup.total_num_pages
    table = device.lookup_table.tolist()
    expect("INPUT-4", len(table), len(rows), "rows of the table")
    columns = max([1, *(row.columns for row in rows)])
    for row, entries in zip(rows, table, strict=True):
        # How many columns there are is for the checks of INPUT-4 to look at.
        columns = max(len(entries), columns)
        expected = [*row.pages, *[null_page] * (columns - len(row.pages))]
        expect("INPUT-4", entries, expected, f"table row of {row.name!r}")
    lengths = [row.cached for row in rows]
    expect("INPUT-5", device.cache_lengths.tolist(), lengths, "cache lengths")
    longest = max((row.query for row in rows), default=0)
    expect("INPUT-5", device.max_prompt_length.tolist(), [longest], "longest query")
    valid = max((row.cached + row.query + setup.num_draft_tokens for row in rows), default=0)
    expect("INPUT-5", device.max_cache_length.tolist(), [valid], "longest cache")
