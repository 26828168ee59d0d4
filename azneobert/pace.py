"""How fast a long piece of work goes, when it will end, and the time that stands before a line of a log."""

from __future__ import annotations

import itertools
import time
from collections import deque

_STRETCHES = 30
_SECONDS = 1.0  # a stretch is not shorter, so that one of a few steps says something


class Pace:
    """The time that is left, by the last 30 stretches of work without the slowest one.

    A stretch goes from one report to another at least a second later. By the mean since the start, a run whose first
    step compiles for 70 seconds and whose others take one would be said to need 8 seconds a step after ten of them;
    here the stretch of the first step is the slowest and does not count. One validation of 60 seconds among 30 steps
    does not either. Three of them are what this work takes: (28 + 2 x 60) / 29 or about 5 seconds a step.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float]] = deque(maxlen=_STRETCHES + 1)  # seconds, and what was done then

    def reach(self, done: float) -> None:
        """So much is done in all; the first call says where the work begins, as where an earlier run has left it."""
        now = time.monotonic()
        if not self._marks or (now - self._marks[-1][0] >= _SECONDS and done > self._marks[-1][1]):
            self._marks.append((now, done))

    def left(self, done: float, total: float) -> str:
        """The time from here to the end as ``h:mm:ss``, or ``?`` where nothing says it yet."""
        if not self._marks:
            return "?"
        marks = list(self._marks)
        # What came after the last mark counts only where there is nothing else.
        if len(marks) == 1:
            marks.append((time.monotonic(), done))
        spans = [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(marks)]
        if len(spans) > 2:
            spans.remove(max(spans, key=lambda span: span[0] / span[1]))
        seconds, work = (sum(column) for column in zip(*spans, strict=True))
        if work <= 0:
            return "?"
        return clock(seconds / work * max(0, total - done))


def clock(seconds: float) -> str:
    """A stretch of time as ``h:mm:ss``."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def time_stamp() -> str:
    """The local time, for the beginning of a line: a run of days needs its date."""
    return time.strftime("%Y-%m-%d %H:%M:%S")
