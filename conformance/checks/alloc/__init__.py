"""ALLOC: requests get their pages, and what is cached of them.

Allocations that wait for loads are in ``alloc_loads``.
"""

from pagedkv.conformance.checks.alloc import hits, pages, probes, recency, refusals

# To import them is to register their checks.
__all__ = ["hits", "pages", "probes", "recency", "refusals"]
