"""The points of ``points.jsonl``, one a line with the number of its segment and a checksum; and which of them stand.

A run that goes on under other settings begins a new segment at a step. Points that earlier segments recorded after that
step no longer belong to the run: they do not stand any more. Their lines stay in the file.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

POINTS = "points.jsonl"
_LONGEST = 2000  # bytes of a line that is mended; one of training has 300
_MENDED = 50  # lines of a file, each of which may take a tenth of a second
_DAMAGED_END = re.compile(rb'(?<=\}).(?=\{"segment": )', re.DOTALL)


def read_points(place: Path) -> list[dict[str, Any]]:
    """The points that stand, oldest first: `step`, `time_ms`, `values` and `segment`; none if there is no file.

    `place` is a tracking folder or a points.jsonl. Damaged lines are passed over with a warning.
    """
    file = place / POINTS if place.is_dir() else place
    if not file.is_file():
        return []
    points, damaged = split_damaged(whole_lines(file.read_bytes()))
    if damaged:
        log.warning("%s: line %d is damaged (%d in all); passed over", file, damaged[0], len(damaged))
    starts = segment_starts(points)
    return [point for point in points if stands(point, starts)]


def encode_point(point: dict[str, Any]) -> bytes:
    """A line of the file."""
    return json.dumps(point | {"crc": _checksum(point)}).encode() + b"\n"


def decode_point(line: bytes) -> dict[str, Any]:
    """The point of a line; older lines have no checksum and belong to segment 0.

    Raises:
        ValueError: the line is damaged.
    """
    point = json.loads(line)
    if not isinstance(point, dict):
        raise ValueError("not a point")
    if "crc" in point and point.pop("crc") != _checksum(point):
        raise ValueError("its checksum does not match")
    point.setdefault("segment", 0)
    whole_numbers = [point.get(key) for key in ("step", "time_ms", "segment")] + [point.get("from_step", 0)]
    values = point.get("values")
    if not isinstance(values, dict) or not all(isinstance(number, int) for number in whole_numbers):
        raise ValueError("not a point")
    if not all(isinstance(value, int | float) for value in values.values()):
        raise ValueError("not a point")
    return point


def whole_lines(content: bytes) -> list[bytes]:
    """The lines that have an end; the last one may still be on its way.

    A damaged line end is recognised by the points on both sides of it, whose checksums match. One damaged bit within a
    line is recognised by the checksum, which matches only when that bit is flipped back.
    """
    *ended, last = content.split(b"\n")
    lines = [piece for line in ended for piece in _apart(line)]
    damaged = [number for number, line in enumerate(lines) if not _is_point(line)]
    for number in damaged[:_MENDED]:
        lines[number] = _mended(lines[number])
    return lines + [piece for piece in _apart(last) if _is_sealed(piece)]


def _mended(line: bytes) -> bytes:
    """The line with one bit flipped back, if its checksum then matches; any other line as it is.

    In `{"step": 3, ..., "crc": 71}` with a `q` in the place of the 3, every bit is flipped in turn, those of the `q`
    among them: with a 3 the checksum matches. A match by chance has a probability of 1 in 4 billion for each bit.
    """
    for place in range(min(len(line), _LONGEST)):
        for bit in range(8):
            candidate = line[:place] + bytes([line[place] ^ 1 << bit]) + line[place + 1 :]
            if _is_sealed(candidate):
                return candidate
    return line


def _is_point(line: bytes) -> bool:
    """Whether a line is a point; an older line needs no checksum."""
    try:
        return bool(decode_point(line))
    except (ValueError, RecursionError):
        return False


def _apart(line: bytes) -> list[bytes]:
    if _is_sealed(line):
        return [line]
    pieces = _DAMAGED_END.split(line)
    if _is_sealed(pieces[-1][:-1]):  # if no line follows, the damaged end is the last byte
        pieces[-1] = pieces[-1][:-1]
    return pieces if all(map(_is_sealed, pieces)) else [line]


def _is_sealed(line: bytes) -> bool:
    return b'"crc": ' in line and _is_point(line)


def split_damaged(lines: Iterable[bytes]) -> tuple[list[dict[str, Any]], list[int]]:
    """The points, and the numbers of the lines that hold none."""
    points, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            points.append(decode_point(line))
        except (ValueError, RecursionError):
            damaged.append(number)
    return points, damaged


def segment_starts(points: Iterable[dict[str, Any]]) -> dict[int, int]:
    """Where each segment but the first begins, as its first point says."""
    starts: dict[int, int] = {}
    for point in points:
        if "from_step" in point:
            starts.setdefault(point["segment"], point["from_step"])
    return starts


def stands(point: dict[str, Any], starts: dict[int, int]) -> bool:
    """Whether no later segment begins before this point."""
    return all(point["step"] <= start for segment, start in starts.items() if segment > point["segment"])


def _checksum(point: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(point, sort_keys=True, separators=(",", ":")).encode())
