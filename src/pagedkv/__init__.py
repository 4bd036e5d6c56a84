"""A tiered, paged KV cache manager for LLM serving.

Import what you need from its parts:

- ``pagedkv.reference``: the specification as simple, readable Python, and its vocabulary;
- ``pagedkv.engine``: the same behaviour on asyncio, fast;
- ``pagedkv.conformance``: the suite that checks any implementation against the reference;
- ``pagedkv.traces``: workloads and recorded traces, and what replays them.
"""

from pathlib import Path

__version__ = "0.1.0.dev0"

if not Path(__file__).with_name("reference").is_dir():
    raise ImportError(
        "pagedkv/reference is a text file where a symbolic link to a folder should be, "
        "because this checkout was made without symbolic links: "
        "run `git config core.symlinks true`, then `git checkout -- src/pagedkv`"
    )
