"""Where pages live and forwards run: device references, and the session that launches forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, TypeVarTuple

import torch

from pagedkv.reference.errors import PagedKVError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class DeviceUnavailableError(PagedKVError, ValueError):
    """Memory or a stream is wanted on a GPU that this machine does not have."""

    def __init__(self, device: DeviceRef, gpu_count: int) -> None:
        self.device = device
        """The device that was asked for."""
        self.gpu_count = gpu_count
        """GPUs that torch can use here."""
        remedy = f"GPU ids 0 to {gpu_count - 1}, or " if gpu_count else ""
        super().__init__(
            f"device {device} is not available: torch can use {gpu_count} GPU(s) here; "
            f"use {remedy}DeviceRef.CPU()"
        )


@dataclass(frozen=True)
class DeviceRef:
    """The name of a device: it can be compared, hashed and computed with where the device is not.

    Only :meth:`to_device` asks the machine. CPU ids are free labels: ``CPU(0)`` and ``CPU(1)``
    are two shards in the same host memory, which is how parallel layouts are tried without GPUs.
    """

    kind: Literal["cpu", "gpu"]
    """``gpu`` is whatever torch calls ``cuda``."""
    id: int = 0
    """Index among the devices of this kind."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for an unknown kind, or an id that is no number from 0."""
        if self.kind not in ("cpu", "gpu"):
            raise ValueError(f"device kind is {self.kind!r}; use 'cpu' or 'gpu'")
        if not isinstance(self.id, int) or isinstance(self.id, bool) or self.id < 0:
            raise ValueError(f"device id is {self.id!r}; use a whole number from 0")

    @staticmethod
    def CPU(id: int = 0) -> DeviceRef:
        """The host, under the label ``id``."""
        return DeviceRef("cpu", id)

    @staticmethod
    def GPU(id: int = 0) -> DeviceRef:
        """The GPU with torch's index ``id``."""
        return DeviceRef("gpu", id)

    @staticmethod
    def of(device: DeviceLike) -> DeviceRef:
        """The reference that ``device`` stands for; without an index it is number 0.

        Raises:
            ValueError: ``device`` is neither a CPU nor a GPU.
        """
        if isinstance(device, DeviceRef):
            return device
        name = str(device)
        try:
            parsed = torch.device(name.replace("gpu", "cuda", 1))
        except RuntimeError:
            parsed = None
        if parsed is None or parsed.type not in ("cpu", "cuda"):
            raise ValueError(f"device is {name!r}; use 'cpu' or 'gpu', or with an index 'gpu:1'")
        return DeviceRef("cpu" if parsed.type == "cpu" else "gpu", parsed.index or 0)

    @staticmethod
    def all_of(devices: Sequence[DeviceLike]) -> tuple[DeviceRef, ...]:
        """The references that ``devices`` stand for, in their order.

        Raises:
            ValueError: There are none, one of them is neither a CPU nor a GPU, or ``devices`` is
                a single device and no list.
        """
        if isinstance(devices, str) or not isinstance(devices, Iterable):
            raise ValueError(f"devices is {devices!r}; give a list, such as [DeviceRef.CPU()]")
        refs = tuple(DeviceRef.of(device) for device in devices)
        if not refs:
            raise ValueError("devices is empty; give at least one, such as DeviceRef.CPU()")
        return refs

    def is_cpu(self) -> bool:
        """Whether this is host memory."""
        return self.kind == "cpu"

    def is_gpu(self) -> bool:
        """Whether this is a GPU."""
        return self.kind == "gpu"

    def to_device(self) -> torch.device:
        """The torch device, once it is known to be there; every CPU id gives ``cpu``.

        Raises:
            DeviceUnavailableError: This machine has no such GPU.
        """
        if self.is_cpu():
            return torch.device("cpu")
        gpu_count = torch.cuda.device_count()
        if self.id >= gpu_count:
            raise DeviceUnavailableError(self, gpu_count)
        return torch.device("cuda", self.id)

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"


DeviceLike = DeviceRef | torch.device | str
"""What names a device: a reference, a torch device, or text such as ``cpu`` and ``gpu:1``."""


class InferenceSession:
    """The devices that run forwards, each with one compute stream of its own.

    On a CPU the stream is program order. Transfers order themselves against these streams, so
    whatever reads or writes pages on a GPU has to be launched here.
    """

    def __init__(self, devices: Sequence[DeviceLike]) -> None:
        """Hold ``devices``; streams are made when they are first needed.

        Raises:
            ValueError: No device is given, or no list of them.
            DeviceUnavailableError: This machine lacks one of them.
        """
        self.devices = DeviceRef.all_of(devices)
        """One entry per shard, in the order of the parameters' ``devices``."""
        for device in self.devices:
            device.to_device()
        self._streams: dict[int, torch.cuda.Stream] = {}

    def stream(self, device_idx: int = 0) -> torch.cuda.Stream | None:
        """The compute stream of ``devices[device_idx]``, or None on a CPU.

        Raises:
            ValueError: There is no such entry.
        """
        if not isinstance(device_idx, int) or not 0 <= device_idx < len(self.devices):
            raise ValueError(
                f"device_idx is {device_idx!r}, but the session has {len(self.devices)} device(s): "
                f"use 0 to {len(self.devices) - 1}"
            )
        device = self.devices[device_idx]
        if device.is_cpu():
            return None
        if device_idx not in self._streams:
            # torch declares no types for this constructor.
            self._streams[device_idx] = torch.cuda.Stream(device.to_device())  # type: ignore[no-untyped-call]
        return self._streams[device_idx]

    def launch(self, fn: Callable[[*Ts], T], *args: *Ts, device_idx: int = 0) -> T:
        """Run ``fn(*args)`` with the device's compute stream as torch's current stream.

        The forward starts after everything the caller has enqueued on its own current stream, and
        on a GPU may still be running when this returns: keep tensors among ``args`` alive, and
        make the stream that reads the result wait for :meth:`stream`.

        Returns:
            What ``fn`` returned.
        """
        stream = self.stream(device_idx)
        if stream is None:
            return fn(*args)
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            return fn(*args)

    def __repr__(self) -> str:
        return f"InferenceSession(devices=[{', '.join(map(str, self.devices))}])"
