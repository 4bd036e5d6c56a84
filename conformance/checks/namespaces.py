"""NS: whose blocks those on disk and in a store are."""

from typing import Any

from pagedkv.conformance.bench import Bench, Recording, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.refusals import is_error
from pagedkv.conformance.violation import Violation, demand, expect
from pagedkv.reference.errors import LayoutMismatchError
from pagedkv.reference.events import DiskOpened
from pagedkv.reference.identity import page_key

# Any, below: fields of setups, which check them.

DISK: dict[str, Any] = {"host_pages": 16, "disk_pages": 16}
"""A disk behind host memory, both large enough for everything."""


def _other_layouts(bench: Bench) -> list[dict[str, Any]]:
    """Setups in which a page means something else, as far as the implementation has them."""
    can = bench.implementation.capabilities.__contains__
    layouts: list[dict[str, Any]] = [
        {"layers": 3},
        {"head_dim": 4},
        {"layers": 4, "head_dim": 1},  # as many bytes
        {"page_size": 2 * bench.size},
        {"hash_seed": bytes(range(32))},
        *({"hash_algorithm": other} for other in bench.implementation.hash_algorithms[1:]),
    ]
    layouts += [{"cache": "mla"}] if can("mla") else []
    layouts += [{"cache": "fp8"}] if can("fp8") else []
    layouts += [{"cache": "tree"}] if can("multi") else []
    layouts += [{"speculative_method": "eagle"}] if can("speculative") else []
    return layouts


def _on_disk(bench: Bench, **options: Any) -> Driver:
    """A manager that has written ``prompt(3)`` to its disk."""
    driver = bench.driver(**(DISK | {"model_fingerprint": "weights"} | options))
    driver.serve(bench.prompt(3))
    return driver


def _write_to_disk(driver: Driver, tokens: range) -> None:
    """Serve a prompt on a manager that the suite controls, and let all of it land."""
    driver.serve(tokens)
    driver.evict_all()
    driver.land_all()


def _in_store(bench: Bench, **options: Any) -> Driver:
    """A manager that has put ``prompt(2)`` into its store."""
    driver = bench.driver(**({"store": True, "model_fingerprint": "weights"} | options))
    driver.serve(bench.prompt(2))
    driver.evict_all()  # for those who put nothing before they must
    return driver


@check("NS-1", needs=("store",))
def in_a_store_other_layouts_are_not_found(bench: Bench) -> None:
    """A manager of another layout hits nothing of what the first has put, nor disturbs it."""
    driver = _in_store(bench)
    for layout in _other_layouts(bench):
        other = bench.beside(driver, **layout)
        expect("NS-1", other.hit(bench.prompt(2)), 0, f"blocks hit by a manager with {layout}")
        other.serve(bench.prompt(2))
        driver.evict_all()
        expect("NS-1", driver.hit(bench.prompt(2)), 2, f"blocks hit beside one with {layout}")


@check("NS-1", "STORE-2", needs=("store",))
def sizes_are_no_part_of_the_layout(bench: Bench) -> None:
    """A manager that differs in sizes and policies only hits what the first has put."""
    driver = _in_store(bench)
    for change in (
        {},
        {"total_num_pages": 5},
        {"max_batch_size": 3},
        {"enable_dp_cross_replica_prefix_copy": False},
    ):
        other = bench.beside(driver, **change)
        expect("NS-1", other.hit(bench.prompt(2)), 2, f"blocks hit by a manager with {change}")


@check("NS-2", needs=("store",))
def without_a_model_fingerprint_a_store_is_private(bench: Bench) -> None:
    """Managers that do not name their weights share nothing, with anybody, even if all is equal."""
    driver = _in_store(bench, model_fingerprint=None)
    for fingerprint in (None, "weights"):
        other = bench.beside(driver, model_fingerprint=fingerprint)
        expect("NS-2", other.hit(bench.prompt(2)), 0, f"blocks hit by a manager of {fingerprint}")
        other.serve(bench.prompt(2))
    driver.evict_all()
    expect("NS-2", driver.hit(bench.prompt(2)), 2, "own blocks hit")
    late = bench.beside(driver)
    expect("NS-2", late.hit(bench.prompt(2)), 0, "blocks hit by one more manager")


