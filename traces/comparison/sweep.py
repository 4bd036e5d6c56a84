"""All runs of a comparison, one after another."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pagedkv.traces.comparison.measure import Order, Task, measure
from pagedkv.traces.comparison.own_process import ProcessDiedError, Progress, in_own_process
from pagedkv.traces.comparison.report import Run, Unmeasured
from pagedkv.traces.comparison.sizes import Sizes

if TYPE_CHECKING:
    from pagedkv.traces.manager_setup import ManagerFactory


def sweep(
    task: Task,
    find_factories: Mapping[str, Callable[[], "ManagerFactory"]],
    every_size: Iterable[Sizes],
    on_progress: Progress,
) -> Iterator[Run]:
    """Run every implementation on every choice of sizes, each run in a fresh process.

    Implementations take turns on the same sizes, so that a noisy quarter of an hour hits them all.

    Args:
        task: What to replay, and how.
        find_factories: By the name of the implementation; pickled, so no lambdas.
        every_size: The sizes, in order.
        on_progress: Told from time to time how many requests of the current run are done.
    """
    for sizes in every_size:
        for name, find_factory in find_factories.items():
            with TemporaryDirectory(prefix="pagedkv-disk-") as disk_dir:
                order = Order(task, name, find_factory, sizes, Path(disk_dir))
                try:
                    run = in_own_process(measure, order, on_progress)
                except ProcessDiedError as error:
                    run = Unmeasured(
                        outcome="failed", implementation=name, sizes=sizes, reason=str(error)
                    )
            yield run
