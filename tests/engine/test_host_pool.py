"""One region of exactly the size that was asked for, in use before it is pinned."""

import resource
import threading
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.engine.host_pool import HostPool, slots_per_chunk
from pagedkv.engine.memory_limits import cgroup_memory_left, check_memory
from pagedkv.reference.sizing import InsufficientMemoryError

PAGE = 4096


class FakeRegistrar:
    """Notes what is pinned; refuses the chunk of one number, and waits where it is told to."""

    def __init__(self, *, refuse: int | None = None, is_limited: bool = False) -> None:
        self.is_limited = is_limited
        self.refuse = refuse
        self.pinned: dict[int, int] = {}
        self.calls = 0
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def register(self, address: int, nbytes: int) -> None:
        self.calls += 1
        self.entered.set()
        assert self.go_on.wait(60)
        if self.calls == self.refuse:
            raise RuntimeError("no more")
        self.pinned[address] = nbytes

    def unregister(self, address: int) -> None:
        del self.pinned[address]


def test_rows_and_views_are_the_same_memory() -> None:
    pool = HostPool(3, 100, pin=False)
    pool.row(1)[:] = b"x" * 100
    assert pool.rows.shape == (3, 100)
    assert pool.rows.dtype == torch.uint8
    assert pool.rows.sum(1).tolist() == [0, 100 * ord("x"), 0]
    pool.rows[2] = 7
    assert bytes(pool.row(2)) == b"\x07" * 100


def test_the_region_is_exact_and_aligned() -> None:
    pool = HostPool(3, PAGE + 8, pin=False)
    assert pool.rows.data_ptr() % PAGE == 0
    assert pool.rows.untyped_storage().nbytes() == 3 * (PAGE + 8)


@pytest.mark.parametrize("slot", [-1, 3])
def test_a_slot_that_does_not_exist_is_refused(slot: int) -> None:
    with pytest.raises(IndexError, match=f"slot is {slot}; use 0 to 2"):
        HostPool(3, 8, pin=False).row(slot)


@pytest.mark.parametrize("sizes", [(0, 8), (8, 0)])
def test_a_pool_of_nothing_is_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is 0; use 1 or more"):
        HostPool(*sizes, pin=False)


def test_memory_outlives_the_pool() -> None:
    rows = HostPool(2, 8, pin=False).rows
    assert rows.sum() == 0


def test_chunks_cover_the_pool_and_end_on_slots() -> None:
    registrar = FakeRegistrar()
    pool = HostPool(10, PAGE, pin=True, registrar=registrar, chunk_nbytes=4 * PAGE)
    pool.wait_registered()
    first = pool.rows.data_ptr()
    assert registrar.pinned == {
        first: 4 * PAGE,
        first + 4 * PAGE: 4 * PAGE,
        first + 8 * PAGE: 2 * PAGE,
    }
    assert pool.registered_slots == 10
    pool.close()
    pool.close()
    assert registrar.pinned == {}
    assert pool.registered_slots == 0


@given(slot_nbytes=st.integers(1, 3 * PAGE), chunk_nbytes=st.integers(1, 100 * PAGE))
def test_chunks_are_whole_slots_and_whole_pages(slot_nbytes: int, chunk_nbytes: int) -> None:
    nbytes = slots_per_chunk(slot_nbytes, chunk_nbytes) * slot_nbytes
    assert nbytes > 0
    assert nbytes % PAGE == 0
    smallest = slots_per_chunk(slot_nbytes, 1) * slot_nbytes
    assert nbytes <= max(chunk_nbytes, smallest)


def test_nothing_is_pinned_unless_asked_for() -> None:
    registrar = FakeRegistrar()
    pool = HostPool(4, PAGE, pin=False, registrar=registrar)
    pool.wait_registered()
    assert registrar.calls == 0


def test_without_cuda_nothing_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pool = HostPool(4, PAGE, pin=True)
    pool.wait_registered()
    assert pool.registered_slots == 0


def test_a_refused_chunk_leaves_the_rest_usable(caplog: pytest.LogCaptureFixture) -> None:
    registrar = FakeRegistrar(refuse=2)
    pool = HostPool(6, PAGE, pin=True, registrar=registrar, chunk_nbytes=2 * PAGE)
    pool.wait_registered()
    assert (pool.registered_slots, registrar.calls) == (2, 2)
    assert "only 2 of 6 host slots could be pinned" in caplog.text
    pool.row(5)[:] = b"x" * PAGE
    pool.close()
    assert registrar.pinned == {}