@check("NS-2", needs=("store",))
def in_a_store_other_weights_are_not_found(bench: Bench) -> None:
    """Blocks of equal tokens under other weights are other blocks, in the same store."""
    driver = _in_store(bench)
    other = bench.beside(driver, model_fingerprint="other weights")
    expect("NS-2", other.hit(bench.prompt(2)), 0, "blocks hit under other weights")
    other.serve(bench.prompt(2))
    same = bench.beside(driver)
    expect("NS-2", same.hit(bench.prompt(2)), 2, "blocks hit under the same weights")


@check("NS-2", needs=("disk",))
def without_a_model_fingerprint_the_disk_starts_cold(bench: Bench) -> None:
    """A restart hits nothing on disk if nobody has said whose weights these are."""
    driver = _on_disk(bench, model_fingerprint=None)
    driver.evict_all()
    expect("NS-2", driver.hit(bench.prompt(3)), 3, "blocks hit before the restart")
    restarted = bench.restart(driver)
    expect("NS-2", restarted.hit(bench.prompt(3)), 0, "blocks hit after the restart")
    restarted.serve(bench.prompt(3))


@check("NS-3", needs=("disk",))
def a_disk_of_another_layout_is_refused(bench: Bench) -> None:
    """A manager does not start on blocks of another layout, and leaves them to their owner."""
    driver = _on_disk(bench)
    for layout in _other_layouts(bench):
        _refused_start(bench, driver, **layout)
    restarted = bench.restart(driver)
    expect("NS-3", restarted.hit(bench.prompt(3)), 3, "blocks hit after the refused starts")


@check("NS-3", needs=("disk",))
def a_refused_start_names_both_layouts(bench: Bench) -> None:
    """The errors tell apart which layout was wanted, and which one was found."""
    small, large = _on_disk(bench), _on_disk(bench, layers=5)
    told = [
        _refused_start(bench, driver, layers=layers)
        for driver, layers in ((small, 3), (small, 4), (large, 3))
    ]
    demand("NS-3", told[0] != told[1], f"no word of the layout that was wanted: {told[0]}")
    demand("NS-3", told[0] != told[2], f"no word of the layout that was found: {told[0]}")


def _refused_start(bench: Bench, driver: Driver, **changes: Any) -> str:
    """What a manager says that must not start; its folder aside."""
    try:
        bench.restart(driver, **changes)
    except Exception as error:
        if not is_error(error, LayoutMismatchError):
            raise
        return str(error).replace(str(driver.setup.disk_dir), "")
    raise Violation("NS-3", f"a manager with {changes} starts on blocks of another layout")


@check("NS-3", needs=("disk",))
def a_folder_without_blocks_is_nobodys(bench: Bench) -> None:
    """A folder in which nothing was stored can be opened under any layout."""
    driver = bench.driver(**DISK, model_fingerprint="weights")
    other = bench.restart(driver, layers=3)
    other.serve(bench.prompt(2))


@check("NS-3", "NS-2", needs=("disk",))
def blocks_of_other_weights_are_dropped(bench: Bench) -> None:
    """Blocks under another fingerprint, or without one on either side, are gone for good."""
    for before, after in (("a", "b"), ("a", None), (None, "a"), (None, None)):
        driver = _on_disk(bench, model_fingerprint=before)
        other = bench.restart(driver, model_fingerprint=after)
        used = other.used("disk")
        expect("NS-3", used, 0, f"disk pages in use under {after!r} after {before!r}")
        hits = other.hit(bench.prompt(3))
        expect("NS-3", hits, 0, f"blocks of {before!r} that are hit under {after!r}")
        again = bench.restart(other, model_fingerprint=before)
        expect("NS-3", again.hit(bench.prompt(3)), 0, f"blocks that are hit under {before!r} again")


