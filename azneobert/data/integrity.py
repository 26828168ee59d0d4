"""Checks that training reads the bytes that the stages wrote: each byte is read once, in the background.

The arrays are compared with the hashes in meta.json. meta.json states its own hash, and is compared with DVC's hash of
it. Files that this machine has read within the last day, and that have not changed since, are not read again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from azneobert.data.rows import ARRAYS, digest_of_files, read_plan_meta
from azneobert.data.rows import RESTORE as RESTORE_PLAN
from azneobert.data.store import LARGEST_META, read_store_meta
from azneobert.data.store import RESTORE as RESTORE_STORE
from azneobert.dvc_files import LOCK, cache_folder, cached_object, locked_outputs, objects_of
from azneobert.environment import cache_of_user
from azneobert.errors import DataError
from azneobert.files import read_bounded, sha256_file

log = logging.getLogger(__name__)

_STAMPED_BYTES = 16 << 20  # for fewer bytes, a stamp saves too little
_STAMP_SECONDS = 24 * 3600  # a disk can lose bits without a change that a file system knows of
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Expected:
    """Files and the expected hash of their bytes. `digest` computes the hash; `restore` says how to get them again."""

    files: tuple[Path, ...]
    sha256: str
    digest: Callable[[], str]
    restore: str

    def check(self) -> None:
        """Read the files.

        Raises:
            DataError: they are missing, cannot be read, or hold other bytes.
        """
        name = self.files[0] if len(self.files) == 1 else self.files[0].parent
        try:
            found = self.digest()
        except OSError as error:
            raise DataError(f"{error.filename or name}: cannot be read ({error.strerror}); {self.restore}") from None
        if found != self.sha256:
            raise DataError(
                f"{name}: a byte has changed (sha256 {found[:12]}… found, {self.sha256[:12]}… expected); {self.restore}"
            )


def expected_of_store(path: Path) -> Iterator[Expected]:
    """The arrays of a token store.

    Raises:
        DataError: its meta.json is missing or damaged.
    """
    meta = read_store_meta(path)
    for name, sha256 in (("offsets", meta.offsets_sha256), ("tokens", meta.tokens_sha256)):
        file = path / f"{name}.npy"
        yield Expected((file,), sha256, lambda file=file: sha256_file(file), RESTORE_STORE)  # type: ignore[misc]


def expected_of_plan(path: Path) -> Expected:
    """The arrays of a row plan.

    Raises:
        DataError: its meta.json is missing or damaged.
    """
    files = tuple(path / f"{name}.npy" for name in ARRAYS)
    return Expected(files, read_plan_meta(path).sha256, lambda: digest_of_files(path), RESTORE_PLAN)


class Verification:
    """Checks in its own thread all that training reads: token stores, row plans, and what dvc.lock says of them."""

    def __init__(self, stores: Iterable[Path], plans: Iterable[Path]):
        """Begin.

        Raises:
            DataError: a meta.json is missing or damaged.
        """
        stores, plans = list(stores), list(plans)
        self._folders = [*stores, *plans]
        self._expected = [*map(expected_of_plan, plans), *(each for path in stores for each in expected_of_store(path))]
        self._error: Exception | None = None
        # A daemon thread: it changes nothing, so a run that fails need not wait for it.
        self._thread = threading.Thread(target=self._run, name="verification", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Wait until every byte is read.

        Raises:
            DataError: naming the first file that is damaged.
        """
        self._thread.join()
        self.check()

    def check(self) -> None:
        """Raise what has been found so far, if anything."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # the training comes first
        try:
            for expected in self._expected:
                _check_once_a_day(expected)
            _compare_with_lock(self._folders)
        except Exception as error:  # `require` raises any of them
            self._error = error


def _check_once_a_day(expected: Expected) -> None:
    stamp = _stamp(expected)
    if stamp is None:
        expected.check()
        return
    with suppress(OSError):
        if 0 <= time.time() - stamp.stat().st_mtime < _STAMP_SECONDS:
            return
    expected.check()
    if _stamp(expected) == stamp:  # else a file has changed meanwhile
        with suppress(OSError):
            stamp.parent.mkdir(parents=True, exist_ok=True)
            for former in stamp.parent.iterdir():
                if time.time() - former.stat().st_mtime > _STAMP_SECONDS:
                    former.unlink()
            stamp.write_bytes(b"")


def _stamp(expected: Expected) -> Path | None:
    """The file that marks these files as read; None if they are too small to be worth it, or if it is impossible.

    Its name is a hash of everything that changes when one of the files changes or the machine restarts.
    """
    try:
        states = [(file.resolve(), file.stat()) for file in expected.files]
        boot, stamps = _BOOT.read_text().strip(), cache_of_user() / "verified"
    except (OSError, RuntimeError):  # a container may have no home
        return None
    if sum(state.st_size for _, state in states) < _STAMPED_BYTES:
        return None
    facts = [(str(f), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_dev, s.st_ino) for f, s in states]
    return stamps / hashlib.sha256(repr((boot, expected.sha256, facts)).encode()).hexdigest()


def _compare_with_lock(folders: list[Path]) -> None:
    """Compare each meta.json with DVC's md5 of it, if dvc.lock and the cache have it.

    Raises:
        DataError: an md5 differs.
    """
    if not LOCK.is_file():
        return
    names = {(folder / "meta.json").as_posix() for folder in folders}
    try:
        outputs = [o for o in locked_outputs() if any(name.startswith(f"{o.path}/") for name in names)]
        cache = cache_folder() if outputs else Path()
    except (DataError, OSError) as error:  # another stage writes it just now, or this machine only trains
        log.warning("the data are not compared with %s: %s", LOCK, error)
        return
    for output in outputs:
        objects = objects_of(output, cached_object(cache, output.md5))
        for name in sorted(names & objects.keys()):
            found = hashlib.md5(read_bounded(Path(name), LARGEST_META)).hexdigest()
            if found != objects[name]:
                raise DataError(
                    f"{name}: md5 {found} found, {objects[name]} expected by {LOCK}: not what stage {output.stage} "
                    "wrote; use `dvc checkout`, or `dvc repro` to make it anew"
                )
