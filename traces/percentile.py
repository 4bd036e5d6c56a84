"""Exact percentiles."""

from collections.abc import Sequence

from pagedkv.traces.ceil_div import ceil_div


def percentile(ordered: Sequence[int], percent: int) -> int:
    """The smallest recorded value that ``percent`` of all values do not exceed (nearest rank).

    Args:
        ordered: The values in ascending order; 0 is returned for none.
        percent: 1 to 100.
    """
    if not ordered:
        return 0
    return ordered[ceil_div(len(ordered) * percent, 100) - 1]
