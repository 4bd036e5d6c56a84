"""Events and snapshots with other names for requests, transfers and stores, or other identities."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from pagedkv.reference.events import ReplicaPoisoned
from pagedkv.traces.events.start import RunStart

Record = TypeVar("Record")

TRANSFERS = frozenset(
    {"transfer", "waits_for", "failed_transfers", "transfers", "joined", "failed", "used_by"}
)
"""Fields that hold names of transfers."""

STORES = frozenset({"endpoint", "stores"})
"""Fields that hold endpoints of stores."""


def unchanged(name: Any) -> Any:  # whatever it is given
    """The same."""
    return name


@dataclass(frozen=True)
class Renaming:
    """What each kind of name becomes; what is not given stays."""

    request: Callable[[Hashable], Hashable] = unchanged
    """Of request ids."""
    transfer: Callable[[str], str] = unchanged
    """Of names of transfers."""
    store: Callable[[str], str] = unchanged
    """Of endpoints of further stores."""
    identity: Callable[[bytes], bytes] = unchanged
    """Of identities of pages, and of the digests behind them."""
    text: Callable[[str], str] = unchanged
    """Of free text: why a device has failed."""

    def apply(self, record: Record) -> Record:
        """The same event, snapshot, or part of one, with the new names."""
        assert is_dataclass(record) and not isinstance(record, type)
        changed = {f.name: self._new(record, f.name) for f in fields(record)}
        return replace(record, **changed)

    def apply_to_start(self, start: RunStart) -> RunStart:
        """The same beginning of a run with the new names."""
        contexts = {self.request(name): self.apply(c) for name, c in start.contexts.items()}
        return RunStart(seq=start.seq, state=self.apply(start.state), contexts=contexts)

    # Any: fields of every kind of record, told apart by their names and by what they hold.
    def _new(self, record: object, name: str) -> Any:
        value = getattr(record, name)
        if name == "request_id":
            return self.request(value)
        if name == "batches":
            return tuple(tuple(map(self.request, batch)) for batch in value)
        if name == "further_stores":
            return {self.store(endpoint): self.apply(tier) for endpoint, tier in value.items()}
        if name == "poisoned":
            return {replica: self.text(reason) for replica, reason in value.items()}
        if name == "reason" and isinstance(record, ReplicaPoisoned):
            return self.text(value)
        if name in TRANSFERS:
            return self._inside(value, self.transfer)
        return self._inside(value, self.store if name in STORES else unchanged)

    def _inside(self, value: Any, rename: Callable[[str], str]) -> Any:
        """A value with the names in it renamed; tuples, tiers by name and records are entered."""
        if isinstance(value, bytes):
            return self.identity(value)
        if isinstance(value, tuple):
            return tuple(self._inside(part, rename) for part in value)
        if isinstance(value, dict):
            return {name: self._inside(part, rename) for name, part in value.items()}
        if is_dataclass(value):
            return self.apply(value)
        return rename(value) if isinstance(value, str) else value
