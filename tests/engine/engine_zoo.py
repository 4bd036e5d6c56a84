"""Bugs of public systems in the real engine, and who notices them in simulated worlds.

python -m tests.engine.engine_zoo            # docs/engine-zoo.md anew, from 60 seeds each
python -m tests.engine.engine_zoo 18 32      # these numbers only, nothing is written
python -m tests.engine.engine_zoo --first    # only until one seed has failed: a minute
"""

import json
import os
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from tests.engine.mutant_runs import ROOT, enter_tree_with

ZOO = Path(__file__).with_name("zoo.toml")

DOCUMENT = ROOT / "docs/engine-zoo.md"

SEEDS = range(60)

Detector: TypeAlias = Literal[
    "validation", "bytes", "conservation", "order", "answers", "hang", "error"
]
"""Who notices: the reference, which does not allow an event; the bytes read back, or read twice;
the recount of pages and pins; the happens-before checker; who asks and gets a wrong answer; the
clock; an exception in a request."""


@dataclass(frozen=True)
class Bug:
    """One place of the engine, changed."""

    number: int
    """Its number in docs/zoo.md."""
    where: str
    """The public systems that had it."""
    what: str
    """What happens."""
    file: str
    """The module, as a path within ``engine/``."""
    before: str
    """What it says, once."""
    after: str
    """What it says with the bug."""
    unreached: str = ""
    """Why no simulated world comes by there, and who catches it instead."""


@dataclass
class Found:
    """What became of the seeds."""

    seeds: int = 0
    """How many were run."""
    failed: list[int] = field(default_factory=list)
    """Those that have failed."""
    by: Counter[str] = field(default_factory=Counter)
    """By detector: in how many it has noticed."""


def read_zoo() -> list[Bug]:
    """The bugs of ``zoo.toml``."""
    return [Bug(**table) for table in tomllib.loads(ZOO.read_text(encoding="utf-8"))["bug"]]


def seeds_on(bug: Bug, seeds: Sequence[int], *, enough: int) -> Found:
    """Run ``seeds`` until ``enough`` have failed, in a process of its own.

    Raises:
        RuntimeError: The place is not there, or the process has died.
    """
    folder = Path(tempfile.mkdtemp(prefix="pagedkv-zoo-"))
    process = os.fork()
    if not process:
        os._exit(_run(bug, seeds, enough, folder))
    try:
        _, status = os.waitpid(process, 0)
        if status:
            raise RuntimeError(f"{bug.what}: {(folder / 'output').read_text()}")
        told = json.loads((folder / "found.json").read_text())
        return Found(told["seeds"], told["failed"], Counter(told["by"]))
    finally:
        shutil.rmtree(folder)


def _run(bug: Bug, seeds: Sequence[int], enough: int, folder: Path) -> int:
    with open(folder / "output", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if not enter_tree_with(bug.file, bug.before, bug.after, folder):
        print(f"{bug.file} does not say {bug.before!r} once")
        return 2
    from tests.engine.simulated_runs import run_seed

    found = Found()
    for seed in seeds:
        noticed = detectors(run_seed(seed))
        found.seeds += 1
        found.by.update(noticed)
        if noticed:
            found.failed.append(seed)
        if len(found.failed) == enough:
            break
    (folder / "found.json").write_text(json.dumps(vars(found)))
    return 0


# Any: a run, whose class this process has imported from another tree.
def detectors(run: Any) -> set[Detector]:
    """Everybody who has something to say of a run that has failed."""
    from pagedkv.conformance.stream_order import check_order, read_order_log
    from pagedkv.conformance.validation import Divergence, validate
    from pagedkv.specification import reference_specification

    if run.failure is None:
        return set()
    noticed: set[Detector] = {_detector(run.failure.kind)}
    record = run.lives[-1]
    found = validate(run.world.setup, record.events, reference_specification)
    if isinstance(found, Divergence) and found.seen is not None:
        noticed.add("validation")
    if record.stream_log and check_order(read_order_log(record.stream_log)):
        noticed.add("order")
    return noticed


def _detector(kind: str) -> Detector:
    """Who says what a failure of that kind says."""
    beginnings: dict[str, Detector] = {
        "divergence": "validation",
        "wrong blocks on disk": "validation",
        "violation of EVENT": "answers",
        "violation of METRIC": "answers",
        "a wrong answer": "answers",
        "a failure without a cause": "answers",
        "the wrong patience": "answers",
        "violation": "bytes",
        "UnorderedAccessError": "bytes",
        "race": "order",
        "hang": "hang",
        "StandstillError": "hang",
        "AssertionError in engine_watch": "hang",
        "pages that never": "conservation",
        "something left": "conservation",
        "PoolCorruptedError": "conservation",
    }
    for beginning, detector in beginnings.items():
        if kind.startswith(beginning):
            return detector
    return "error"


def row(bug: Bug, found: Found) -> str:
    """A line of the table."""
    cells = [str(bug.number), bug.what, bug.where or "—", f"`{bug.file}`"]
    if bug.unreached:
        return f"| {' | '.join(cells)} | {bug.unreached} |" + " |" * len(get_args(Detector))
    first = str(found.failed[0]) if found.failed else "**never**"
    cells.append(f"{len(found.failed)} of {found.seeds}, first {first}")
    cells += [str(found.by[name] or "") for name in get_args(Detector)]
    return f"| {' | '.join(cells)} |"


def main(numbers: Sequence[int], *, enough: int) -> None:
    """Run the zoo, show it, and write the document if it was the whole of it."""
    import pydantic
    import torch

    assert pydantic and torch  # for all the children, which import pagedkv from other trees
    head = ["", "what happens", "where it did", "module", "seeds that fail", *get_args(Detector)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for bug in read_zoo():
        if numbers and bug.number not in numbers:
            continue
        found = Found() if bug.unreached else seeds_on(bug, SEEDS, enough=enough)
        lines.append(row(bug, found))
        print(lines[-1], flush=True)
    if not numbers and enough == len(SEEDS):
        DOCUMENT.write_text(INTRODUCTION + "\n".join(lines) + "\n", encoding="utf-8")


INTRODUCTION = """# The zoo in the engine

The [zoo](zoo.md) has broken managers for the conformance suite. Here its transfer and tier bugs are
built into the real engine, one place of it at a time, and `pagedkv simulate` lets worlds run on it.
In each world that fails, everybody is asked who has something to notice: the reference, which does
not allow what was reported (*validation*); the *bytes* that every forward reads back, and that
simulated copies read once as early and once as late as the order allows; the recount of pages, pins
and slots (*conservation*); the happens-before checker (*order*); who asks for counters, sizes, hits
and reasons, and gets a wrong answer (*answers*); the clock, and who watches the line (*hang*); and
whoever meets an exception that no request may see (*error*).

Written by `python -m tests.engine.engine_zoo`. The single safeguards, each with the test that needs
it, are in [mutants.md](mutants.md).

"""

if __name__ == "__main__":
    main(
        [int(number) for number in sys.argv[1:] if number.isdigit()],
        enough=1 if "--first" in sys.argv else len(SEEDS),
    )
