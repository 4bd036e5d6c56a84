"""The suite that checks any implementation against the reference."""

if not __name__.startswith("pagedkv."):
    raise ImportError(
        f"import pagedkv.conformance instead of {__name__}: "
        "a second copy of a module has classes of its own, equal to nobody else's"
    )
