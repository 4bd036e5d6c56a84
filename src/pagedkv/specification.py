"""Reference managers, made as any implementation is: from a setup."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from pagedkv.conformance.recorded.specification import Specification
from pagedkv.reference import PagedKVCacheManager, PageKey, Tracer
from pagedkv.reference.media import DiskImage
from pagedkv.reference.page_bytes import read_page
from pagedkv.reference.tiers import Block
from pagedkv.traces.events.setup import RunSetup
from pagedkv.traces.manager_setup import ManagerSetup

RECORDED_DISK = Path("recorded")
"""The folder of a recorded disk, as far as a specification sees one."""


def reference_specification(
    setup: RunSetup, tracer: Tracer, disk: Sequence[PageKey] = ()
) -> Specification:
    """A reference manager set up as the one that was recorded, its environment in our hands.

    Args:
        setup: The recorded manager's.
        tracer: Receives the events.
        disk: What its disk held when it was opened, oldest first.
    """
    wanted = ManagerSetup.model_validate(
        setup.model_dump() | {"disk_dir": RECORDED_DISK, "tracer": tracer, "auto_land": False}
    )
    if disk:
        wanted.media.disks[str(RECORDED_DISK)] = _disk_image(wanted, disk)
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


def _disk_image(setup: ManagerSetup, keys: Sequence[PageKey]) -> DiskImage:
    """A disk with these blocks under the manager's own namespace; their bytes are made up."""
    params = setup.params()
    content = read_page(params.allocate_buffers(1)[0].to_memory(), 0)
    blocks = OrderedDict((key, Block(key, key, parent=None, content=content)) for key in keys)
    return DiskImage(params.layout_fingerprint(), setup.model_fingerprint, blocks)
