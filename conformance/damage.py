"""Damage to disks and stores behind a manager's back: what real ones do to their owners.

Simulated ones are plain data, in which a block is found by its key. Of real ones there are only
files, in which a block is found by the bytes that the driver has written into its first slot.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from pagedkv.conformance.driver import Driver
from pagedkv.conformance.slots import token_values
from pagedkv.reference.context import TextContext
from pagedkv.reference.identity import PageKey, page_key

Damage = Literal["flipped", "truncated", "foreign", "exchanged", "missing"]
"""A bit has flipped; the end is missing; the bytes are those of another block; it and another block
have changed places, with all that goes with their bytes; all is missing."""


def damage(
    driver: Driver, tier: Literal["disk", "store"], ctx: TextContext, block: int, kind: Damage
) -> bool:
    """Damage the ``block``-th block of a request; false if it is not to be found in the tier.

    The other block is that before it, or behind it if it is the first. Which bit has flipped
    follows from the block, so that several blocks are damaged in several places.
    """
    other = block - 1 if block else 1
    digests = driver.model.digests(ctx, max(block, other) + 1)
    keys = [page_key(digests[n], driver.setup.hash_algorithm) for n in (block, other)]
    if _damage_simulated(driver, tier, keys[0], keys[1], kind):
        return True
    size, values = driver.setup.page_size, token_values(ctx, driver.namespace(ctx), len(ctx.tokens))
    patterns = [driver.slots.pattern(values[n * size]) for n in (block, other)]
    folder = driver.setup.disk_dir
    if tier == "store" or folder is None or not patterns[0]:
        return False
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return _damage_file(files, patterns[0], patterns[1], kind)


def _damage_simulated(
    driver: Driver, tier: Literal["disk", "store"], key: PageKey, other: PageKey, kind: Damage
) -> bool:
    media, setup = driver.setup.media, driver.setup
    if tier == "store" and setup.store_endpoint in media.stores:
        blocks = media.stores[setup.store_endpoint]
    elif tier == "disk" and str(setup.disk_dir) in media.disks:
        blocks = media.disks[str(setup.disk_dir)].blocks
    else:
        return False
    found = [block for block in blocks.values() if block.key == key and block.content is not None]
    for block in found:
        assert block.content is not None
        stranger = next((b for b in blocks.values() if b.key == other), block)
        match kind:
            case "flipped":
                _flip(block.content, int.from_bytes(key[:8], "little"))
            case "truncated":
                block.content = tuple(row[: len(row) // 2] for row in block.content)
            case "foreign":
                block.content = stranger.content
            case "exchanged":
                block.content, stranger.content = stranger.content, block.content
                block.checksum, stranger.checksum = stranger.checksum, block.checksum
            case "missing":
                del blocks[block.name]
    return bool(found)


def _flip(content: Sequence[torch.Tensor], number: int) -> None:
    """Flip a bit of the byte with that number, counted over all rows and again from the first."""
    place = number % sum(map(len, content))
    for row in content:
        if 0 <= place < len(row):
            row[place] ^= 1
        place -= len(row)


def _damage_file(files: Sequence[Path], pattern: bytes, other: bytes, kind: Damage) -> bool:
    found, strangers = _places(files, pattern), _places(files, other)
    for path, at in found:
        elsewhere = [stranger for stranger, _ in strangers if stranger != path]
        match kind:
            case "flipped":
                place = pattern[-1] % len(pattern)
                _overwrite(path, at + place, bytes([pattern[place] ^ 1]))
            case "truncated":
                os.truncate(path, at + 1)
            case "foreign" if elsewhere:
                path.write_bytes(elsewhere[0].read_bytes())
            case "foreign":
                _overwrite(path, at, other)
            case "exchanged":
                # Not the files: one that says itself whose block it has is right under any name.
                _overwrite(path, at, other)
                for stranger, place in strangers:
                    _overwrite(stranger, place, pattern)
            case "missing":
                path.unlink()
    return bool(found)


def _places(files: Sequence[Path], pattern: bytes) -> list[tuple[Path, int]]:
    """Where the bytes are: files, and the first place in each."""
    return [(path, at) for path in files if (at := path.read_bytes().find(pattern)) >= 0]


def _overwrite(path: Path, at: int, data: bytes) -> None:
    """Write into a file that others may have open."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
