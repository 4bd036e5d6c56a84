"""INPUT: page tables and lengths of the next forward."""

from typing import Any

from pagedkv.conformance.bench import Bench, Skip
from pagedkv.conformance.check import check
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.forward_inputs import inputs_per_device
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.errors import (
    AllocPendingError,
    BatchesError,
    BlocksNotAllocatedError,
    UnknownRequestError,
)
from pagedkv.reference.inputs import BatchCharacteristics


# Any: inputs of a device, of whatever class the implementation has.
def inputs_of(driver: Driver, *contexts: TextContext, **options: Any) -> list[Any]:
    """The inputs of every device for one forward over these requests."""
    inputs = driver.manager.runtime_inputs(driver.batches(contexts), **options)
    return list(inputs_per_device(inputs))


# --- INPUT-1 to INPUT-3: what is refused ----------------------------------------------------------


@check("INPUT-1", needs=("inputs",))
def inputs_take_one_batch_per_replica(bench: Bench) -> None:
    """Too few or too many batches are refused."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(1))
    for batches in ([], [[ctx], []], [[], [ctx]]):
        driver.refused("INPUT-1", BatchesError, "runtime_inputs", batches)
    driver.compute(ctx)


@check("INPUT-1", needs=("inputs", "replicas"))
def one_batch_is_not_enough_for_two_replicas(bench: Bench) -> None:
    """With two replicas there are two batches, of which one may be empty."""
    driver = bench.driver(replicas=2)
    ctx = driver.admit(bench.prompt(1), 1)
    for batches in ([[ctx]], [[], [ctx], []]):
        driver.refused("INPUT-1", BatchesError, "runtime_inputs", batches)
    driver.compute(ctx)
    driver.compute()


@check("INPUT-2", needs=("inputs",))
def a_request_appears_once(bench: Bench) -> None:
    """A request that stands in a batch twice is refused, and so is one that nobody has claimed."""
    driver = bench.driver()
    first, second = driver.admit(bench.prompt(1)), driver.admit(bench.prompt(1, 50))
    stranger = driver.request(bench.prompt(1))
    driver.refused("INPUT-2", BatchesError, "runtime_inputs", [[first, second, first]])
    driver.refused("INPUT-2", UnknownRequestError, "runtime_inputs", [[first, stranger]])
    driver.compute(second, first)


@check("INPUT-2", needs=("inputs", "replicas"))
def a_request_appears_on_its_replica(bench: Bench) -> None:
    """A request in the batch of another replica is refused."""
    driver = bench.driver(replicas=2)
    here, there = driver.admit(bench.prompt(1)), driver.admit(bench.prompt(2), 1)
    for batches in ([[here, there], []], [[there], [here]], [[here], [there, here]]):
        driver.refused("INPUT-2", UnknownRequestError, "runtime_inputs", batches)
    driver.compute(here, there)


@check("INPUT-2", needs=("inputs",))
def a_batch_is_no_larger_than_it_may_be(bench: Bench) -> None:
    """A batch of ``max_batch_size`` requests is served, a larger one refused."""
    driver = bench.driver(max_batch_size=2)
    batch = [driver.admit(bench.prompt(0, 50 * n)) for n in range(3)]
    driver.compute(*batch[:2])
    driver.refused("INPUT-2", BatchesError, "runtime_inputs", [batch])


@check("INPUT-2", needs=("inputs", "replicas"))
def the_largest_batch_is_meant_for_each_replica(bench: Bench) -> None:
    """Every replica may have a batch of ``max_batch_size``."""
    driver = bench.driver(max_batch_size=2, replicas=2)
    batch = [driver.admit(bench.prompt(0, 50 * n), n % 2) for n in range(5)]
    driver.compute(*batch[:4])
    driver.refused("INPUT-2", BatchesError, "runtime_inputs", driver.batches(batch))


@check("INPUT-3", needs=("inputs",))
def a_request_without_pages_is_refused(bench: Bench) -> None:
    """A claimed request that was never allocated gets no inputs."""
    driver = bench.driver()
    ready = driver.admit(bench.prompt(1))
    ctx = driver.claim(driver.request(bench.prompt(0)))
    driver.refused("INPUT-3", BlocksNotAllocatedError, "runtime_inputs", [[ready, ctx]])


@check("INPUT-3", "LEN-1", needs=("inputs",))
def a_request_that_has_outgrown_its_pages_is_refused(bench: Bench) -> None:
    """The token after exactly full pages needs one more; until then there are no inputs."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(2, more=0))
    driver.forward(ctx)
    driver.refused("INPUT-3", BlocksNotAllocatedError, "runtime_inputs", [[ctx]])
    driver.alloc(ctx)
    driver.compute(ctx)


