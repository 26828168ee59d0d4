"""Points on disk, and how many of them have arrived: what cannot be delivered waits here."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from azneobert.tracking.damage import keep_damaged
from azneobert.tracking.points import (
    POINTS,
    decode_point,
    encode_point,
    segment_starts,
    split_damaged,
    stands,
    whole_lines,
)

POINTS_PER_CALL = 1000
DELIVERED = "points.delivered"


class Spool:
    """Points, append-only: ``points.jsonl``, and how many of its bytes are delivered.

    One process at a time opens it: a torn last line is dropped, and damaged lines are set aside.
    """

    def __init__(self, folder: Path, segment: int | None = None, from_step: int = 0):
        """Without a segment the newest one goes on."""
        self._file = folder / POINTS
        self._mark = folder / DELIVERED
        folder.mkdir(parents=True, exist_ok=True)
        points = self._repaired()
        self._starts: dict[int, int] = {}
        self._segment = 0
        self._begin(points, segment, from_step)
        self._last_step: dict[str, int] = {}
        for point in points:
            if stands(point, self._starts):
                self._note(point)
        self._out = self._file.open("ab")

    def append(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Keep the values whose key has no point at this step or later yet, and return them.

        A resumed run repeats the steps since its checkpoint, to the last bit: the first record of a step stands.
        """
        fresh = {key: value for key, value in values.items() if step > self._last_step.get(key, -1)}
        if fresh:
            point = {"segment": self._segment, "step": step, "time_ms": time.time_ns() // 1_000_000, "values": fresh}
            if self._segment:
                point["from_step"] = self._starts[self._segment]
            self._out.write(encode_point(point))
            self._out.flush()
            self._note(point)
        return fresh

    def begin_segment(self, from_step: int) -> None:
        """What is recorded from here on is of another segment: what was recorded after `from_step` stands no more."""
        self._segment += 1
        self._starts = self._starts | {self._segment: from_step}  # another thread may be reading it
        self._last_step = {key: min(step, from_step) for key, step in self._last_step.items()}

    def undelivered(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Batches of points beyond the mark, each with the mark to set once it is delivered."""
        with self._file.open("rb") as file:
            file.seek(self._delivered())
            batch: list[dict[str, Any]] = []
            metrics = 0
            while (line := file.readline()).endswith(b"\n"):
                point = decode_point(line)
                if not stands(point, self._starts):
                    continue
                batch.append(point)
                metrics += len(point["values"])
                if metrics > POINTS_PER_CALL - 50:
                    yield batch, file.tell()
                    batch, metrics = [], 0
            if batch:
                yield batch, file.tell()

    def set_delivered(self, mark: int) -> None:
        """Record that everything up to `mark` has arrived."""
        partial = self._mark.with_suffix(".partial")
        partial.write_text(str(mark))
        partial.replace(self._mark)

    def close(self) -> None:
        """No more points."""
        self._out.close()

    def _begin(self, points: list[dict[str, Any]], segment: int | None, from_step: int) -> None:
        self._starts = segment_starts(points)
        newest = max((point["segment"] for point in points), default=0)
        if segment is None:
            segment = newest
        elif segment < newest:  # the run went back to before the newest segment, so this is another one
            segment = newest + 1
        self._segment = segment
        if segment:
            self._starts.setdefault(segment, from_step)

    def _delivered(self) -> int:
        return int(self._mark.read_text()) if self._mark.exists() else 0

    def _note(self, point: dict[str, Any]) -> None:
        self._last_step.update(dict.fromkeys(point["values"], point["step"]))

    def _repaired(self) -> list[dict[str, Any]]:
        """The points of the file, which afterwards holds nothing else, with a mark that fits it."""
        content = self._file.read_bytes() if self._file.exists() else b""
        lines = whole_lines(content)
        whole = sum(len(line) + 1 for line in lines)
        if whole < len(content):  # the process died before the end of the line
            os.truncate(self._file, whole)
        self._repair_mark(lines)
        points, damaged = split_damaged(lines)
        if damaged:
            self._drop_lines(lines, damaged)
        return points

    def _repair_mark(self, lines: list[bytes]) -> None:
        if not self._mark.exists():
            return
        found = self._mark.read_bytes()
        mark = int(found) if found.strip().isdigit() and len(found) < 20 else -1
        ends, end = {0}, 0
        for line in lines:
            end += len(line) + 1
            ends.add(end)
        if mark not in ends:
            keep_damaged(self._mark, f"holds {found[:20]!r}, not the end of a line of {POINTS}", "all is sent again")
            self._mark.unlink()  # MLflow takes a repeated point for the same one

    def _drop_lines(self, lines: list[bytes], damaged: list[int]) -> None:
        mark, position, kept_mark = self._delivered(), 0, 0
        kept = []
        for number, line in enumerate(lines, start=1):
            position += len(line) + 1
            if number not in damaged:
                kept.append(line + b"\n")
                kept_mark += len(kept[-1]) if position <= mark else 0
        others = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        keep_damaged(self._file, f"line {damaged[0]}{others} is damaged", "the other points go on")
        # The mark first: between the two, too little counts as delivered, and that is sent again.
        if self._mark.exists():
            self.set_delivered(kept_mark)
        partial = self._file.with_suffix(".partial")
        partial.write_bytes(b"".join(kept))
        partial.replace(self._file)
