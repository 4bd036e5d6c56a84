"""Tokens made up from identities, so that a trace without texts can be replayed.

Token ``j`` of the block with hash id ``h`` is ``h * block_size + j``. Equal ids give equal
tokens and different ids give different tokens, so a cache finds exactly the prefixes that the
trace says are shared, whatever its own page size.

What a request generates has no identity in a trace: its tokens are made unique to the request,
as negative numbers, and therefore never match anything.
"""

import numpy as np
import numpy.typing as npt

from pagedkv.traces.workload import WorkloadRequest

TOKENS_PER_REQUEST = 2**32
"""Room for generated tokens that each request has to itself."""


def tokens_of(request: WorkloadRequest, block_size: int) -> npt.NDArray[np.int64]:
    """The prompt of ``request``: ``[input_length]`` int64, owned by the caller.

    Args:
        request: A request whose hash ids fit ``block_size``.
        block_size: Tokens per hash id, from the workload's header.
    """
    starts = np.array(request.hash_ids, dtype=np.int64) * block_size
    offsets = np.arange(min(block_size, request.input_length))
    tokens: npt.NDArray[np.int64] = (starts[:, None] + offsets).reshape(-1)
    return tokens[: request.input_length]


def generated_token(index: int, position: int) -> int:
    """Token ``position`` of what request number ``index`` generates, both counted from 0.

    Below ``-2**32`` for every request, so it also stays clear of the small negative numbers
    that servers use as placeholders.
    """
    return -(index + 1) * TOKENS_PER_REQUEST - position - 1
