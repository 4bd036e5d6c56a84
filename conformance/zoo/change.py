"""Changes to the reference that are in force for a while, and leave no trace."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import CodeType, FunctionType

Place = tuple[object, str, object]
"""An object, the name of its attribute, and what the attribute is while the change is in force."""


@dataclass(frozen=True)
class Edit:
    """A function that reads differently in a line or two.

    Everybody who has the function gets it changed, from wherever they imported it.

    Raises:
        ValueError: A text is not in the function exactly once (when it is first in force).
    """

    function: Callable[..., object] | property
    """A function, method or property of the reference."""
    texts: Mapping[str, str]
    """What it says, and what it says instead."""

    @cached_property
    def places(self) -> list[Place]:
        """Only the code of the function: it stays the same object."""
        function = _plain(self.function)
        return [(function, "__code__", _edited(function, self.texts))]


@dataclass(frozen=True)
class Swap:
    """A class or function of the reference that another one stands in for.

    The modules of the reference get the replacement; everybody else keeps the original, the
    replacement included, which can therefore be derived from it.
    """

    original: type | FunctionType
    """What is replaced."""
    replacement: type | FunctionType
    """What stands in for it."""

    @cached_property
    def places(self) -> list[Place]:
        """Every name that the reference has for it."""
        return [
            (module, name, self.replacement)
            for module_name, module in sys.modules.items()
            if module_name.startswith("pagedkv.reference.")
            for name, value in vars(module).items()
            if value is self.original
        ]


Change = Edit | Swap
"""Something about the reference that is different for a while."""


@contextmanager
def in_force(changes: Iterable[Change]) -> Iterator[None]:
    """Let the changes hold until the end of the block."""
    places = [place for change in changes for place in change.places]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, value in places:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


def _plain(function: Callable[..., object] | property) -> FunctionType:
    """The function behind a property, a class method or a decorator."""
    found: object = function.fget if isinstance(function, property) else function
    found = inspect.unwrap(getattr(found, "__func__", found))  # type: ignore[arg-type]
    assert isinstance(found, FunctionType)
    return found


def _edited(function: FunctionType, texts: Mapping[str, str]) -> CodeType:
    """The code of ``function`` with the texts replaced."""
    source = changed = inspect.getsource(function)
    for old, new in texts.items():
        if changed.count(old) != 1:
            raise ValueError(
                f"{function.__qualname__} has {old!r} {changed.count(old)} times; a change names a "
                "text that is there once: has the reference changed? Then adapt the text"
            )
        changed = changed.replace(old, new)
    module = inspect.getsource(sys.modules[function.__module__])
    # The whole module, so that the function keeps its class and the names around it.
    code = compile(module.replace(source, changed), function.__code__.co_filename, "exec")
    found = _code_named(code, function.__qualname__)
    assert found is not None
    return found


def _code_named(code: CodeType, qualname: str) -> CodeType | None:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname == qualname:
                return constant
            if found := _code_named(constant, qualname):
                return found
    return None
