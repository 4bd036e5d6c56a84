"""Event traces without what they could tell of people: lengths, sharing and order stay."""

import hashlib
from collections.abc import Iterable, Iterator

from pagedkv.reference.events import Event
from pagedkv.reference.params import HashAlgorithm
from pagedkv.traces.events.renaming import Renaming
from pagedkv.traces.events.setup import EventTraceHeader
from pagedkv.traces.numbering import Numbering

NOT_SAID = "not said"
"""Stands for a text that was left out."""


def anonymise_events(
    header: EventTraceHeader, events: Iterable[Event], secret: bytes
) -> tuple[EventTraceHeader, Iterator[Event]]:
    """The same run with other identities, numbers for requests, transfers and stores, no texts.

    It is allowed or diverges as it was. What drove it and the root of its identities are left out.

    Args:
        header: Of the trace.
        events: Its events; one at a time is held, and one entry per name.
        secret: Key of the hash that makes the new identities. Who knows it can try out whether
            an identity that they know is in the trace: throw it away.
    """
    setup = header.setup
    renaming = Renaming(
        request=Numbering("request"),
        transfer=Numbering("transfer"),
        store=Numbering("store"),
        identity=lambda identity: _keyed_hash(secret, identity, setup.hash_algorithm),
        text=lambda text: NOT_SAID,
    )
    model = setup.model_fingerprint and NOT_SAID
    anonymous = header.model_copy(
        update={
            "setup": setup.model_copy(update={"hash_seed": None, "model_fingerprint": model}),
            "origin": None,
            "start": header.start and renaming.apply_to_start(header.start),
        }
    )
    return anonymous, (renaming.apply(event) for event in events)


def _keyed_hash(secret: bytes, identity: bytes, algorithm: HashAlgorithm) -> bytes:
    """As many bytes as before, because an identity's length says how it was made (ID-1)."""
    # A short key still begins the digest that it was taken from.
    basis = identity[:8] if algorithm == "sha256_64" else identity
    return hashlib.shake_256(secret + basis).digest(len(identity))
