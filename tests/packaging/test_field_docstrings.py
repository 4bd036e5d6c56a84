"""Every field that others see says what it holds: a docstring follows it."""

import ast
from collections.abc import Iterator


def undocumented_fields(tree: ast.Module) -> Iterator[str]:
    """Each annotated public field of a public class that no string follows, with its line."""
    for owner in ast.walk(tree):
        if not isinstance(owner, ast.ClassDef) or owner.name.startswith("_"):
            continue
        for field, after in zip(owner.body, [*owner.body[1:], None], strict=True):
            match field, after:
                case _, ast.Expr(ast.Constant(str())):
                    continue
                case ast.AnnAssign(ast.Name(name)), _ if not name.startswith(("_", "model_config")):
                    yield f"line {field.lineno}: {owner.name}.{name}"


def test_every_field_has_a_docstring(modules: dict[str, ast.Module]) -> None:
    found = {name: list(undocumented_fields(tree)) for name, tree in modules.items()}
    assert not {name: fields for name, fields in found.items() if fields}


def test_a_field_without_docstring_is_noticed() -> None:
    code = "class Page:\n    index: int\n    '''Which one.'''\n    nbytes: int = 0\n"
    assert list(undocumented_fields(ast.parse(code))) == ["line 4: Page.nbytes"]
