"""Mutation score of reference or engine: how many small changes do checks and tests notice?

cosmic-ray makes the mutants and runs the suite and its target's tests on each, in a copy of the
repository, until one of them fails. This script draws a sample, and adds what
cosmic-ray lacks: mutants without a statement, and scores by module. docs/mutants.md has a result.

    nice python scripts/mutants.py --sample 150    # some mutants of all modules: half an hour
    python scripts/mutants.py pool matching        # all mutants of these modules
    python scripts/mutants.py --target engine --sample 40    # of the engine's planner
    python scripts/mutants.py --table-only         # write the table of hand-made mutants anew
"""

import argparse
import math
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from cosmic_ray.ast import get_ast
from cosmic_ray.commands import execute, init
from cosmic_ray.config import ConfigDict
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import OPERATOR_PROVIDERS, get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec

from pagedkv.conformance.suite import all_checks
from pagedkv.conformance.zoo.mutant import as_markdown, read_mutants

ROOT = Path(__file__).parents[1]

# Any: parso says nothing of its types.
Node = Any

TELLING = re.compile(
    r".*/(DropStatement|NumberReplacer|ExceptionReplacer|ZeroIterationForLoop|AddNot|"
    r"Replace(True|False|And|Or|Break|Continue)With\w+|ReplaceUnaryOperator_Delete_\w+|"
    r"ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is|"
    r"Lt_(LtE|GtE)|LtE_(Lt|Gt)|Gt_(GtE|LtE)|GtE_(Gt|Lt))|"
    r"ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_FloorDiv|FloorDiv_Mul|Div_Mul|Mod_FloorDiv|"
    r"Pow_Mul|BitAnd_BitOr))"
)
"""Operators whose mutants a person might have written. The others would flatter the score:
decorators taken off, types that are added, and names that are shifted fail at once."""

TEST_TIMEOUT_S, MUTANT_TIMEOUT_S = 40, 120.0
"""Longest a test, and all tests of a mutant, may take: what hangs is noticed. For the reference it
is 15 and 45 on a slow machine."""

TARGETS = {"reference": Path("reference"), "engine": Path("engine/planner")}
"""What can be changed, and where its modules are."""

SLOW = "test_random_runs.py"
"""Of the tests, the one that goes last: it takes as long as all others."""

Z_95 = 1.96
"""Standard deviations on either side that hold 95 % of a normal distribution."""

RESULT_TITLE = "## What a tool makes of it"


class DropStatement:
    """An operator for cosmic-ray: leaves out a call, a deletion, or a change of an object.

    A variable that gets no value fails at once, which proves nothing.
    """

    arguments = staticmethod(tuple)

    def mutation_positions(self, node: Node) -> Iterator[tuple[Any, Any]]:
        """Where such a statement stands."""
        if node.type == "simple_stmt":
            statement = node.children[0]
            changes = statement.children[0] if statement.type == "expr_stmt" else statement
            if changes.type in {"atom_expr", "del_stmt"}:
                yield statement.start_pos, statement.end_pos

    def mutate(self, node: Node, _index: int) -> Node:
        """The line with ``pass`` in place of the statement."""
        node.children[0] = get_ast(f"{node.get_first_leaf().prefix}pass")
        return node


OPERATOR_PROVIDERS["pagedkv"] = {"DropStatement": DropStatement}


