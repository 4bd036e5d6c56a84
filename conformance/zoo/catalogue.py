"""All specimens, and the bugs on the list that wait for an engine to have them."""

from dataclasses import dataclass

from pagedkv.conformance.zoo import bookkeeping, counting, eviction, identity, tiers, transfers
from pagedkv.conformance.zoo.specimen import Specimen

MODULES = (bookkeeping, counting, eviction, identity, tiers, transfers)

ZOO: tuple[Specimen, ...] = tuple(
    sorted((s for module in MODULES for s in module.SPECIMENS), key=lambda s: s.number)
)
"""Every specimen, by number."""


@dataclass(frozen=True)
class Waiting:
    """A bug that the reference cannot have."""

    number: int
    """Its place in the list of bugs."""
    happens: str
    """What goes wrong, in a sentence."""
    source: tuple[str, ...]
    """Where it happened."""
    why: str
    """What it takes to have it."""


WAITING = (
    Waiting(
        18,
        "an offload starts before the forward that writes the page has finished",
        ("vllm#45704",),
        "it takes streams: the reference has no forward that is still running",
    ),
    Waiting(
        30,
        "a load lands in a page that an earlier forward still reads, or is wiped by a zeroing that "
        "was queued before it",
        ("vllm#47282", "vllm#50696"),
        "it takes streams: the reference has no forward that is still running",
    ),
    Waiting(
        31,
        "a request ends or is preempted while its next forward is in flight, and its pages are "
        "handed out, or its queued store goes on",
        ("vllm#45357", "vllm#52360"),
        "it takes forwards that are launched before the step of the one before",
    ),
    Waiting(
        32,
        "the staging memory of the lookup table is overwritten while its copy is pending",
        ("TensorRT-LLM#15546",),
        "it takes asynchronous copies: the reference fills its tables at once",
    ),
    Waiting(
        34,
        "requests that wait for loads hold the pages that the head of the queue needs",
        ("vllm#45388",),
        "it takes a queue: the reference refuses what does not fit, and nobody waits in it",
    ),
)
"""Bugs that come with the engine, by number."""

BUGS = frozenset(range(1, 54))
"""The numbers on the list."""


def __getattr__(name: str) -> object:
    """Each specimen by its name, for ``--impl pagedkv.conformance.zoo.catalogue:NAME``."""
    for specimen in ZOO:
        if specimen.name == name:
            return specimen.implementation
    raise AttributeError(f"the zoo has no specimen {name!r}")
