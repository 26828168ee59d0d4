"""Nested settings as dotted keys."""

from azneobert.dotted import differences, flatten


def test_a_tree_is_its_leaves_by_dotted_key() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}
    assert flatten({}) == {}


def test_differences_are_named_by_dotted_key_with_both_values() -> None:
    there = {"model": {"layers": 2, "theta": 1.0}, "rows": "a" * 64, "seed": 1}
    here = {"model": {"layers": 3, "theta": 1.0}, "rows": "a" * 64, "new": True}
    assert differences(there, here) == [
        "model.layers: 2 there, 3 here",
        "new: nothing there, True here",
        "seed: 1 there, nothing here",
    ]
    assert differences(there, there) == []
    assert differences({"rows": "a" * 64}, {"rows": "b" * 64}) == [f"rows: {'a' * 12}… there, {'b' * 12}… here"]
