"""Maps of page keys do what a dictionary does, whatever their size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedkv.engine.planner.key_map import (
    MOST_PLAIN_KEYS,
    KeyMap,
    PlainKeyMap,
    ShardedKeyMap,
    key_map,
)

KEYS = st.sampled_from([bytes([a, b]) for a in range(3) for b in range(3)])
MOVES = st.lists(
    st.tuples(
        st.sampled_from(("add", "drop", "set", "delete", "clear")),
        st.lists(KEYS, min_size=1, max_size=4),
    ),
    max_size=30,
)


@pytest.mark.parametrize("kind", [PlainKeyMap, ShardedKeyMap])
@given(moves=MOVES, asked=st.lists(KEYS))
def test_a_key_map_is_a_dictionary(
    kind: type[KeyMap], moves: list[tuple[str, list[bytes]]], asked: list[bytes]
) -> None:
    found, expected = kind(), dict[bytes, int]()
    for number, (move, keys) in enumerate(moves):
        there = [key for key in dict.fromkeys(keys) if key in expected]
        if move == "add":
            numbers = list(range(10 * number, 10 * number + len(keys)))
            had = [expected.setdefault(key, n) for key, n in zip(keys, numbers, strict=True)]
            assert found.add(keys, numbers) == had
        elif move == "drop":
            found.drop(there)
            for key in there:
                del expected[key]
        elif move == "set":
            found[keys[0]] = expected[keys[0]] = number
        elif move == "delete" and there:
            del found[there[0]], expected[there[0]]
        elif move == "clear":
            found.clear()
            expected.clear()
        assert dict(found.items()) == expected
        assert sorted(found) == sorted(expected)
        assert len(found) == len(expected)
    assert found.find(asked) == [expected.get(key) for key in asked]
    assert [found.get(key) for key in asked] == found.find(asked)
    assert [key in found for key in asked] == [key in expected for key in asked]
    assert all(found[key] == number for key, number in expected.items())


@pytest.mark.parametrize("kind", [PlainKeyMap, ShardedKeyMap])
def test_a_key_that_is_not_there_cannot_be_dropped(kind: type[KeyMap]) -> None:
    with pytest.raises(KeyError):
        kind().drop([b"a"])


def test_large_maps_are_sharded() -> None:
    assert isinstance(key_map(MOST_PLAIN_KEYS), PlainKeyMap)
    assert isinstance(key_map(MOST_PLAIN_KEYS + 1), ShardedKeyMap)
