"""What a manager has counted, beside what the specification counts in the same run."""

from dataclasses import asdict

from pagedkv.conformance.validation import Follower
from pagedkv.reference.metrics import KVCacheMetrics

MOST_FORGOTTEN = 8
"""Reasons of misses that a manager may forget in a life, beside one in eight."""


def wrong_counters(follower: Follower, seen: KVCacheMetrics) -> str | None:
    """What the manager has counted otherwise than the specification until the same event."""
    expected = asdict(follower.player.manager.get_metrics_aggregated())
    reasons = {name for name in expected if name.startswith("missed_blocks_")}
    wrong = [
        f"{name} is {value}, but should be {expected[name]}"
        for name, value in asdict(seen).items()
        if value != expected[name] and name not in reasons
    ]
    wrong += wrong_reasons(
        {name: getattr(seen, name) for name in reasons}, {name: expected[name] for name in reasons}
    )
    return f"after event {follower.seq - 1}: {'; '.join(wrong)}" if wrong else None


def wrong_reasons(seen: dict[str, int], expected: dict[str, int]) -> list[str]:
    """What is wrong with the reasons of misses (METRIC-6): a few need not be remembered."""
    wrong = [
        f"{name} is {seen[name]}, but should be {most} at most"
        for name, most in sorted(expected.items())
        if name != "missed_blocks_never_seen" and seen[name] > most
    ]
    if (total := sum(seen.values())) != sum(expected.values()):
        wrong.append(f"missed blocks are {total}, but should be {sum(expected.values())}")
    known, remembered = (
        sum(counts.values()) - counts["missed_blocks_never_seen"] for counts in (expected, seen)
    )
    if remembered < known - max(MOST_FORGOTTEN, known // 8):
        wrong.append(f"{remembered} misses have a reason, but {known} should have one")
    return wrong
