"""Requests on one device: pages, prefixes, commits, speculation; nothing below."""

from contextlib import suppress

from pagedkv.conformance.recordings.recording import recording
from pagedkv.conformance.recordings.stage import MakeStage, Stage, hits_in
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.events import AllocRefused, Stepped
from pagedkv.reference.inputs import BatchCharacteristics
from pagedkv.reference.metrics import PrefixCacheHits


@recording(
    "POOL-1 POOL-11 LEN-1 LEN-3 ALLOC-1 ALLOC-3 ALLOC-8 STEP-2 REL-1 REL-2 "
    "EVENT-1 EVENT-2 EVENT-3 TIER-10"
)
def decoding(make: MakeStage) -> Stage:
    """Two requests decode side by side; one asks twice for the same pages, and one comes back
    under its old name after its release."""
    stage = make(hash_algorithm="sha256")
    first, second = stage.admit("first", range(6)), stage.admit("second", range(50, 59))
    stage.alloc(first)
    for _ in range(6):
        stage.forward(first, second)
        stage.alloc(first)
        stage.alloc(second)
    stage.manager.runtime_inputs(
        [[first]],
        max_cache_length=32,
        batch_characteristics=BatchCharacteristics(
            batch_size=2, max_prompt_length=1, max_cache_valid_length=20
        ),
    )
    stage.release(first)
    again = stage.admit("first", range(100, 103))
    stage.release(second, again)
    return stage


@recording("POOL-3 POOL-4 POOL-5 POOL-8 POOL-10 ID-7 ALLOC-4 ALLOC-5 ALLOC-7")
def prefixes(make: MakeStage) -> Stage:
    """Prompts share prefixes; when pages run out, what was used longest ago goes first, and leaves
    before roots."""
    stage = make()
    stage.serve("chat", stage.prompt(3))
    stage.serve("other chat", stage.prompt(2, start=50))
    stage.serve("the same prompt, to its last token", range(12))
    stage.serve("next turn", stage.prompt(4))
    stage.serve("something large", stage.prompt(4, start=100))
    stage.serve("other chat again", stage.prompt(2, start=50))
    stage.serve("chat again", stage.prompt(4))
    hits = [hit.device_blocks for hit in hits_in(stage)]
    assert hits == [0, 0, 2, 3, 0, 0, 1]
    return stage


@recording("POOL-2 ALLOC-2 ALLOC-7 EVENT-4")
def full_pool(make: MakeStage) -> Stage:
    """Requests that do not fit are refused and change nothing: what they would have hit is still
    there. One waits until another is gone, one can never fit."""
    stage = make(total_num_pages=5)
    stage.serve("earlier", stage.prompt(1))
    first = stage.admit("first", stage.prompt(2, start=50))
    waiting = stage.claim("waiting", stage.prompt(2))
    hopeless = stage.claim("hopeless", range(100))
    for ctx in (hopeless, waiting):
        with suppress(InsufficientBlocksError):
            stage.begin(ctx)
    small = stage.admit("small", stage.prompt(1))
    stage.forward(first, small)
    stage.release(first)
    stage.alloc(waiting)
    stage.forward(small, waiting)
    refused = [(e.needed, e.free) for e in stage.events if isinstance(e, AllocRefused)]
    assert refused == [(24, 1), (2, 1)]
    assert hits_in(stage)[-2:] == [PrefixCacheHits(device_blocks=1)] * 2
    return stage


@recording("STEP-4")
def twins_share(make: MakeStage) -> Stage:
    """Two requests compute the same at the same time; the second to commit gets the pages of the
    first in place of its own."""
    return _twins(make(deduplication="swap"), distinct_pages=2)


@recording("STEP-4")
def twins_keep(make: MakeStage) -> Stage:
    """The same where page tables are only ever appended to: each keeps its own pages."""
    return _twins(make(deduplication="keep"), distinct_pages=4)


def _twins(stage: Stage, distinct_pages: int) -> Stage:
    twins = stage.admit("twin", stage.prompt(2)), stage.admit("other twin", stage.prompt(2))
    stage.forward(*twins)
    tables = [e.pages[:2] for e in stage.events if isinstance(e, Stepped)]
    assert len({page for table in tables for page in table}) == distinct_pages
    for ctx in twins:
        stage.alloc(ctx)
    stage.forward(*twins)
    stage.release(*twins)
    stage.serve("third", stage.prompt(2))
    return stage


@recording("LEN-2 LEN-3 LEN-5 ALLOC-5")
def windows(make: MakeStage) -> Stage:
    """A long prompt is computed in chunks, and a scheduler runs ahead of the tokens that it has
    not sampled yet."""
    stage = make(total_num_pages=12)
    chunked = stage.claim("chunked", stage.prompt(4))
    chunked.chunk(6)
    stage.alloc(chunked)
    stage.forward(chunked)
    chunked.chunk(7)
    stage.alloc(chunked)
    stage.forward(chunked)
    stage.alloc(chunked)
    ahead = stage.admit("ahead", range(50, 53))
    for _ in range(3):
        ahead.update_with_future_token()
        stage.alloc(ahead)
        stage.manager.step([[ahead]])
        ahead.realize_future_token(7)
    stage.manager.step([[ahead]])
    stage.forward(chunked)
    stage.release(chunked, ahead)
    stage.serve("the same prompt", stage.prompt(4))
    return stage


@recording("DRAFT-1 LEN-1 STEP-4")
def drafts(make: MakeStage) -> Stage:
    """With a draft model that looks one token ahead, room is made for drafts, and the last page of
    a hit is computed anew."""
    stage = make(total_num_pages=16, speculative_method="eagle", num_draft_tokens=2)
    stage.serve("first", stage.prompt(3))
    ctx = stage.admit("second", stage.prompt(3))
    assert ctx.processed_length == 8
    stage.forward(ctx)
    ctx.spec_decoding_state.draft_tokens_to_verify = [1, 2]
    stage.alloc(ctx)
    stage.manager.runtime_inputs([[ctx]])
    ctx.spec_decoding_state.draft_tokens_to_verify = []
    ctx.spec_decoding_state.maybe_accepted_draft_tokens = [1, 2]
    stage.alloc(ctx)
    stage.release(ctx)
    return stage


@recording("STEP-3 ALLOC-4")
def caching_off(make: MakeStage) -> Stage:
    """Without prefix caching, equal prompts share nothing and nothing is committed."""
    stage = make(enable_prefix_caching=False)
    for name in ("first", "second"):
        stage.serve(name, stage.prompt(2))
    assert hits_in(stage) == [PrefixCacheHits()] * 2
    return stage


@recording("CLAIM-4 CLAIM-5 STEP-3")
def padding(make: MakeStage) -> Stage:
    """A batch is padded with a request on the null page; a warm-up reserves pages and gives them
    back, and one that does not fit gives back what it had."""
    stage = make(total_num_pages=4)
    stage.manager.alloc_dummy("padding", 0)
    ctx = stage.admit("real", stage.prompt(1))
    padding = stage.context("padding", [0])
    stage.manager.runtime_inputs([[ctx, padding]])
    ctx.update(0)
    stage.manager.step([[ctx, padding]])
    stage.release(ctx)
    stage.manager.release("padding", 0)
    for lengths in ((9, 2), (9, 9)):
        contexts = [stage.context(f"warm-up {n}", range(m)) for n, m in enumerate(lengths)]
        with suppress(InsufficientBlocksError), stage.manager.reserve([contexts]):
            stage.manager.runtime_inputs([contexts])
    return stage