@check("INPUT-3", "LEN-1", needs=("inputs",))
def a_forward_writes_no_slot_without_a_page(bench: Bench) -> None:
    """With several placeholders a request may hold what LEN-1 asks for, and lack a page."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(2, more=-1))
    for _ in range(2):
        driver.compute(ctx)
        ctx.update_with_future_token(max_pending_futures=2)
        driver.alloc(ctx)
    driver.refused("INPUT-3", BlocksNotAllocatedError, "runtime_inputs", [[ctx]])


@check("INPUT-3", "LEN-1", needs=("inputs", "speculative"))
def drafts_need_pages_too(bench: Bench) -> None:
    """A request that has no pages for its drafts is refused."""
    driver = bench.driver(speculative_method="standalone", num_draft_tokens=bench.size)
    ctx = driver.admit(bench.prompt(1))
    driver.bring_drafts(ctx, [], maybe_accepted=[1] * bench.size)
    driver.refused("INPUT-3", BlocksNotAllocatedError, "runtime_inputs", [[ctx]])
    driver.alloc(ctx)
    driver.manager.runtime_inputs([[ctx]])


@check("INPUT-3", "ALLOC-13", needs=("inputs", "transfers", "host"))
def a_request_that_waits_for_loads_gets_no_inputs(bench: Bench) -> None:
    """Before its allocation has returned, a request is no part of a forward."""
    driver = bench.with_chain_below(2)
    ctx = driver.claim(driver.request(bench.prompt(2)))
    driver.begin(ctx)
    driver.refused("INPUT-3", AllocPendingError, "runtime_inputs", [[ctx]])
    driver.land_all()
    driver.refused("INPUT-3", AllocPendingError, "runtime_inputs", [[ctx]])
    driver.finish(ctx)
    driver.compute(ctx)


@check("INPUT-3", "INPUT-7", needs=("inputs",))
def refused_inputs_overwrite_nothing(bench: Bench) -> None:
    """After a refusal the tables and lengths of the forward before are what they were."""
    driver = bench.driver()
    first, second = driver.admit(bench.prompt(1)), driver.admit(bench.prompt(3, 50))
    starved = driver.claim(driver.request(bench.prompt(0, 90)))
    (inputs,) = inputs_of(driver, first)
    before = inputs.lookup_table.tolist(), inputs.cache_lengths.tolist()
    driver.refused("INPUT-3", BlocksNotAllocatedError, "runtime_inputs", [[second, starved]])
    driver.refused("INPUT-3", BatchesError, "runtime_inputs", [[second, second]])
    after = inputs.lookup_table.tolist(), inputs.cache_lengths.tolist()
    expect("INPUT-3", after, before, "table and lengths of the forward before")


@check("INPUT-3", needs=("inputs", "replicas"))
def one_replicas_refusal_spares_the_others(bench: Bench) -> None:
    """Where the batch of the last replica is refused, nothing is written for the first."""
    driver = bench.driver(replicas=2)
    first, second = driver.admit(bench.prompt(1)), driver.admit(bench.prompt(3, 50))
    starved = driver.claim(driver.request(bench.prompt(0, 90)), 1)
    inputs = inputs_of(driver, first)[0]
    before = inputs.lookup_table.tolist()
    driver.refused("INPUT-3", BlocksNotAllocatedError, "runtime_inputs", [[second], [starved]])
    expect("INPUT-3", inputs.lookup_table.tolist(), before, "table of the first replica")


# --- INPUT-4 and INPUT-5: tables and lengths ------------------------------------------------------


@check("INPUT-4", needs=("inputs",))
def rows_are_page_tables(bench: Bench) -> None:
    """Each row has the pages of its request in order, and then the null page, in any batch."""
    driver = bench.driver(total_num_pages=12)
    driver.serve(bench.prompt(2))
    requests = [driver.admit(bench.prompt(n, more=n)) for n in (3, 1, 2)]
    for batch in ((0, 1, 2), (2, 1), (1,), (1, 0)):
        driver.compute(*(requests[n] for n in batch))
    driver.forward(*requests)
    for ctx in requests:
        driver.alloc(ctx)
    driver.compute(*requests)


@check("INPUT-4", needs=("inputs",))
def an_empty_batch_has_an_empty_table(bench: Bench) -> None:
    """A batch without requests has a table of no rows and one column, and lengths of 0."""
    driver = bench.driver()
    (inputs,) = inputs_of(driver)
    expect("INPUT-4", list(inputs.lookup_table.shape), [0, 1], "shape of the table")
    for name in ("max_prompt_length", "max_cache_length"):
        expect("INPUT-5", getattr(inputs, name).tolist(), [0], name)


@check("INPUT-4", "LEN-1", needs=("inputs",))
def pages_beyond_the_next_forward_are_not_shown(bench: Bench) -> None:
    """A request with more pages than its next forward needs shows those that it needs."""
    driver = bench.driver()
    ctx, longer = driver.admit(bench.prompt(2)), driver.admit(bench.prompt(3, 50))
    driver.chunk(ctx, bench.size)
    driver.compute(ctx)
    driver.compute(longer, ctx)


@check("INPUT-4", "CLAIM-4", needs=("inputs", "dummy"))
def rows_of_dummies_are_null_pages(bench: Bench) -> None:
    """A dummy's row has the null page only, first, in the middle or alone in its batch."""
    driver = bench.driver()
    dummy, ctx = driver.claim_dummy("padding"), driver.admit(bench.prompt(2))
    for batch in ((dummy, ctx), (ctx, dummy), (dummy,)):
        driver.compute(*batch)


