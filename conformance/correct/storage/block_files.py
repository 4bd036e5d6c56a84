"""Blocks on disk: one file each, with its key, its parent and a checksum.  Rules NS-1 to NS-4.

Files are numbered in the order of their making, and appear when they are complete. A file beside
them says whose blocks these are.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pagedkv.conformance.correct.storage.block_bytes import Content
from pagedkv.conformance.correct.storage.tier import Slot
from pagedkv.reference.errors import LayoutMismatchError

NAMESPACE = "namespace.json"
"""File that names the layout and the weights."""


class BlockFiles:
    """The files of one directory.

    Args:
        folder: The directory; it is made if it is missing.
        layout: Fingerprint of the layout.
        model: The caller's name for the weights; ``None``: what is there is not to be used.
        unit_sizes: Bytes per block in each unit of transfer.

    Raises:
        LayoutMismatchError: There are blocks of another layout.
    """

    def __init__(
        self, folder: Path, layout: str, model: str | None, unit_sizes: Sequence[int]
    ) -> None:
        self.folder = folder
        self._unit_sizes = unit_sizes
        self._namespace = json.dumps({"layout": layout, "model": model})
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob("*.part"):
            unfinished.unlink()
        blocks = sorted(folder.glob("*.block"))
        if blocks:
            found = self._found_namespace()
            if found.get("layout", layout) != layout:
                raise LayoutMismatchError(str(folder), found=str(found["layout"]), wanted=layout)
            if model is None or found.get("model") != model:
                for path in blocks:
                    path.unlink()
        self._last = int(blocks[-1].stem) if blocks else 0
        (folder / NAMESPACE).write_text(self._namespace, encoding="utf-8")

    def _found_namespace(self) -> dict[str, str | None]:
        """Whose blocks are there; empty if that cannot be read, and then they are nobody's."""
        try:
            found = json.loads((self.folder / NAMESPACE).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def slots(self) -> Iterator[Slot]:
        """The blocks that are there, oldest first; what is no block is removed."""
        for path in sorted(self.folder.glob("*.block")):
            try:
                header = json.loads(path.read_bytes().partition(b"\n")[0])
                parent = header["parent"] and bytes.fromhex(header["parent"])
                yield Slot("disk", bytes.fromhex(header["block"]), parent, path=path, visible=True)
            except (ValueError, KeyError, TypeError):
                path.unlink()

    def new_path(self) -> Path:
        """Where the next block goes."""
        self._last += 1
        return self.folder / f"{self._last:016d}.block"

    def write(self, slot: Slot, content: Content) -> None:
        """Write a block to the slot's path, where it appears at once or not at all.

        Raises:
            OSError: It cannot be written.
        """
        assert slot.path is not None
        payload = b"".join(data.numpy().tobytes() for data in content)
        header = {
            "block": slot.block.hex(),
            "parent": slot.parent and slot.parent.hex(),
            "checksum": self._checksum(slot, payload),
        }
        part = slot.path.with_suffix(".part")
        part.write_bytes(json.dumps(header).encode() + b"\n" + payload)
        part.replace(slot.path)

    def read(self, slot: Slot) -> Content | None:
        """The block of a slot; ``None`` if it is not what was written (TIER-5)."""
        assert slot.path is not None
        try:
            line, _, payload = slot.path.read_bytes().partition(b"\n")
            intact = json.loads(line)["checksum"] == self._checksum(slot, payload)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not intact:
            return None
        data = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        return list(torch.split(data, list(self._unit_sizes)))

    @staticmethod
    def remove(slot: Slot) -> None:
        """Delete a slot's file, if it was ever written."""
        if slot.path is not None:
            slot.path.unlink(missing_ok=True)

    def _checksum(self, slot: Slot, payload: bytes) -> str:
        parts = (self._namespace.encode(), slot.block, slot.parent or b"", payload)
        return hashlib.sha256(b"".join(parts)).hexdigest()
