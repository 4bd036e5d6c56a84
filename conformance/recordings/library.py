"""Writing the recordings: one trace each, and an index that says what they show."""

import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from pagedkv.conformance.recordings.recording import Recording
from pagedkv.traces.atomic_file import replace_file
from pagedkv.traces.events.recorder import record_to
from pagedkv.traces.events.setup import EventTraceHeader
from pagedkv.traces.manager_setup import ManagerFactory

INDEX = "index.toml"
"""Name of the index."""

PREAMBLE = """\
# Recorded runs of the reference, made by scripts/record_traces.py: do not edit.
# `sha256` is that of the unpacked file, because what packs it differs between machines.
"""


def write_recordings(
    recordings: Iterable[Recording], folder: Path, factory: ManagerFactory, implementation: str
) -> None:
    """Play all scenarios, and write their traces and the index into ``folder``.

    Equal managers give equal content everywhere.

    Args:
        recordings: What to play.
        folder: Exists; files of the same names are replaced.
        factory: Makes the managers.
        implementation: What they are called in the traces.

    Raises:
        OSError: A file cannot be written.
    """
    entries = [PREAMBLE]
    for recording in recordings:
        stage = recording.play(factory)
        path = folder / f"{recording.name}.jsonl.gz"
        header = EventTraceHeader(
            implementation=implementation,
            setup=stage.setup.run_setup(),
            origin=f"scenario {recording.name}",
            start=stage.start,
        )
        with record_to(path, header) as recorder:
            for event in stage.events:
                recorder.emit(event)
        entries.append(_entry(recording, path, recorder.count))
    with replace_file(folder / INDEX) as file:
        file.write("\n".join(entries).encode())


def _entry(recording: Recording, path: Path, events: int) -> str:
    """One table of the index. What JSON says of texts and lists, TOML says in the same way."""
    module = recording.scenario.__module__.rpartition(".")[2]
    values = {
        "name": recording.name,
        "origin": f"conformance/recordings/{module}.py",
        "sha256": hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest(),
        "events": events,
        "rules": list(recording.rules),
        "shows": recording.shows,
    }
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    return "[[trace]]\n" + "".join(lines)
