"""What a forward gets from the manager: tables and lengths, checked against the model."""

from collections.abc import Iterator, Sequence
from typing import Any

from pagedkv.conformance.model import Model
from pagedkv.conformance.violation import expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.inputs import MultiKVCacheInputs
from pagedkv.reference.lengths import cache_length, query_length


# Any: inputs of a cache or of a tree, of whatever class the implementation has.
def inputs_per_device(inputs: Any) -> Iterator[Any]:
    """The inputs of every device of every cache."""
    if isinstance(inputs, MultiKVCacheInputs):
        for child in inputs.children.values():
            yield from inputs_per_device(child)
    else:
        yield from inputs.inputs


def check_inputs(model: Model, batches: Sequence[Sequence[TextContext]], inputs: Any) -> None:
    """Check every table and length (INPUT-4, INPUT-5).

    Raises:
        Violation: One of them is wrong.
    """
    shards = model.setup.shards
    null_page = model.setup.total_num_pages
    devices = list(inputs_per_device(inputs))
    for number, device in enumerate(devices):
        replica = number // shards % model.setup.replicas
        batch = batches[replica]
        table = device.lookup_table.tolist()
        expect("INPUT-4", len(table), len(batch), f"rows of the table of replica {replica}")
        needed = [_columns(model, ctx) for ctx in batch]
        columns = max([1, *needed])
        for ctx, row in zip(batch, table, strict=True):
            request = model.requests[ctx.request_id]
            used = 0 if request.dummy else _columns(model, ctx)
            # How many columns there are is for the checks of INPUT-4 to look at.
            columns = max(len(row), columns)
            wanted = request.pages[:used] + [null_page] * (columns - used)
            expect("INPUT-4", row, wanted, f"table row of {ctx.request_id!r}")
        lengths = [cache_length(ctx) for ctx in batch]
        expect("INPUT-5", device.cache_lengths.tolist(), lengths, "cache lengths")
        drafts = model.setup.num_draft_tokens
        queries = [query_length(ctx) for ctx in batch]
        valid = [cache_length(ctx) + query_length(ctx) + drafts for ctx in batch]
        expect(
            "INPUT-5", device.max_prompt_length.tolist(), [max(queries, default=0)], "longest query"
        )
        expect(
            "INPUT-5", device.max_cache_length.tolist(), [max(valid, default=0)], "longest cache"
        )


def _columns(model: Model, ctx: TextContext) -> int:
    """Columns that a request needs: its pages, and those that the next forward writes."""
    if model.requests[ctx.request_id].dummy:
        return 1
    written = -(-(cache_length(ctx) + query_length(ctx)) // model.setup.page_size)
    return max(model.required_pages(ctx), written)
