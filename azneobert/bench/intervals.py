"""What a handful of paired differences says: the mean with its interval, what it could have seen, and a verdict."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

MARGIN = 0.01  # nats; two ways of computing learn the same if their held-out losses are nearer than this
_LEVEL = 0.95  # of the interval
_POWER = 0.8  # how often an experiment must see a difference that is called detectable
_MOST_PAIRS = 1000

Verdict = Literal["neutral", "differs", "inconclusive"]


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, their standard deviation, and how many they are."""

    pairs: int
    mean: float
    deviation: float

    @property
    def half_width(self) -> float:
        """Half of the 95% interval around the mean: t(0.975, n - 1) s / sqrt(n); infinite for a single pair."""
        return _half_width(self.pairs, self.deviation)

    @property
    def detectable(self) -> float:
        """The smallest true difference seen in four experiments of five: (t(0.975, n - 1) + t(0.8, n - 1)) s / sqrt(n).

        A difference is seen if the 95% interval excludes 0.
        """
        if self.pairs < 2:
            return math.inf
        quantiles = (student_quantile(p, self.pairs - 1) for p in ((1 + _LEVEL) / 2, _POWER))
        return sum(quantiles) * self.deviation / math.sqrt(self.pairs)

    @property
    def verdict(self) -> Verdict:
        """Neutral: the interval lies within the margin. Differs: it excludes 0, and the mean lies beyond the margin."""
        if abs(self.mean) + self.half_width <= MARGIN:
            return "neutral"
        return "differs" if abs(self.mean) > max(self.half_width, MARGIN) else "inconclusive"

    def more_pairs(self) -> int | None:
        """How many more pairs would settle an inconclusive verdict if mean and deviation stayed as they are.

        None if too many would be needed, or if there are fewer than two pairs.
        """
        if self.pairs < 2:
            return None
        # Half widths that settle it: for neutral, below the margin less the mean; for a difference, below the mean.
        needed = MARGIN - abs(self.mean) if abs(self.mean) <= MARGIN else abs(self.mean)
        counts = range(self.pairs + 1, _MOST_PAIRS)
        found = bisect.bisect(counts, False, key=lambda n: _half_width(n, self.deviation) < needed)
        return None if found == len(counts) else counts[found] - self.pairs


def difference(pairs: Sequence[float]) -> Difference:
    """The mean, deviation and number of paired differences, of which there must be at least one."""
    deviation = statistics.stdev(pairs) if len(pairs) > 1 else math.nan
    return Difference(len(pairs), statistics.fmean(pairs), deviation)


def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution, for a probability of a half or more.

    Found by halving from the exact sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    return _root(lambda t: 0.5 + 0.5 * _within(t, degrees) - probability)


def _half_width(pairs: int, deviation: float) -> float:
    if pairs < 2:
        return math.inf
    return student_quantile((1 + _LEVEL) / 2, pairs - 1) * deviation / math.sqrt(pairs)


def _within(t: float, degrees: int) -> float:
    """The probability that Student's t lies within -t and t."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= square * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    while rising(high) < 0:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
