"""Transfers on their way: each is moved beside the loop, and then lands or fails on it."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from pagedkv.engine.loop_thread import LoopThread
from pagedkv.engine.movers.copier import Arrivals, Marks
from pagedkv.engine.movers.mover import MoveFailedError, Mover
from pagedkv.engine.observability.operator_log import OperatorLog
from pagedkv.engine.observability.watch import Watch
from pagedkv.engine.planner import settling
from pagedkv.engine.planner.state import State
from pagedkv.engine.planner.transfer import Transfer
from pagedkv.engine.streams.stream import DeviceFailedError
from pagedkv.reference.errors import PagedKVError
from pagedkv.reference.identity import PageKey
from pagedkv.reference.tier_names import FailReason

logger = logging.getLogger(__name__)


class WrongLoopError(PagedKVError, RuntimeError):
    """A manager is called from a thread or an event loop that is not its own."""

    def __init__(self) -> None:
        super().__init__(
            "this manager belongs to another event loop, where its transfers run: call it from "
            "there, for example with asyncio.run_coroutine_threadsafe, and close it there"
        )


class Moves:
    """Moves what the planner has issued, and tells it how that ended.

    Args:
        state: The planner's.
        mover: Moves bytes.
        shards: Devices per replica.
        when_settled: Called on the loop after each transfer that has landed or failed.
        log: Is told of failures.
        auto_land: Whether transfers are moved when they are issued, or by :meth:`land`.
        debug_loop: With ``use_debug_tiered_mode``: where they are moved one at a time, while the
            caller stands still.
    """

    def __init__(
        self,
        state: State,
        mover: Mover,
        shards: int,
        when_settled: Callable[[], None],
        log: OperatorLog,
        *,
        auto_land: bool,
        debug_loop: LoopThread | None,
    ) -> None:
        self.watch: Watch | None = None
        """Is told of transfers, if anybody observes."""
        self._log = log
        self._state = state
        self._mover = mover
        self._shards = shards
        self._when_settled = when_settled
        self._auto_land = auto_land
        self._debug_loop = debug_loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._debug_queue: deque[Transfer] = deque()
        self._marks: dict[str, Marks] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._arrivals: dict[str, Arrivals] = {}
        self._enqueued: dict[str, asyncio.Event] = {}
        self._held_back: dict[str, Transfer] | None = None
        self._no_longer_held_back = asyncio.Event()
        self._failing: set[asyncio.Task[None]] = set()

    def check_loop(self) -> None:
        """Refuse calls from anywhere but the event loop where transfers run.

        Raises:
            WrongLoopError: They run on another one.
        """
        if self._loop is not None and running_loop() is not self._loop:
            raise WrongLoopError

    def begin(self, transfers: Sequence[Transfer]) -> None:
        """Note where the devices are, before another forward is launched, and move the bytes."""
        if self._held_back is not None:
            self._held_back.update((transfer.id, transfer) for transfer in transfers)
            return
        for transfer in transfers:
            if transfer.id not in self._state.in_flight:
                continue  # its device was found to have failed, by one before it
            if self.watch is not None:
                self.watch.transfer_issued(transfer)
            try:
                self._marks[transfer.id] = self._mover.copier.mark(transfer)
            except DeviceFailedError as error:
                self._settle(transfer, error)
                continue
            if not self._auto_land:
                continue
            if self._debug_loop is not None:
                self._debug_queue.append(transfer)
                continue
            self._loop = asyncio.get_running_loop()
            self._tasks[transfer.id] = self._loop.create_task(self._move(transfer))

        if len(self._debug_queue) == len(transfers):  # Otherwise somebody below is at it.
            self._move_one_by_one()

    def _move_one_by_one(self) -> None:
        """In the order of their issue, follow-ups last (XFER-6)."""
        while self._debug_loop is not None and self._debug_queue:
            transfer = self._debug_queue[0]
            failure = self._debug_loop.run(self._moved(transfer))
            self._settle(transfer, failure)
            self._debug_queue.popleft()

    def hold_back(self) -> None:
        """Begin nothing until the forward that writes the pages of some transfers is launched."""
        if self._held_back is None:
            self._held_back = {}

    def begin_held_back(self) -> None:
        """The forward was launched, or never will be."""
        held_back, self._held_back = self._held_back, None
        if held_back is not None:
            self.begin(list(held_back.values()))
            self._wake_who_waits_for_a_launch()

    async def submit(self, transfer_id: str) -> None:
        """Move the bytes of a load now, which is to land later.

        Raises:
            UnknownTransferError: It is not in flight.
            SubmittedTransferError: It cannot be submitted.
        """
        transfer = settling.find(self._state, transfer_id)
        settling.check_can_be_submitted(transfer)
        failure = await self._moved(transfer)
        if failure is None:
            settling.submit(self._state, transfer_id)
        else:
            self._settle(transfer, failure)

    async def land(self, transfer_id: str) -> None:
        """Move the bytes of a transfer now, unless that was done when it was submitted.

        Raises:
            UnknownTransferError: It is not in flight.
        """
        transfer = settling.find(self._state, transfer_id)
        if transfer.submitted:
            self._settle(transfer, None)
        else:
            await self._move(transfer)

    def fail(self, transfer_id: str, reason: FailReason, keys: Iterable[PageKey] | None) -> None:
        """A transfer that nobody moves has failed.

        Raises:
            UnknownTransferError: It is not in flight.
            ValueError: ``keys`` names a block that it does not carry.
        """
        transfer = settling.find(self._state, transfer_id)
        self._fail(transfer, reason, transfer.keys if keys is None else tuple(keys))
        self._marks.pop(transfer_id, None)

    def poison(self, replica_idx: int, reason: str) -> None:
        """The device of a replica has failed (FAIL-2).

        Work is refused from now on. Its transfers fail when the last copy to or from it has ended:
        until then their slots must not be given to others.
        """
        self._state.pool(replica_idx)
        if replica_idx in self._state.poisoned or replica_idx in self._state.failing:
            return
        if not self._running_on(replica_idx):
            self._poison_now(replica_idx, reason)
            return
        self._state.failing[replica_idx] = reason
        task = asyncio.get_running_loop().create_task(self._poison_later(replica_idx, reason))
        self._failing.add(task)
        task.add_done_callback(self._failing.discard)

    async def settled(self, transfer_ids: Iterable[str]) -> None:
        """Wait for transfers; where nothing lands by itself, land them."""
        for transfer_id in transfer_ids:
            await self._begun(transfer_id)
            if task := self._tasks.get(transfer_id):
                await asyncio.wait([task])
            elif transfer_id in self._state.in_flight and not self._auto_land:
                await self.land(transfer_id)

    async def submitted(self, transfer_ids: Iterable[str]) -> None:
        """Wait until transfers have settled, or who has hit them may go on (XFER-8)."""
        for transfer_id in transfer_ids:
            await self._begun(transfer_id)
            transfer = self._state.in_flight.get(transfer_id)
            if transfer is None or transfer.submitted:
                continue
            if transfer.source == "peer" or transfer_id not in self._tasks:
                await self.settled([transfer_id])
                continue
            if transfer_id not in self._arrivals:
                await self._enqueued.setdefault(transfer_id, asyncio.Event()).wait()
            if transfer_id in self._arrivals and not transfer.submitted:
                settling.submit(self._state, transfer_id)

    def before_forward(self, transfer_ids: Iterable[str]) -> None:
        """What is launched from now on finds the bytes of these submitted loads.

        Raises:
            DeviceFailedError: A device has failed.
        """
        for transfer_id in transfer_ids:
            self._mover.copier.before_forward(self._arrivals.get(transfer_id, ()))

    async def drained(self) -> None:
        """Wait until nothing is in flight."""
        while self._state.in_flight:
            await self.settled(list(self._state.in_flight))
        if self._failing:
            await asyncio.wait(self._failing)

    async def cancel(self) -> None:
        """Give up what is on its way, whatever becomes of it."""
        self._held_back = None
        self._wake_who_waits_for_a_launch()
        tasks = [*self._tasks.values(), *self._failing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _begun(self, transfer_id: str) -> None:
        """Wait for the launch that a transfer waits for, unless it fails before."""
        while transfer_id in (self._held_back or ()) and transfer_id in self._state.in_flight:
            await self._no_longer_held_back.wait()

    def _wake_who_waits_for_a_launch(self) -> None:
        waited_for, self._no_longer_held_back = self._no_longer_held_back, asyncio.Event()
        waited_for.set()

    def _running_on(self, replica_idx: int) -> list[asyncio.Task[None]]:
        """Moves that copy to or from the replica's devices."""
        state = self._state
        return [
            task
            for transfer_id, task in self._tasks.items()
            if (transfer := state.in_flight.get(transfer_id)) is not None
            and replica_idx in (transfer.replica, transfer.source_replica)
        ]

    async def _poison_later(self, replica_idx: int, reason: str) -> None:
        while running := self._running_on(replica_idx):
            await asyncio.wait(running)
        del self._state.failing[replica_idx]
        self._poison_now(replica_idx, reason)
        self._when_settled()

    def _poison_now(self, replica_idx: int, reason: str) -> None:
        settling.poison(self._state, replica_idx, reason)
        self._wake_who_waits_for_a_launch()
        self._log.replica_poisoned(replica_idx, reason)
        if self.watch is not None:
            self.watch.replica_poisoned()

    def _fail(self, transfer: Transfer, reason: FailReason, keys: Collection[PageKey]) -> None:
        settling.fail(self._state, transfer.id, reason, keys)
        self._log.transfer_failed(transfer, reason, len(keys))
        if self.watch is not None:
            self.watch.transfer_settled(transfer.id, reason)

    async def _move(self, transfer: Transfer) -> None:
        try:
            failure = await self._moved(transfer)
        finally:
            self._tasks.pop(transfer.id, None)
            self._arrivals.pop(transfer.id, None)
            if waited_for := self._enqueued.pop(transfer.id, None):
                waited_for.set()
        self._settle(transfer, failure)

    async def _moved(self, transfer: Transfer) -> MoveFailedError | DeviceFailedError | None:
        """Move the bytes; what went wrong."""
        try:
            marks = self._marks.pop(transfer.id)
            await self._mover.move(transfer, marks, partial(self._note_enqueued, transfer.id))
        except (MoveFailedError, DeviceFailedError) as error:
            return error
        except Exception:
            # A bug, or a backend's own error: a miss all the same, never a hang (TIER-6).
            logger.exception("%r has failed in a way that is not foreseen", transfer)
            return MoveFailedError("io_error", transfer.keys)
        return None

    def _note_enqueued(self, transfer_id: str, arrivals: Arrivals) -> None:
        self._arrivals[transfer_id] = arrivals
        if waited_for := self._enqueued.get(transfer_id):
            waited_for.set()

    def _settle(
        self, transfer: Transfer, failure: MoveFailedError | DeviceFailedError | None
    ) -> None:
        if transfer.id in self._state.in_flight:
            if failure is None:
                settling.land(self._state, transfer.id)
                if self.watch is not None:
                    self.watch.transfer_settled(transfer.id, None)
            elif transfer.submitted:
                # Somebody has gone on with it: it fails with its device, or not at all (XFER-8).
                assert transfer.replica is not None
                self.poison(transfer.replica, failure.reason)
            elif isinstance(failure, MoveFailedError):
                self._fail(transfer, failure.reason, failure.keys)
            else:
                self._fail(transfer, "unavailable", transfer.keys)
                self.poison(failure.device_idx // self._shards, failure.reason)
        self._when_settled()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
