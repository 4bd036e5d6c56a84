"""docs/code-map.md has one line for every module, and that line is the module's own."""

import ast
import re
from pathlib import Path

import pytest

LINE = re.compile(r"^- `(?P<path>[^`]+\.py)` — .+$", re.MULTILINE)


def path_in_repository(name: str, parts: tuple[str, ...]) -> str:
    """Where a reader finds a module: the parts lie at the top, the rest in ``src/pagedkv``."""
    return name if name.startswith(parts) else f"src/pagedkv/{name}"


@pytest.fixture(scope="module")
def expected(modules: dict[str, ast.Module]) -> dict[str, str]:
    """The line each module should have, by its path."""
    lines = {}
    for name, tree in modules.items():
        path = path_in_repository(name, ("reference/", "engine/", "conformance/", "traces/"))
        summary = (ast.get_docstring(tree) or "").partition("\n")[0]
        lines[path] = f"- `{path}` — {summary}"
    return lines


@pytest.fixture(scope="module")
def actual(root: Path) -> dict[str, str]:
    """The line each module has, by its path."""
    text = (root / "docs/code-map.md").read_text(encoding="utf-8")
    return {match["path"]: match[0] for match in LINE.finditer(text)}


def test_every_module_is_on_the_map(expected: dict[str, str], actual: dict[str, str]) -> None:
    missing = [line for path, line in expected.items() if path not in actual]
    assert not missing, "add to docs/code-map.md:\n" + "\n".join(missing)


def test_every_entry_of_the_map_exists(expected: dict[str, str], actual: dict[str, str]) -> None:
    gone = sorted(actual.keys() - expected.keys())
    assert not gone, "remove from docs/code-map.md: " + ", ".join(gone)


def test_map_says_what_the_module_says(expected: dict[str, str], actual: dict[str, str]) -> None:
    stale = [line for path, line in expected.items() if actual.get(path, line) != line]
    assert not stale, "change in docs/code-map.md to:\n" + "\n".join(stale)
