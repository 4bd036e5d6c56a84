"""What outlives a manager: the contents of disk directories and of block stores, as plain data.

Rules NS-1 to NS-4 and STORE-1 to STORE-3. Hand the same :class:`Media` to a second manager to
see a warm restart, or to several at once to see them share a store.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from pagedkv.reference.errors import LayoutMismatchError
from pagedkv.reference.identity import PageKey
from pagedkv.reference.tiers import Block


@dataclass
class DiskImage:
    """Contents of one disk directory."""

    layout: str
    """Layout fingerprint of the blocks."""
    model: str | None
    """The caller's name for the weights; ``None``: nobody can say whose blocks these are."""
    blocks: "OrderedDict[bytes, Block]" = field(default_factory=OrderedDict)
    """Landed blocks and reserved slots, the next victim first."""
    strangers: tuple[PageKey, ...] = ()
    """Blocks that were there under another model, and were dropped."""


@dataclass
class Media:
    """Disks and block stores that managers of this process may open."""

    disks: dict[str, DiskImage] = field(default_factory=dict)
    """By directory."""
    stores: "dict[str, OrderedDict[bytes, Block]]" = field(default_factory=dict)
    """By endpoint: blocks under namespaced keys."""
    generations: dict[str, int] = field(default_factory=dict)
    """By namespace: the number of its latest reset."""
    private_namespaces: int = 0
    """How many managers have asked for a namespace of their own."""

    def open_disk(self, directory: str, layout: str, model: str | None) -> DiskImage:
        """The blocks of ``directory``: those that are there if the namespace matches, else none.

        A slot whose bytes had not all landed does not survive (NS-4). Whoever opened the
        directory before has lost it: what they write from now on goes nowhere.

        Raises:
            LayoutMismatchError: The directory holds blocks of another layout (NS-3).
        """
        found = self.disks.get(directory, DiskImage(layout, model))
        survivors = _landed(found.blocks)
        if survivors and found.layout != layout:
            raise LayoutMismatchError(directory, found=found.layout, wanted=layout)
        if model is None or found.model != model:
            strangers = tuple(block.key for block in survivors.values())
            self.disks[directory] = DiskImage(layout, model, strangers=strangers)
        else:
            self.disks[directory] = DiskImage(layout, model, survivors)
        return self.disks[directory]

    def open_store(self, endpoint: str) -> "OrderedDict[bytes, Block]":
        """All blocks of the store at ``endpoint``, whoever has put them there (STORE-2)."""
        return self.stores.setdefault(endpoint, OrderedDict())

    def namespace(self, layout: str, model: str | None, *, reset: bool = False) -> bytes:
        """Prefix of a manager's keys in a shared store (NS-2).

        Without a model fingerprint the namespace is nobody else's. After a ``reset`` it is new;
        managers that start later join the latest one (RESET-4).
        """
        if model is None:
            self.private_namespaces += 1
            owner = f"{layout}\nprivate {self.private_namespaces}"
        else:
            owner = f"{layout}\nmodel {model}"
        if reset:
            self.generations[owner] = self.generations.get(owner, 0) + 1
        return hashlib.sha256(f"{owner}\n{self.generations.get(owner, 0)}".encode()).digest()


def _landed(blocks: "OrderedDict[bytes, Block]") -> "OrderedDict[bytes, Block]":
    """Copies of the blocks whose bytes are all there, without pins."""
    return OrderedDict(
        (name, Block(name, block.key, block.parent, block.content, block.checksum))
        for name, block in blocks.items()
        if block.content is not None
    )
