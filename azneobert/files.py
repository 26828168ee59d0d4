"""Files as this project handles them: hashed in pieces, written whole or not at all, durable. One of each."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

# Where DVC can make no hard links, an output is a link to an object of its cache, which is named by its content.
_CACHED = re.compile(r"(.*/)?files/md5/[0-9a-f]{2}/[0-9a-f]{30}")


def sha256_file(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(file: Path, content: bytes) -> None:
    """Write a file, which appears whole, in a folder that is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(content)
    partial.replace(file)


def write_json(file: Path, content: Any) -> None:
    """Write JSON that a person can read, as `write_whole` does."""
    write_whole(file, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes.

    Raises:
        ValueError: it is something else than a regular file, or larger.
        OSError: it is missing or cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{size} bytes found, at most {most} expected")
        return file.read()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read. No pipe or device is waited for; a link is followed into DVC's cache alone.

    Raises:
        ValueError: it is something else.
        OSError: it is missing or cannot be read.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        target = path.readlink()
        if not _CACHED.fullmatch(target.as_posix()):
            raise ValueError("is not a regular file, but a link") from None
        descriptor = os.open(path.parent / target, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("is not a regular file")
    return os.fdopen(descriptor, "rb")


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
