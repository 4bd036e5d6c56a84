"""The planner's state at the start: every page is free, and the disk holds what has survived."""

from pagedkv.engine.identity import PageHasher
from pagedkv.engine.planner.counters import Counters
from pagedkv.engine.planner.fates import Fates
from pagedkv.engine.planner.lower_tiers import LowerTiers
from pagedkv.engine.planner.pages import PagePool
from pagedkv.engine.planner.slots import TierSlots
from pagedkv.engine.planner.state import State
from pagedkv.engine.planner.uses import RecentUses
from pagedkv.engine.tiers import Tiers, write_budget
from pagedkv.reference.config import TierOptions
from pagedkv.reference.events import DiskOpened, Tracer
from pagedkv.reference.params import KVCacheParamInterface
from pagedkv.reference.sizing import compute_num_disk_blocks


def first_state(
    params: KVCacheParamInterface,
    tiers: Tiers,
    total_num_pages: int,
    total_num_host_pages: int,
    tracer: Tracer | None,
) -> State:
    """What a planner knows that has done nothing yet.

    Args:
        params: Shapes, parallelism and policies.
        tiers: The storage of the tiers below, already open.
        total_num_pages: Pages per replica, without the null page.
        total_num_host_pages: As the manager was told; it bounds what ``reuse`` remembers.
        tracer: Is told what the disk has kept.
    """
    options = TierOptions.from_connector_config(params.kv_connector_config)
    num_pages = total_num_pages * params.data_parallel_degree
    fates, counters = Fates(num_pages), Counters()
    uses = RecentUses(max(num_pages, total_num_host_pages))
    lower = LowerTiers(counters, policy=options.write_policy, uses=uses)
    if tiers.host is not None:
        lower.tiers["host"] = TierSlots("host", tiers.host.rows.shape[0], fates)
    if tiers.disk is not None:
        disk = TierSlots("disk", compute_num_disk_blocks(params), fates, write_budget(params))
        disk.adopt(tiers.disk.survivors)
        lower.tiers["disk"] = disk
        fates.note(tiers.disk.strangers, "other_namespace")
        if tracer is not None:
            tracer.emit(DiskOpened(tuple(key for _, key in tiers.disk.survivors)))
    return State(
        params=params,
        pools=[PagePool(total_num_pages) for _ in range(params.data_parallel_degree)],
        lower=lower,
        hasher=PageHasher(params.page_size, params.kv_hash_algo, params.kv_hash_seed),
        counters=counters,
        fates=fates,
        page_nbytes=params.bytes_per_block,
        tracer=tracer,
    )
