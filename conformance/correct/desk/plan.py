"""What an allocation would find and take; nothing changes.  Rules ALLOC-3 to ALLOC-8, DRAFT-1."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pagedkv.conformance.correct.desk.requests import Request
from pagedkv.reference.context import Context
from pagedkv.reference.identity import page_digests
from pagedkv.reference.lengths import identifiable_tokens, required_pages
from pagedkv.reference.param_interface import KVCacheParamInterface
from pagedkv.reference.tier_names import TierName


@dataclass(frozen=True)
class Found:
    """Where a look-up has found a block."""

    tier: TierName
    """The tier it counts under."""
    page: int | None = None
    """The page of the request's replica that holds it, or is receiving it; ``None``: it has to be
    loaded into one."""


FoundT = TypeVar("FoundT", bound=Found)

Find = Callable[[Sequence[bytes], int], Iterable[FoundT]]
"""Where the blocks of a chain are, from a number on, until the first gap."""


@dataclass(frozen=True)
class Plan(Generic[FoundT]):
    """What an allocation would do: the table becomes kept, hit, moved and fresh pages, in order."""

    chain: list[bytes]
    """Digests of the blocks that the request will have committed or hit, root first."""
    kept: list[int]
    """Pages of the request that stay where they are."""
    hits: list[FoundT]
    """The hit blocks: the last ones of ``chain``."""
    moved: list[int]
    """Pages of the request that serve the tokens after the hit."""
    fresh: int
    """Pages to take for tokens that will be computed."""
    surplus: list[int]
    """Pages of the request that go back."""

    @property
    def hit_pages(self) -> list[int]:
        """Pages that hold hit blocks, or are receiving them."""
        return [hit.page for hit in self.hits if hit.page is not None]

    @property
    def to_take(self) -> int:
        """Pages to take: one for each block to load, and the fresh ones."""
        return len(self.hits) - len(self.hit_pages) + self.fresh

    @property
    def table_length(self) -> int:
        """Pages that the request will hold."""
        return len(self.kept) + len(self.hits) + len(self.moved) + self.fresh

    def table(self, taken: Sequence[int]) -> list[int]:
        """The request's table, given the pages that were taken."""
        rest = iter(taken)
        hits = [next(rest) if hit.page is None else hit.page for hit in self.hits]
        return [*self.kept, *hits, *self.moved, *rest]

    def loads(self, table: Sequence[int]) -> Iterator[tuple[bytes, int, FoundT]]:
        """Blocks to load: the digest of each, the page it goes to, and where it was found."""
        first = len(self.chain) - len(self.hits)
        for block, page, hit in zip(self.chain[first:], table[first:], self.hits, strict=False):
            if hit.page is None:
                yield block, page, hit


def plan_allocation(
    ctx: Context, request: Request, params: KVCacheParamInterface, find: Find[FoundT]
) -> Plan[FoundT] | None:
    """What to do for the pages that a request needs; ``None``: it holds enough (ALLOC-3)."""
    need = required_pages(ctx, params)
    if request.dummy or need <= len(request.pages):
        return None
    chain, hits = request.chain, list[FoundT]()
    if params.enable_prefix_caching and ctx.given_digests is None:
        _ = ctx.hash_overrides  # refuses an image without a hash, however short the prompt (ID-5)
    if ctx.tokens.active_length > 1 and not request.outdated:
        last = min(identifiable_tokens(ctx), ctx.tokens.current_position - 1)
        chain, hits = look_up(ctx, request.chain, last, params, find)
    if not hits or len(chain) * params.page_size <= ctx.tokens.processed_length:
        fresh = need - len(request.pages)
        return Plan(request.chain, request.pages, [], [], fresh, [])
    committed = len(request.chain)
    own = request.pages[committed:]
    rest = max(0, need - committed - len(hits))
    fresh = max(0, rest - len(own))
    return Plan(chain, request.pages[:committed], hits, own[:rest], fresh, own[rest:])


def look_up(
    ctx: Context,
    chain: list[bytes],
    last: int,
    params: KVCacheParamInterface,
    find: Find[FoundT],
) -> tuple[list[bytes], list[FoundT]]:
    """``chain`` and what continues it: the longest cached run among the first ``last`` tokens."""
    if not params.enable_prefix_caching:
        return chain, []
    longer = digests_of(ctx, last // params.page_size, chain, params)
    hits = list(find(longer, len(chain)))
    if params.speculative_method in ("eagle", "mtp"):
        del hits[-1:]
    return longer[: len(chain) + len(hits)], hits


def digests_of(
    ctx: Context, count: int, known: list[bytes], params: KVCacheParamInterface
) -> list[bytes]:
    """Digests of the first ``count`` blocks of a request, or all the ``known`` ones if more."""
    return page_digests(
        ctx,
        count=max(count, len(known)),
        page_size=params.page_size,
        algorithm=params.kv_hash_algo,
        seed=params.kv_hash_seed,
        known=known,
    )
