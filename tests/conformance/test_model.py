"""What the model of a manager lets pass, where a manager may do what nobody can see."""

from collections.abc import Iterable

import numpy as np
import pytest

from pagedkv.conformance.model import Found, Model
from pagedkv.conformance.violation import Violation
from pagedkv.reference.context import TextContext
from pagedkv.reference.tokens import TokenBuffer
from pagedkv.traces.manager_setup import ManagerSetup


def admitted(model: Model, name: str, tokens: Iterable[int], pages: list[int]) -> TextContext:
    """A request that has hit nothing, and holds these pages."""
    array = np.fromiter(tokens, dtype=np.int64)
    ctx = TextContext(max_length=100, tokens=TokenBuffer(array), request_id=name)
    model.claimed(name, 0)
    model.allocated(ctx, pages, 0, Found(must=0, may=2))
    return ctx


@pytest.fixture
def model() -> Model:
    setup = ManagerSetup(page_size=4, total_num_pages=8, max_batch_size=2, host_pages=8)
    return Model(setup, frozenset({"STEP-4"}))


def test_a_block_of_an_undone_load_may_be_swapped_in_from_an_idle_page(model: Model) -> None:
    ctx = admitted(model, "r", range(9), [0, 1, 2])
    root, leaf = model.digests(ctx, 2)
    model.stored = {root, leaf}
    ctx.update(7)
    model.stepped(ctx, [0, 5, 2], 2)
    assert model.devices[0].sure == {root: 0, leaf: 5}


@pytest.mark.parametrize(("hit_limit", "hits"), [(None, 2), (0, 0), (1, 1), (5, 2)])
def test_a_limit_cuts_what_must_and_may_be_found(
    model: Model, hit_limit: int | None, hits: int
) -> None:
    ctx = admitted(model, "r", range(9), [0, 1, 2])
    ctx.update(7)
    model.stepped(ctx, [0, 1, 2], 2)
    fresh = TextContext(max_length=100, tokens=TokenBuffer(np.arange(9)), request_id="fresh")
    model.claimed("fresh", 0)
    found = model.find(fresh, 0, model.requests["fresh"], hit_limit)
    assert found == Found(must=hits, may=hits)


def test_what_no_tier_ever_had_is_not_swapped_in(model: Model) -> None:
    ctx = admitted(model, "r", range(9), [0, 1, 2])
    ctx.update(7)
    with pytest.raises(Violation, match="page 5 does not hold that block"):
        model.stepped(ctx, [0, 5, 2], 2)


def test_nothing_is_swapped_in_from_a_page_that_another_request_holds(model: Model) -> None:
    ctx = admitted(model, "r", range(9), [0, 1, 2])
    admitted(model, "other", range(50, 54), [5])
    model.stored = set(model.digests(ctx, 2))
    ctx.update(7)
    with pytest.raises(Violation, match="page 5 does not hold that block"):
        model.stepped(ctx, [0, 5, 2], 2)
