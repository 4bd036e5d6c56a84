"""Finds the implementation that is to be simulated, by name."""

import importlib
from typing import TYPE_CHECKING, cast

from pagedkv.implementations import UnknownImplementationError

if TYPE_CHECKING:
    from pagedkv.conformance.simulation.machine import Simulator


def resolve_simulator(name: str) -> "Simulator":
    """The simulator of a name.

    Args:
        name: ``engine``; ``reference``; or ``package.module:factory``, which takes nothing and
            returns a :class:`~pagedkv.conformance.simulation.machine.Simulator`.

    Raises:
        UnknownImplementationError: The name has another form, the module cannot be imported, or
            it has no such factory.
    """
    if name == "engine":
        from pagedkv.engine_simulation import EngineSimulator

        return EngineSimulator()
    if name == "reference":
        from pagedkv.reference_simulation import ReferenceSimulator

        return ReferenceSimulator()
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise UnknownImplementationError(
            f"{name!r} cannot be simulated: use 'engine', 'reference', or 'package.module:factory' "
            "with a factory of simulators; docs/simulation.md says what one is"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        remedy = "install it, or add its folder to PYTHONPATH"
        raise UnknownImplementationError(
            f"{name!r}: module {module_name!r} cannot be imported ({type(error).__name__}: "
            f"{error}); "
            + (remedy if isinstance(error, ModuleNotFoundError) else "correct the module")
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise UnknownImplementationError(
            f"{name!r}: module {module_name!r} has no function {attribute!r}"
        )
    simulator = factory()
    missing = [
        part for part in ("name", "packages", "run", "machine") if not hasattr(simulator, part)
    ]
    if missing:
        raise UnknownImplementationError(
            f"{name!r} returns no simulator: {simulator!r} lacks {', '.join(missing)}; "
            "docs/simulation.md says what one is"
        )
    return cast("Simulator", simulator)
