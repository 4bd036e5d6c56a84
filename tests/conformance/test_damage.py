"""Damage behind a manager's back is the same in every run, and not always in the same place."""

import torch

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.damage import Damage, damage
from pagedkv.conformance.driver import Driver
from pagedkv.implementations import reference
from pagedkv.reference.page_bytes import PageBytes

Contents = dict[bytes, PageBytes]


def contents(driver: Driver) -> Contents:
    """What is on the simulated disk."""
    blocks = driver.setup.media.disks[str(driver.setup.disk_dir)].blocks
    return {
        block.key: tuple(row.clone() for row in block.content)
        for block in blocks.values()
        if block.content is not None
    }


def around(kind: Damage) -> tuple[Contents, Contents, list[bytes]]:
    """The disk before and after each block of a chain of four was damaged; the blocks' keys."""
    with Bench(reference(), None, "reference") as bench:
        driver = bench.driver(
            host_pages=8, disk_pages=8, shards=2, head_dim=4, model_fingerprint="weights"
        )
        ctx = driver.serve(bench.prompt(4))
        before = contents(driver)
        for block in range(4) if kind == "flipped" else [1]:
            assert damage(driver, "disk", ctx, block, kind)
        return before, contents(driver), driver.model.digests(ctx, 4)


def flipped() -> list[tuple[int, int]]:
    """Of each block, the row and the byte in it that has changed."""
    before, after, keys = around("flipped")
    places = []
    for key in keys:
        changed = torch.stack(before[key]) != torch.stack(after[key])
        ((row, byte),) = changed.nonzero().tolist()
        places.append((row, byte))
    return places


def test_one_byte_of_any_shard_is_flipped_and_the_same_in_every_run() -> None:
    assert flipped() == flipped()
    assert {row for row, _ in flipped()} == {0, 1}
    assert len(set(flipped())) > 2


def test_exchanged_blocks_have_each_others_bytes() -> None:
    before, after, (first, second, *others) = around("exchanged")
    before[first], before[second] = before[second], before[first]
    for key in (first, second, *others):
        assert all(map(torch.equal, before[key], after[key]))
