"""The command line: ``pagedkv replay``, ``pagedkv trace``, ``pagedkv demo``."""

from pagedkv.cli.entry import main

__all__ = ["main"]
