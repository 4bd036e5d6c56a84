"""What goes wrong in a story, and why it matters, in plain words."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from pagedkv.conformance.upstream.requests import variable_name
from pagedkv.conformance.upstream.story import Story
from pagedkv.reference.events import (
    AllocPlanned,
    AllocRefused,
    Claimed,
    Event,
    PrefixCacheReset,
    Released,
    Stepped,
)
from pagedkv.reference.identity import PageKey


@dataclass(frozen=True)
class Explanation:
    """What a test says of itself."""

    claim: str
    """What has to hold, as the name of a test without ``test_``."""
    wrong: str
    """What happens instead."""
    matters: str
    """What it costs."""
    message: str
    """What the assertion says when it fails."""


def explain(story: Story) -> Explanation:
    """The explanation that fits how a story ends."""
    match story.mistake, story.last:
        case "hits", _:
            return _of_hits(story)
        case "pages", AllocPlanned(request_id, context=context):
            is_chunk = context.position < context.length
            return _of_pages(story, variable_name(request_id), is_chunk)
        case "free" | "refused", _:
            return _of_pages_that_are_gone(story)
        case "not refused", AllocPlanned(request_id, pages=pages):
            name = variable_name(request_id)
            return Explanation(
                "what_does_not_fit_is_refused",
                f"{name} gets {counted(len(pages), 'page')}, although there is no room for it.",
                "Pages that others hold, or that this very allocation has hit, are handed out "
                "again: two requests then write the same page.",
                f"there is no room for {name}",
            )
        case _, Claimed(request_id, replica):
            name = variable_name(request_id)
            return Explanation(
                "request_is_claimed_once",
                f"{name} is claimed a second time, on replica {replica}, and nothing objects.",
                "It then has pages in two places; releasing it in one of them gives pages to a "
                "free list that they do not belong to.",
                "",
            )
        case _, AllocPlanned(request_id):
            name = variable_name(request_id)
            return Explanation(
                "request_that_is_not_claimed_gets_no_pages",
                f"{name} was never claimed, or was released, and gets pages all the same.",
                "No release will ever give them back: each late or mistaken call makes the pool "
                "smaller for good.",
                "",
            )
    raise AssertionError(f"a story ends with a mistake of a known kind, not {story.mistake}")


def _of_hits(story: Story) -> Explanation:
    seen, expected = story.last, story.divergence.expected
    assert isinstance(seen, AllocPlanned) and isinstance(expected, AllocPlanned)
    name = variable_name(seen.request_id)
    found, right = seen.hits.device_blocks, expected.hits.device_blocks
    done = written(story.events)
    keys = expected.context.keys
    if found < right:
        return _of_missed_hits(story, name, right - found)
    surplus = counted(found - right, "block")
    unwritten = [key for key in keys[right:found] if key not in done]
    if unwritten:
        return _of_unwritten_hits(story, name, surplus, unwritten[0])
    if any(isinstance(event, PrefixCacheReset) for event in story.events):
        return Explanation(
            "nothing_from_before_a_reset_is_hit",
            f"The prefix cache was reset, and {name} still hits {surplus} from before that.",
            "A reset is asked for when old KV must not be used any more, as after an update of "
            "the weights. If it is hit all the same, answers mix two models, without any error.",
            f"{name} hits what was cached before the reset",
        )
    if story.header.setup.speculative_method in ("eagle", "mtp"):
        method = story.header.setup.speculative_method
        return Explanation(
            f"last_block_of_a_hit_is_not_used_with_{method}",
            f"{name} hits {surplus} too many: the last one, behind which another token comes now.",
            f"With {method}, the draft KV of a token depends on the token after it. That of the "
            "last cached block was made for another successor, so drafts get worse.",
            f"the last block that {name} hits was written before another token",
        )
    return Explanation(
        "no_more_is_hit_than_is_cached",
        f"{name} hits {surplus} more than what was cached and is still there.",
        "It attends to KV that is not that of its tokens.",
        f"{name} hits more than is cached",
    )


def _of_unwritten_hits(story: Story, name: str, surplus: str, key: PageKey) -> Explanation:
    writer = live_with(story.events, key)
    if writer is None:
        return Explanation(
            "blocks_of_a_request_that_ended_before_its_forward_are_not_hit",
            f"{name} hits {surplus} of a request that was released before any step said that its "
            "forward had run.",
            "A request may be aborted, or its forward may fail, once it has its blocks. Whoever "
            "hits them attends to whatever that memory held before: a wrong answer, without any "
            "error.",
            f"{name} hits blocks that nobody has written",
        )
    return Explanation(
        "blocks_are_hit_after_their_forward_only",
        f"{name} hits {surplus} of {writer} before any step said that the forward of {writer} "
        "has run.",
        "That goes well as long as both are in the same forward, or in forwards that run in this "
        f"order. If the one of {writer} fails or is left out, {name} attends to whatever that "
        "memory held before: a wrong answer, without any error.",
        f"{name} hits blocks that are yet to be written",
    )


def _of_missed_hits(story: Story, name: str, missed: int) -> Explanation:
    lost = counted(missed, "block")
    again = any(
        isinstance(event, AllocPlanned)
        for event in since_claim(story.events, getattr(story.last, "request_id", None))
    )
    if again:
        return Explanation(
            "later_chunk_hits_what_was_cached_meanwhile",
            f"The prefix of {name} is looked up for its first chunk only: {lost}, cached by "
            "another request meanwhile, would have served the next one.",
            "Two requests with a long common prompt that arrive together both compute all of it, "
            "and hold it twice.",
            f"what was cached since the first chunk of {name} is computed again",
        )
    return Explanation(
        "cached_block_stays_while_there_are_others_to_take",
        f"{name} misses {lost}, written and cached before. Meanwhile, pages were taken that could "
        "have been others: free ones that hold nothing reusable, or that were used longer ago.",
        "Leftovers of short or aborted requests push out what others would hit, and their "
        "prompts are computed again.",
        f"what {name} should hit was given up for nothing",
    )


def _of_pages(story: Story, name: str, is_chunk: bool) -> Explanation:
    seen, expected = story.last, story.divergence.expected
    assert isinstance(seen, AllocPlanned) and isinstance(expected, AllocPlanned)
    taken, right = len(seen.pages), len(expected.pages)
    return Explanation(
        "chunk_takes_pages_for_its_own_tokens"
        if is_chunk
        else "allocation_takes_the_pages_that_its_tokens_need",
        f"{name} gets {counted(taken, 'page')} for a window whose tokens need {right}.",
        "Pages that nothing is written to yet are missing elsewhere: requests wait that would fit."
        if taken > right
        else "Tokens are written to pages that the request does not have.",
        f"the tokens of {name} need {counted(right, 'page')}",
    )


def _of_pages_that_are_gone(story: Story) -> Explanation:
    refused = [
        variable_name(event.request_id) for event in story.events if isinstance(event, AllocRefused)
    ]
    if refused:
        return Explanation(
            "refused_allocation_keeps_nothing",
            f"The allocation of {refused[-1]} is refused, but the pages that it had hit until "
            "then stay with it.",
            "A request that waits for room holds pages that the others could use, so that one "
            "which fits is refused as well; if all wait, the server stands still.",
            f"the refused allocation of {refused[-1]} holds pages",
        )
    return Explanation(
        "pages_that_nobody_holds_are_free",
        "Every page that no request holds should be free to take; some are not.",
        "The pool gets smaller, until nothing fits any more.",
        "pages that no request holds are not free",
    )


def written(events: Iterable[Event]) -> set[PageKey]:
    """Identities of the pages that steps have committed."""
    return {key for event in events if isinstance(event, Stepped) for key in event.context.keys}


def live_with(events: Iterable[Event], key: PageKey) -> str | None:
    """A request that has a page for ``key`` and has not been released."""
    live: set[Hashable] = set()
    for event in events:
        if isinstance(event, AllocPlanned) and key in event.context.keys:
            live.add(event.request_id)
        elif isinstance(event, Released):
            live.discard(event.request_id)
    return next((variable_name(request_id) for request_id in sorted(live, key=str)), None)


def since_claim(events: Iterable[Event], request_id: object) -> list[Event]:
    """What happens in the latest life of a request."""
    life: list[Event] = []
    for event in events:
        if getattr(event, "request_id", None) == request_id:
            life = [] if isinstance(event, Claimed | Released) else [*life, event]
    return life


def counted(count: int, thing: str) -> str:
    """``1 block``, ``2 blocks``."""
    return f"{count} {thing}" + ("" if count == 1 else "s")
