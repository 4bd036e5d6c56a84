"""What outlives a manager: the contents of disk directories and of block stores, as plain data.

Rules NS-1 to NS-4 and STORE-1 to STORE-3. Hand the same :class:`Media` to a second manager to
see a warm restart, or to several at once to see them share a store.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from pagedkv.reference.errors import LayoutMismatchError
from pagedkv.reference.tiers import Block


@dataclass
class DiskImage:
    """Contents of one disk directory."""

    layout: str
    """Layout fingerprint of the blocks."""
    model: str | None
    """The caller's name for the weights; ``None``: nobody can say whose blocks these are."""
    blocks: "OrderedDict[bytes, Block]" = field(default_factory=OrderedDict)
    """Landed blocks, the next victim first."""


@dataclass
class Media:
    """Disks and block stores that managers of this process may open."""

    disks: dict[str, DiskImage] = field(default_factory=dict)
    """By directory."""
    stores: "dict[str, OrderedDict[bytes, Block]]" = field(default_factory=dict)
    """By endpoint: blocks under namespaced keys."""
    private_namespaces: int = 0
    """How many managers have asked for a namespace of their own."""

    def open_disk(self, directory: str, layout: str, model: str | None) -> DiskImage:
        """The blocks of ``directory``: those that are there if the namespace matches, else none.

        A slot whose bytes had not all landed does not survive (NS-4).

        Raises:
            LayoutMismatchError: The directory holds blocks of another layout (NS-3).
        """
        image = self.disks.get(directory)
        if image is not None and image.blocks and image.layout != layout:
            raise LayoutMismatchError(directory, found=image.layout, wanted=layout)
        if image is None or image.layout != layout or model is None or image.model != model:
            image = self.disks[directory] = DiskImage(layout, model)
        survivors = OrderedDict(
            (name, Block(name, b.key, b.parent, b.content, b.checksum))
            for name, b in image.blocks.items()
            if b.content is not None
        )
        image.blocks = survivors
        return image

    def open_store(self, endpoint: str) -> "OrderedDict[bytes, Block]":
        """All blocks of the store at ``endpoint``, whoever has put them there (STORE-2)."""
        return self.stores.setdefault(endpoint, OrderedDict())

    def namespace(self, layout: str, model: str | None, generation: int) -> bytes:
        """Prefix of this manager's keys in a shared store (NS-2, RESET-4).

        Without a model fingerprint the namespace is nobody else's.
        """
        if model is None:
            self.private_namespaces += 1
            owner = f"private {self.private_namespaces}"
        else:
            owner = f"model {model}"
        return hashlib.sha256(f"{layout}\n{owner}\n{generation}".encode()).digest()
