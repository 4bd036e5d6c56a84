"""What a measurement depends on besides the code: the machine and the versions."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil

from pagedkv.traces.comparison.report import Machine

RUNS_ON = ("pagedkv", "torch", "numpy", "xxhash")
"""Packages whose version can change a result."""


def this_machine() -> Machine:
    """The machine that runs this."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return Machine(
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        processor=processor_model(),
        cores=len(usable) or os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
    )


def processor_model() -> str:
    """The name of the CPU as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages in :data:`RUNS_ON`."""
    return {"Python": platform.python_version(), **{name: version(name) for name in RUNS_ON}}
