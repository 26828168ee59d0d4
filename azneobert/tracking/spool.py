"""Points on disk, and how many of them have arrived: what cannot be delivered waits here.

Where the disk is full or read-only, points wait in memory and in a file of the machine's temporary folder, and come
back as soon as there is room, or when the folder is opened the next time.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from azneobert.tracking.damage import FULL, keep_damaged
from azneobert.tracking.points import (
    POINTS,
    decode_point,
    encode_point,
    segment_starts,
    split_damaged,
    stands,
    whole_lines,
)

log = logging.getLogger(__name__)

POINTS_PER_CALL = 1000
DELIVERED = "points.delivered"


class Spool:
    """Points, append-only: ``points.jsonl``, and how many of its bytes are delivered.

    One process at a time opens it: a torn last line is dropped, and damaged lines are set aside.
    """

    def __init__(self, folder: Path, segment: int | None = None, from_step: int = 0):
        """Without a `segment` the newest one is continued."""
        self._file = folder / POINTS
        self._mark = folder / DELIVERED
        self._elsewhere = _elsewhere(folder)
        self._lock = threading.Lock()  # of the next three: one thread appends, another delivers
        self._out: int | None = None
        self._end = 0  # of what stands in the file
        self._waiting: list[bytes] = []  # lines for which the disk has no room
        self._delivered_now: int | None = None
        folder.mkdir(parents=True, exist_ok=True)
        points = self._repaired()
        self._starts: dict[int, int] = {}
        self._segment = 0
        self._begin(points, segment, from_step)
        self._last_step: dict[str, int] = {}
        for point in points:
            if stands(point, self._starts):
                self._note(point)
        self._put(b"")

    def append(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Keep the values whose key has no point at this step or later yet, and return them.

        A resumed run repeats the steps since its checkpoint, to the last bit: the first record of a step stands.
        """
        fresh = {key: value for key, value in values.items() if step > self._last_step.get(key, -1)}
        if fresh:
            point = {"segment": self._segment, "step": step, "time_ms": time.time_ns() // 1_000_000, "values": fresh}
            if self._segment:
                point["from_step"] = self._starts[self._segment]
            self._put(encode_point(point))
            self._note(point)
        return fresh

    def begin_segment(self, from_step: int) -> None:
        """Begin another segment with the points from here on: those recorded after `from_step` stand no more."""
        self._segment += 1
        self._starts = self._starts | {self._segment: from_step}  # another thread may be reading it
        self._last_step = {key: min(step, from_step) for key, step in self._last_step.items()}

    def undelivered(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Batches of points beyond the mark, each with the mark to set once it is delivered.

        Lines that were damaged since the spool was opened are passed over, and set aside when it is opened again.
        """
        with self._lock:
            waiting, end = list(self._waiting), self._end
        position = self._delivered()
        lines = itertools.chain(lines_between(self._file, position, end), waiting)
        yield from standing_batches(lines, position, self._starts, self._file)

    def backlog(self) -> dict[str, Any]:
        """The part of the file that has not been delivered, described for another process."""
        with self._lock:
            end = self._end
        return {"file": str(self._file.resolve()), "start": self._delivered(), "end": end, "starts": self._starts}

    def set_delivered(self, mark: int) -> None:
        """Record that everything up to `mark` has arrived."""
        self._delivered_now = mark
        partial = self._mark.with_suffix(".partial")
        try:
            partial.write_text(encode_mark(mark))
            partial.replace(self._mark)
        except OSError as error:  # MLflow keeps a point that is sent again only once
            with suppress(OSError):
                partial.unlink()
            if error.errno not in FULL:
                raise

    def close(self) -> None:
        """Write the lines that wait, and close the file."""
        self._put(b"")
        if self._out is not None:
            os.close(self._out)
            self._out = None

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

    def _put(self, line: bytes) -> None:
        """Write what waits and then this line; if there is no room, all of it waits."""
        with self._lock:
            if line:
                self._waiting.append(line)
            content = b"".join(self._waiting)
            try:
                self._write(content)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                if line:
                    self._wait_elsewhere(line, error)
                return
            if len(self._waiting) > bool(line):
                log.warning("%s: can be written again; no point is lost", self._file)
                self._elsewhere.unlink(missing_ok=True)
            self._waiting.clear()

    def _write(self, content: bytes) -> None:
        """Append all of it or nothing."""
        if self._out is None:
            self._out = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            self._end = os.fstat(self._out).st_size
        written = 0
        try:
            while written < len(content):
                written += os.write(self._out, content[written:])
        except OSError:
            os.ftruncate(self._out, self._end)
            raise
        self._end += written

    def _wait_elsewhere(self, line: bytes, error: OSError) -> None:
        first = len(self._waiting) == 1
        place = "memory"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | (os.O_TRUNC if first else 0)
            descriptor = os.open(self._elsewhere, flags, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
            place = str(self._elsewhere)
        except OSError:  # full as well
            pass
        if first:
            log.warning(
                "%s: cannot be written (%s); points wait in %s until there is room", self._file, error.strerror, place
            )

    def _delivered(self) -> int:
        if self._delivered_now is None:
            self._delivered_now = self._read_mark()[0] or 0
        return self._delivered_now

    def _read_mark(self) -> tuple[int | None, bytes]:
        """The mark, None if it is damaged; and the content of its file."""
        try:
            found = self._mark.read_bytes()
        except FileNotFoundError:
            return 0, b""
        number, _, checksum = found.strip().partition(b" ")
        if not number.isdigit() or len(number) > 18:
            return None, found
        # Older marks have no checksum.
        return (int(number) if not checksum or encode_mark(int(number)).encode() == found else None), found

    def _note(self, point: dict[str, Any]) -> None:
        self._last_step.update(dict.fromkeys(point["values"], point["step"]))

    def _repaired(self) -> list[dict[str, Any]]:
        """Repair the file, which then holds only points, and its mark; returns the points."""
        content = self._file.read_bytes() if self._file.exists() else b""
        lines = whole_lines(content)
        back = self._from_elsewhere(lines)
        points, damaged = split_damaged(lines)
        try:
            self._repair_lines(content, b"".join(line + b"\n" for line in lines))
            self._repair_mark(lines + back)
            if damaged:
                self._drop_lines(lines, damaged)
        except OSError as error:  # reading passes over what is damaged, and the next opening mends it
            if error.errno not in FULL:
                raise
            log.warning("%s: cannot be mended (%s); its whole lines go on", self._file, error.strerror)
        self._waiting = [line + b"\n" for line in back]
        return points + split_damaged(back)[0]

    def _repair_lines(self, content: bytes, whole: bytes) -> None:
        if not content.startswith(whole):
            log.warning("%s: was damaged; what the checksums could say was mended", self._file)
            self._replace(whole)
        elif whole != content:  # the process died before the end of the line
            os.truncate(self._file, len(whole))

    def _from_elsewhere(self, known: list[bytes]) -> list[bytes]:
        """The lines of a process that ended before there was room for them, except those that are in the file."""
        try:
            descriptor = os.open(self._elsewhere, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return []
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(descriptor).st_uid != os.geteuid():  # the temporary folder is everybody's
                return []
            lines = whole_lines(file.read())
        damaged, there = set(split_damaged(lines)[1]), set(known)
        return [line for number, line in enumerate(lines, start=1) if number not in damaged and line not in there]

    def _replace(self, content: bytes) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(self._file)

    def _repair_mark(self, lines: list[bytes]) -> None:
        mark, found = self._read_mark()
        ends = {0, *itertools.accumulate(len(line) + 1 for line in lines)}
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
        # The mark is written first: in between, too little counts as delivered, and is sent again.
        if self._mark.exists():
            self.set_delivered(kept_mark)
        self._replace(b"".join(kept))


def lines_between(file: Path, start: int, end: int) -> Iterator[bytes]:
    """The whole lines between two places of a file."""
    if start >= end:
        return
    with file.open("rb") as opened:
        opened.seek(start)
        while start < end and (line := opened.readline()).endswith(b"\n"):
            start += len(line)
            yield line


def standing_batches(
    lines: Iterable[bytes], position: int, starts: dict[int, int], file: Path
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """The points that stand, of lines that begin at `position`: a batch for each call, and where the batch ends."""
    batch: list[dict[str, Any]] = []
    metrics = 0
    for line in lines:
        position += len(line)
        try:
            point = decode_point(line)
        except (ValueError, RecursionError):
            log.warning("%s: the line before byte %d is damaged; passed over", file, position)
            continue
        if not stands(point, starts):
            continue
        batch.append(point)
        metrics += len(point["values"]) + 1  # a loss goes to MLflow twice
        if metrics > POINTS_PER_CALL - 50:
            yield batch, position
            batch, metrics = [], 0
    if batch:
        yield batch, position


def encode_mark(mark: int) -> str:
    """The content of ``points.delivered``: how many bytes of the points are delivered, and a checksum."""
    return f"{mark} {zlib.crc32(str(mark).encode()):08x}"


def _elsewhere(folder: Path) -> Path:
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"azneobert-points-{os.geteuid()}-{name}.jsonl"
