"""Reference managers, made as any implementation is: from a setup."""

from pathlib import Path

from pagedkv.conformance.validation import Specification
from pagedkv.reference import PagedKVCacheManager, Tracer
from pagedkv.traces.events.setup import RunSetup
from pagedkv.traces.manager_setup import ManagerSetup


def reference_specification(setup: RunSetup, tracer: Tracer) -> Specification:
    """A reference manager set up as the one that was recorded, its environment in our hands."""
    wanted = ManagerSetup.model_validate(
        setup.model_dump() | {"disk_dir": Path("recorded"), "tracer": tracer, "auto_land": False}
    )
    return build_reference(wanted)


def build_reference(setup: ManagerSetup) -> PagedKVCacheManager:
    """A reference manager of these sizes, policies and shape, on the CPU.

    Raises:
        ValueError: The sizes cannot be, or the machine does not have the memory.
    """
    return PagedKVCacheManager(
        setup.params(),
        setup.session(),
        setup.total_num_pages,
        setup.host_pages or 0,
        max_batch_size=setup.max_batch_size,
        tracer=setup.tracer,
        media=setup.media,
        auto_land=setup.auto_land,
    )
