"""Azure's LLM inference traces of 2023 and 2024, and the multimodal one of 2025.

Source: Azure/AzurePublicDataset. The files know lengths and times only.
"""

from datetime import UTC, datetime
from functools import partial

from pagedkv.traces.formats.csv_trace import CONTENT_FREE_BLOCK_SIZE, CsvColumns, CsvParser
from pagedkv.traces.formats.format import Format


def _seconds(text: str) -> float:
    """Seconds since 1970; a time without a zone is taken as UTC."""
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


COLUMNS = CsvColumns(
    arrival="TIMESTAMP",
    seconds=_seconds,
    arrival_example="2023-11-16 18:15:46.6805900",
    input_length="ContextTokens",
    output_length="GeneratedTokens",
)

AZURE = Format(
    name="azure",
    signature=COLUMNS.required,
    block_size=CONTENT_FREE_BLOCK_SIZE,
    first_line_is_header=True,
    ids_are_chained=True,
    parser=partial(CsvParser, COLUMNS),
)
