"""The reference reads no files, no clock and no chance: what it does follows from its calls."""

import ast
from collections.abc import Iterator

import pytest

OUTSIDE_WORLD = {
    "asyncio",
    "concurrent",
    "datetime",
    "glob",
    "io",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "secrets",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
}
FILE_CALLS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "fromfile", "tofile"}
# Its configuration classes read configuration files.
EXEMPT = {"reference/config.py"}


def outside_world(tree: ast.Module) -> Iterator[str]:
    """Each way in which a module reaches beyond its arguments, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                reached = {alias.name.split(".")[0] for alias in names} & OUTSIDE_WORLD
            case ast.ImportFrom(module=str(module)):
                reached = {module.split(".")[0]} & OUTSIDE_WORLD
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                reached = {name} & FILE_CALLS
            case _:
                continue
        yield from (f"line {node.lineno}: {name}" for name in sorted(reached))


def test_reference_reaches_nothing_outside_itself(modules: dict[str, ast.Module]) -> None:
    found = {
        name: list(outside_world(tree))
        for name, tree in modules.items()
        if name.startswith("reference/") and name not in EXEMPT
    }
    assert found, "no module of the reference was looked at"
    assert not {name: reached for name, reached in found.items() if reached}


@pytest.mark.parametrize(
    "code",
    [
        "import time",
        "import os.path",
        "from threading import Lock",
        "open('page')",
        "page.read_bytes()",
        "tensor.numpy().tofile('page')",
    ],
)
def test_reaching_outside_is_noticed(code: str) -> None:
    assert list(outside_world(ast.parse(code)))
