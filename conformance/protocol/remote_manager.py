"""A manager in another process, with the methods that a manager in this one has."""

import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch

from pagedkv.conformance.protocol import replies, requests
from pagedkv.conformance.protocol.contexts import as_data, batches_as_data, id_text, move_window
from pagedkv.conformance.protocol.errors import ProtocolError
from pagedkv.conformance.protocol.session import Session
from pagedkv.reference.context import Context
from pagedkv.reference.events import Tracer
from pagedkv.reference.identity import PageKey
from pagedkv.reference.inputs import BatchCharacteristics, KVCacheInputs, KVCacheInputsPerDevice
from pagedkv.reference.metrics import KVCacheMetrics, PrefixCacheHits
from pagedkv.reference.tensor_types import Buffer
from pagedkv.reference.tier_names import FailReason
from pagedkv.traces.manager_setup import ManagerSetup


class RemoteManager:
    """A manager in another process: it has the methods whose calls that process answers."""

    def __init__(self, session: Session, setup: ManagerSetup) -> None:
        self._calls = calls = _Calls(session, setup.tracer)
        opened = calls.open(setup)
        self._offered = frozenset(opened.calls)
        self.slot_nbytes = opened.slot_nbytes
        """Bytes of one token's KV; ``None`` if the manager only keeps books."""

    # Any: the methods are those of _Calls.
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._offered:
            raise AttributeError(f"the manager in the other process does not answer {name!r}")
        return getattr(self._calls, name)


