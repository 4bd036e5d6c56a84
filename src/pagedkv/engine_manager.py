"""Engines, made as any implementation is: from a setup."""

from pagedkv.engine.manager import PagedKVCacheManager
from pagedkv.traces.manager_setup import ManagerSetup


def build_engine(setup: ManagerSetup) -> PagedKVCacheManager:
    """An engine of these sizes, policies and shape, on the CPU.

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
        auto_land=setup.auto_land,
    )
