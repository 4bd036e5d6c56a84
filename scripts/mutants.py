"""Mutate the reference in every place that cosmic-ray knows, and see what the suite makes of it.

A mutant differs from the reference in one operator, constant, condition or loop. It is killed if a
check fails on it. Checks of the rules that the changed function cites run first, then all others.
What survives shows a check that is missing, code that is not needed, or a change that makes no
difference. Nothing is written but docs/mutants.md, on request.

    python scripts/mutants.py pool matching        # these modules of the reference
    python scripts/mutants.py --sample 300         # some mutants of all
    python scripts/mutants.py --write              # everything, for an hour, into docs/mutants.md
    python scripts/mutants.py --table-only         # the table of hand-made mutants there, anew
"""

import argparse
import ast
import importlib
import inspect
import logging
import multiprocessing
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from pagedkv.cli.output import progress_bar
from pagedkv.conformance.check import Check
from pagedkv.conformance.spec_text import should_rules
from pagedkv.conformance.suite import Plan, all_checks, run_check
from pagedkv.conformance.zoo.change import Edit
from pagedkv.conformance.zoo.mutant import as_markdown, read_mutants
from pagedkv.conformance.zoo.specimen import broken_reference
from pagedkv.conformance.zoo.visit import visit_untouched

ROOT = Path(__file__).parents[1]

MODULES = (
    *("allocation", "batches", "cleaning", "commit", "connector", "fates", "identity", "lengths"),
    *("manager", "matching", "media", "page_bytes", "pool", "requests", "reset", "runtime"),
    *("state", "store_answers", "tier_setup", "tiers", "transfers"),
)
"""What managers do; the vocabulary around it has tests of its own in tests/reference."""

ARITHMETIC = {"Add_Sub", "Sub_Add", "Mul_FloorDiv", "FloorDiv_Mul", "Mod_FloorDiv"}
"""Of the ways to replace an operator between numbers, those that a person might get wrong."""

POINTLESS = re.compile("Eq_Is|Is_Eq|NotEq_IsNot|IsNot_NotEq|NoOp|Decorator|Variable")
"""Operators that change nothing here, or more than one line."""

DROP = "drop a statement"
"""What cosmic-ray does not do: leave out one line."""

EXAMPLES = 20
"""Generated runs per check."""

CHECK_TIMEOUT_S, MUTANT_TIMEOUT_S = 20, 120
"""Longest a check, and all checks of a mutant, may take; a mutant that takes longer is killed."""

FORK = multiprocessing.get_context("fork")
"""Starts at once, with all that is imported here."""

RESULT_TITLE = "## What a tool makes of it"


@dataclass(frozen=True)
class Site:
    """One place in a module, and what an operator makes of it."""

    module: ModuleType
    """A module of the reference."""
    operator: str
    """What cosmic-ray calls the operator."""
    occurrence: int
    """Which of the places that it knows in the module."""


@dataclass(frozen=True)
class Mutation:
    """One function with one line changed."""

    function: FunctionType
    """Which one."""
    old: str
    """The line as it is."""
    new: str
    """The line as it is in the mutant."""
    edit: Edit
    """The change."""

    @property
    def where(self) -> str:
        """Module and function."""
        module = self.function.__module__.rpartition(".")[2]
        return f"{module}:{self.function.__qualname__}"


def sites_of(module: ModuleType) -> Iterator[Site]:
    """Every place that an operator can change."""
    source = inspect.getsource(module)
    nodes = list(ast_nodes(get_ast(source)))
    for name in operator_names():
        _, _, variant = name.partition("BinaryOperator_")
        if POINTLESS.search(name) or (variant and variant not in ARITHMETIC):
            continue
        operator = get_operator(name)()
        places = sum(len(list(operator.mutation_positions(node))) for node in nodes)
        yield from (Site(module, name, n) for n in range(places))
    yield from (Site(module, DROP, n) for n in range(len(statements_in(source))))


