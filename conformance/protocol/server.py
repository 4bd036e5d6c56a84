"""Serves a Python implementation over the JSON-lines protocol.

``pagedkv serve-protocol --impl NAME`` runs it on stdin and stdout.
"""

from contextlib import AbstractContextManager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from pagedkv.conformance.forward_inputs import inputs_per_device
from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.protocol import replies, requests
from pagedkv.conformance.protocol.contexts import as_context, window_of
from pagedkv.conformance.protocol.errors import (
    MalformedRequestError,
    UnknownCallError,
    UnknownManagerError,
    as_data,
)
from pagedkv.conformance.protocol.message import VERSION
from pagedkv.conformance.protocol.slot_bytes import SlotBytes
from pagedkv.reference.context import TextContext
from pagedkv.reference.events import Event
from pagedkv.reference.inputs import BatchCharacteristics
from pagedkv.reference.media import Media
from pagedkv.reference.metrics import KVCacheMetrics
from pagedkv.traces.events.codec import encode
from pagedkv.traces.manager_setup import ManagerSetup
from pagedkv.traces.sync_adapter import as_sync


class Server:
    """The managers of one implementation, and the answers to what they are asked."""

    def __init__(self, implementation: Implementation) -> None:
        self._implementation = implementation
        self._managers: dict[int, ServedManager] = {}
        # One for all, so that a manager sees the disk and the store that an earlier one has left.
        self._media = Media()
        self._events: list[Event] = []

    def emit(self, event: Event) -> None:
        """Take an event of the manager that is being asked; its reply carries it."""
        self._events.append(event)

    def answer(self, line: bytes) -> bytes:
        """The reply to a line; neither has an end."""
        reply: dict[str, object] = {}
        try:
            reply["result"] = self._result(parse(line))
        except Exception as error:  # whatever it is, the other side is to hear of it
            reply["error"] = as_data(error)
        if self._events:
            reply["events"] = [from_json(encode(n, e)) for n, e in enumerate(self._events)]
            self._events = []
        # Numbers of numpy are numbers, too.
        return to_json(reply, bytes_mode="hex", fallback=lambda value: value.tolist())

    def _result(self, request: requests.Request) -> object:
        if isinstance(request, requests.Hello):
            return self._introduction(request.version)
        if isinstance(request, requests.Open):
            return self._open(request)
        manager = self._managers.get(request.manager)
        if manager is None:
            raise UnknownManagerError(f"no manager has the number {request.manager}; open() one")
        if request.call == "close":
            manager.close()
            del self._managers[request.manager]
            return None
        return manager.result(request)

    def _introduction(self, version: int) -> replies.Introduction:
        if version != VERSION:
            raise MalformedRequestError(
                f"version is {version}; this server speaks version {VERSION}"
            )
        who = self._implementation
        return replies.Introduction(
            version=VERSION,
            name=who.name,
            implementation_version=who.version,
            capabilities=sorted(who.capabilities - replies.NOT_ON_A_LINE),
            follows=sorted(who.follows),
            write_policies=list(who.write_policies),
            hash_algorithms=list(who.hash_algorithms),
            page_size=who.page_size,
        )

    def _open(self, request: requests.Open) -> replies.Opened:
        if request.manager in self._managers:
            raise MalformedRequestError(f"manager {request.manager} is open; close() it first")
        folder = request.setup.disk_dir
        setup = ManagerSetup.model_validate(
            request.setup.model_dump()
            | {
                "disk_dir": None if folder is None else Path(folder),
                "media": self._media,
                "tracer": self if request.events else None,
            }
        )
        manager = ServedManager(self._implementation, setup)
        self._managers[request.manager] = manager
        slot_nbytes = None if manager.slots is None else manager.slots.nbytes
        return replies.Opened(calls=manager.calls, slot_nbytes=slot_nbytes)


def parse(line: bytes) -> requests.Request:
    """The request of a line.

    Raises:
        UnknownCallError: There is no such call.
        MalformedRequestError: It is no JSON, or a field is missing, unknown or of a wrong type.
    """
    try:
        return requests.REQUEST.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "union_tag_invalid" and isinstance(first["input"]["call"], str):
            raise UnknownCallError(f"there is no call {first['input']['call']!r}") from None
        place = ".".join(str(part) for part in first["loc"][1:])
        raise MalformedRequestError(f"{place}: {first['msg']}" if place else first["msg"]) from None


