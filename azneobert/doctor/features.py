"""What saving needs from the outputs' file system, tried for real: some refuse it, some silently do nothing."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from azneobert.doctor.finding import Finding, Findings, Subject, ok, problem, warning
from azneobert.doctor.mounts import mount_of
from azneobert.files import sync
from azneobert.locks import FileLock

_FULL = {errno.ENOSPC, errno.EDQUOT}
_MOUNT_RIGHT = "mount Lustre with -o flock, NFS with its lock manager"


def look_at_file_system(subject: Subject) -> Findings:
    """Try everything in a temporary folder. What works is one line; each failure has its own line."""
    place = subject.outputs()
    mount = mount_of(place)
    if mount.is_in_memory:
        yield warning(f"{place}: on {mount}, in memory: gone after a restart", "make outputs a link to a disk")
    if "ro" in mount.options:
        yield problem(
            f"{place}: on {mount}, mounted read-only", "mount it read-write, or make outputs a link elsewhere"
        )
        return
    works = []
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place, ignore_cleanup_errors=True) as scratch:
            for name, attempt in _ATTEMPTS.items():
                folder = Path(scratch, name.replace(" ", "-"))
                folder.mkdir()
                if found := attempt(folder):
                    yield found
                else:
                    works.append(name)
    except OSError as error:
        if error.errno in _FULL:
            yield problem(
                f"{place}: on {mount}: {error.strerror}; not everything could be tried", "free some room there"
            )
        else:
            reason = error.strerror or str(error)
            yield problem(f"{place}: on {mount}, cannot be written: {reason}", "make it writable for this user")
    if works:
        yield ok(f"{mount}; work: {', '.join(works)}")


def _flock(folder: Path) -> Finding | None:
    refusal, excludes = _locked_by_flock(folder / "file", os.O_RDWR)
    if refusal:
        return warning(f"flock is refused ({refusal}): a lease file does its work", _MOUNT_RIGHT)
    if not excludes:
        return warning("flock excludes nobody: a lease file does its work", _MOUNT_RIGHT)
    return None


def _flock_read_only(folder: Path) -> Finding | None:
    refusal, excludes = _locked_by_flock(folder / "file", os.O_RDONLY)
    if refusal or not excludes:
        what = f"is refused ({refusal})" if refusal else "excludes nobody"
        return warning(
            f"flock on a read-only descriptor {what}: saving does without, other programs may not",
            f"nothing to do for training; for other programs {_MOUNT_RIGHT}",
        )
    return None


def _locked_by_flock(file: Path, flags: int) -> tuple[str | None, bool]:
    """Why an exclusive lock is refused, if it is, and whether the lock excludes another process."""
    file.touch()
    descriptor = os.open(file, flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None, not in_another_process(lambda: _can_flock(file, flags))
    except OSError as error:
        return error.strerror or str(error), False
    finally:
        os.close(descriptor)


def _can_flock(file: Path, flags: int) -> bool:
    try:
        fcntl.flock(os.open(file, flags), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lock_of_a_run(folder: Path) -> Finding | None:
    """The lock that saving takes, which works by flock, by a lease, or by both."""
    lock = FileLock(folder)
    try:
        taken = lock.acquire()
        shared = in_another_process(lambda: FileLock(folder).acquire())
    except OSError as error:
        if error.errno in _FULL:
            raise
        return problem(f"a run's folder cannot be locked: {error.strerror}", _MOUNT_RIGHT)
    finally:
        lock.release()
    if not taken or shared:
        return problem("a run's lock excludes nobody: two runs would write one folder", _MOUNT_RIGHT)
    return None


def in_another_process(question: Callable[[], bool]) -> bool:
    """Whether `question` is true in a forked process; False if that process dies."""
    child = os.fork()
    if child == 0:
        answer = 1
        try:
            answer = 0 if question() else 1
        finally:
            os._exit(answer)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _rename(folder: Path) -> Finding | None:
    """Try to replace a pointer file while it is open for reading, and to rename a folder."""
    new, old = folder / "new", folder / "old"
    new.write_bytes(b"new")
    old.write_bytes(b"old")
    (folder / "partial").mkdir()
    (folder / "partial" / "file").write_bytes(b"whole")
    try:
        with old.open("rb"):
            new.replace(old)
        (folder / "partial").rename(folder / "step")
        right = old.read_bytes() == b"new" and not new.exists() and (folder / "step" / "file").read_bytes() == b"whole"
    except OSError as error:
        return _cannot("rename over another file", error)
    return None if right else problem("a rename leaves another content than it was given", "use another file system")


def _fsync_folder(folder: Path) -> Finding | None:
    try:
        (folder / "file").write_bytes(b"content")
        sync(folder / "file")
        sync(folder)
    except OSError as error:
        return _cannot("fsync of a folder", error)
    return None


def _hard_links(folder: Path) -> Finding | None:
    (folder / "file").write_bytes(b"content")
    try:
        os.link(folder / "file", folder / "link")
    except OSError as error:
        if error.errno in _FULL:
            raise
        return warning(
            f"hard links are refused ({error.strerror}): DVC keeps outputs twice, or as symlinks",
            "nothing to do but to have room for both, or use another file system",
        )
    if (folder / "link").stat().st_ino != (folder / "file").stat().st_ino:
        return warning("a hard link is another file: DVC keeps outputs twice", "use another file system, or have room")
    return None


def _mapped(folder: Path) -> Finding | None:
    file = folder / "file"
    file.write_bytes(bytes(mmap.PAGESIZE))
    try:
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as memory:
            memory[:7] = b"changed"
            memory.flush()
        with file.open("rb") as read, mmap.mmap(read.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            right = memory[:7] == b"changed" == file.read_bytes()[:7]
    except OSError as error:
        return _cannot("mmap, by which checkpoints and plans are read,", error)
    return None if right else problem("mmap reads other bytes than were written", "use another file system")


def _cannot(what: str, error: OSError) -> Finding:
    if error.errno in _FULL:
        raise error
    return problem(f"{what} is refused ({error.strerror}), which saving needs", "use another file system for outputs")


_ATTEMPTS: dict[str, Callable[[Path], Finding | None]] = {
    "flock": _flock,
    "flock read-only": _flock_read_only,
    "a run's lock": _lock_of_a_run,
    "rename over": _rename,
    "fsync of a folder": _fsync_folder,
    "hard links": _hard_links,
    "mmap": _mapped,
}
