"""The asyncio engine: the behaviour of the reference, fast."""

if not __name__.startswith("pagedkv."):
    raise ImportError(
        f"import pagedkv.engine instead of {__name__}: "
        "a second copy of a module has classes of its own, equal to nobody else's"
    )

from pagedkv.engine.manager import PagedKVCacheManager

__all__ = ["PagedKVCacheManager"]
