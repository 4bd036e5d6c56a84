"""What a manager has answered while it was at work, beside what the specification answers then."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from pagedkv.conformance.clients import Clients
from pagedkv.conformance.simulation.counters import wrong_counters
from pagedkv.conformance.validation import Follower
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import PagedKVError
from pagedkv.reference.identity import page_digests, page_key
from pagedkv.reference.metrics import KVCacheMetrics
from pagedkv.traces.events.setup import RunSetup

PER_REPLICA = (
    "get_num_used_disk_pages",
    "get_num_used_host_pages",
    "get_num_used_pages",
    "num_free_blocks",
    "pending_transfers_exist",
)
"""Questions about a replica, whose answers follow from what was reported (EVENT-1)."""


@dataclass(frozen=True)
class Look:
    """A question, and its answer."""

    num_events: int
    """How many events had been reported."""
    question: str
    """The method."""
    about: tuple[object, ...]
    """Its arguments."""
    answer: object
    """What the manager has said."""


# Any: a manager's methods are asked by their names.
def look(
    manager: Any, num_events: int, rng: Random, replicas: int, clients: Clients
) -> Look | None:
    """Ask something at random; ``None`` if that is refused, as where a device has failed."""
    replica, stranger = rng.randrange(replicas), clients.context(rng, "who only asks")
    questions: list[tuple[str, tuple[object, ...]]] = [
        ("get_metrics_aggregated", ()),
        ("get_prefix_cache_hit_counts", (stranger,)),
        *((question, (replica,)) for question in PER_REPLICA),
    ]
    if clients.claimed:
        known = rng.choice(list(clients.claimed.values()))
        questions.append(("get_pct_used_blocks_after_allocation", deepcopy(known)))
    question, about = rng.choice(questions)
    try:
        answer = getattr(manager, question)(*deepcopy(about))
    except PagedKVError:
        return None
    return Look(num_events, question, about, answer)


def wrong_answer(follower: Follower, setup: RunSetup, look: Look) -> str | None:
    """What the specification answers in its place, for people; ``None``: the same."""
    if isinstance(look.answer, KVCacheMetrics):
        return wrong_counters(follower, look.answer)
    about = [_recorded(item, setup) for item in deepcopy(look.about)]
    expected = getattr(follower.player.manager, look.question)(*about)
    if _plain(look.answer) == _plain(expected):
        return None
    return (
        f"after event {look.num_events - 1}: {look.question} is {look.answer}, but should be "
        f"{expected}"
    )


def _recorded(item: object, setup: RunSetup) -> object:
    """A context brings its keys along: of its digests a recorded run knows no more than them."""
    if isinstance(item, TextContext):
        algorithm, size = setup.hash_algorithm, setup.page_size
        digests = page_digests(
            item,
            count=len(item.tokens) // size,
            page_size=size,
            algorithm=algorithm,
            seed=setup.hash_seed,
        )
        item.given_digests = [page_key(digest, algorithm) for digest in digests]
    return item


def _plain(answer: Any) -> object:
    """Hits are compared by their fields, of whatever class they are."""
    return [asdict(hits) for hits in answer] if isinstance(answer, Sequence) else answer
