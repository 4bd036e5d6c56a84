"""A list of numbers does what an ordered dictionary does."""

from collections import OrderedDict
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.engine.planner import recency as module
from pagedkv.engine.planner.recency import RecencyList
from pagedkv.reference.errors import PoolCorruptedError

SIZE = 6
MOVES = st.lists(
    st.tuples(
        st.sampled_from(("append", "extend", "prepend", "discard", "renew", "take", "look")),
        st.lists(st.integers(0, SIZE - 1), min_size=1),
    ),
    max_size=40,
)


@given(moves=MOVES, full=st.booleans(), longest_run=st.integers(1, 4))
def test_recency_list_keeps_the_order(
    moves: list[tuple[str, list[int]]], full: bool, longest_run: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LONGEST_RUN", longest_run)
        recency = RecencyList(SIZE, full=full)
        expected: OrderedDict[int, None] = OrderedDict.fromkeys(range(SIZE) if full else ())
        for move, numbers in moves:
            there = [n for n in numbers if n in expected]
            absent = list(OrderedDict.fromkeys(n for n in numbers if n not in expected))
            if move == "append":
                for number in absent[:1]:
                    recency.append(number)
                    expected[number] = None
            elif move == "extend":
                recency.extend(absent)
                expected.update(OrderedDict.fromkeys(absent))
            elif move == "prepend":
                recency.prepend(absent)
                expected = OrderedDict.fromkeys([*absent, *expected])
            elif move == "discard":
                once = list(OrderedDict.fromkeys(numbers))
                removed, others = recency.discard(once)
                assert (removed, others) == ([n for n in once if n in expected], absent)
                for number in removed:
                    del expected[number]
            elif move == "renew":
                recency.renew(there)
                for number in there:
                    expected.move_to_end(number)
            elif move == "take":
                oldest = list(expected)[: len(numbers)]
                assert recency.take(len(numbers)) == oldest
                for number in oldest:
                    del expected[number]
            else:
                assert list(recency) == list(expected)
            assert len(recency) == len(expected)
            assert all((n in recency) == (n in expected) for n in range(SIZE))
        assert list(recency) == list(expected)


@pytest.mark.parametrize("longest", [3, 300])
def test_the_order_outlasts_being_written_anew_many_times(longest: int) -> None:
    rng, size = Random(0), 1000
    recency = RecencyList(size, full=True)
    expected = OrderedDict.fromkeys(range(size))
    for _ in range(10_000):
        numbers = rng.sample(range(size), rng.randint(1, longest))
        if rng.random() < 0.2:
            recency.discard(numbers)
            recency.prepend(numbers)
            for number in reversed(numbers):
                expected.move_to_end(number, last=False)
        else:
            recency.renew(numbers)
            for number in numbers:
                expected.move_to_end(number)
    assert list(recency) == list(expected)


def test_a_number_that_has_left_comes_back_once() -> None:
    recency = RecencyList(3)
    for number in (0, 1, 0, 2):
        recency.discard([number])
        recency.append(number)
    assert list(recency) == [1, 0, 2]


@pytest.mark.parametrize("by_itself", [False, True])
def test_what_is_left_behind_is_never_more_than_a_few_times_what_is_there(by_itself: bool) -> None:
    size = 5000  # so that a number has left the youngest run when it comes again
    recency = RecencyList(size, full=True)
    for number in range(100_000):
        if by_itself:
            recency.discard([number % size])
            recency.append(number % size)
        else:
            recency.renew([number % size])
    runs = (*recency._tidied, *recency._untidied)
    assert sum(map(len, runs)) // module.ENTRY_NBYTES == recency.num_entries
    assert recency.num_entries <= 2 * size + 2 * module.LONGEST_RUN


def test_a_number_that_is_there_does_not_come_twice() -> None:
    recency = RecencyList(3, full=True)
    with pytest.raises(PoolCorruptedError, match="page or slot 2 came free, but nobody held it"):
        recency.extend([2])


def test_an_empty_list_of_no_numbers() -> None:
    assert list(RecencyList(0, full=True)) == list(RecencyList(0)) == []
