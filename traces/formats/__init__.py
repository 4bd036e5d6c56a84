"""The formats that can be read: the package's own and five public ones."""

from pagedkv.traces.formats.azure import AZURE
from pagedkv.traces.formats.bailian import BAILIAN
from pagedkv.traces.formats.burstgpt import BURSTGPT
from pagedkv.traces.formats.format import Format, LineParser
from pagedkv.traces.formats.mooncake import DYNAMO, MOONCAKE
from pagedkv.traces.formats.native import NATIVE

FORMATS: dict[str, Format] = {
    format.name: format for format in (NATIVE, BAILIAN, DYNAMO, MOONCAKE, AZURE, BURSTGPT)
}
"""Every format by name, in the order in which a file is tried on them."""

__all__ = ["FORMATS", "Format", "LineParser"]
