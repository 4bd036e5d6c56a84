"""Checks a whole trace file: every line by itself, and the lines against each other."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pagedkv.traces.errors import BrokenChainError, TraceError
from pagedkv.traces.reader import Workload
from pagedkv.traces.workload import WorkloadRequest

UNCHAINED = (
    "hash ids stand after different prefixes, which this format allows; "
    "'pagedkv trace import' gives every prefix its own id"
)
"""Oddity of formats whose ids name the content of a block only."""


@dataclass
class ValidationReport:
    """What a validation has found."""

    requests: int = 0
    """Requests that are well formed."""
    errors: list[TraceError] = field(default_factory=list)
    """What has to be corrected, in file order."""
    complete: bool = True
    """False if the validation stopped at the largest number of errors it was to report."""
    warnings: list[str] = field(default_factory=list)
    """What is odd, but can be read."""

    @property
    def ok(self) -> bool:
        """Whether the file can be used as it is."""
        return not self.errors


def validate(workload: Workload, max_errors: int = 20) -> ValidationReport:
    """Read all of ``workload`` and report what is wrong with it.

    Remembers the parent of every distinct hash id, about 100 bytes each.

    Args:
        workload: The file.
        max_errors: Stop after this many errors, 1 or more.
    """
    report = ValidationReport()
    for error in _errors(workload, report):
        report.errors.append(error)
        if len(report.errors) >= max_errors:
            report.complete = False
            break
    report.warnings = workload.oddities.texts()
    return report


def _errors(workload: Workload, report: ValidationReport) -> Iterator[TraceError]:
    """Yield the errors of a file as they come up, counting good requests in ``report``."""
    chains = ChainCheck()
    try:
        for number, parsed in workload.lines():
            if isinstance(parsed, TraceError):
                yield parsed
                continue
            try:
                chains.check(parsed)
            except BrokenChainError as error:
                if workload.format.ids_are_chained:
                    yield error.at(workload.path, number)
                    continue
                workload.oddities.add(UNCHAINED, number)
            report.requests += 1
    except TraceError as error:  # the file itself ends here
        yield error


class ChainCheck:
    """Checks that every hash id always stands after the same parent, hence at one position."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[int | None, int]] = {}

    def check(self, request: WorkloadRequest) -> None:
        """Check one more request.

        Raises:
            BrokenChainError: An id was seen after another parent or at another position.
        """
        parent = None
        for position, block in enumerate(request.hash_ids):
            known = self._places.setdefault(block, (parent, position))
            if known != (parent, position):
                raise BrokenChainError(
                    f"stands {_place(parent, position)}, but stood {_place(*known)} before",
                    field=f"hash_ids[{position}]",
                    value=block,
                    remedy="a hash id names a block and its whole prefix: give blocks after "
                    "different prefixes different ids ('pagedkv trace import --format bailian' "
                    "does that for ids that name content only)",
                )
            parent = block


def _place(parent: int | None, position: int) -> str:
    return f"at position {position}, " + ("first" if parent is None else f"after id {parent}")