@check("INPUT-4", needs=("inputs",))
def a_table_is_as_wide_as_it_is_asked_to_be(bench: Bench) -> None:
    """``max_cache_length`` gives the table its columns; those without a page are null pages."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(1))
    pages = driver.pages(ctx)
    for tokens, columns in ((2, 2), (3, 3), (8, 8)):
        for length in (tokens * bench.size, tokens * bench.size - bench.size + 1):
            (inputs,) = inputs_of(driver, ctx, max_cache_length=length)
            row = pages + [8] * (columns - len(pages))
            expect("INPUT-4", inputs.lookup_table.tolist(), [row], f"table for {length} tokens")
    (inputs,) = inputs_of(driver, ctx)
    expect("INPUT-4", inputs.lookup_table.tolist(), [pages], "table of the next forward")


@check("INPUT-4", needs=("inputs",))
def a_table_is_not_cut_short(bench: Bench) -> None:
    """A ``max_cache_length`` that leaves no room for the pages of a request is refused."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(2))
    driver.refused(
        "INPUT-4", BatchesError, "runtime_inputs", [[ctx]], max_cache_length=2 * bench.size
    )


@check("INPUT-4", "INPUT-5", needs=("inputs",))
def tables_and_lengths_are_whole_numbers_of_32_bits(bench: Bench) -> None:
    """Everything is int32, and the two longest lengths are on the CPU."""
    driver = bench.driver()
    (inputs,) = inputs_of(driver, driver.admit(bench.prompt(2)))
    longest = (inputs.max_prompt_length, inputs.max_cache_length)
    for tensor in (inputs.lookup_table, inputs.cache_lengths, *longest):
        demand("INPUT-4", str(tensor.dtype).endswith("int32"), f"an input is {tensor.dtype}")
    for tensor in longest:
        device = str(getattr(tensor, "device", "cpu"))
        expect("INPUT-5", device, "cpu", "device of a longest length")


@check("INPUT-4", needs=("inputs", "replicas"))
def every_shard_gets_the_table_of_its_replica(bench: Bench) -> None:
    """With two replicas of two shards, each shard has the table and lengths of its replica."""
    driver = bench.driver(replicas=2, shards=2)
    driver.serve(bench.prompt(1), 1)
    here = [driver.admit(bench.prompt(n, 50 * n)) for n in (1, 2)]
    there = driver.admit(bench.prompt(3), 1)
    driver.compute(*here, there)
    driver.compute(there)


