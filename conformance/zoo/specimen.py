"""A specimen of the zoo: the reference with one bug in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import ismethod
from typing import Any

from pagedkv.conformance.implementation import CAPABILITIES, Implementation
from pagedkv.conformance.zoo.change import Change, in_force
from pagedkv.reference.manager import PagedKVCacheManager
from pagedkv.traces.manager_setup import ManagerSetup


class BrokenManager(PagedKVCacheManager):
    """The reference with changes that are in force only while this manager runs.

    So two managers of one process can have different bugs, or none.
    """

    def __init__(self, setup: ManagerSetup, changes: Sequence[Change]) -> None:
        self._changes = changes
        params, session = setup.params(), setup.session()
        with in_force(changes):
            super().__init__(
                params,
                session,
                setup.total_num_pages,
                setup.host_pages or 0,
                max_batch_size=setup.max_batch_size,
                tracer=setup.tracer,
                media=setup.media,
                auto_land=setup.auto_land,
            )

    # Any: attributes of the manager, whatever they are.
    def __getattribute__(self, name: str) -> Any:
        """Methods run with the changes in force, also those that others of them call."""
        found = super().__getattribute__(name)
        if name.startswith("_") or not ismethod(found):
            return found

        @wraps(found)
        def changed(*args: Any, **options: Any) -> Any:
            with in_force(self._changes):
                return found(*args, **options)

        return changed


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """A manager with a bug that really happened somewhere."""

    number: int
    """Its place in the list of bugs; several specimens may show one bug."""
    name: str
    """What it is called: an identifier."""
    happens: str
    """What goes wrong, in a sentence."""
    source: tuple[str, ...]
    """Where it happened: see :mod:`pagedkv.conformance.zoo.sources`."""
    changes: tuple[Change, ...]
    """What makes the reference behave like that."""
    expected: tuple[str, ...]
    """Ids of the checks that should catch it, the sharpest first."""
    claims: frozenset[str] = frozenset()
    """SHOULD rules that it claims to follow, where the bug breaks nothing that binds everybody: the
    broken one, and those that its checks take for granted."""

    @property
    def implementation(self) -> Implementation:
        """The broken manager, for the suite."""
        return broken_reference(f"zoo {self.number}: {self.name}", self.changes, self.claims)


def broken_reference(
    name: str, changes: Sequence[Change], claims: frozenset[str] = frozenset()
) -> Implementation:
    """The reference with changes, as an implementation that the suite can check.

    Args:
        name: What reports call it.
        changes: What is different about it.
        claims: SHOULD rules that it claims to follow.
    """
    return Implementation(
        name=name,
        version="broken on purpose",
        make=lambda setup: BrokenManager(setup, changes),
        capabilities=frozenset(CAPABILITIES) - {"async"},
        follows=claims,
        write_policies=("through", "write_back", "reuse"),
    )
