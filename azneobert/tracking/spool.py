"""Points on disk, and how many of them have arrived: what cannot be delivered waits here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

POINTS_PER_CALL = 1000


class Spool:
    """Points on disk, append-only: ``points.jsonl``, and how many of its bytes are delivered."""

    def __init__(self, folder: Path):
        self._file = folder / "points.jsonl"
        self._mark = folder / "points.delivered"
        folder.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        self._last_step: dict[str, int] = {}
        for point in read_points(folder):
            self._note(point)
        self._out = self._file.open("a", encoding="utf-8")

    def append(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Keep the values whose key has no point at this step or later yet, and return them.

        A resumed run repeats the steps since its checkpoint, to the last bit: the first record of a step stands.
        """
        fresh = {key: value for key, value in values.items() if step > self._last_step.get(key, -1)}
        if fresh:
            point = {"step": step, "time_ms": time.time_ns() // 1_000_000, "values": fresh}
            self._out.write(json.dumps(point) + "\n")
            self._out.flush()
            self._note(point)
        return fresh

    def undelivered(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Batches of points beyond the mark, each with the mark to set once it is delivered."""
        with self._file.open("rb") as file:
            file.seek(self._delivered())
            batch: list[dict[str, Any]] = []
            metrics = 0
            while (line := file.readline()).endswith(b"\n"):
                batch.append(json.loads(line))
                metrics += len(batch[-1]["values"])
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

    def _delivered(self) -> int:
        return int(self._mark.read_text()) if self._mark.exists() else 0

    def _note(self, point: dict[str, Any]) -> None:
        self._last_step.update(dict.fromkeys(point["values"], point["step"]))

    def _drop_torn_line(self) -> None:
        if self._file.exists():
            content = self._file.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self._file, whole)


def read_points(folder: Path) -> list[dict[str, Any]]:
    """Every point of the run whose spool is in `folder`, oldest first: `step`, `time_ms` and `values`."""
    file = folder / "points.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
