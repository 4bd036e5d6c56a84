"""Names of tiers, of the ways between them, and of what can go wrong there."""

from typing import Literal

LowerTier = Literal["host", "disk", "store"]
"""A tier below the devices."""

TierName = Literal["device", "peer", "host", "disk", "store"]
"""Where a block is, fastest first; ``peer`` is another replica's device."""

TransferKind = Literal["onload", "offload", "write"]
"""Towards the device, away from it, or from host memory further down."""

FailReason = Literal["io_error", "corrupt", "missing", "no_space", "timeout", "unavailable"]
"""Why a transfer failed."""

BLOCK_IS_LOST: frozenset[FailReason] = frozenset({"io_error", "corrupt", "missing"})
"""Reasons after which the source no longer has the blocks at fault (TIER-6)."""