def main() -> None:
    """Draw mutants, run the tests on them, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="modules of the target")
    parser.add_argument("--target", choices=TARGETS, default="reference", help="what is changed")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants, drawn by lot")
    parser.add_argument("--seed", type=int, default=0, help="of that lot")
    parser.add_argument("--table-only", action="store_true", help="run nothing; see above")
    options = parser.parse_args()
    if options.table_only:
        write_table()
        return
    copy = Path(tempfile.mkdtemp(prefix="pagedkv-mutants-"))
    shutil.copytree(
        ROOT, copy, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "dist")
    )
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy / "src"), "CI": "1"}
    command = test_command() if options.target == "reference" else engine_test_command()
    if subprocess.run(command, capture_output=True).returncode != 0:
        sys.exit(f"the {options.target} itself fails: nothing could be concluded")
    config = ConfigDict({"test-command": shlex.join(command), "timeout": MUTANT_TIMEOUT_S})
    config["distributor"] = {"name": "local"}
    folder = TARGETS[options.target]
    names = options.modules or [path.stem for path in folder.glob("*.py")]
    with use_db(str(copy / "session.sqlite")) as session:
        init([folder / f"{name}.py" for name in sorted(names)], session, {})
        everything = [item for item in session.work_items if is_telling(item.mutations[0])]
        everything.sort(key=lambda item: str(item.mutations))
        random.Random(options.seed).shuffle(everything)
        readable = (item for item in everything if is_readable(item.mutations[0]))
        drawn = list(islice(readable, options.sample))
        session.clear()
        session.add_work_items(drawn)
        print(f"{len(drawn)} of {len(everything)} mutants, in {copy}/session.sqlite", flush=True)
        with suppress(KeyboardInterrupt):  # cosmic-ray goes by lot: what is done is a sample, too
            execute(session, config)
        print(scores(session), survivors(session), sep="\n")


def test_command() -> list[str]:
    """Checks and tests, the fast ones first."""
    tests = sorted(Path("tests/reference").glob("test_*.py"), key=lambda path: path.name == SLOW)
    suite = ["tests/conformance/test_recordings.py", "tests/conformance/test_suite.py"]
    selected = [suite[0], *map(str, tests[:-1]), f"{suite[1]}::test_reference", str(tests[-1])]
    options = ["-qx", f"--timeout={TEST_TIMEOUT_S}", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", *options, *selected]


def engine_test_command() -> list[str]:
    """Parts by themselves, seeds with all faults, cancellations, real threads, and the suite."""
    names = ("recency", "key_map", "faults_seeds", "cancellation", "admission", "concurrent_runs")
    tests = [f"tests/engine/test_{name}.py" for name in names]
    pytest = [sys.executable, "-m", "pytest", "-qx", f"--timeout={TEST_TIMEOUT_S}"]
    suite = [sys.executable, "-m", "pagedkv", "conformance", "--impl", "engine", "--examples", "20"]
    both = f"{shlex.join([*pytest, '-p', 'no:cacheprovider', *tests])} && {shlex.join(suite)}"
    return ["sh", "-c", both]


def is_telling(mutation: MutationSpec) -> bool:
    """Whether a person might have written the mutant."""
    return TELLING.fullmatch(mutation.operator_name) is not None


def is_readable(mutation: MutationSpec) -> bool:
    """Whether Python reads the mutant."""
    source = mutation.module_path.read_text(encoding="utf-8")
    operator = get_operator(mutation.operator_name)()
    try:
        mutant = mutate_code(source, operator, mutation.occurrence)
        compile(mutant or "", mutation.module_path, "exec")
    except (SyntaxError, AttributeError):
        # A star between parameters is no multiplication; ``except a.B`` is beyond cosmic-ray.
        return False
    return True


def scores(session: WorkDB) -> str:
    """How many mutants of each module were killed."""
    made: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    for item, result in session.completed_work_items:
        made[item.mutations[0].module_path.stem] += 1
        killed[item.mutations[0].module_path.stem] += result.is_killed
    lines = ["| module | mutants | killed | score |", "|---|---:|---:|---:|"]
    for name, total in sorted(made.items()):
        lines.append(f"| `{name}` | {total} | {killed[name]} | {killed[name] / total:.0%} |")
    total = made.total()
    low, high = interval(killed.total(), total)
    lines.append(f"| all | {total} | {killed.total()} | {killed.total() / total:.1%} |")
    return "\n".join(lines) + f"\n\nThe 95 % interval is {low:.1%} to {high:.1%} (Wilson).\n"


def interval(killed: int, total: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for the score of all mutants, of which ``total`` were drawn."""
    share, spread = killed / total, Z_95**2 / total
    middle = share + spread / 2
    half = Z_95 * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def survivors(session: WorkDB) -> str:
    """What nobody has noticed."""
    lines = ["| survivor in | instead of | it says |", "|---|---|---|"]
    for item, result in session.completed_work_items:
        if result.is_killed:
            continue
        (mutation,) = item.mutations
        where = f"{mutation.module_path.stem}:{mutation.start_pos[0]}"
        changed = re.findall(r"^([-+])(?!\1\1 )(.*)$", result.diff or "", re.MULTILINE)
        old, new = (
            "; ".join(text.strip() for sign, text in changed if sign == wanted).replace("|", "\\|")
            for wanted in "-+"
        )
        lines.append(f"| `{where}` | `{old}` | `{new}` |")
    return "\n".join([*lines[:2], *sorted(lines[2:])]) + "\n"


def write_table() -> None:
    """Write the part of docs/mutants.md that does not depend on a run."""
    document = ROOT / "docs/mutants.md"
    result = document.read_text(encoding="utf-8").partition(RESULT_TITLE)[2]
    mutants = read_mutants(ROOT / "tests/conformance/mutants.toml")
    table = as_markdown(mutants, {check.id: check for check in all_checks()})
    head = f"""# Mutants

The suite is only worth what it notices. Every rule of the specification has a mutant of the
reference that breaks it, made by hand (`tests/conformance/mutants.toml`), and a check of that very
rule that kills it. `tests/conformance/test_mutants.py` runs them all. Mutants claim to follow no
SHOULD rule, unless the check takes some for granted.

{table}
This table is written by `python scripts/mutants.py --table-only`.

"""
    document.write_text(head + RESULT_TITLE + result, encoding="utf-8")


if __name__ == "__main__":
    main()
