"""Workloads and recorded traces, and what replays them on any implementation."""

if not __name__.startswith("pagedkv."):
    raise ImportError(
        f"import pagedkv.traces instead of {__name__}: "
        "a second copy of a module has classes of its own, equal to nobody else's"
    )
