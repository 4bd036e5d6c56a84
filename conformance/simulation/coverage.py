"""What many runs have tried together, and what they have not."""

from collections import Counter

from pagedkv.conformance.simulation.situations import (
    EVENTS,
    OUTCOMES,
    SITUATIONS,
    STRUCK,
    WAYS,
    Tried,
)
from pagedkv.conformance.spec_text import rules


def rules_tried(tried: Tried) -> Counter[str]:
    """By rule: how often it has decided; 0 for a rule that some situation would have tried."""
    counts = Counter({rule: 0 for names in SITUATIONS.values() for rule in names})
    for situation, count in tried.situations.items():
        for rule in SITUATIONS[situation]:
            counts[rule] += count
    return Counter({rule: counts[rule] for rule in rules() if rule in counts})


def share_tried(tried: Tried) -> tuple[int, int]:
    """How many of all situations, and of all faults in all states, were tried; and of how many."""
    pairs = [(fault, state) for fault, states in STRUCK.items() for state in states]
    done = sum(tried.situations[name] > 0 for name in SITUATIONS)
    done += sum(tried.struck[pair] > 0 for pair in pairs)
    return done, len(SITUATIONS) + len(pairs)


def never_tried(tried: Tried) -> list[str]:
    """What no run has come to, for people."""
    situations = [name for name in SITUATIONS if not tried.situations[name]]
    pairs = [
        f"{fault}, striking {state}"
        for fault, states in STRUCK.items()
        for state in states
        if not tried.struck[fault, state]
    ]
    return situations + pairs


def as_data(tried: Tried) -> dict[str, object]:
    """Everything that was counted, with a zero for what never happened."""
    counted = rules_tried(tried)
    done, of = share_tried(tried)
    return {
        "tried": done,
        "of": of,
        "never_tried": never_tried(tried),
        "rules": dict(counted),
        "rules_without_a_situation": [rule for rule in rules() if rule not in counted],
        "situations": {name: tried.situations[name] for name in SITUATIONS},
        "faults_by_state": {
            fault: {state: tried.struck[fault, state] for state in states}
            for fault, states in STRUCK.items()
        },
        "events": {name: tried.events[name] for name in EVENTS},
        "transfers": {
            way: {outcome: tried.ended[way, outcome] for outcome in OUTCOMES} for way in WAYS
        },
    }
