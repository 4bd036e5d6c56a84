"""Profiles: what a manager has to be able to do for a purpose."""

from dataclasses import dataclass

from pagedkv.conformance.implementation import Capability


@dataclass(frozen=True)
class Profile:
    """Capabilities that belong together."""

    name: str
    """What ``--profile`` calls it."""
    purpose: str
    """Who needs it, in a sentence."""
    demands: frozenset[Capability]
    """Capabilities that must not be lacking: checks that need only these are never skipped."""


def _profiles() -> dict[str, Profile]:
    steps: list[tuple[str, str, tuple[Capability, ...]]] = [
        ("core", "pages and a prefix cache on one device", ("device", "prefix")),
        (
            "serving",
            "what a server calls: inputs for forwards, look-ups, counters, resets",
            ("inputs", "probes", "metrics", "reset", "dummy", "reserve", "shutdown"),
        ),
        ("tiered", "host memory and disk below the device", ("bytes", "host", "disk")),
        ("distributed", "data-parallel replicas, and a shared block store", ("replicas", "store")),
        (
            "full",
            "every kind of cache, and an environment that the suite can play",
            ("mla", "fp8", "multi", "speculative", "transfers", "prefetch", "events"),
        ),
    ]
    demands: frozenset[Capability] = frozenset()
    profiles = {}
    for name, purpose, more in steps:
        demands |= set(more)
        profiles[name] = Profile(name, purpose, demands)
    return profiles


PROFILES = _profiles()
"""Every profile by name; each demands all that the one before it does."""
