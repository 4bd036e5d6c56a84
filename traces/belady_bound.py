"""The most prefix hits of a bounded cache: those of one that knows the future (Belady's MIN).

The model is that of a replay, one request after another. A request of ``pages`` pages, the last
one perhaps partly filled, needs all of them on the device at once; one that is larger than the
device is refused and touches nothing. It hits the longest prefix of its full pages that is cached,
but never a page with the last token of its prompt. Whatever it did not hit it computes; then all
its full pages are cached. Between the requests a policy may forget whatever it likes.

A page that is used by request i and next by request j is a *reuse* (i, j). It becomes a hit if the
page stays cached throughout, which costs one place while each request between i and j is served.
While a request is served, its own pages and the reuses that span it have to fit. So the bound is
the largest set of intervals that exceeds no request's room. To find it, go from left to right and,
wherever there are too many, give up the reuse that ends last: any other choice can be exchanged
for this one, which is in nobody's way for longer (Belady 1966; with room that varies, the argument
is the same). Of reuses that end at the same request, the page deepest in the prompt goes first.

That the hit has to be a prefix costs nothing. The pages before a reused page are in the same
prompts, so they were last used no earlier than it was, and are next used no later. They are never
given up while that page is kept, hence what is kept for a request is a prefix of it. The count is
therefore the optimum: no policy gets more, and one that knows the future gets as many.

Lower tiers add places for reuses, but none for the pages of a request. With them, the count is an
upper bound: it assumes that no page is in two tiers, and that moving one takes no room.

Requests in flight together, and answers that are decoded, only take room away from this model; the
bound holds for them too, unless a preempted request comes back and computes its pages again.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from pagedkv.traces.ceil_div import ceil_div
from pagedkv.traces.prefix_ids import PrefixIds
from pagedkv.traces.workload import WorkloadRequest

NEVER = -1
"""Stands for the next use of a page that will not be hit again."""


@dataclass(frozen=True)
class Prompt:
    """What a cache sees of one request."""

    names: tuple[int, ...]
    """Its full pages in order; equal names stand for equal pages after equal prefixes."""
    hittable: int
    """How many of them may be hit: all, but not one with the last token."""
    pages: int
    """Pages that it takes, 1 or more: the full ones, and one that is partly filled, if any."""


def prompts_of(
    requests: Iterable[WorkloadRequest], page_size: int, block_size: int
) -> Iterator[Prompt]:
    """The prompts of a workload in pages.

    Args:
        requests: The workload; holds one request at a time, and one entry per distinct block.
        page_size: Tokens per page, 1 or more.
        block_size: Tokens per hash id; the two need not divide each other.
    """
    prefixes = PrefixIds[int]()
    for request in requests:
        chain = prefixes.chain(request.hash_ids)
        length = request.input_length
        last_tokens = range(page_size - 1, length, page_size)
        yield Prompt(
            # An id names its whole prefix, so the place of a page's last token names the page.
            names=tuple(chain[t // block_size] * block_size + t % block_size for t in last_tokens),
            hittable=(length - 1) // page_size,
            pages=ceil_div(length, page_size),
        )


def belady_hits(prompts: Sequence[Prompt], device_pages: int, lower_pages: int = 0) -> int:
    """The most pages that any cache of this size can hit, in total.

    Takes time in proportion to the pages of all prompts, times the logarithm of the reused ones.

    Args:
        prompts: The whole workload, in order.
        device_pages: Size of the device pool, 1 or more.
        lower_pages: Size of all tiers below it together.

    Returns:
        The optimum without lower tiers, an upper bound with them.
    """
    served = [prompt for prompt in prompts if prompt.pages <= device_pages]
    kept = Counter[int]()  # pages kept for each later request
    total_kept = hits = 0
    latest: list[tuple[int, int]] = []  # heap of kept pages as (-next use, -depth)
    for index, (prompt, next_uses) in enumerate(zip(served, next_uses_of(served), strict=True)):
        hits += kept[index]
        total_kept -= kept.pop(index, 0)
        room = device_pages + lower_pages - prompt.pages
        # What was hit stays in the heap, but below everything that still waits to be.
        while total_kept > room:
            next_use, _ = heappop(latest)
            kept[-next_use] -= 1
            total_kept -= 1
        for depth, use in enumerate(next_uses):
            if use != NEVER:
                heappush(latest, (-use, -depth))
                kept[use] += 1
                total_kept += 1
    return hits


def next_uses_of(prompts: Sequence[Prompt]) -> list[list[int]]:
    """For each page of each prompt, the index of the prompt that could hit it next.

    It is ``NEVER`` if no prompt has the page again, or the next one that does has to compute it.
    """
    upcoming: dict[int, int] = {}
    uses = []
    for index in reversed(range(len(prompts))):
        prompt = prompts[index]
        uses.append([upcoming.get(name, NEVER) for name in prompt.names])
        for depth, name in enumerate(prompt.names):
            upcoming[name] = index if depth < prompt.hittable else NEVER
    uses.reverse()
    return uses
