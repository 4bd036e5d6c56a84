"""Whether events order everything that streams and the host do to the same rows."""

from pagedkv.conformance.stream_order.checker import check_order
from pagedkv.conformance.stream_order.coverage import Coverage
from pagedkv.conformance.stream_order.entries import Entry, Record, Use, Wait
from pagedkv.conformance.stream_order.log_file import OrderLogError, read_order_log
from pagedkv.conformance.stream_order.race import Race
from pagedkv.conformance.stream_order.writer import OrderLogWriter

__all__ = [
    "Coverage",
    "Entry",
    "OrderLogError",
    "OrderLogWriter",
    "Race",
    "Record",
    "Use",
    "Wait",
    "check_order",
    "read_order_log",
]
