"""Getting to know an implementation: a small manager is built, and shows what it can do."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.implementation import (
    METHODS,
    TIER_METHODS,
    Capability,
    Implementation,
    missing_methods,
    offered_by,
)
from pagedkv.conformance.own_frame import own_frame
from pagedkv.conformance.time_limit import CHECK_TIMEOUT_S, time_limit
from pagedkv.traces.sync_adapter import as_sync

Result = TypeVar("Result")


class SetUpError(Exception):
    """No check can be run: its factory or its first call fails, or a method is missing."""


@dataclass(frozen=True)
class Introduction:
    """What is known of an implementation before the first check."""

    implementation: Implementation
    """The implementation, with the capabilities that its methods show."""
    notes: tuple[str, ...]
    """Capabilities that are there in part only, a sentence each."""


def introduce(
    implementation: Implementation, *, timeout_s: float = CHECK_TIMEOUT_S
) -> Introduction:
    """Build a small manager, look at its methods, and call it once.

    Raises:
        SetUpError: The factory or the call fails or takes longer than ``timeout_s``, or a method is
            missing that every manager has.
    """
    with Bench(implementation, None, "") as bench:
        setup = bench.setup()
        made = _attempt("factory", implementation, timeout_s, lambda: implementation.make(setup))
        # Any: an implementation offers a part of the interface.
        manager: Any = as_sync(made)
        try:
            demand_methods(made, METHODS["device"])
            _attempt("first call", implementation, timeout_s, lambda: manager.num_free_blocks(0))
            capabilities = offered_by(manager, implementation.capabilities)
            notes = tuple(_notes(made, implementation.capabilities, capabilities))
        finally:
            with suppress(Exception), time_limit(timeout_s):
                if callable(getattr(manager, "shutdown", None)):
                    manager.shutdown()
    if manager is not made:
        capabilities |= {"async"}
    return Introduction(replace(implementation, capabilities=capabilities), notes)


def demand_methods(manager: object, needed: Iterable[str]) -> None:
    """See that a manager has the methods that will be called.

    Raises:
        SetUpError: It lacks some.
    """
    missing = missing_methods(manager, needed)
    if missing:
        kind = type(manager).__name__
        raise SetUpError(f"its factory built a {kind}, which lacks {', '.join(missing)}")


def _attempt(
    stage: Literal["factory", "first call"],
    implementation: Implementation,
    timeout_s: float,
    call: Callable[[], Result],
) -> Result:
    try:
        with time_limit(timeout_s):
            return call()
    except (Exception, SystemExit) as error:  # a factory has no business to end the process
        place = own_frame(error, implementation.make)
        told = f"{type(error).__name__}: {error}" + (f" ({place})" if place else "")
        raise SetUpError(f"its {stage} fails: {told}") from error


def _notes(
    manager: object, declared: Collection[Capability], capabilities: Collection[Capability]
) -> Iterator[str]:
    for capability, methods in METHODS.items():
        missing = missing_methods(manager, methods)
        lacks = f"{capability}: lacks {', '.join(missing)}"
        if not missing or (capability == "bytes" and "memory" in capabilities):
            continue
        if capability in declared:
            yield f"{lacks}, although it is declared"
        elif len(missing) < len(methods):
            yield f"{lacks}, so not checked"
    for tier, methods in TIER_METHODS.items():
        missing = missing_methods(manager, methods)
        if tier in declared and missing:
            yield f"{tier}: lacks {', '.join(missing)}, so its pages are not counted"
