"""What an event had wrong, said once more where pages and transfers are called otherwise."""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import count
from typing import Any

from pagedkv.conformance.validation import Divergence
from pagedkv.reference.events import Event


def same_mistake(one: Divergence, other: Divergence) -> bool:
    """Whether two events are wrong in the same way, whatever pages and transfers are called.

    Both are of the same kind, in the place of events of the same kind or refused with the same
    error; they differ in the same fields, where the same was expected.
    """
    kinds = [(type(d.seen), type(d.expected), d.refusal, d.differing) for d in (one, other)]
    if kinds[0] != kinds[1]:
        return False
    if not one.differing:
        return True
    assert one.expected is not None and other.expected is not None
    shapes = shape_of(one.expected), shape_of(other.expected)
    return all(getattr(shapes[0], name) == getattr(shapes[1], name) for name in one.differing)


def carry_over(seen: Event, was: Event | None, now: Event | None) -> Event:
    """``seen``, of which ``was`` was expected, where ``now`` is expected.

    What was right is right again; what was wrong stays, with the pages and transfers of ``now``.
    """
    if not type(seen) is type(was) is type(now):
        return seen
    assert was is not None and now is not None
    pages = dict(zip(pages_in(was), pages_in(now), strict=False))
    names = dict(zip(names_in(was), names_in(now), strict=False))
    taken = set(pages_in(now))
    strangers = (page for page in count() if page not in taken)
    wrong = relabelled(
        seen,
        page=lambda page: pages[page] if page in pages else pages.setdefault(page, next(strangers)),
        name=lambda name: names.get(name, name),
    )
    right = {
        field.name: getattr(now, field.name)
        for field in fields(seen)
        if getattr(seen, field.name) == getattr(was, field.name)
    }
    return replace(wrong, **right)


def shape_of(event: Event) -> Event:
    """The event with its pages and transfers numbered in the order in which it names them."""
    pages: dict[int, int] = {}
    names: dict[str, str] = {}
    return relabelled(
        event,
        page=lambda page: pages.setdefault(page, len(pages)),
        name=lambda name: names.setdefault(name, str(len(names))),
    )


def relabelled(event: Event, page: Callable[[int], int], name: Callable[[str], str]) -> Event:
    """The event with other numbers of pages and other names of transfers."""
    # Any: fields of every kind of event.
    changes: dict[str, Any] = {}
    for field in fields(event):
        value = getattr(event, field.name)
        match field.name:
            case "pages":
                changes["pages"] = tuple(map(page, value))
            case "issued":
                changes["issued"] = tuple(
                    replace(t, transfer=name(t.transfer), pages=tuple(map(page, t.pages)))
                    for t in value
                )
            case "transfer":
                changes["transfer"] = name(value)
            case "waits_for" | "failed_transfers":
                changes[field.name] = tuple(map(name, value))
    return replace(event, **changes)


def pages_in(event: Event) -> list[int]:
    """Every page that the event names, its own before those of its transfers."""
    issued = getattr(event, "issued", ())
    return [*getattr(event, "pages", ()), *(page for t in issued for page in t.pages)]


def names_in(event: Event) -> list[str]:
    """Every transfer that the event names, those it issues first."""
    issued = [t.transfer for t in getattr(event, "issued", ())]
    waits_for = (*getattr(event, "waits_for", ()), *getattr(event, "failed_transfers", ()))
    return [*issued, *waits_for]
