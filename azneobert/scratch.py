"""Folders to work in that are gone afterwards; after a kill, the next one who makes such a folder removes them."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path

import psutil

_NAME = re.compile(r"(?P<pid>\d+)-\w+-(?P<host>.+)")


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, which is made if need be. Its name says which process of which host works there.

    Folders of this prefix whose process on this host is gone are removed first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent, prefix)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{getpid()}-", suffix=f"-{socket.gethostname()}", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path, prefix: str) -> None:
    for folder in parent.iterdir():
        if not folder.name.startswith(prefix):
            continue
        match = _NAME.fullmatch(folder.name.removeprefix(prefix))
        if match and match["host"] == socket.gethostname() and not psutil.pid_exists(int(match["pid"])):
            shutil.rmtree(folder, ignore_errors=True)
