"""The soak of faults: what it says of trials, and that it finds what it is to find."""

from __future__ import annotations

from azneobert.bench.faults import KINDS, WORLDS, Outcome, rows


def test_a_row_for_each_kind_that_happened_and_one_for_all() -> None:
    one, other = list(KINDS)[:2]
    outcomes = [
        Outcome(one, WORLDS[0], "at step 3", recovery=2.0),
        Outcome(one, WORLDS[1], "at step 4", recovery=4.0),
        Outcome(other, WORLDS[0], "at step 5", points_lost=7),
        Outcome(other, WORLDS[0], "at step 6", problems=["other weights"]),
    ]
    found = list(rows(outcomes))
    assert [(row.what, row.figure, row.met) for row in found] == [
        (one, "2 of 2 survived", True),
        (other, "0 of 2 survived", False),
        ("all", "2 of 4 survived", False),
    ]
    assert "recovered in 3.0 s (median), 4.0 s (longest)" in found[0].note
    assert "points lost 7" in found[1].note
    assert "at step 6: other weights" in found[2].note
