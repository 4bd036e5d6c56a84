"""Drawing a world from a seed: small sizes, so that everything thrashes, and a bit of everything.

Only :meth:`random.Random.random` and what is derived from it here by multiplication would be the
same in every version of Python; the drawn world is written down wherever a seed has failed.
"""

from random import Random
from typing import Any

from pagedkv.conformance.simulation.world import DeviceFailure, DiskTrouble, Ending, Life, World
from pagedkv.traces.events.setup import RunSetup

CLIENTS = 5
"""Clients that send requests at the same time."""


def draw_world(seed: int) -> World:
    """The world of a seed."""
    rng = Random(seed)
    setup = _setup(rng)
    lives = rng.choice((1, 2, 2, 3)) if setup.disk_pages else 1
    return World(
        seed=seed,
        setup=setup,
        slow_tier_policy=rng.choice(("wait", "wait", "timeout", "best_effort")),
        disk=_disk(rng) if setup.disk_pages else DiskTrouble(),
        lives=tuple(_life(Random(f"{seed} life {n}"), setup) for n in range(lives)),
    )


def _setup(rng: Random) -> RunSetup:
    # Any: the fields of RunSetup, which checks them.
    fields: dict[str, Any] = {
        "page_size": 4,
        "max_batch_size": 4,
        "total_num_pages": rng.choice((8, 8, 12, 20)),
        "replicas": rng.choice((1, 1, 2, 3)),
        "shards": rng.choice((1, 1, 2)),
        "cache": rng.choice(("mha", "mla", "fp8", "tree")),
        "write_policy": rng.choice(("through", "through", "write_back", "reuse")),
        "deduplication": rng.choice(("swap", "swap", "keep")),
        "enable_dp_cross_replica_prefix_copy": rng.random() < 0.8,
        "model_fingerprint": "weights",
    }
    if rng.random() < 0.3:
        fields["page_size"] = rng.choice((1, 2, 8))
    if rng.random() < 0.3:
        fields["hash_algorithm"] = rng.choice(("sha256", "xxh3_128", "sha256_64"))
        fields["hash_seed"] = rng.choice((None, bytes(range(32))))
    if rng.random() < 0.25:
        fields["speculative_method"] = rng.choice(("standalone", "eagle", "mtp", "dflash"))
        fields["num_draft_tokens"] = rng.choice((1, 2))
    if rng.random() < 0.9:
        fields["host_pages"] = rng.choice((2, 4, 4, 10, 30))
        if rng.random() < 0.8:
            fields["disk_pages"] = rng.choice((3, 12, 40, 40))
            if rng.random() < 0.15:
                fields["disk_writes_per_day"] = rng.choice((4, 20))
    return RunSetup(**fields)


def _disk(rng: Random) -> DiskTrouble:
    def share() -> float:
        return rng.choice((0.0, 0.0, 0.02, 0.2))

    return DiskTrouble(
        delay_s=rng.choice((0.0, 0.001, 0.005)),
        stuck=rng.choice((0.0, 0.02)),
        read_errors=share(),
        write_errors=share(),
        no_space=share(),
        torn=share(),
        flipped=share(),
        misplaced_after_s=rng.choice((None, None, None, 0.01)),
    )


def _life(rng: Random, setup: RunSetup) -> Life:
    num_devices = setup.replicas * setup.shards
    endings: tuple[Ending, ...] = ("closed", "crashed", "crashed under load", "closed under load")
    (end,) = rng.choices(endings, (6, 1, 2, 2))
    fails = rng.random() < 0.3
    return Life(
        seed=rng.randrange(2**32),
        clients=(tuple(range(rng.choice((6, 12)))),) * CLIENTS,
        num_prompts=rng.choice((None, 6, 12, 24)),
        cancel_share=rng.choice((0.0, 0.2, 0.5)),
        withdraw_share=rng.choice((0.0, 0.0, 0.2)),
        reset_share=rng.choice((0.0, 0.0, 0.05, 0.2)),
        prefetch_share=rng.choice((0.0, 0.3)),
        chunk_share=rng.choice((0.0, 0.3, 0.3)),
        preempt_share=rng.choice((0.0, 0.0, 0.2)),
        patient_share=rng.choice((0.0, 0.5, 0.5)),
        reads=rng.choice(("both", "both", "early", "late")),
        queued_forwards=setup.shards == 1 and rng.random() < 0.6,
        landing_mean_s=rng.choice((1e-4, 1e-3, 4e-3)),
        device_failure=DeviceFailure(
            device=rng.randrange(num_devices), after_s=round(rng.random() / 20, 6)
        )
        if fails
        else None,
        renew_after_s=0.01 if setup.disk_writes_per_day else None,
        end=end,
        end_after_s=round(rng.random() / 20, 6) if end.endswith("under load") else 0.0,
        decay=rng.random() < 0.3,
        defers=rng.random() < 0.5,
        again_share=rng.choice((0.0, 0.2)),
        batches=rng.random() < 0.6,
        steps_first_share=rng.choice((0.0, 0.5, 1.0)),
        pads=rng.random() < 0.5,
        wait_s=rng.choice((0.0, 0.002, 60.0, 60.0)),
        nap_share=rng.choice((0.0, 0.2)),
        interrupt_share=rng.choice((0.0, 0.2)),
        polls=rng.random() < 0.5,
        flush_after_s=rng.choice((None, 0.005)) if setup.disk_pages else None,
        reset_counters_after_s=rng.choice((None, None, None, 0.02)),
    )