def test_the_pool_is_usable_while_it_is_pinned_and_can_be_closed_then() -> None:
    registrar = FakeRegistrar()
    registrar.go_on.clear()
    pool = HostPool(6, PAGE, pin=True, registrar=registrar, chunk_nbytes=2 * PAGE)
    assert registrar.entered.wait(60)
    pool.row(5)[:] = b"x" * PAGE
    assert pool.registered_slots == 0
    closing = threading.Thread(target=pool.close)
    closing.start()
    assert pool._closing.wait(60)
    registrar.go_on.set()
    closing.join()
    assert registrar.calls == 1
    assert registrar.pinned == {}


def test_more_than_the_machine_has_is_refused() -> None:
    wanted = psutil.virtual_memory().total * 2
    with pytest.raises(InsufficientMemoryError, match="total_num_host_pages needs") as refusal:
        HostPool(wanted // PAGE, PAGE, pin=False, field="total_num_host_pages")
    assert refusal.value.field == "total_num_host_pages"
    assert refusal.value.wanted_bytes == wanted // PAGE * PAGE


def test_more_than_may_be_locked_is_refused_where_that_limit_holds() -> None:
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (PAGE, before[1]))
    try:
        HostPool(1, 2 * PAGE, pin=True, registrar=FakeRegistrar()).close()
        HostPool(1, 2 * PAGE, pin=False, registrar=FakeRegistrar(is_limited=True))
        with pytest.raises(InsufficientMemoryError, match="RLIMIT_MEMLOCK") as refusal:
            HostPool(1, 2 * PAGE, pin=True, registrar=FakeRegistrar(is_limited=True))
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
    assert refusal.value.available_bytes == PAGE


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_tightest_group_of_version_2_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    stat = "anon 5\ninactive_file 10\n"
    group(root / "outer", memory__max="100", memory__current="70", memory__stat=stat)
    group(root / "outer/inner", memory__max="max", memory__current="70", memory__stat=stat)
    assert cgroup_memory_left(root, own) == 40
    (root / "outer/inner/memory.max").write_text("90\n")
    assert cgroup_memory_left(root, own) == 30


def test_a_group_of_version_1_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("5:cpu:/x\n4:hugetlb,memory:/x\n")
    group(
        root / "memory/x",
        memory__limit_in_bytes="100\n",
        memory__usage_in_bytes="70\n",
        memory__stat="total_inactive_file 20\n",
    )
    assert cgroup_memory_left(root, own) == 50
    (root / "memory/x/memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert cgroup_memory_left(root, own) is None


def test_a_container_whose_path_is_the_hosts_sees_its_group_at_the_root(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/docker/0123\n")
    group(root, memory__max="100", memory__current="70", memory__stat="")
    assert cgroup_memory_left(root, own) == 30


def test_what_a_group_does_not_leave_is_refused(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/\n")
    group(root, memory__max="100", memory__current="70", memory__stat="")
    check_memory("field", 30, locked=False, cgroup_root=root, own_cgroups=own)
    with pytest.raises(InsufficientMemoryError, match="memory limit of the container"):
        check_memory("field", 31, locked=False, cgroup_root=root, own_cgroups=own)


def test_a_group_that_has_more_than_its_limit_leaves_nothing(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/\n")
    group(root, memory__max="100", memory__current="120", memory__stat="inactive_file 5\n")
    assert cgroup_memory_left(root, own) == 0
    with pytest.raises(InsufficientMemoryError, match="memory limit of the container"):
        check_memory("field", 1, locked=False, cgroup_root=root, own_cgroups=own)


def test_a_group_may_have_any_name(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/a/b:c d\n")
    group(root / "a/b:c d", memory__max="100", memory__current="70", memory__stat="")
    assert cgroup_memory_left(root, own) == 30


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_memory_left(tmp_path, tmp_path / "missing") is None


def test_nothing_is_pinned_while_a_graph_is_captured() -> None:
    registrar = FakeRegistrar()
    registrar.go_on.clear()
    pool = HostPool(6, 3 * PAGE, pin=True, registrar=registrar, chunk_nbytes=6 * PAGE)
    assert registrar.entered.wait(60)
    captured = threading.Event()

    def capture() -> None:
        with pool.pinning_paused():
            pinned = len(registrar.pinned)
            captured.set()
            assert captured_for_a_while.wait(60)
            assert len(registrar.pinned) == pinned

    captured_for_a_while = threading.Event()
    capturing = threading.Thread(target=capture)
    capturing.start()
    assert not captured.is_set(), "the chunk under way is waited for"
    registrar.go_on.set()
    assert captured.wait(60)
    captured_for_a_while.set()
    capturing.join()
    pool.wait_registered()
    assert pool.registered_slots == 6
    pool.close()


@pytest.mark.gpu
def test_cuda_sees_the_rows_as_pinned() -> None:
    pool = HostPool(5, 3 * PAGE, pin=True, chunk_nbytes=6 * PAGE)
    pool.wait_registered()
    assert pool.registered_slots == 5
    assert all(row.is_pinned() for row in pool.rows)
    pool.close()
