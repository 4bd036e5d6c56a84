"""SPEC.md, the code and the tests name the same rules.

A rule is carried out where a docstring or comment cites it by its own number; a range such as
"ALLOC-1 to ALLOC-9" says what a module is about and proves nothing. A rule is checked where a
test has it in its ``rule`` marker.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pagedkv.reference

REFERENCE = Path(pagedkv.reference.__file__).parent
TESTS = Path(__file__).parent
SPEC = (REFERENCE / "SPEC.md").read_text(encoding="utf-8")

NAME = re.compile(r"\b[A-Z]{2,}-\d+\b")
RANGE = re.compile(r"\b([A-Z]+-\d+) to ([A-Z]*)-(\d+)\b")
NAMES_OF_OTHER_THINGS = {"SHA-256", "UTF-8"}


@dataclass(frozen=True)
class Rule:
    """One rule as SPEC.md has it."""

    section: str
    """Its family, such as ``ALLOC``."""
    number: int
    """Its number there."""
    strength: str
    """``MUST``, ``SHOULD``, or ``withdrawn`` where only the number is left."""

    @property
    def name(self) -> str:
        """What it is cited by."""
        return f"{self.section}-{self.number}"


def rules_in(spec: str) -> list[Rule]:
    """Every rule in order: lines that start with ``- **POOL-1** (MUST)``."""
    found = re.findall(r"^- \*\*(\w+)-(\d+)\*\* \((\w+)\)", spec, re.MULTILINE)
    return [Rule(section, int(number), strength) for section, number, strength in found]


def prose_in(code: str) -> Iterator[str]:
    """Every docstring, of fields too, and every comment."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def exact_citations(text: str) -> set[str]:
    """The rules that ``text`` names one by one."""
    return set(NAME.findall(RANGE.sub("", text))) - NAMES_OF_OTHER_THINGS


def ends_of_ranges(text: str) -> set[str]:
    """The rules at both ends of every range: "A-1 to A-9", or "A-1 to -9" for short."""
    found: set[str] = set()
    for first, section, number in RANGE.findall(text):
        found |= {first, f"{section or first.partition('-')[0]}-{number}"}
    return found


def markers_in(code: str) -> list[str]:
    """The arguments of every ``pytest.mark.rule(...)``."""
    return [
        str(ast.literal_eval(argument))
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.rule"
        for argument in node.args
    ]


def codes_in(folder: Path, pattern: str) -> dict[str, str]:
    """Source by file name."""
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob(pattern)}


@pytest.fixture(scope="module")
def rules() -> list[Rule]:
    return rules_in(SPEC)


@pytest.fixture(scope="module")
def names(rules: list[Rule]) -> set[str]:
    """Rules that hold: citations and tests may name these and no others."""
    return {rule.name for rule in rules if rule.strength != "withdrawn"}


def test_every_item_of_a_section_is_a_rule(rules: list[Rule]) -> None:
    items = re.findall(r"^- \*\*.*", SPEC, re.MULTILINE)
    assert len(items) == len(rules) > 0


def test_every_rule_is_must_or_should(rules: list[Rule]) -> None:
    assert {rule.strength for rule in rules} <= {"MUST", "SHOULD", "withdrawn"}


def test_rules_are_numbered_from_one_without_gaps_in_order(rules: list[Rule]) -> None:
    numbers: dict[str, list[int]] = {}
    for rule in rules:
        numbers.setdefault(rule.section, []).append(rule.number)
    assert numbers == {name: list(range(1, len(found) + 1)) for name, found in numbers.items()}


def test_every_rule_is_cited_where_the_reference_carries_it_out(names: set[str]) -> None:
    codes = codes_in(REFERENCE, "*.py").values()
    cited = {name for code in codes for text in prose_in(code) for name in exact_citations(text)}
    missing = sorted(names - cited)
    assert not missing, f"cite where the code carries them out: {', '.join(missing)}"


def test_every_rule_has_a_test(names: set[str]) -> None:
    codes = codes_in(TESTS, "test_*.py").values()
    missing = sorted(names - {name for code in codes for name in markers_in(code)})
    assert not missing, f"without a test: {', '.join(missing)}"


def test_every_citation_names_a_rule(names: set[str]) -> None:
    unknown = {
        f"{file}: {name}"
        for file, code in codes_in(REFERENCE, "*.py").items()
        for text in prose_in(code)
        for name in (exact_citations(text) | ends_of_ranges(text)) - names
    }
    assert not unknown


def test_every_marker_names_a_rule(names: set[str]) -> None:
    unknown = {
        f"{file}: {name}"
        for file, code in codes_in(TESTS, "test_*.py").items()
        for name in markers_in(code)
        if name not in names
    }
    assert not unknown


def test_a_range_is_no_exact_citation() -> None:
    text = "Rules POOL-1 to POOL-4, ID-2 to -9, and LEN-3 over SHA-256 (STEP-1, STEP-2)."
    assert exact_citations(text) == {"LEN-3", "STEP-1", "STEP-2"}
    assert ends_of_ranges(text) == {"POOL-1", "POOL-4", "ID-2", "ID-9"}


def test_citations_are_found_in_docstrings_and_comments_only() -> None:
    code = '"""ID-1."""\nclass Page:\n    index = "ID-2"\n    """ID-3."""\n    # ID-4\n'
    assert {name for text in prose_in(code) for name in exact_citations(text)} == {
        "ID-1",
        "ID-3",
        "ID-4",
    }


def test_markers_are_found_on_functions_and_classes() -> None:
    code = '@pytest.mark.rule("ID-1", "ID-2")\nclass Test:\n'
    code += '    @pytest.mark.rule("ID-3")\n    def test(self): ...\n'
    assert sorted(markers_in(code)) == ["ID-1", "ID-2", "ID-3"]


def test_a_withdrawn_rule_keeps_its_number() -> None:
    assert rules_in("- **ID-7** (MUST) Text.\n- **ID-8** (withdrawn)\n") == [
        Rule("ID", 7, "MUST"),
        Rule("ID", 8, "withdrawn"),
    ]
