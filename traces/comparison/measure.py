"""One run of a comparison: one implementation on one choice of sizes, in a fresh process."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pagedkv.traces.comparison.own_process import Progress
from pagedkv.traces.comparison.peak_memory import MemoryGrowth
from pagedkv.traces.comparison.report import Conditions, Measured, Measurement, Unmeasured
from pagedkv.traces.comparison.sizes import Sizes
from pagedkv.traces.manager_call import ManagerCallError, call_manager
from pagedkv.traces.reader import Workload

if TYPE_CHECKING:
    from pagedkv.reference.interfaces import AsyncKVCacheManager, SyncKVCacheManager
    from pagedkv.traces.manager_setup import ManagerFactory

COPIES = {
    ("host", "device"): "h2d_blocks_copied",
    ("device", "host"): "d2h_blocks_copied",
    ("disk", "host"): "disk_blocks_read",
    ("host", "disk"): "disk_blocks_written",
}
"""The ways from one tier to another, and the counter of each."""

REFUSALS = (ValueError, NotImplementedError)
"""What a factory raises that cannot build such a manager. Anything else is a failure."""

PROGRESS_STEPS = 200
"""How often a run tells how far it is: often enough for a bar, too seldom to slow it down."""


@dataclass(frozen=True)
class Task:
    """What all runs of a comparison have in common; can be pickled."""

    trace: Path
    """The workload."""
    format: str | None
    """Its format; ``None``: told from the content."""
    block_size: int | None
    """Tokens per hash id, for formats that do not say."""
    requests: int
    """How many requests of it to replay."""
    conditions: Conditions
    """How to replay it."""


@dataclass(frozen=True)
class Order:
    """One run; can be pickled."""

    task: Task
    """What to replay, and how."""
    implementation: str
    """What reports call the implementation."""
    find_factory: Callable[[], "ManagerFactory"]
    """Finds its factory, in the process that needs it."""
    sizes: Sizes
    """On which sizes."""
    disk_dir: Path
    """An empty folder for a disk tier; belongs to the caller."""


class _CannotBuildError(Exception):
    """The factory has refused; its message is the reason."""


def measure(order: Order, on_progress: Progress) -> Measured | Unmeasured:
    """Replay the workload once, and say what came out or what went wrong.

    Args:
        order: What to do.
        on_progress: Told from time to time how many requests are done.

    Raises:
        TraceError: The workload is malformed.
    """
    try:
        measurement = _replayed(order, on_progress)
    except (_CannotBuildError, ManagerCallError) as error:
        return Unmeasured(
            outcome="skipped" if isinstance(error, _CannotBuildError) else "failed",
            implementation=order.implementation,
            sizes=order.sizes,
            reason=str(error),
        )
    return Measured(implementation=order.implementation, sizes=order.sizes, measurement=measurement)


def _replayed(order: Order, on_progress: Progress) -> Measurement:
    # Imported late: whoever only gives the orders does without torch.
    from pagedkv.traces.manager_setup import ManagerSetup
    from pagedkv.traces.replay import ReplayOptions, replay

    task, sizes, conditions = order.task, order.sizes, order.task.conditions
    workload = Workload(task.trace, format=task.format, block_size=task.block_size)
    factory = order.find_factory()
    setup = ManagerSetup(
        page_size=conditions.page_size,
        total_num_pages=sizes.device_pages,
        host_pages=sizes.host_pages or None,
        disk_pages=sizes.disk_pages or None,
        disk_dir=order.disk_dir,
        max_batch_size=conditions.concurrency,
    )
    watched: list[_Watched] = []

    def build(setup: ManagerSetup) -> "SyncKVCacheManager":
        try:
            manager = call_manager("the factory", lambda: factory(setup))
        except ManagerCallError as error:
            if isinstance(error.__cause__, REFUSALS):
                raise _CannotBuildError(str(error.__cause__)) from error
            raise
        watched.append(_Watched(manager))
        return cast("SyncKVCacheManager", watched[0])

    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done % (task.requests // PROGRESS_STEPS + 1) == 0:
            on_progress(done)

    growth = MemoryGrowth()
    report = replay(
        islice(workload, task.requests),
        workload.header.block_size,
        build,
        setup,
        ReplayOptions(conditions.concurrency, conditions.decode),
        on_request_done=count,
    )
    copied = {
        f"{source}_to_{target}": pages
        for (source, target), pages in watched[0].pages_copied.items()
        if {source, target} <= set(sizes.tiers)
    }
    return Measurement(
        replay=report,
        pages_copied=copied,
        bytes_copied={
            way: None if pages is None else pages * conditions.page_nbytes
            for way, pages in copied.items()
        },
        memory_growth_bytes=growth.nbytes(),
    )


class _Watched:
    """A manager whose counters of copies are read before it is shut down."""

    def __init__(self, manager: "SyncKVCacheManager | AsyncKVCacheManager") -> None:
        from pagedkv.traces.sync_adapter import as_sync

        self._manager = as_sync(manager)
        self.pages_copied: dict[tuple[str, str], int | None] = {}

    # Any: whatever the manager's own method takes and returns.
    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def shutdown(self) -> None:
        metrics = self._manager.get_metrics_aggregated()
        self.pages_copied = {
            way: getattr(metrics, counter, None) for way, counter in COPIES.items()
        }
        self._manager.shutdown()
