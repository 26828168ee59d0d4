"""Student's quantiles are those of the tables, and three-fold verdicts fall as they must."""

from __future__ import annotations

import math

import pytest

from azneobert.bench.intervals import Difference, difference, student_quantile


@pytest.mark.parametrize(
    ("probability", "degrees", "tabled"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 4, 2.776),
        (0.975, 9, 2.262),
        (0.975, 30, 2.042),
        (0.975, 120, 1.980),
        (0.8, 1, 1.376),
        (0.8, 4, 0.941),
        (0.8, 10, 0.879),
        (0.995, 5, 4.032),
        (0.5, 7, 0.0),
    ],
)
def test_quantiles_are_those_of_the_tables(probability: float, degrees: int, tabled: float) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(tabled, abs=5e-4)


def test_the_interval_of_a_known_example() -> None:
    """Student's own: the additional hours of sleep of ten patients, mean 1.58, standard deviation 1.23."""
    apart = difference([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert (apart.pairs, apart.mean) == (10, pytest.approx(1.58))
    assert apart.deviation == pytest.approx(1.2300, abs=1e-4)
    assert apart.half_width == pytest.approx(0.8799, abs=1e-4)  # R: t.test(extra, paired) gives 0.7001 to 2.4599
    assert apart.detectable == pytest.approx((2.2622 + 0.8834) * 1.2300 / math.sqrt(10), abs=1e-3)


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([0.001, -0.002, 0.0, 0.002, -0.001], "neutral"),
        ([0.0, 0.0, 0.0], "neutral"),
        ([0.005, 0.006, 0.004, 0.005, 0.005], "neutral"),  # it is not 0, and too little to matter
        ([0.05, 0.06, 0.04, 0.05, 0.05], "differs"),
        ([-0.05, -0.06, -0.04, -0.05, -0.05], "differs"),
        ([0.05, -0.06, 0.04, -0.05, 0.05], "inconclusive"),
        ([0.009, 0.012, 0.008, 0.010, 0.009], "inconclusive"),  # it excludes 0 and may lie on either side of the margin
        ([0.5], "inconclusive"),
        ([0.0], "inconclusive"),
    ],
)
def test_verdicts(pairs: list[float], verdict: str) -> None:
    assert difference(pairs).verdict == verdict


def test_how_many_pairs_more_settle_it() -> None:
    undecided = Difference(5, 0.002, 0.01)
    assert undecided.verdict == "inconclusive"
    more = undecided.more_pairs()
    assert more is not None
    assert Difference(5 + more, 0.002, 0.01).verdict == "neutral"
    assert Difference(5 + more - 1, 0.002, 0.01).verdict == "inconclusive"
    large = Difference(3, 0.03, 0.02)
    more = large.more_pairs()
    assert more is not None
    assert Difference(3 + more, 0.03, 0.02).verdict == "differs"
    assert Difference(3 + more - 1, 0.03, 0.02).verdict == "inconclusive"


def test_what_no_number_of_pairs_settles() -> None:
    assert Difference(5, 0.00999, 1.0).more_pairs() is None
    assert difference([0.1]).more_pairs() is None
