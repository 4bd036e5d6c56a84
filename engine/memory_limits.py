"""How much memory this process may still take: what its control groups and its own limits leave."""

import resource
from pathlib import Path

from pagedkv.reference.sizing import InsufficientMemoryError, check_host_memory

CGROUP_ROOT = Path("/sys/fs/cgroup")
"""Where the system shows control groups."""

OWN_CGROUPS = Path("/proc/self/cgroup")
"""Where it says which ones this process is in."""

_UNLIMITED = 2**60  # version 1 says "no limit" with a number of this size


def check_memory(
    field: str,
    wanted_bytes: int,
    *,
    locked: bool,
    cgroup_root: Path = CGROUP_ROOT,
    own_cgroups: Path = OWN_CGROUPS,
) -> None:
    """Refuse what this process will not get (SIZE-4).

    Args:
        field: The setting that asks for it, for the message.
        wanted_bytes: How much it asks for.
        locked: Whether it is to be locked in memory under ``RLIMIT_MEMLOCK``.
        cgroup_root: See :data:`CGROUP_ROOT`.
        own_cgroups: See :data:`OWN_CGROUPS`.

    Raises:
        InsufficientMemoryError: The machine, a control group or a limit leaves less than that.
    """
    check_host_memory(field, wanted_bytes)
    left = cgroup_memory_left(cgroup_root, own_cgroups)
    if left is not None and wanted_bytes > left:
        raise InsufficientMemoryError(
            field, wanted_bytes, left, f"lower {field}, or raise the memory limit of the container"
        )
    lockable = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if locked and lockable != resource.RLIM_INFINITY and wanted_bytes > lockable:
        raise InsufficientMemoryError(
            field, wanted_bytes, lockable, f"lower {field}, or raise RLIMIT_MEMLOCK (ulimit -l)"
        )


def cgroup_memory_left(cgroup_root: Path, own_cgroups: Path) -> int | None:
    """Bytes that the control groups of this process, versions 1 and 2, leave it.

    Page cache that can be dropped counts as left. ``None`` without a limit.
    """
    try:
        memberships = own_cgroups.read_text().splitlines()
    except OSError:
        return None
    left = []
    for membership in memberships:
        _, controllers, name = membership.split(":", 2)
        if not controllers:
            root, names = cgroup_root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = cgroup_root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / name.lstrip("/")
        # In a container the path may be the host's: then the root shows the own group.
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                left.append(_left_in(folder, *names))
    return min((bytes_left for bytes_left in left if bytes_left is not None), default=None)


def _left_in(folder: Path, limit_file: str, usage_file: str, reclaimable: str) -> int | None:
    try:
        limit = int((folder / limit_file).read_text())
        used = int((folder / usage_file).read_text())
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines()
        )
    except (OSError, ValueError):  # no such group, or "max"
        return None
    if limit >= _UNLIMITED:
        return None
    return max(0, limit - used + int(statistics.get(reclaimable, 0)))
