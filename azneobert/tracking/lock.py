"""One process at a time delivers from a tracking folder."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

_FILE = ".delivering"


class FolderLock:
    """Held from its making to `release`. Where the file system has no locks, nothing is held and the work goes on."""

    def __init__(self, folder: Path):
        """Wait for the folder, which another process holds for no longer than it takes to deliver what waits."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / _FILE).open("a+")
        if not _taken(self._file):
            log.warning("%s: another process is delivering from here; waiting for it", folder)
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def release(self) -> None:
        """Give the folder back, also where a child of this process has inherited the open file."""
        _release(self._file)


@contextmanager
def folder_if_free(folder: Path) -> Iterator[bool]:
    """Hold the folder for the block; False, at once, where another process holds it."""
    file = (folder / _FILE).open("a+")
    taken = _taken(file)
    try:
        yield taken
    finally:
        if taken:
            _release(file)
        file.close()


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here: two deliveries at once repeat points, which MLflow takes for the same ones
        return True
    return True


def _release(file: IO[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_UN)
    except OSError:
        pass
    finally:
        file.close()