@check("NS-4", needs=("disk",))
def a_restart_finds_what_was_written(bench: Bench) -> None:
    """Every block that had landed is hit after a restart, and after one more."""
    for policy in bench.implementation.write_policies:
        if policy == "reuse":
            continue
        driver = _on_disk(bench, write_policy=policy)
        driver.serve(bench.prompt(2, 50), cache_salt="tenant")
        for _ in range(2):
            driver = bench.restart(driver)
            what = f"blocks hit after a restart under {policy}"
            expect("NS-4", driver.hit(bench.prompt(3)), 3, what)
            expect("NS-4", driver.hit(bench.prompt(2, 50), cache_salt="tenant"), 2, what)
            expect("NS-4", driver.hit(bench.prompt(2, 50)), 0, f"{what}, of another tenant")


@check("NS-4", "TIER-3", needs=("disk",))
def a_restart_finds_every_kind_of_cache(bench: Bench) -> None:
    """Values, scales, latents and trees come back byte for byte."""
    can = bench.implementation.capabilities.__contains__
    kinds = {"mha": True, "mla": can("mla"), "fp8": can("fp8"), "tree": can("multi")}
    for cache, offered in kinds.items():
        if offered:
            restarted = bench.restart(_on_disk(bench, cache=cache))
            expect("NS-4", restarted.hit(bench.prompt(3)), 3, f"blocks of {cache} hit")


@check("NS-4", needs=("disk",))
def a_restart_with_other_sizes_finds_what_was_written(bench: Bench) -> None:
    """More or fewer pages on the device, in host memory or on disk do not make blocks foreign."""
    for change in (
        {"total_num_pages": 4},
        {"total_num_pages": 16},
        {"host_pages": 3},
        {"disk_pages": 32},
        {"disk_pages": 3},
        {"max_batch_size": 2},
    ):
        restarted = bench.restart(_on_disk(bench), **change)
        expect("NS-4", restarted.hit(bench.prompt(3)), 3, f"blocks hit after a restart: {change}")


@check("NS-4", needs=("disk", "replicas"))
def a_restart_finds_what_another_replica_wrote(bench: Bench) -> None:
    """The disk serves all replicas, and no fewer after a restart."""
    driver = bench.driver(**DISK, model_fingerprint="weights", replicas=2)
    driver.serve(bench.prompt(3), replica=1)
    restarted = bench.restart(driver)
    expect("NS-4", restarted.hit(bench.prompt(3), replica=0), 3, "blocks hit on replica 0")


@check("NS-4", needs=("disk",))
def a_restart_goes_on_where_the_last_one_ended(bench: Bench) -> None:
    """What is written after a restart stands beside what was found."""
    driver = bench.restart(_on_disk(bench))
    driver.serve(bench.prompt(5))
    restarted = bench.restart(driver)
    expect("NS-4", restarted.hit(bench.prompt(5)), 5, "blocks hit after the second restart")


@check("NS-4", "RESET-1", needs=("disk", "reset"))
def a_restart_does_not_bring_back_what_was_reset(bench: Bench) -> None:
    """What the cache has forgotten stays forgotten; what came after the reset is found."""
    driver = _on_disk(bench)
    driver.reset()
    driver.serve(bench.prompt(2, 50))
    restarted = bench.restart(driver)
    expect("NS-4", restarted.hit(bench.prompt(3)), 0, "blocks from before the reset")
    expect("NS-4", restarted.hit(bench.prompt(2, 50)), 2, "blocks from after the reset")


