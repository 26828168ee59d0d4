"""One process at a time delivers from a tracking folder. Where there are no locks, the work goes on without one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from azneobert.locks import FileLock

log = logging.getLogger(__name__)

_FILE = ".delivering"
_SECONDS = 30.0  # to wait for a process that delivers, which may be stopped


def hold_folder(folder: Path) -> FileLock:
    """Hold the folder until `release`; another process is waited for, no longer than a delivery should take."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(folder)
    waiting = "%s: another process is delivering from here; waiting for it"
    if not _taken(lock, lambda: log.warning(waiting, folder)):
        log.warning("%s: it has not ended within %.0f s; going on beside it", folder, _SECONDS)
    return lock


@contextmanager
def folder_if_free(folder: Path) -> Iterator[bool]:
    """Hold the folder for the block; False, at once, if another process holds it."""
    lock = _lock_of(folder)
    try:
        yield _taken(lock)
    finally:
        lock.release()


def _lock_of(folder: Path) -> FileLock:
    return FileLock(folder / _FILE)


def _taken(lock: FileLock, waiting: Callable[[], None] | None = None) -> bool:
    try:
        return lock.acquire(waiting, _SECONDS)
    except OSError:  # two deliveries at once repeat points, which MLflow takes for the same ones
        return True
