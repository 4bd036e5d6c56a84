"""The requests of a soak: conversations, shared prompts, retrieved passages, long documents."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from pagedkv.traces.generator import GeneratorParameters, generate
from pagedkv.traces.tokens import generated_token, tokens_of

BATCH = 2_000
"""Requests of one workload; the next has other texts."""


@dataclass(frozen=True)
class Prompt:
    """One request as it comes."""

    name: str
    """Unique."""
    tokens: npt.NDArray[np.int64]
    """What it asks."""
    answer: tuple[int, ...]
    """What the model says, token by token."""
    tenant: str | None
    """Whose it is."""


def traffic(seed: int, page_size: int) -> Iterator[Prompt]:
    """Requests without end, with prefixes that are shared as in real traffic, but short ones."""
    number = 0
    for batch in count():
        parameters = GeneratorParameters(
            requests=BATCH,
            seed=seed * 1_000_003 + batch,
            block_size=page_size,
            system_tokens=64,
            document_tokens=80,
            input_tokens=24,
            output_tokens=6,
        )
        header, requests = generate(parameters)
        for request in requests:
            number += 1
            answer = (generated_token(number, n) for n in range(min(request.output_length, 8)))
            yield Prompt(
                f"{request.type} {number}",
                tokens_of(request, header.block_size or page_size),
                tuple(answer),
                "tenant" if number % 5 == 0 else None,
            )
