"""Spans: one per allocation under the caller's, one per transfer under the call that caused it."""

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.engine.conftest import Making, prompt, serve

from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine.observability.spans import record_spans
from pagedkv.reference import InsufficientBlocksError


class Exported:
    """A provider that keeps the spans that have ended."""

    def __init__(self) -> None:
        self.provider = TracerProvider()
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def exported() -> Exported:
    return Exported()


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def attributes_of(span: ReadableSpan) -> dict[str, object]:
    assert span.attributes is not None
    return {name.removeprefix("pagedkv."): value for name, value in span.attributes.items()}


async def drained(manager: PagedKVCacheManager) -> None:
    while manager.in_flight():
        await asyncio.sleep(0.001)


async def with_content_below(make: Making, manager: PagedKVCacheManager) -> None:
    """Two blocks of ``prompt(2)`` are in host memory, and no longer on the device."""
    await serve(manager, make.request(prompt(2), "first"))
    await drained(manager)
    await serve(manager, make.request(prompt(15, start=100), "fills the device"))
    await drained(manager)


async def test_alloc_is_a_child_of_the_callers_span_and_loads_are_its_children(
    make: Making, exported: Exported
) -> None:
    manager = make.engine(host_pages=20)
    await with_content_below(make, manager)
    record_spans(manager, exported.provider)
    with exported.tracer.start_as_current_span("request") as caller:
        async with manager.admit(make.request(prompt(2), "again")):
            assert trace.get_current_span() is caller
    (alloc,) = exported.named("pagedkv.alloc")
    (load,) = exported.named("pagedkv.transfer")
    assert parent_of(alloc) == caller.get_span_context().span_id
    assert parent_of(load) == id_of(alloc)
    shown = attributes_of(alloc)
    assert (shown["hits.host"], shown["hits.device"], shown["retries"]) == (2, 0, 0)
    assert shown["request"] == "again"
    nbytes = 2 * manager.params.bytes_per_offloaded_block
    assert attributes_of(load) == {
        "transfer": attributes_of(load)["transfer"],
        "way": "host_to_device",
        "blocks": 2,
        "bytes": nbytes,
    }
    await manager.aclose()


async def test_tasks_have_parents_of_their_own(make: Making, exported: Exported) -> None:
    manager = make.engine(total_num_pages=4)
    record_spans(manager, exported.provider)
    callers: dict[str, int] = {}

    async def request(name: str, start: int) -> None:
        with exported.tracer.start_as_current_span(name) as caller:
            callers[name] = caller.get_span_context().span_id
            await serve(manager, make.request(prompt(2, start), name))

    await asyncio.gather(*(request(f"r{n}", 20 * n) for n in range(4)))
    allocs = {str(attributes_of(span)["request"]): span for span in exported.named("pagedkv.alloc")}
    assert {name: parent_of(span) for name, span in allocs.items()} == callers
    await manager.aclose()


async def test_offload_is_a_child_of_the_span_around_step(make: Making, exported: Exported) -> None:
    manager = make.engine(host_pages=8)
    record_spans(manager, exported.provider)
    with exported.tracer.start_as_current_span("iteration") as iteration:
        await serve(manager, make.request(prompt(2), "r"))
    await drained(manager)
    (offload,) = exported.named("pagedkv.transfer")
    assert parent_of(offload) == iteration.get_span_context().span_id
    await manager.aclose()


async def test_refusals_and_failures_are_errors(make: Making, exported: Exported) -> None:
    manager = make.engine(total_num_pages=4, host_pages=8, auto_land=False)
    record_spans(manager, exported.provider)
    manager.claim("large", 0)
    with pytest.raises(InsufficientBlocksError):
        await manager.alloc(make.request(prompt(9), "large"), 0)
    await serve(manager, make.request(prompt(2), "r"))
    manager.fail(manager.in_flight()[0].id, "no_space")
    refused, done = exported.named("pagedkv.alloc")
    (offload,) = exported.named("pagedkv.transfer")
    assert not refused.status.is_ok
    assert done.status.is_ok
    assert offload.status.description == "no_space"
    await manager.aclose()


async def test_detached_recorder_ends_its_spans(make: Making, exported: Exported) -> None:
    manager = make.engine(host_pages=8, auto_land=False)
    recorder = record_spans(manager, exported.provider)
    assert recorder is not None
    await serve(manager, make.request(prompt(2), "r"))
    assert not exported.named("pagedkv.transfer")
    manager.detach(recorder)
    assert len(exported.named("pagedkv.transfer")) == 1
    await manager.aclose()


async def test_nothing_is_attached_where_nobody_takes_spans(make: Making) -> None:
    manager = make.engine()
    assert record_spans(manager) is None
    await manager.aclose()