class ServedManager:
    """One manager, asked through requests."""

    def __init__(self, implementation: Implementation, setup: ManagerSetup) -> None:
        # Any: an implementation offers a part of the interface.
        self._manager: Any = as_sync(implementation.make(setup))
        self._reservations: dict[int, Reservation] = {}
        self.slots: SlotBytes | None = None
        """Its memory, if it has any."""
        if self._offers("get_device_buffer"):
            replicas = range(setup.replicas)
            self.slots = SlotBytes([self._manager.get_device_buffer(n) for n in replicas])
        self.calls = [call for call in requests.CALLS if self._answers(call)]
        """The calls that it answers, besides ``close``."""

    def close(self) -> None:
        """Let it go; it may have been shut down before."""
        if self._offers("shutdown"):
            with suppress(Exception):  # nobody has asked for it
                self._manager.shutdown()

    def result(self, request: requests.Request) -> object:
        """What a request gives, as data.

        Raises:
            UnknownCallError: The manager has no such method.
            Exception: What the method raises.
        """
        if request.call not in self.calls:
            raise UnknownCallError(f"this manager does not answer {request.call!r}")
        match request:
            case requests.WriteSlots(replica_idx=replica) if self.slots:
                for page, offset, data in request.slots:
                    self.slots.write(replica, page, offset, data)
                return None
            case requests.ReadSlots(replica_idx=replica) if self.slots:
                return [self.slots.read(replica, page, offset) for page, offset in request.slots]
            case requests.Reserve():
                return self._reserve(request)
            case requests.EndReserve():
                return self._end_reserve(request.reservation)
        method = getattr(self._manager, request.call)
        match request:
            case requests.ReplicaCall():
                result = method(request.replica_idx)
            case requests.RequestCall():
                result = method(request.request_id, request.replica_idx)
            case requests.ContextCall():
                ctx = as_context(request.context)
                result = method(ctx, request.replica_idx)
                if replies.RESULTS[request.call] is replies.Window:
                    result = window_of(ctx)
            case requests.BeginAlloc(hit_limit=limit):
                arguments = () if limit is None else (limit,)
                result = method(as_context(request.context), request.replica_idx, *arguments)
            case requests.LookUp():
                result = method(as_context(request.context))
            case requests.Step():
                result = method(_contexts(request.batches))
            case requests.RuntimeInputs(batch_characteristics=bounds):
                result = method(
                    _contexts(request.batches),
                    max_cache_length=request.max_cache_length,
                    batch_characteristics=bounds and BatchCharacteristics(**bounds.model_dump()),
                )
            case requests.Submit() | requests.Land():
                result = method(request.transfer_id)
            case requests.Fail():
                result = method(request.transfer_id, request.reason, request.keys)
            case requests.Poison():
                result = method(request.replica_idx, request.reason)
            case _:
                result = method()
        return _as_data(request.call, result)

    def _offers(self, method: str) -> bool:
        return callable(getattr(self._manager, method, None))

    def _answers(self, call: str) -> bool:
        match call:
            case "hello" | "open" | "close":
                return False
            case "end_reserve":
                return self._offers("reserve")
            case "write_slots" | "read_slots":
                return self.slots is not None
            case _:
                return self._offers(call)

    def _reserve(self, request: requests.Reserve) -> list[list[replies.Window]]:
        contexts = _contexts(request.batches)
        scope = self._manager.reserve(contexts)
        scope.__enter__()
        self._reservations[request.reservation] = Reservation(scope, contexts)
        return _windows(contexts)

    def _end_reserve(self, number: int) -> list[list[replies.Window]]:
        if number not in self._reservations:
            raise MalformedRequestError(f"there is no reservation {number}")
        reservation = self._reservations.pop(number)
        reservation.scope.__exit__(None, None, None)
        return _windows(reservation.contexts)


class Reservation(NamedTuple):
    """A scope of ``reserve`` that is open."""

    scope: AbstractContextManager[None]
    """What ends it."""
    contexts: list[list[TextContext]]
    """Its batches."""


def _contexts(batches: list[list[requests.ContextData]]) -> list[list[TextContext]]:
    return [[as_context(data) for data in batch] for batch in batches]


def _windows(batches: list[list[TextContext]]) -> list[list[replies.Window]]:
    return [[window_of(ctx) for ctx in batch] for batch in batches]


# Any: what methods give, of whatever class the implementation has.
def _as_data(call: str, result: Any) -> object:
    """The result of a call as its reply carries it."""
    match call:
        case "begin_alloc":
            return {"pages": list(result.pages), "transfers": list(result.transfers)}
        case "in_flight":
            names = replies.TransferData.model_fields
            return [{name: getattr(transfer, name) for name in names} for transfer in result]
        case "get_metrics_aggregated":
            counters = [f.name for f in fields(KVCacheMetrics) if hasattr(result, f.name)]
            return {name: getattr(result, name) for name in counters}
        case "runtime_inputs":
            return [
                {
                    "columns": device.lookup_table.shape[1],
                    "lookup_table": device.lookup_table.tolist(),
                    "cache_lengths": device.cache_lengths.tolist(),
                    "max_prompt_length": int(device.max_prompt_length),
                    "max_cache_length": int(device.max_cache_length),
                }
                for device in inputs_per_device(result)
            ]
        case _:
            return result if call in replies.RESULTS else None
