"""One process at a time in a folder: by flock, and by a lease beside it, for file systems whose flock does not work.

NFS refuses flock on a file that is not open for writing, Lustre without `-o flock` always refuses it, and some FUSE
mounts grant it to everybody. So a lock is a file of its own, open for writing, and its holder keeps a lease: a file
that only one process can make. It says who holds the lock, and its modification time shows that the holder is alive.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0  # without a heartbeat, after which a holder on another machine counts as dead
_HEARTBEAT_SECONDS = 5.0
_POLL_SECONDS = 0.2
_IN_A_FOLDER = ".azneobert.lock"
_LARGEST_LEASE = 4096  # bytes
_REFUSED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # what file systems without hard links answer
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()
_told: set[Path] = set()


class FileLock:
    """A lock by a file that exists while somebody holds the lock; for an existing folder, by such a file in it.

    It excludes other processes, on this machine and others, and other holders in this process. A child that is forked
    does not hold it.
    """

    def __init__(self, path: Path):
        self.path = path / _IN_A_FOLDER if path.is_dir() else path
        self._lease = _Lease(self.path.with_name(f"{self.path.name}.lease"))
        self._descriptor: int | None = None
        self._holds = False
        _held.add(self)

    def acquire(self, waiting: Callable[[], None] | None = None, seconds: float = math.inf) -> bool:
        """Take the lock. If another holds it, call `waiting` and wait at most `seconds`; without `waiting`, give up.

        Returns whether the lock was taken.

        Raises:
            OSError: the file cannot be made, or the file system has neither flock nor room for a lease.
        """
        told = False
        end = time.monotonic() + seconds
        while not self._try():
            if waiting is None or time.monotonic() > end:
                return False
            if not told:
                waiting()
            told = True
            time.sleep(_POLL_SECONDS)
        return True

    def release(self) -> None:
        """Give the lock back, if it is held; it can be acquired again."""
        if self._holds:
            self._holds = False
            self._lease.give_back()
            with suppress(OSError):
                self.path.unlink()  # while it is held: a process that waits sees that the file is another one now
        self._close()

    def forget(self) -> None:
        """Leave the lock to the process that this one was forked from."""
        self._holds = False
        self._lease.forget()
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)  # no LOCK_UN: a forked child would take the lock from its parent
            self._descriptor = None

    def _try(self) -> bool:
        self._holds = self._taken()
        if not self._holds:
            self._close()
        return self._holds

    def _taken(self) -> bool:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        refusal = None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._descriptor), self.path.stat()):
                return False  # it has just been given back
        except (BlockingIOError, FileNotFoundError):
            return False
        except OSError as error:
            if error.errno not in _REFUSED:
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            refusal = error
            _tell_of_refusal(self.path.parent, error)
        try:
            return self._lease.take()
        except OSError as error:
            if refusal is None and error.errno in _FULL:  # only flock is left
                return True
            raise OSError(error.errno, error.strerror, str(self._lease.path)) from None


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a file or folder; `waiting` is called once if another process holds it.

    Raises:
        OSError: the file cannot be made, or the file system has neither flock nor room for a lease.
    """
    lock = FileLock(path)
    try:
        lock.acquire(waiting)
        yield
    finally:
        lock.release()


