"""All recordings, and the rules that no recorded trace can show."""

from pagedkv.conformance.recordings import busy, failures, paging, sharing, tiers
from pagedkv.conformance.recordings.recording import RECORDINGS, Recording

MODULES = (paging, tiers, failures, sharing, busy)
"""Importing them has registered their recordings."""

INVISIBLE = {
    "what is refused reports nothing": (
        *("POOL-6", "CLAIM-1", "CLAIM-2", "CLAIM-3", "STEP-1"),
        *("INPUT-1", "INPUT-2", "INPUT-3", "XFER-2"),
    ),
    "what changes nothing reports nothing": ("CLAIM-6", "ALLOC-14", "STEP-6", "XFER-7"),
    "events have identities, not what they are made of, which data/golden_identities.json has": (
        *("ID-1", "ID-2", "ID-3", "ID-4", "ID-5", "ID-6", "ID-8", "ID-9"),
    ),
    "events have no tensors, bytes or addresses": (
        *("LEN-4", "INPUT-4", "INPUT-5", "INPUT-6", "INPUT-7", "TIER-3"),
        *("MEM-1", "MEM-2", "MEM-3", "MEM-4"),
    ),
    "events have no counters": (
        *("METRIC-1", "METRIC-2", "METRIC-3", "METRIC-4", "METRIC-6", "METRIC-7"),
    ),
    "the context has it, which is the caller's": ("ALLOC-9",),
    "it is about the inside of a manager, or of a store": ("POOL-9", "STORE-1"),
    "it is about what a manager is made from, or is not made at all": (
        *("NS-1", "NS-3"),
        *("PARAM-1", "PARAM-2", "PARAM-3", "PARAM-4", "PARAM-5"),
        *("SIZE-1", "SIZE-2", "SIZE-3", "SIZE-4", "SIZE-5"),
        *("CONF-1", "CONF-2", "CONF-3"),
    ),
}
"""Rules that an event trace cannot show, by the reason why."""


def recordings() -> dict[str, Recording]:
    """Every recording by name, in the order of :data:`MODULES`."""
    names = [module.__name__ for module in MODULES]
    found = sorted(RECORDINGS.values(), key=lambda r: names.index(r.scenario.__module__))
    return {recording.name: recording for recording in found}
