"""Counting every token once, as computed or as cached.  Rules METRIC-1, METRIC-3 and METRIC-4."""

from collections import Counter
from collections.abc import Sequence

from pagedkv.conformance.correct.desk.plan import Found
from pagedkv.conformance.correct.desk.requests import Request
from pagedkv.reference.context import Context
from pagedkv.reference.metrics import KVCacheMetrics


class TokenCounts:
    """Counters of tokens and hits."""

    def __init__(self) -> None:
        self.metrics = KVCacheMetrics()
        """The counters."""

    def admitted(self, ctx: Context, request: Request) -> None:
        """An allocation of the request returns, perhaps its first."""
        if request.kept_apart is None:
            request.kept_apart = len(ctx.tokens) if ctx.preempted else 0
            request.counted = ctx.tokens.processed_length

    def served(self, request: Request, window: range, hits: Sequence[Found], size: int) -> None:
        """The window has moved over cached tokens, to the end of the last of ``hits``."""
        self.computed(request, window.start)
        new = self._tokens(request, range(request.counted, window.stop), "cache_tokens")
        request.counted = max(request.counted, window.stop)
        first = window.stop - len(hits) * size
        for n, hit in enumerate(hits, 1):
            apart = first + n * size <= (request.kept_apart or 0)
            new["preempted_blocks_served" if apart else f"{hit.tier}_blocks_served"] += 1
        request.served += new
        self.metrics = self.metrics.plus(**new)

    def computed(self, request: Request, processed: int) -> None:
        """Forwards have computed all of the first ``processed`` tokens that were not served."""
        new = self._tokens(request, range(request.counted, processed), "input_tokens")
        request.counted = max(request.counted, processed)
        self.metrics = self.metrics.plus(**new)

    def take_back(self, request: Request) -> None:
        """What the request was served does not count after all (CLAIM-5)."""
        served = {name: -count for name, count in request.served.items()}
        self.metrics = self.metrics.plus(**served)

    def _tokens(self, request: Request, tokens: range, counter: str) -> Counter[str]:
        apart = max(0, min(tokens.stop, request.kept_apart or 0) - tokens.start)
        return Counter({counter: len(tokens) - apart, f"preempted_{counter}": apart})
