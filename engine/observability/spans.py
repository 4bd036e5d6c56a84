"""Spans for OpenTelemetry: one per allocation, one per transfer.

Needs ``opentelemetry-api``, which the extra ``server`` brings; nothing else imports it.
"""

from collections.abc import Iterator
from contextvars import Token

from opentelemetry import context, trace
from opentelemetry.context import Context as SpanContext
from opentelemetry.trace import Span, Status, StatusCode, TracerProvider

from pagedkv.engine.manager import PagedKVCacheManager
from pagedkv.engine.observability.observer import Observer
from pagedkv.engine.observability.records import AllocRecord, TransferRecord
from pagedkv.engine.planner.state import AllocPlan

TIERS = ("device", "peer", "host", "disk", "store")
"""What an allocation's hits are counted by."""


def record_spans(
    manager: PagedKVCacheManager, provider: TracerProvider | None = None
) -> "SpanRecorder | None":
    """Record spans of a manager from now on, if there is anybody to take them.

    Args:
        manager: Whom to observe. Give the answer to ``manager.detach`` to end it.
        provider: Where the spans go; by default, where the process has been told to send them.

    Returns:
        ``None`` if no provider is configured: then nothing is attached, and nothing costs.
    """
    provider = provider or trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    recorder = SpanRecorder(provider)
    manager.attach(recorder)
    return recorder


class SpanRecorder(Observer):
    """Makes ``pagedkv.alloc`` and ``pagedkv.transfer`` spans.

    The parent of an allocation is the span that is current where ``alloc`` is awaited. What it
    loads is its child; what a ``step`` offloads is a child of the span that is current there.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("pagedkv.engine")
        self._allocs: dict[int, tuple[Span, Token[SpanContext]]] = {}
        self._transfers: dict[str, Span] = {}

    def alloc_began(self, alloc: AllocRecord) -> None:
        """Begin its span, current for the rest of the call."""
        span = self._tracer.start_span(
            "pagedkv.alloc",
            attributes={
                "pagedkv.request": str(alloc.request_id),
                "pagedkv.replica": alloc.replica,
            },
        )
        self._allocs[alloc.number] = span, context.attach(trace.set_span_in_context(span))

    def alloc_ended(self, alloc: AllocRecord) -> None:
        """End its span: with the hits by tier, the time in line, the retries."""
        span, token = self._allocs.pop(alloc.number, (None, None))
        if span is None or token is None:
            return  # it began before this was attached
        context.detach(token)
        span.set_attribute("pagedkv.retries", alloc.retries)
        if alloc.queue_s is not None:
            span.set_attribute("pagedkv.queue_s", alloc.queue_s)
        if alloc.error is not None:
            span.set_status(Status(StatusCode.ERROR, repr(alloc.error)))
        elif alloc.plan is not None:
            span.set_attributes(dict(_hits_of(alloc.plan)))
        span.end()

    def transfer_issued(self, record: TransferRecord) -> None:
        """Begin its span."""
        self._transfers[record.transfer.id] = self._tracer.start_span(
            "pagedkv.transfer",
            attributes={
                "pagedkv.transfer": record.transfer.id,
                "pagedkv.way": record.way,
                "pagedkv.blocks": len(record.transfer.keys),
                "pagedkv.bytes": record.nbytes,
            },
        )

    def transfer_settled(self, record: TransferRecord) -> None:
        """End its span."""
        span = self._transfers.pop(record.transfer.id, None)
        if span is None:
            return
        if record.reason is not None:
            span.set_status(Status(StatusCode.ERROR, record.reason))
        span.end()

    def detached(self) -> None:
        """End the spans of transfers that are still in flight."""
        while self._transfers:
            self._transfers.popitem()[1].end()


def _hits_of(plan: AllocPlan) -> Iterator[tuple[str, int]]:
    for tier in TIERS:
        yield f"pagedkv.hits.{tier}", getattr(plan.hits, f"{tier}_blocks")
