"""What a block on disk is recognised by: namespace, key and bytes in one checksum."""

import xxhash

from pagedkv.reference.identity import PageKey

CHECKSUM_NBYTES = 16
"""Length of a checksum."""


def namespace_tag(layout: str, model: str | None) -> bytes:
    """What enters every checksum of a directory, so that no block passes under another model."""
    return repr((layout, model)).encode()


def block_checksum(namespace: bytes, key: PageKey, content: memoryview) -> bytes:
    """XXH3-128 over namespace, key and content, the first two with their lengths.

    It tells damage, not malice: who can write to the directory can also write to the index.
    """
    head = b"".join(len(part).to_bytes(4, "little") + part for part in (namespace, key))
    digest = xxhash.xxh3_128(head)
    digest.update(content)  # other threads run meanwhile
    return digest.digest()
