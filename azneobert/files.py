"""Files as this project handles them: hashed in pieces, written whole or not at all, durable. One helper for each."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
from io import BufferedReader
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from azneobert.errors import AzNeoBertError

# If DVC cannot make hard links, an output is a link to an object of its cache, which is named by its content.
_CACHED = re.compile(r"(.*/)?files/md5/[0-9a-f]{2}/[0-9a-f]{30}")
_CHUNK = 1 << 22
_LARGEST_JSON = 8 << 20  # bytes; what stands in memory may be thirty times as much
_DEEPEST_JSON = 100  # an array in an array is two
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)  # one that is not closed ends with the text
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def sha256_file(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: BufferedReader) -> str:
    """The sha256 of what stands in an open file, read in pieces."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: Any) -> str:
    """The sha256 of content that JSON can hold, written in one fixed way: equal contents have equal hashes."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_whole(file: Path, content: bytes) -> None:
    """Write a file, which appears whole, in a folder that is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(content)
    partial.replace(file)


def write_json(file: Path, content: Any) -> None:
    """Write JSON that a person can read, as `write_whole` does.

    Raises:
        AzNeoBertError: a number in it is not finite, which is no JSON.
    """
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError:
        if (where := _not_finite(content)) is None:
            raise
        raise AzNeoBertError(f"{file}: {where} is not finite, which JSON cannot hold; expected a number") from None
    write_whole(file, f"{text}\n".encode())


def read_json(path: Path, most: int = _LARGEST_JSON, deepest: int = _DEEPEST_JSON) -> Any:
    """The content of a JSON file: a regular file of at most `most` bytes, with at most `deepest` levels of brackets.

    A key that stands twice in an object, NaN and infinity are refused: programs do not agree on what they mean.

    Raises:
        ValueError: it is something else; the message, of one line, does not name the file.
        OSError: it is missing or cannot be read.
    """
    return parse_json(read_bounded(path, most), deepest)


def parse_json(content: bytes, deepest: int = _DEEPEST_JSON) -> Any:
    """The content of bytes of JSON, under the limits of `read_json`.

    Raises:
        ValueError: they are not JSON of that kind.
    """
    check_depth(content, deepest)
    try:
        return json.loads(
            content.decode("utf-8-sig"), object_pairs_hook=_object, parse_float=_finite, parse_constant=_no_number
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None


def check_depth(content: bytes, deepest: int = _DEEPEST_JSON) -> None:
    """Check that JSON has no more levels of brackets than this, before it is parsed.

    Raises:
        ValueError: it has more.
    """
    if content.count(b"[") + content.count(b"{") > deepest:
        brackets = _STRING.sub(b"", content).translate(None, _NOT_BRACKETS)
        if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > deepest:
            raise ValueError(f"nested more than {deepest} levels deep")


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        ValueError: it is something else than a regular file, or larger.
        OSError: it is missing or cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)  # the system may report a size of 0 for a file without an end
        if len(content) > most:
            size = max(os.fstat(file.fileno()).st_size, len(content))
            raise ValueError(f"{size} bytes found, at most {most} expected")
        return content


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read. No pipe or device is waited for; a link is followed only into DVC's cache.

    Raises:
        ValueError: it is something else.
        OSError: it is missing or cannot be read.
    """
    return open_within(path.parent, path.name or ".")


def open_within(folder: Path, name: str) -> BufferedReader:
    """Open a regular file of a folder by a name that the folder itself may have stated, as `open_regular` does.

    Neither `..` nor a link on the way leads out of the folder, which may itself be reached by a link.

    Raises:
        ValueError: it is no regular file in the folder, or the name leaves it.
        OSError: it is missing or cannot be read.
    """
    *folders, last = PurePosixPath(name).parts or (".",)
    if name.startswith("/") or ".." in (*folders, last) or not name.isprintable():
        raise ValueError("is no place in its folder")
    within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for step in folders:
            within, outer = _opened(step, os.O_DIRECTORY, within), within
            os.close(outer)
        descriptor = _opened(last, 0, within)
    except OSError as error:
        error.filename = str(folder / name)
        raise
    finally:
        os.close(within)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("is not a regular file")
    return os.fdopen(descriptor, "rb")


def _opened(name: str, flags: int, within: int) -> int:
    flags |= os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=within)
    except OSError as error:
        target = _link(name, within)
        if target is None:
            if error.errno == errno.ENXIO:  # a socket
                raise ValueError("is not a regular file") from None
            raise
        if flags & os.O_DIRECTORY or not _CACHED.fullmatch(target):
            raise ValueError("is not a regular file, but a link") from None
        return os.open(target, flags, dir_fd=within)


def _link(name: str, within: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=within)
    except OSError:
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} stands twice in an object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is beyond the numbers that a float holds")
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _not_finite(content: Any, where: str = "") -> str | None:
    """The path of the first number that is not finite, and what it is."""
    if isinstance(content, float) and not math.isfinite(content):
        return f"{where or 'it'}, {content},"
    inner = content.items() if isinstance(content, dict) else enumerate(content) if _is_list(content) else ()
    found = (_not_finite(value, f"{where}.{key}" if where else str(key)) for key, value in inner)
    return next((place for place in found if place), None)


def _is_list(content: Any) -> bool:
    return isinstance(content, list | tuple)


def copy_regular(source: Path, target: Path) -> None:
    """Copy the content of a regular file, opened as `open_regular` does, into a new file.

    Raises:
        ValueError, OSError: as `open_regular`.
    """
    with open_regular(source) as file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy, _CHUNK)


def sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
