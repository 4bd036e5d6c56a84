"""BurstGPT: four months of ChatGPT and GPT-4 requests; newer releases also name the session.

Source: HPMLL/BurstGPT. The files know lengths and times only; failed requests have no response
tokens, and some have no request tokens either.
"""

from functools import partial

from pagedkv.traces.formats.csv_trace import CONTENT_FREE_BLOCK_SIZE, CsvColumns, CsvParser
from pagedkv.traces.formats.format import Format


def _seconds(text: str) -> float:
    """A decimal number; Python's digit groups, as in ``1_000``, are no part of CSV."""
    if "_" in text:
        raise ValueError(f"{text!r} is no decimal number")
    return float(text)


COLUMNS = CsvColumns(
    arrival="Timestamp",
    seconds=_seconds,
    arrival_example="19440110.0, in seconds",
    input_length="Request tokens",
    output_length="Response tokens",
    session="Session ID",
    type="Log Type",
)

BURSTGPT = Format(
    name="burstgpt",
    signature=COLUMNS.required,
    block_size=CONTENT_FREE_BLOCK_SIZE,
    first_line_is_header=True,
    ids_are_chained=True,
    parser=partial(CsvParser, COLUMNS),
)