def statements_in(source: str) -> list[ast.stmt]:
    """Calls, assignments and deletions of one line."""
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr | ast.Assign | ast.AugAssign | ast.Delete)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and node.lineno == node.end_lineno
    ]


def mutation_at(site: Site) -> Mutation | None:
    """The mutant of a place; ``None`` if it is in no function, or the function stays the same."""
    source = inspect.getsource(site.module)
    before, after = (text.splitlines(keepends=True) for text in (source, mutated_at(site, source)))
    changed = [n for n, (old, new) in enumerate(zip(before, after, strict=False)) if old != new]
    if len(before) != len(after) or len(changed) != 1:
        return None
    for function in functions_of(site.module):
        lines, first = inspect.getsourcelines(function)
        start, end = first - 1, first - 1 + len(lines)
        if start <= changed[0] < end:
            edit = Edit(function, {"".join(lines): "".join(after[start:end])})
            try:
                same = edit.places[0][2] == function.__code__
            except SyntaxError:  # a star between parameters is no multiplication
                return None
            old, new = before[changed[0]].strip(), after[changed[0]].strip()
            return None if same else Mutation(function, old, new, edit)
    return None


def mutated_at(site: Site, source: str) -> str:
    """The module's text with the place changed."""
    if site.operator != DROP:
        return mutate_code(source, get_operator(site.operator)(), site.occurrence) or ""
    statement = statements_in(source)[site.occurrence]
    lines = source.splitlines(keepends=True)
    line = lines[statement.lineno - 1]
    lines[statement.lineno - 1] = (
        line[: statement.col_offset] + "pass" + line[statement.end_col_offset :]
    )
    return "".join(lines)


def functions_of(module: ModuleType) -> Iterator[FunctionType]:
    """Functions of a module and methods of its classes, as they stand in its text."""
    owners = [module, *(c for c in vars(module).values() if inspect.isclass(c))]
    for owner in owners:
        for member in vars(owner).values():
            found = member.fget if isinstance(member, property) else member
            found = getattr(found, "__func__", found)
            found = inspect.unwrap(found) if callable(found) else found
            if isinstance(found, FunctionType) and found.__code__.co_filename == module.__file__:
                yield found


def killer_of(mutation: Mutation, checks: Sequence[Check]) -> str | None:
    """The check that fails on a mutant; in a process of its own, because a mutant may not end."""
    found = FORK.SimpleQueue()
    child = FORK.Process(target=run_checks, args=(mutation, checks, found))
    child.start()
    child.join(MUTANT_TIMEOUT_S)
    child.kill()
    child.join()
    if child.exitcode != 0:
        return "no end"
    return None if found.empty() else found.get()


def run_checks(
    mutation: Mutation, checks: Sequence[Check], found: "multiprocessing.SimpleQueue[str]"
) -> None:
    """Run checks on a mutant until one fails; ``found`` gets its name."""
    implementation = broken_reference("mutant", [mutation.edit], should_rules())
    twin = broken_reference("untouched", (), should_rules())
    plan = Plan(implementation, "", twin, examples=EXAMPLES, timeout_s=CHECK_TIMEOUT_S)
    for check in checks:
        if run_check(check, plan).status == "failed":
            found.put(check.id)
            return


