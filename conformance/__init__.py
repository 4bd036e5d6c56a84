"""The suite that checks any implementation against the reference."""

if not __name__.startswith("pagedkv."):
    raise ImportError(
        f"import pagedkv.conformance instead of {__name__}: "
        "a second copy of a module has classes of its own, equal to nobody else's"
    )

from pagedkv.conformance.implementation import ControlledManager, Implementation
from pagedkv.traces.manager_setup import ManagerSetup

__all__ = ["ControlledManager", "Implementation", "ManagerSetup"]
