"""The source tree, as the packaging tests look at it."""

import ast
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("reference", "engine", "conformance", "traces")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def package_files(root: Path) -> dict[str, Path]:
    """Every file of the import package by its name in it, such as ``reference/pool.py``."""
    package = root / "src/pagedkv"
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if not folder.endswith("__pycache__")
    ]
    return {path.relative_to(package).as_posix(): path for path in sorted(found)}


@pytest.fixture(scope="session")
def modules(package_files: dict[str, Path]) -> dict[str, ast.Module]:
    """The syntax tree of every module of the import package, by its file's name in it."""
    return {
        name: ast.parse(path.read_text(encoding="utf-8"))
        for name, path in package_files.items()
        if name.endswith(".py")
    }


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest) -> str:
    """The name of each part in turn."""
    return str(request.param)