def main() -> None:
    """Make mutants, run the suite on them, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="modules of the reference")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants, drawn by lot")
    parser.add_argument("--seed", type=int, default=0, help="of that lot")
    parser.add_argument("--write", action="store_true", help="into docs/mutants.md")
    parser.add_argument("--table-only", action="store_true", help="run nothing; see above")
    options = parser.parse_args()
    document = ROOT / "docs/mutants.md"
    if options.table_only:
        result = document.read_text(encoding="utf-8").partition(RESULT_TITLE)[2]
        document.write_text(head() + RESULT_TITLE + result, encoding="utf-8")
        return
    names = options.modules or MODULES
    modules = [importlib.import_module(f"pagedkv.reference.{name}") for name in names]
    sites = [site for module in modules for site in sites_of(module)]
    if options.sample is not None:
        sites = random.Random(options.seed).sample(sites, min(options.sample, len(sites)))
    report = result_of(sites)
    sys.stdout.write(report)
    if options.write:
        command = " ".join(["python scripts/mutants.py", *sys.argv[1:]])
        text = f"{head()}{RESULT_TITLE}\n\n`{command}`\n\n{report}"
        document.write_text(text, encoding="utf-8")


def result_of(sites: list[Site]) -> str:
    """Run the suite on the mutants of all sites; tables of scores and survivors."""
    # What is about parameters and files cannot tell these mutants from the reference.
    checks = [check for check in all_checks() if "vocabulary" not in check.needs]
    logging.disable(logging.WARNING)
    failing = [
        outcome.check.id for outcome in visit_untouched(checks) if outcome.status == "failed"
    ]
    if failing:
        sys.exit(f"the reference itself fails {', '.join(failing)}: nothing could be concluded")
    made: Counter[str] = Counter()
    kills: Counter[str] = Counter()
    survivors: list[Mutation] = []
    with progress_bar() as progress:
        for site in progress.track(sites, description="mutants"):
            mutation = mutation_at(site)
            if mutation is None:
                continue
            made[mutation.where.partition(":")[0]] += 1
            killer = killer_of(mutation, by_likelihood(checks, mutation, kills))
            if killer is None:
                survivors.append(mutation)
            else:
                kills[killer] += 1
    return scores(made, survivors) + "\n" + table_of(survivors)


def by_likelihood(checks: Sequence[Check], mutation: Mutation, kills: Counter[str]) -> list[Check]:
    """Checks of the rules that the function cites first, then those that killed most so far."""
    cited = set(re.findall(r"[A-Z]+-\d+", mutation.function.__doc__ or ""))

    def place(check: Check) -> tuple[bool, bool, int]:
        slow = check.id.startswith("generated.")
        return slow, check.rule.id not in cited, -kills[check.id]

    return sorted(checks, key=place)


def scores(made: Counter[str], survivors: list[Mutation]) -> str:
    """How many mutants of each module were killed."""
    lines = ["| module | mutants | killed | score |", "|---|---:|---:|---:|"]
    for name, total in sorted(made.items()):
        killed = total - sum(m.where.startswith(f"{name}:") for m in survivors)
        lines.append(f"| `{name}` | {total} | {killed} | {killed / total:.0%} |")
    total, killed = sum(made.values()), sum(made.values()) - len(survivors)
    lines.append(f"| all | {total} | {killed} | {killed / max(total, 1):.1%} |")
    return "\n".join(lines) + "\n"


def table_of(survivors: list[Mutation]) -> str:
    """What nobody has noticed."""
    lines = ["| survivor in | instead of | it says |", "|---|---|---|"]
    for mutation in sorted(survivors, key=lambda m: m.where):
        old, new = (f"`{text}`".replace("|", "\\|") for text in (mutation.old, mutation.new))
        lines.append(f"| `{mutation.where}` | {old} | {new} |")
    return "\n".join(lines) + "\n"


def head() -> str:
    """The part of docs/mutants.md that does not depend on a run."""
    mutants = read_mutants(ROOT / "tests/conformance/mutants.toml")
    table = as_markdown(mutants, {check.id: check for check in all_checks()})
    return f"""# Mutants

The suite is only worth what it notices. Every rule of the specification has a mutant of the
reference that breaks it, made by hand (`tests/conformance/mutants.toml`), and a check of that very
rule that kills it. `tests/conformance/test_mutants.py` runs them all. Mutants claim to follow no
SHOULD rule, unless the check takes some for granted.

{table}
This table is written by `python scripts/mutants.py --table-only`.

"""


if __name__ == "__main__":
    main()