@check("INPUT-5", needs=("inputs",))
def lengths_are_those_of_the_windows(bench: Bench) -> None:
    """Cached, computed and decoded tokens are told apart for each request of a batch."""
    driver = bench.driver(total_num_pages=20)
    driver.serve(bench.prompt(2))
    hit, fresh = driver.admit(bench.prompt(3)), driver.admit(bench.prompt(1, 50, more=2))
    chunked = driver.claim(driver.request(bench.prompt(2, 90)))
    driver.chunk(chunked, bench.size)
    driver.alloc(chunked)
    for _ in range(3):
        driver.forward(hit, fresh, chunked)
        for ctx in (hit, fresh, chunked):
            driver.alloc(ctx)


@check("INPUT-5", "LEN-4", needs=("inputs", "speculative"))
def lengths_include_drafts(bench: Bench) -> None:
    """Drafts to verify are computed, drafts that may be accepted are cached."""
    driver = bench.driver(speculative_method="standalone", num_draft_tokens=3)
    ctx = driver.admit(bench.prompt(1, more=-1))
    driver.forward(ctx)
    driver.bring_drafts(ctx, [1, 2], maybe_accepted=[5])
    driver.alloc(ctx)
    (inputs,) = inputs_of(driver, ctx)
    cached = bench.size - 1 + 1
    expect("INPUT-5", inputs.cache_lengths.tolist(), [cached], "cache length")
    expect("INPUT-5", inputs.max_prompt_length.tolist(), [1 + 2], "longest query")
    expect("INPUT-5", inputs.max_cache_length.tolist(), [cached + 3 + 3], "longest valid cache")


# --- INPUT-6: bounds ------------------------------------------------------------------------------


@check("INPUT-6", needs=("inputs",))
def bounds_stand_in_for_the_shape(bench: Bench) -> None:
    """With ``batch_characteristics`` the longest lengths are the bounds, also of exact ones."""
    driver = bench.driver()
    ctx = driver.admit(bench.prompt(1))
    length = bench.size + 1
    for bounds in ((1, length, length), (4, 3 * length, 5 * length)):
        (inputs,) = inputs_of(driver, ctx, batch_characteristics=BatchCharacteristics(*bounds))
        expect("INPUT-6", inputs.max_prompt_length.tolist(), [bounds[1]], "longest query")
        expect("INPUT-6", inputs.max_cache_length.tolist(), [bounds[2]], "longest valid cache")
        expect("INPUT-5", inputs.cache_lengths.tolist(), [0], "cache lengths")
    driver.compute(ctx)


@check("INPUT-6", needs=("inputs",))
def a_batch_beyond_a_bound_is_refused(bench: Bench) -> None:
    """Each bound that the batch exceeds by one is an error."""
    driver = bench.driver()
    batch = [driver.admit(bench.prompt(1, 50 * n)) for n in range(2)]
    length = bench.size + 1
    for bounds in ((1, length, length), (2, length - 1, length), (2, length, length - 1)):
        given = BatchCharacteristics(*bounds)
        driver.refused(
            "INPUT-6", ValueError, "runtime_inputs", [batch], batch_characteristics=given
        )


@check("INPUT-6", needs=("inputs", "replicas"))
def bounds_hold_for_every_replica(bench: Bench) -> None:
    """One replica's batch that exceeds a bound is enough for an error."""
    driver = bench.driver(replicas=2)
    here, there = driver.admit(bench.prompt(1)), driver.admit(bench.prompt(2), 1)
    bounds = BatchCharacteristics(1, bench.size + 1, bench.size + 1)
    driver.refused(
        "INPUT-6",
        ValueError,
        "runtime_inputs",
        [[here], [there]],
        batch_characteristics=bounds,
    )
    for inputs in inputs_of(driver, here, batch_characteristics=bounds):
        expect("INPUT-6", inputs.max_prompt_length.tolist(), [bench.size + 1], "longest query")


# --- INPUT-7: addresses ---------------------------------------------------------------------------


