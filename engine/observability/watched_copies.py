"""The copies of one transfer, with a watch on each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pagedkv.engine.planner.transfer import Transfer
from pagedkv.engine.streams.stream import Copy, StreamEvent, StreamName

if TYPE_CHECKING:
    from pagedkv.engine.observability.watch import Watch


class WatchedCopies:
    """Enqueues copies on the watch's streams, and tells it when each is over.

    A copy begins when what it has to follow is done; earlier copies of its stream may still hold it
    up. Its end is seen when somebody waits for it, and the event loop has a turn.
    """

    def __init__(self, watch: "Watch", transfer: Transfer) -> None:
        self._watch = watch
        self._transfer = transfer
        self._enqueued: dict[
            StreamEvent, tuple[int, StreamName, Sequence[Copy], Sequence[StreamEvent]]
        ] = {}

    def copy(
        self,
        device_idx: int,
        name: StreamName,
        copies: Sequence[Copy],
        after: Sequence[StreamEvent] = (),
    ) -> StreamEvent:
        """See :meth:`Streams.copy`."""
        event = self._watch.streams.copy(device_idx, name, copies, after)
        self._enqueued[event] = device_idx, name, copies, after
        return event

    async def finished(self, event: StreamEvent) -> None:
        """See :meth:`Streams.finished`; for events of :meth:`copy`, each once."""
        device_idx, name, copies, after = self._enqueued.pop(event)
        streams = self._watch.streams
        for earlier in after:
            await streams.finished(earlier)
        began_s = self._watch.clock()
        await streams.finished(event)
        self._watch.copied(self._transfer, device_idx, name, copies, began_s)