class _Lease:
    """A file that says who holds a lock, and that the holder lives."""

    def __init__(self, path: Path):
        self.path = path
        self._nonce = secrets.token_hex(16)
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> bool:
        """Try to take the lease, also from a holder that has died; returns whether it is ours now.

        Raises:
            OSError: it cannot be written.
        """
        if not self._make():
            owner = _read(self.path)
            if owner is not None and not (_is_dead(owner, self.path) and self._take_away(owner)):
                return False
            if not self._make():  # another was faster
                return False
        self._done.clear()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return True

    def give_back(self) -> None:
        """Remove the lease, if it is ours."""
        if self._thread is None:
            return
        self._done.set()
        self._thread.join()
        self._thread = None
        owner = _read(self.path)
        if owner and owner.get("nonce") == self._nonce:
            with suppress(OSError):
                self.path.unlink()

    def forget(self) -> None:
        """Leave the lease as if it had never been ours."""
        self._thread = None

    def _make(self) -> bool:
        """Make the lease; returns False if there is one. It appears with its content, and a kill leaves nothing behind.

        If the file system has no files without a name, a kill may leave a file with the lease's name and nonce.
        """
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return self._appears(folder, None)
        except OSError:
            return self._appears(folder, f"{self.path.name}.{self._nonce}")
        finally:
            os.close(folder)

    def _appears(self, folder: int, name: str | None) -> bool:
        flags = os.O_WRONLY | (os.O_CREAT | os.O_TRUNC if name else getattr(os, "O_TMPFILE", 0))  # 0: refused
        descriptor = os.open(name or ".", flags, 0o644, dir_fd=folder)
        try:
            place = {"path": str(self.path.absolute()), "inode": os.fstat(descriptor).st_ino}
            os.write(descriptor, json.dumps(_this_process() | place | {"nonce": self._nonce}).encode())
            if name is None:  # by the path that leads to it
                os.link(f"/proc/self/fd/{descriptor}", self.path.name, dst_dir_fd=folder)
            else:
                os.link(name, self.path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except FileExistsError:
            return False
        except OSError as error:
            if name is None or error.errno not in _NO_LINKS:
                raise
            try:
                os.close(os.open(self.path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder))
            except FileExistsError:
                return False
            os.rename(name, self.path.name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(descriptor)
            if name is not None:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
        return True

    def _take_away(self, owner: dict[str, Any]) -> bool:
        """Remove the lease of a dead holder, but not one that has replaced it meanwhile."""
        aside = self.path.with_name(f"{self.path.name}.{self._nonce}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return True
        is_it = _read(aside) == owner
        if not is_it:
            with suppress(OSError):
                os.link(aside, self.path)
        aside.unlink(missing_ok=True)
        return is_it

    def _beat(self) -> None:
        while not self._done.wait(_HEARTBEAT_SECONDS):
            try:
                owner = _read(self.path)
                if owner is None and not self._make():
                    owner = _read(self.path)
                if owner and owner.get("nonce") != self._nonce:
                    # This process stood still for so long that another one works here now.
                    log.critical("%s: taken over by process %s of %s; ending", self.path, owner["pid"], owner["host"])
                    os._exit(1)
                os.utime(self.path)
            except OSError as error:  # a server that is away: it is tried again, and others wait for it too
                log.debug("%s: %s", self.path, error)


def _read(lease: Path) -> dict[str, Any] | None:
    """The content of a lease: empty if it cannot be read, None if there is no lease."""
    try:
        with lease.open("rb") as file:
            content = json.loads(file.read(_LARGEST_LEASE))
        return content if isinstance(content, dict) and {"host", "pid", "nonce"} <= content.keys() else {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}


def _is_dead(owner: dict[str, Any], lease: Path) -> bool:
    here = _this_process()
    if _is_copy(owner, lease):
        return True
    if owner.get("started") and all(owner.get(key) == here[key] for key in ("host", "boot", "pid_namespace")):
        return _started(owner["pid"]) != owner["started"]
    try:
        return _now(lease) - lease.stat().st_mtime > LEASE_SECONDS
    except FileNotFoundError:
        return False


def _is_copy(owner: dict[str, Any], lease: Path) -> bool:
    """Whether a lease was copied with its folder. A path alone may differ by machine, an inode alone on some mounts."""
    try:
        place = str(lease.absolute()), lease.stat().st_ino
    except FileNotFoundError:
        return False
    return "path" in owner and owner["path"] != place[0] and owner.get("inode") != place[1]


def _now(lease: Path) -> float:
    """The time of the file system that the lease is on, which may be another machine's."""
    probe = lease.with_name(f"{lease.name}.{secrets.token_hex(8)}")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _this_process() -> dict[str, Any]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot = namespace = ""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": boot,
        "pid_namespace": namespace,
        "pid": pid,
        "started": _started(pid),
    }


def _started(pid: object) -> str | None:
    """When a process began, in the kernel's own count; None if there is no such process or the kernel does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else fields[19]  # one that has ended, and for which nobody has waited
    except (OSError, IndexError):
        return None


def _tell_of_refusal(folder: Path, error: OSError) -> None:
    if folder not in _told:
        _told.add(folder)
        log.warning(
            "%s: the file system refuses flock (%s), a lease file does its work; better mount Lustre with -o flock, "
            "and NFS with its lock manager",
            folder,
            error.strerror,
        )


def _forget_in_child() -> None:
    for lock in list(_held):
        lock.forget()


os.register_at_fork(after_in_child=_forget_in_child)
