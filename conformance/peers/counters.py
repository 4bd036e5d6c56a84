"""A peer's counters in the place of ours, so that the suite can look at them after every call."""

from dataclasses import fields

from pagedkv.reference.metrics import KVCacheMetrics

COMPUTED = ("input_tokens", "preempted_input_tokens")
"""What peers count when they allocate, and METRIC-1 at the step."""


def as_ours(now: object, at_step: object) -> KVCacheMetrics:
    """Our counters from a peer's, by name; those that it lacks are 0.

    Args:
        now: The peer's counters.
        at_step: What they were after the last step, ``None`` before the first one. Computed tokens
            are told from these: that peers count them too early would hide all else.
    """
    names = [field.name for field in fields(KVCacheMetrics)]
    counted = {name: getattr(now, name, 0) for name in names}
    return KVCacheMetrics(**counted | {name: getattr(at_step, name, 0) for name in COMPUTED})
