"""What operators need to read: tiers, failures, poisoned replicas, timeouts, the end.

Standard logging under ``pagedkv.engine``; the numbers are in ``extra``, too, each under a name that
begins with ``kv_``. A failing tier fails often: of each kind of failure one line per period is
written, and the next one says how many were left out.
"""

import logging
import time
from collections.abc import Callable, Collection, Hashable

from pagedkv.engine.planner.transfer import Transfer
from pagedkv.reference.tier_names import FailReason, LowerTier

logger = logging.getLogger("pagedkv.engine")


class OperatorLog:
    """Writes the lines of one manager.

    Args:
        period_s: Seconds between two lines of one kind of failure.
        clock: Seconds that never go back.
    """

    def __init__(self, period_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._period_s = period_s
        self._clock = clock
        self._written_s: dict[Hashable, float] = {}
        self._left_out: dict[Hashable, int] = {}

    def tier_opened(self, tier: LowerTier, *, capacity: int, used: int) -> None:
        """A tier below the devices is there, with blocks that have survived."""
        logger.info(
            "%s tier opened: room for %d blocks, %d there already",
            tier,
            capacity,
            used,
            extra={"kv_tier": tier, "kv_capacity_blocks": capacity, "kv_used_blocks": used},
        )

    def disk_starts_cold(self, directory: str) -> None:
        """Blocks on disk have no namespace that a restart could recognise (NS-2)."""
        logger.warning(
            "disk_offload_dir %s starts cold, now and at every start: set model_fingerprint to a "
            "name of the weights",
            directory,
        )

    def strangers_dropped(self, directory: str, blocks: int) -> None:
        """A directory had blocks of other weights (NS-3)."""
        logger.warning(
            "disk_offload_dir %s had %d blocks under another model_fingerprint, or none: they were "
            "dropped",
            directory,
            blocks,
            extra={"kv_dropped_blocks": blocks},
        )

    def options_not_known(self, names: Collection[str]) -> None:
        """The connector's config has fields that nothing here reads."""
        logger.warning(
            "kv_connector_config has fields that the engine does not know: %s", ", ".join(names)
        )

    def transfer_failed(self, transfer: Transfer, reason: FailReason, blocks: int) -> None:
        """A transfer has failed, through the fault of so many blocks: they are misses, or not
        stored, and nothing worse."""
        kind = transfer.source, transfer.target, reason
        left_out = self._left_out_before(kind)
        if left_out is None:
            return
        logger.warning(
            "%s to %s: %s, %d blocks at fault%s",
            transfer.source,
            transfer.target,
            reason,
            blocks,
            _and_more(left_out),
            extra={
                "kv_transfer": transfer.id,
                "kv_source": transfer.source,
                "kv_target": transfer.target,
                "kv_reason": reason,
                "kv_blocks": blocks,
                "kv_left_out": left_out,
            },
        )

    def replica_poisoned(self, replica_idx: int, reason: str) -> None:
        """A device has failed: its replica takes no more work until the process is restarted."""
        logger.error(
            "replica %d takes no more work, its device has failed: %s; restart the process",
            replica_idx,
            reason,
            extra={"kv_replica": replica_idx, "kv_reason": reason},
        )

    def tier_too_slow(self, request_id: Hashable, *, waited_s: float) -> None:
        """An allocation has waited for disk or store long enough, and computes the rest."""
        left_out = self._left_out_before("too slow")
        if left_out is None:
            return
        logger.warning(
            "request %r computes what slow tiers did not bring within %g s%s",
            request_id,
            waited_s,
            _and_more(left_out),
            extra={"kv_request": request_id, "kv_waited_s": waited_s, "kv_left_out": left_out},
        )

    def closing(self, *, in_flight: int, claimed: int) -> None:
        """The manager refuses further calls, and writes what it has accepted."""
        logger.info(
            "closing: %d transfers in flight, %d requests not released",
            in_flight,
            claimed,
            extra={"kv_transfers_in_flight": in_flight, "kv_claimed_requests": claimed},
        )

    def closed(self) -> None:
        """All that was accepted is written."""
        logger.info("closed")

    def _left_out_before(self, kind: Hashable) -> int | None:
        """Lines of this kind left out since the last; ``None`` if this one is to be left out."""
        now_s, last_s = self._clock(), self._written_s.get(kind)
        if last_s is not None and now_s - last_s < self._period_s:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return None
        self._written_s[kind] = now_s
        return self._left_out.pop(kind, 0)


def _and_more(left_out: int) -> str:
    return f" ({left_out} more like this since the last such line)" if left_out else ""
