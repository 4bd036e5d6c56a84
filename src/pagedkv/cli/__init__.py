"""The command line: ``pagedkv replay``, ``pagedkv trace``, ``pagedkv demo``."""

from pagedkv.cli.app import main

__all__ = ["main"]
