"""Every dependency has its reason and its pin."""

import re
import tomllib
from pathlib import Path

import pytest

# The Makefile's TORCH_VERSION decides the first; peers live in environments of their own.
NOT_PINNED = {"torch", "max", "vllm"}


@pytest.fixture(scope="module")
def dependencies(root: Path) -> set[str]:
    """The names of all that ``pyproject.toml`` asks for, extras included."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return {re.split(r"[^\w.-]", line)[0].lower() for group in groups for line in group}


def test_every_dependency_has_its_reason(root: Path, dependencies: set[str]) -> None:
    text = (root / "docs/dependencies.md").read_text(encoding="utf-8")
    assert dependencies == set(re.findall(r"^- `([^`]+)`: \w", text, re.MULTILINE))


def test_every_dependency_is_pinned(root: Path, dependencies: set[str]) -> None:
    text = (root / "constraints.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE))
    assert dependencies - pinned == NOT_PINNED