@check("NS-4", needs=("disk", "transfers"))
def a_block_that_had_not_landed_does_not_exist(bench: Bench) -> None:
    """A crash leaves nothing that was still being written, and loses at most what landed last."""
    for landed in (False, True):
        driver = bench.controlled(**DISK, model_fingerprint="weights")
        _write_to_disk(driver, bench.prompt(2))
        driver = bench.restart(driver)
        _write_to_disk(driver, bench.prompt(2, 50))
        driver.serve(bench.prompt(3, 100))
        driver.evict_all()
        while transfers := [t for t in driver.in_flight() if landed or t.target != "disk"]:
            driver.land(transfers[0])
        if not landed and not driver.in_flight():
            raise Skip("nothing is being written to disk")
        restarted = bench.crash(driver)
        used, most = restarted.used("disk"), 7 if landed else 4
        demand("NS-4", used <= most, f"{used} disk pages are in use after {most} have landed")
        before = restarted.hit(bench.prompt(2))
        expect("NS-4", before, 2, "blocks hit from before the run that crashed")
        first, last = restarted.hit(bench.prompt(2, 50)), restarted.hit(bench.prompt(3, 100))
        demand("NS-4", landed or not last, f"{last} blocks are hit that were on their way")
        demand("NS-4", first == 2 or not last, f"{last} blocks are hit that landed after lost ones")
        _write_to_disk(restarted, bench.prompt(3, 100))
        again = bench.restart(restarted)
        expect("NS-4", again.hit(bench.prompt(3, 100)), 3, "blocks that were written again")


@check("NS-4", "TIER-6", needs=("disk", "transfers"))
def a_write_that_failed_is_not_found_by_a_restart(bench: Bench) -> None:
    """A block whose write to disk has failed does not exist there."""
    driver = bench.controlled(**DISK, model_fingerprint="weights")
    driver.serve(bench.prompt(2))
    driver.evict_all()
    failed = 0
    while transfers := driver.in_flight():
        if transfers[0].target == "disk":
            driver.fail(transfers[0], "io_error")
            failed += 1
        else:
            driver.land(transfers[0])
    if not failed:
        raise Skip("nothing is being written to disk")
    restarted = bench.restart(driver)
    expect("NS-4", restarted.hit(bench.prompt(2)), 0, "blocks hit that could not be written")


@check("TIER-4", "NS-4", needs=("disk",))
def a_smaller_disk_keeps_the_roots(bench: Bench) -> None:
    """If there is less room after a restart, chains lose their leaves, oldest chain first."""
    bench.writes("through")
    driver = _on_disk(bench, write_policy="through")
    driver.serve(bench.prompt(2, 50))
    restarted = bench.restart(driver, disk_pages=4)
    expect("TIER-4", restarted.hit(bench.prompt(2, 50)), 2, "blocks hit of the younger chain")
    expect("TIER-4", restarted.hit(bench.prompt(3)), 2, "blocks hit of the older chain")


@check("TIER-4", "NS-4", needs=("disk", "events"))
def a_restart_finds_the_oldest_blocks_first(bench: Bench) -> None:
    """Blocks on disk keep their age over a restart: chain by chain, leaf before root."""
    bench.writes("through")
    driver = bench.driver(**DISK, model_fingerprint="weights", write_policy="through")
    chains = []
    for start in (0, 50):
        ctx = driver.serve(bench.prompt(2, start))
        digests = driver.model.digests(ctx, 2)
        chains += [page_key(digest, driver.setup.hash_algorithm) for digest in digests[::-1]]
    recording = Recording()
    bench.restart(driver, tracer=recording)
    [opened] = [event for event in recording if isinstance(event, DiskOpened)]
    expect("NS-4", list(opened.keys), chains, "blocks on disk, oldest first")


@check("NS-3", needs=("disk",))
def another_layout_is_refused_whatever_the_weights(bench: Bench) -> None:
    """Blocks of another layout are no less so under another fingerprint, or under none."""
    driver = _on_disk(bench)
    for fingerprint in ("other weights", None):
        _refused_start(bench, driver, layers=3, model_fingerprint=fingerprint)
    restarted = bench.restart(driver)
    expect("NS-3", restarted.hit(bench.prompt(3)), 3, "blocks hit after the refused starts")
