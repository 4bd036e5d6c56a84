"""The counters of a manager that a replay reports, as far as the manager has them."""

from collections import Counter
from operator import index

from pagedkv.reference.metrics import KVCacheMetrics

TIERS = ("device", "peer", "host", "disk", "store")
"""Where a hit page can come from, fastest first."""

TOKENS_HIT = "cache_tokens"
"""Counter of the tokens that came from the prefix cache."""

EVICTIONS = "device_blocks_evicted"
"""Counter of the committed device pages that were given up."""


PAGES_HIT_AGAIN = "preempted_blocks_served"
"""Counter of the pages that readmitted requests found again; the tiers do not count those."""


def pages_hit(tier: str) -> str:
    """Counter of the pages that came from ``tier``."""
    return f"{tier}_blocks_served"


def read_counters(metrics: KVCacheMetrics) -> Counter[str]:
    """The values of those counters that exist; the others are missing, not zero.

    Raises:
        TypeError: One of them is not a whole number.
    """
    names = (*map(pages_hit, TIERS), TOKENS_HIT, EVICTIONS, PAGES_HIT_AGAIN)
    return Counter(
        {name: index(getattr(metrics, name)) for name in names if hasattr(metrics, name)}
    )
