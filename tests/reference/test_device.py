"""Device references and the session that launches forwards."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.reference.device import DeviceRef, DeviceUnavailableError, InferenceSession

refs = st.builds(DeviceRef, st.sampled_from(["cpu", "gpu"]), st.integers(0, 127))


@given(refs)
def test_a_reference_and_its_text_name_the_same_device(ref: DeviceRef) -> None:
    assert DeviceRef.of(str(ref)) == ref
    assert DeviceRef.of(ref) is ref


@given(refs, refs)
def test_references_are_equal_exactly_when_kind_and_id_are(a: DeviceRef, b: DeviceRef) -> None:
    assert (a == b) == ((a.kind, a.id) == (b.kind, b.id))
    assert len({a, b}) == (1 if a == b else 2)
    assert a.is_cpu() != a.is_gpu()


@pytest.mark.parametrize(
    ("device", "ref"),
    [
        ("cpu", DeviceRef.CPU()),
        ("gpu", DeviceRef.GPU()),
        ("cuda:3", DeviceRef.GPU(3)),
        (torch.device("cuda", 1), DeviceRef.GPU(1)),
        (torch.device("cpu"), DeviceRef.CPU(0)),
    ],
)
def test_torch_devices_and_text_are_converted(device: torch.device | str, ref: DeviceRef) -> None:
    assert DeviceRef.of(device) == ref


@pytest.mark.parametrize("device", ["tpu", "meta", "gpu:x", "gpu:-1", "", torch.device("meta")])
def test_what_is_no_cpu_or_gpu_is_refused_by_name(device: torch.device | str) -> None:
    with pytest.raises(ValueError, match=f"device is '{device}'; use 'cpu' or 'gpu'"):
        DeviceRef.of(device)


@pytest.mark.parametrize("id", [-1, True, 1.5, "0", None])
def test_an_id_is_a_whole_number_from_0(id: Any) -> None:
    with pytest.raises(ValueError, match=r"device id is .*; use a whole number from 0"):
        DeviceRef.CPU(id)


@pytest.mark.parametrize("devices", [None, 5, "cpu", DeviceRef.CPU(), torch.device("cpu")])
def test_a_single_device_is_no_list_of_devices(devices: Any) -> None:
    with pytest.raises(ValueError, match=r"devices is .*; give a list, such as \[DeviceRef"):
        DeviceRef.all_of(devices)
    with pytest.raises(ValueError, match=r"devices is .*; give a list, such as \[DeviceRef"):
        InferenceSession(devices)


@given(st.lists(refs, min_size=1))
def test_a_list_of_devices_is_converted_in_order(devices: list[DeviceRef]) -> None:
    assert DeviceRef.all_of([str(device) for device in devices]) == tuple(devices)


@given(st.integers(0, 127))
def test_every_cpu_id_is_the_host(id: int) -> None:
    assert DeviceRef.CPU(id).to_device() == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_refused_with_what_there_is() -> None:
    absent = DeviceRef.GPU(torch.cuda.device_count())
    with pytest.raises(DeviceUnavailableError, match=r"DeviceRef\.CPU\(\)") as refusal:
        absent.to_device()
    assert refusal.value.device == absent
    assert refusal.value.gpu_count == torch.cuda.device_count()
    with pytest.raises(DeviceUnavailableError):
        InferenceSession(devices=["cpu", absent])


def test_a_cpu_session_launches_in_program_order() -> None:
    session = InferenceSession(devices=[DeviceRef.CPU(0), "cpu:1"])
    written: list[str] = []
    for name, device_idx in (("first", 0), ("second", 1), ("third", 0)):
        session.launch(written.append, name, device_idx=device_idx)
    assert written == ["first", "second", "third"]
    assert session.stream(1) is None
    assert session.launch(max, 3, 5) == 5
    assert repr(session) == "InferenceSession(devices=[cpu:0, cpu:1])"


def test_a_session_needs_a_device() -> None:
    with pytest.raises(ValueError, match="devices is empty"):
        InferenceSession(devices=[])


@pytest.mark.parametrize("device_idx", [-1, 2, "0", None, 0.5])
def test_a_session_refuses_an_index_it_has_no_device_for(device_idx: Any) -> None:
    session = InferenceSession(devices=["cpu", "cpu"])
    with pytest.raises(ValueError, match=f"device_idx is {device_idx!r}.*use 0 to 1"):
        session.launch(print, device_idx=device_idx)


@pytest.mark.gpu
def test_a_gpu_session_launches_on_its_own_stream_after_the_callers() -> None:
    session = InferenceSession(devices=["gpu", "gpu"])
    ones = torch.ones(1 << 20, device="cuda")
    current, total = session.launch(
        lambda values: (torch.cuda.current_stream(), values.sum()), ones, device_idx=1
    )
    assert current == session.stream(1) != session.stream(0)
    assert session.stream(1) is session.stream(1)
    current.synchronize()
    assert total.item() == 1 << 20
