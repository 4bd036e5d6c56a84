"""Finds the implementation that a command is to run on, by name."""

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from pagedkv.reference.interfaces import SyncKVCacheManager
    from pagedkv.traces.manager_setup import ManagerFactory, ManagerSetup


class UnknownImplementationError(ValueError):
    """An implementation is asked for that cannot be found."""


def resolve_implementation(name: str) -> "ManagerFactory":
    """The factory of ``reference``, or of ``package.module:factory``.

    A factory takes one :class:`~pagedkv.traces.manager_setup.ManagerSetup` and returns a manager.

    Raises:
        UnknownImplementationError: The name has another form, the module cannot be imported, or
            it has no such factory.
    """
    if name == "reference":
        return reference_manager
    module_name, _, factory_name = name.partition(":")
    if not (module_name and factory_name) or module_name.startswith("."):
        raise UnknownImplementationError(
            f"{name!r} is no implementation: use 'reference' or 'package.module:factory'"
        )
    try:
        module = importlib.import_module(module_name)
        factory = getattr(module, factory_name, None)
    except (Exception, SystemExit) as error:
        remedy = "install it, or add its folder to PYTHONPATH"
        raise UnknownImplementationError(
            f"{name!r}: module {module_name!r} cannot be imported "
            f"({type(error).__name__}: {error}); "
            + (remedy if isinstance(error, ModuleNotFoundError) else "correct the module")
        ) from error
    if not callable(factory):
        raise UnknownImplementationError(
            f"{name!r}: module {module_name!r} has no function {factory_name!r}"
        )
    return cast("ManagerFactory", factory)


def reference_manager(setup: "ManagerSetup") -> "SyncKVCacheManager":
    """The reference manager, on the CPU.

    Raises:
        ValueError: The machine does not have the memory.
    """
    # torch takes seconds to import: commands that need no manager do without it.
    from pagedkv.specification import build_reference

    return build_reference(setup)
