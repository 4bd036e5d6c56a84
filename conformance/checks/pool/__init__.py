"""POOL: the pages of a replica, and which of them goes next."""

from pagedkv.conformance.checks.pool import busy, evictions, order, pages, pins

# To import them is to register their checks.
__all__ = ["busy", "evictions", "order", "pages", "pins"]
