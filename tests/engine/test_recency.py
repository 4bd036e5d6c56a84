"""A list of numbers does what an ordered dictionary does."""

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from pagedkv.engine.planner.recency import RecencyList

SIZE = 6
MOVES = st.lists(
    st.tuples(st.sampled_from(("append", "prepend", "remove", "renew")), st.integers(0, SIZE - 1)),
    max_size=40,
)


@given(moves=MOVES, full=st.booleans())
def test_recency_list_keeps_the_order(moves: list[tuple[str, int]], full: bool) -> None:
    recency = RecencyList(SIZE, full=full)
    expected: OrderedDict[int, None] = OrderedDict.fromkeys(range(SIZE) if full else ())
    for move, number in moves:
        if (number in expected) != (move in ("remove", "renew")):
            continue
        if move == "append":
            recency.append(number)
            expected[number] = None
        elif move == "prepend":
            recency.prepend(number)
            expected[number] = None
            expected.move_to_end(number, last=False)
        elif move == "remove":
            recency.remove(number)
            del expected[number]
        else:
            recency.renew([number])
            expected.move_to_end(number)
        assert list(recency) == list(expected)
        assert all((n in recency) == (n in expected) for n in range(SIZE))


def test_an_empty_list_of_no_numbers() -> None:
    assert list(RecencyList(0, full=True)) == list(RecencyList(0)) == []
