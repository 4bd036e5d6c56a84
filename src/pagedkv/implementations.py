"""Finds the implementation that a command is to run on, by name."""

import importlib
import shlex
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from pagedkv.conformance.implementation import Implementation
    from pagedkv.reference.interfaces import SyncKVCacheManager
    from pagedkv.traces.manager_setup import ManagerFactory, ManagerSetup

ENTRY_POINTS = "pagedkv.implementations"
"""Group of entry points under which packages announce their implementations."""


class UnknownImplementationError(ValueError):
    """An implementation is asked for that cannot be found."""


def resolve_implementation(name: str) -> "Implementation":
    """The implementation of a name.

    Args:
        name: ``reference``; ``engine``; an entry point of the group ``pagedkv.implementations``;
            ``package.module:attribute``, an :class:`Implementation` or a factory, which takes one
            :class:`~pagedkv.traces.manager_setup.ManagerSetup` and returns a manager;
            ``package.module``, whose attribute ``implementation`` is meant; or ``cmd:`` and a
            command that speaks the JSON-lines protocol.

    Raises:
        UnknownImplementationError: The name has another form, the module cannot be imported, or
            it has no such attribute; or the command does not speak the protocol.
    """
    if name == "reference":
        return reference()
    if name == "engine":
        return engine()
    if name.startswith("cmd:"):
        from pagedkv.conformance.protocol.client import implementation_of_command
        from pagedkv.conformance.protocol.errors import ProtocolError

        try:
            return implementation_of_command(name.removeprefix("cmd:"))
        except ProtocolError as error:
            raise UnknownImplementationError(str(error)) from error
    for announced in entry_points(group=ENTRY_POINTS, name=name):
        name = announced.value
    module_name, _, attribute = name.partition(":")
    if not module_name or module_name.startswith(".") or name.endswith(":"):
        raise UnknownImplementationError(
            f"{name!r} is no implementation: use 'reference', 'engine' or 'package.module:factory'"
        )
    try:
        module = importlib.import_module(module_name)
        found = getattr(module, attribute or "implementation", None)
    except (Exception, SystemExit) as error:
        remedy = "install it, or add its folder to PYTHONPATH"
        raise UnknownImplementationError(
            f"{name!r}: its import fails: module {module_name!r} cannot be imported "
            f"({type(error).__name__}: {error}); "
            + (remedy if isinstance(error, ModuleNotFoundError) else "correct the module")
        ) from error
    # Imported late because it brings in torch, which takes seconds.
    from pagedkv.conformance.implementation import Implementation

    if isinstance(found, Implementation):
        return found
    if not callable(found):
        raise UnknownImplementationError(
            f"{name!r}: module {module_name!r} has no function {attribute or 'implementation'!r}"
        )
    return Implementation(name=name, make=cast("ManagerFactory", found))


def as_option(name: str) -> str:
    """How people have asked for it on the command line: ``--impl NAME``, ``--impl-cmd COMMAND``."""
    if name.startswith("cmd:"):
        return f"--impl-cmd {shlex.quote(name.removeprefix('cmd:'))}"
    return f"--impl {name}"


def reference() -> "Implementation":
    """The reference: it can do everything, and follows every rule."""
    from pagedkv import __version__
    from pagedkv.conformance.implementation import CAPABILITIES, Implementation
    from pagedkv.conformance.spec_text import should_rules

    return Implementation(
        name="reference",
        version=__version__,
        make=reference_manager,
        capabilities=frozenset(CAPABILITIES) - {"async"},
        follows=should_rules(),
        write_policies=("through", "write_back", "reuse"),
    )


def reference_manager(setup: "ManagerSetup") -> "SyncKVCacheManager":
    """The reference manager, on the CPU.

    Raises:
        ValueError: The machine does not have the memory.
    """
    # torch takes seconds to import: commands that need no manager do without it.
    from pagedkv.specification import build_reference

    return build_reference(setup)


def engine() -> "Implementation":
    """The engine: all but a block store; its transfers land when their bytes have arrived."""
    from pagedkv import __version__
    from pagedkv.conformance.implementation import CAPABILITIES, Implementation
    from pagedkv.conformance.spec_text import should_rules
    from pagedkv.engine_manager import build_engine

    return Implementation(
        name="engine",
        version=__version__,
        make=build_engine,
        capabilities=frozenset(CAPABILITIES) - {"store"},
        follows=should_rules() - {"XFER-6"},
        write_policies=("through", "write_back", "reuse"),
    )
