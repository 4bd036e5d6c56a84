"""``pagedkv disk``: what it says about a directory, and that it harms none."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pagedkv.engine.disk.block import Block
from pagedkv.engine.disk.directory import BlockDirectory

Pagedkv = Callable[..., Any]

NBYTES = 512


def opened(path: Path) -> BlockDirectory:
    return BlockDirectory.open(
        path, layout="ab" * 32, model="llama", capacity=4, block_nbytes=NBYTES
    )


@pytest.fixture
def tier(tmp_path: Path) -> Path:
    """A directory with two blocks, ``00`` in slot 0 and ``01`` in slot 1."""

    async def fill() -> None:
        directory = opened(tmp_path / "tier")
        for slot in range(2):
            block = Block(slot, bytes([slot]), memoryview(bytes([slot + 1]) * NBYTES))
            assert not await directory.write([block])
        await directory.aclose()

    asyncio.run(fill())
    return tmp_path / "tier"


def test_inspect_says_whose_blocks_there_are(pagedkv: Pagedkv, tier: Path) -> None:
    outcome = pagedkv("disk", "inspect", tier)
    assert outcome.status == 0
    for fact in ("abababababab", "llama", "512", "50.00%"):
        assert fact in outcome.out
    assert pagedkv("disk", "inspect", tier, "--json").json == {
        "layout": "ab" * 32,
        "model_fingerprint": "llama",
        "format": 1,
        "capacity": 4,
        "block_nbytes": NBYTES,
        "blocks": 2,
        "slab_nbytes": 4 * NBYTES,
        "open_in_process": None,
    }


def test_inspect_looks_at_a_directory_in_use(pagedkv: Pagedkv, tier: Path) -> None:
    async def run() -> Any:
        directory = opened(tier)
        await directory.write([Block(2, b"\x02", memoryview(bytes(NBYTES)))])
        await directory.flush()
        seen = pagedkv("disk", "inspect", tier, "--json").json
        refused = [pagedkv("disk", command, tier) for command in ("verify", "clear")]
        await directory.aclose()
        return seen, refused

    seen, refused = asyncio.run(run())
    assert seen["blocks"] == 3
    assert seen["open_in_process"] is not None
    for outcome in refused:
        assert outcome.status == 2
        assert "is open in process" in outcome.err


def test_verify_finds_intact_blocks_intact(pagedkv: Pagedkv, tier: Path) -> None:
    before = {p.name: p.read_bytes() for p in tier.iterdir()}
    outcome = pagedkv("disk", "verify", tier, "--json")
    assert (outcome.status, outcome.json) == (0, {"intact": 2, "damaged": []})
    assert {p.name: p.read_bytes() for p in tier.iterdir()} == before | {
        "lock": (tier / "lock").read_bytes()
    }


def test_verify_names_what_is_damaged(pagedkv: Pagedkv, tier: Path) -> None:
    with open(tier / "blocks.slab", "r+b") as slab:
        slab.seek(NBYTES)
        slab.write(b"!")
    outcome = pagedkv("disk", "verify", tier, "--json")
    assert (outcome.status, outcome.json) == (1, {"intact": 1, "damaged": ["01"]})
    assert "01" in pagedkv("disk", "verify", tier).out


def test_verify_takes_a_slab_that_is_too_short_for_damaged(pagedkv: Pagedkv, tier: Path) -> None:
    (tier / "blocks.slab").write_bytes(b"")
    assert pagedkv("disk", "verify", tier, "--json").json["damaged"] == ["00", "01"]


def test_clear_removes_the_tier_and_nothing_else(pagedkv: Pagedkv, tier: Path) -> None:
    (tier / "notes.txt").write_text("mine")
    outcome = pagedkv("disk", "clear", tier)
    assert (outcome.status, outcome.err) == (0, "")
    assert "freed" in outcome.out
    assert sorted(p.name for p in tier.iterdir()) == ["lock", "notes.txt"]


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_directory_without_tier_is_told_in_one_line(
    pagedkv: Pagedkv, tmp_path: Path, command: str
) -> None:
    outcome = pagedkv("disk", command, tmp_path)
    assert outcome.status == 2
    assert "no disk tier was ever here" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_there_is_nothing_to_clear_where_nothing_is(pagedkv: Pagedkv, tmp_path: Path) -> None:
    outcome = pagedkv("disk", "clear", tmp_path / "missing")
    assert (outcome.status, outcome.out) == (2, "")
    assert "no such directory" in outcome.err


def test_a_damaged_index_is_told_in_one_line(pagedkv: Pagedkv, tier: Path) -> None:
    (tier / "index.sqlite").write_bytes(b"no database" * 500)
    outcome = pagedkv("disk", "inspect", tier)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1


def test_which_command_is_meant_has_to_be_said(pagedkv: Pagedkv) -> None:
    assert "which command?" in pagedkv("disk").err
