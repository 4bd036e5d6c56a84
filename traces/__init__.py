"""Workloads and recorded traces, and what replays them on any implementation."""

if not __name__.startswith("pagedkv."):
    raise ImportError(
        f"import pagedkv.traces instead of {__name__}: "
        "a second copy of a module has classes of its own, equal to nobody else's"
    )

from pagedkv.traces.errors import TraceError
from pagedkv.traces.generator import GeneratorParameters, generate
from pagedkv.traces.reader import Workload
from pagedkv.traces.summary import Summary, summarise
from pagedkv.traces.tokens import generated_token, tokens_of
from pagedkv.traces.validator import ValidationReport, validate
from pagedkv.traces.workload import WorkloadHeader, WorkloadRequest
from pagedkv.traces.writer import write_workload

# pagedkv.traces.replay has to be imported by its own name: it brings in torch.
__all__ = [
    "GeneratorParameters",
    "Summary",
    "TraceError",
    "ValidationReport",
    "Workload",
    "WorkloadHeader",
    "WorkloadRequest",
    "generate",
    "generated_token",
    "summarise",
    "tokens_of",
    "validate",
    "write_workload",
]
