"""Play all scenarios on the reference anew, and write traces/data/events and its index.

Whoever changes what the reference does, or a scenario, runs this and looks at what has changed.
"""

import sys
from pathlib import Path

from pagedkv.conformance.recordings.catalogue import recordings
from pagedkv.conformance.recordings.library import write_recordings
from pagedkv.specification import build_reference
from pagedkv.traces.events.shipped import RECORDED_RUNS


def main(folder: Path) -> None:
    """Write everything into ``folder``; traces of scenarios that are gone are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.jsonl.gz"):
        if path.name.removesuffix(".jsonl.gz") not in recordings():
            path.unlink()
    write_recordings(recordings().values(), folder, build_reference, "reference")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]) if sys.argv[1:] else RECORDED_RUNS)
