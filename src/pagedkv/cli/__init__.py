"""The command line: ``conformance``, ``replay``, ``compare``, ``trace``, ``zoo``, ``demo``."""

from pagedkv.cli.entry import main

__all__ = ["main"]
