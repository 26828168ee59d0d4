"""How fast a long piece of work goes, when it will end, and the time stamp of a log line."""

from __future__ import annotations

import itertools
import time
from collections import deque

_STRETCHES = 30
_SECONDS = 1.0  # the shortest stretch, so that it has enough steps to say something


class Pace:
    """Estimates the time that is left by the last 30 stretches of work, without the slowest one.

    A stretch goes from one report to another at least a second later. Take a run whose first step compiles for 70
    seconds and whose other steps take one. After ten steps, the mean since the start says 8 seconds a step; here the
    stretch of the first step is the slowest and does not count. Neither does one validation of 60 seconds among 30
    steps. If there are three, two of them count: (28 + 2 x 60) / 29 or about 5 seconds a step.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float]] = deque(maxlen=_STRETCHES + 1)  # seconds, and what was done then

    def reach(self, done: float) -> None:
        """Note how much is done in all; the first call says where the work begins, as after an earlier run."""
        now = time.monotonic()
        if not self._marks or (now - self._marks[-1][0] >= _SECONDS and done > self._marks[-1][1]):
            self._marks.append((now, done))

    def left(self, done: float, total: float) -> str:
        """The time from here to the end as ``h:mm:ss``, or ``?`` if it is not known yet."""
        if not self._marks:
            return "?"
        marks = list(self._marks)
        # What came after the last mark counts only if there is nothing else.
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