@check("INPUT-7", needs=("inputs", "memory"))
def addresses_stay(bench: Bench) -> None:
    """Tables and lengths begin at the same addresses at every call, whatever their shapes."""
    driver = bench.driver(max_batch_size=4, shards=2)
    requests = [driver.admit(bench.prompt(n % 3, 50 * n)) for n in range(4)]
    seen = {
        tuple(
            (inputs.lookup_table.data_ptr(), inputs.cache_lengths.data_ptr())
            for inputs in inputs_of(driver, *requests[:count], **options)
        )
        for count in (1, 4, 2, 3)
        for options in ({}, {"max_cache_length": 8 * bench.size})
    }
    expect("INPUT-7", len(seen), 1, "sets of addresses that were seen")
    expect("INPUT-7", len(set(next(iter(seen)))), 2, "shards with memory of their own")


@check("INPUT-7", "MEM-2", needs=("inputs", "memory"))
def forwards_get_the_memory_of_their_replica(bench: Bench) -> None:
    """Blocks and scales among the inputs are the pages that the manager keeps, and no copies."""
    can = bench.implementation.capabilities.__contains__
    shape = {"replicas": 2 if can("replicas") else 1, "shards": 2}
    for cache in ["mha"] + ["fp8"] * can("fp8") + ["mla"] * can("mla") + ["tree"] * can("multi"):
        driver = bench.driver(cache=cache, **shape)
        devices = list(inputs_per_device(driver.manager.runtime_inputs([[]] * shape["replicas"])))
        for replica in range(shape["replicas"]):
            buffers = driver.manager.get_device_buffer(replica).all_buffers
            shards = [d for n, d in enumerate(devices) if n // 2 % shape["replicas"] == replica]
            given = [getattr(d, name, None) for d in shards for name in ("kv_blocks", "kv_scales")]
            places = sorted(tensor.data_ptr() for tensor in given if tensor is not None)
            if not places:
                raise Skip("blocks are not among the inputs")
            expected = sorted(buffer.data_ptr() for buffer in buffers)
            expect("INPUT-7", places, expected, f"memory of replica {replica}")


@check("INPUT-4", needs=("inputs",))
def a_table_has_no_column_that_nobody_needs(bench: Bench) -> None:
    """A table is as wide as the longest row, however many pages its requests hold."""
    driver = bench.driver()
    ctx, longer = driver.admit(bench.prompt(3)), driver.admit(bench.prompt(1, 50))
    driver.chunk(ctx, bench.size)
    for batch, columns in (((ctx,), 1), ((ctx, longer), 2), ((longer,), 2)):
        (inputs,) = inputs_of(driver, *batch)
        shape = [len(batch), columns]
        expect("INPUT-4", list(inputs.lookup_table.shape), shape, "shape of the table")


@check("INPUT-4", needs=("inputs", "replicas"))
def a_table_is_as_wide_as_the_batch_of_its_replica_needs(bench: Bench) -> None:
    """Each replica's table has the columns that its own batch needs."""
    driver = bench.driver(replicas=2)
    here, there = driver.admit(bench.prompt(1)), driver.admit(bench.prompt(3), 1)
    shapes = [list(inputs.lookup_table.shape) for inputs in inputs_of(driver, here, there)]
    expect("INPUT-4", shapes, [[1, 2], [1, 4]], "shapes of the tables, by replica")


@check("INPUT-4", "INPUT-3", needs=("inputs",))
def a_page_that_is_written_is_shown(bench: Bench) -> None:
    """With several placeholders a forward may write past LEN-1; if there is a page, it gets it."""
    driver = bench.driver()
    ctx = driver.claim(driver.request(bench.prompt(2, more=-1)))
    driver.bring_drafts(ctx, [], [1, 2])  # A page for tokens that turn out not to be accepted.
    driver.alloc(ctx)
    driver.bring_drafts(ctx, [])
    driver.compute(ctx)
    for _ in range(2):
        driver.update_later(ctx, 2)
        driver.alloc(ctx)
        driver.compute(ctx)
    (inputs,) = inputs_of(driver, ctx)
    expect("INPUT-4", inputs.lookup_table.tolist(), [driver.pages(ctx)], "table of the forward")