class _Calls:
    """Every call of the protocol, as the method of the same name in ``reference/interfaces.py``."""

    def __init__(self, session: Session, tracer: Tracer | None) -> None:
        self._session = session
        self._tracer = tracer
        self._number = next(session.numbers)

    def open(self, setup: ManagerSetup) -> replies.Opened:
        while self._session.forgotten:
            number = self._session.forgotten.pop()
            self._session.ask(requests.PlainCall(call="close", manager=number))
        data = setup.run_setup().model_dump() | {
            "disk_dir": None if setup.disk_dir is None else str(setup.disk_dir.absolute()),
            "store_endpoint": setup.store_endpoint,
            "auto_land": setup.auto_land,
        }
        opened: replies.Opened = self._ask(
            requests.Open(
                manager=self._number,
                setup=requests.Setup.model_validate(data),
                events=self._tracer is not None,
            )
        )
        weakref.finalize(self, self._session.forgotten.append, self._number).atexit = False
        has_slots = {"write_slots", "read_slots"} <= set(opened.calls)
        is_declared = "bytes" in self._session.introduction.capabilities
        if has_slots != (opened.slot_nbytes is not None) or (is_declared and not has_slots):
            raise ProtocolError(
                f"{self._session.process.command!r} opened a manager that "
                f"{'has' if has_slots else 'lacks'} the calls write_slots and read_slots, with "
                f"slots of {opened.slot_nbytes} bytes: 'bytes' needs all of this"
            )
        return opened

    # --- requests -----------------------------------------------------------------------------

    def claim(self, request_id: Hashable, replica_idx: int) -> None:
        self._request("claim", request_id, replica_idx)

    def alloc_dummy(self, request_id: Hashable, replica_idx: int) -> None:
        self._request("alloc_dummy", request_id, replica_idx)

    def release(self, request_id: Hashable, replica_idx: int) -> None:
        self._request("release", request_id, replica_idx)

    def contains(self, request_id: Hashable, replica_idx: int) -> bool:
        return bool(self._request("contains", request_id, replica_idx))

    def get_req_blocks(self, request_id: Hashable, replica_idx: int) -> list[int]:
        return list(self._request("get_req_blocks", request_id, replica_idx))

    # --- allocation ---------------------------------------------------------------------------

    def alloc(self, data: Context, replica_idx: int) -> None:
        move_window(data, self._context("alloc", data, replica_idx))

    def begin_alloc(
        self, ctx: Context, replica_idx: int, hit_limit: int | None = None
    ) -> replies.PlanData:
        plan: replies.PlanData = self._ask(
            requests.BeginAlloc(
                call="begin_alloc",
                manager=self._number,
                context=as_data(ctx),
                replica_idx=replica_idx,
                hit_limit=hit_limit,
            )
        )
        return plan

    def finish_alloc(self, ctx: Context, replica_idx: int) -> None:
        move_window(ctx, self._context("finish_alloc", ctx, replica_idx))

    def cancel_alloc(self, request_id: Hashable, replica_idx: int) -> None:
        self._request("cancel_alloc", request_id, replica_idx)

    def prefetch(self, ctx: Context) -> list[str]:
        return list(self._look_up("prefetch", ctx))

    @contextmanager
    def reserve(self, replica_batches: Sequence[Sequence[Context]]) -> Iterator[None]:
        reservation = next(self._session.numbers)
        contexts = [ctx for batch in replica_batches for ctx in batch]

        def move_windows(windows: list[list[replies.Window]]) -> None:
            for ctx, window in zip(contexts, chain(*windows), strict=True):
                move_window(ctx, window)

        move_windows(
            self._ask(
                requests.Reserve(
                    manager=self._number,
                    reservation=reservation,
                    batches=batches_as_data(replica_batches),
                )
            )
        )
        try:
            yield
        finally:
            move_windows(
                self._ask(requests.EndReserve(manager=self._number, reservation=reservation))
            )

    # --- forwards -----------------------------------------------------------------------------

    def runtime_inputs(
        self,
        batches: Sequence[Sequence[Context]],
        *,
        max_cache_length: int | None = None,
        batch_characteristics: BatchCharacteristics | None = None,
    ) -> KVCacheInputs[Buffer, Buffer]:
        bounds = batch_characteristics
        devices: list[replies.DeviceInputs] = self._ask(
            requests.RuntimeInputs(
                manager=self._number,
                batches=batches_as_data(batches),
                max_cache_length=max_cache_length,
                batch_characteristics=None if bounds is None else requests.Bounds(**asdict(bounds)),
            )
        )
        return KVCacheInputs([_as_inputs(device) for device in devices])

    def step(self, batches: Sequence[Sequence[Context]]) -> None:
        self._ask(requests.Step(manager=self._number, batches=batches_as_data(batches)))

    def read_slots(self, replica_idx: int, slots: list[tuple[int, int]]) -> list[bytes]:
        request = requests.ReadSlots(manager=self._number, replica_idx=replica_idx, slots=slots)
        return list(self._ask(request))

    def write_slots(self, replica_idx: int, slots: list[tuple[int, int, bytes]]) -> None:
        self._ask(requests.WriteSlots(manager=self._number, replica_idx=replica_idx, slots=slots))

    # --- environment --------------------------------------------------------------------------

    def in_flight(self) -> list[replies.TransferData]:
        return list(self._plain("in_flight"))

    def submit(self, transfer_id: str) -> None:
        self._ask(requests.Submit(manager=self._number, transfer_id=transfer_id))

    def land(self, transfer_id: str) -> None:
        self._ask(requests.Land(manager=self._number, transfer_id=transfer_id))

    def fail(
        self, transfer_id: str, reason: FailReason, keys: Iterable[PageKey] | None = None
    ) -> None:
        self._ask(
            requests.Fail(
                manager=self._number,
                transfer_id=transfer_id,
                reason=reason,
                keys=None if keys is None else list(keys),
            )
        )

    def poison(self, replica_idx: int, reason: str) -> None:
        self._ask(requests.Poison(manager=self._number, replica_idx=replica_idx, reason=reason))

    def poll_transfers(self) -> None:
        self._plain("poll_transfers")

    def pending_transfers_exist(self, replica_idx: int = 0) -> bool:
        return bool(self._replica("pending_transfers_exist", replica_idx))

    # --- look-ups and counters ----------------------------------------------------------------

    def get_prefix_cache_hit_counts(self, ctx: Context) -> list[PrefixCacheHits]:
        return list(self._look_up("get_prefix_cache_hit_counts", ctx))

    def get_pct_used_blocks_after_allocation(self, ctx: Context, replica_idx: int) -> float:
        return float(self._context("get_pct_used_blocks_after_allocation", ctx, replica_idx))

    def num_free_blocks(self, replica_idx: int = 0) -> int:
        return int(self._replica("num_free_blocks", replica_idx))

    def total_num_blocks(self, replica_idx: int = 0) -> int:
        return int(self._replica("total_num_blocks", replica_idx))

    def get_num_pages(self, replica_idx: int) -> int:
        return int(self._replica("get_num_pages", replica_idx))

    def get_num_used_pages(self, replica_idx: int) -> int:
        return int(self._replica("get_num_used_pages", replica_idx))

    def get_num_host_pages(self, replica_idx: int) -> int:
        return int(self._replica("get_num_host_pages", replica_idx))

    def get_num_used_host_pages(self, replica_idx: int) -> int:
        return int(self._replica("get_num_used_host_pages", replica_idx))

    def get_num_disk_pages(self, replica_idx: int) -> int:
        return int(self._replica("get_num_disk_pages", replica_idx))

    def get_num_used_disk_pages(self, replica_idx: int) -> int:
        return int(self._replica("get_num_used_disk_pages", replica_idx))

    def get_metrics_aggregated(self) -> KVCacheMetrics | SimpleNamespace:
        counters: dict[str, int] = self._plain("get_metrics_aggregated")
        # A counter that is not kept is missing, not zero.
        complete = len(counters) == len(fields(KVCacheMetrics))
        return KVCacheMetrics(**counters) if complete else SimpleNamespace(**counters)

    def reset_metrics(self) -> None:
        self._plain("reset_metrics")

    # --- reset and end ------------------------------------------------------------------------

    def reset_prefix_cache(self) -> None:
        self._plain("reset_prefix_cache")

    def shutdown(self) -> None:
        self._plain("shutdown")

    def crash(self) -> None:
        self._plain("crash")

    # --- the kinds of requests; Any: results of the call's own type -----------------------------

    def _ask(self, request: requests.Request) -> Any:
        return self._session.ask(request, self._tracer)

    def _plain(self, call: Any) -> Any:
        return self._ask(requests.PlainCall(call=call, manager=self._number))

    def _replica(self, call: Any, replica_idx: int) -> Any:
        return self._ask(
            requests.ReplicaCall(call=call, manager=self._number, replica_idx=replica_idx)
        )

    def _request(self, call: Any, request_id: Hashable, replica_idx: int) -> Any:
        return self._ask(
            requests.RequestCall(
                call=call,
                manager=self._number,
                request_id=id_text(request_id),
                replica_idx=replica_idx,
            )
        )

    def _look_up(self, call: Any, ctx: Context) -> Any:
        return self._ask(requests.LookUp(call=call, manager=self._number, context=as_data(ctx)))

    def _context(self, call: Any, ctx: Context, replica_idx: int) -> Any:
        return self._ask(
            requests.ContextCall(
                call=call, manager=self._number, context=as_data(ctx), replica_idx=replica_idx
            )
        )


def _as_inputs(device: replies.DeviceInputs) -> KVCacheInputsPerDevice[Buffer, Buffer]:
    def tensor(values: object) -> Buffer:
        return torch.tensor(values, dtype=torch.int32)

    return KVCacheInputsPerDevice(
        kv_blocks=torch.empty(0),  # the memory is in the other process
        cache_lengths=tensor(device.cache_lengths),
        lookup_table=tensor(device.lookup_table).view(-1, device.columns),
        max_prompt_length=tensor([device.max_prompt_length]),
        max_cache_length=tensor([device.max_cache_length]),
    )
