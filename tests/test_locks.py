"""Locks exclude other processes, whatever the file system makes of flock, and the dead exclude nobody."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from azneobert import locks
from azneobert.locks import FileLock, locked

# Another process that takes the lock, says so, and holds it until its input ends.
HOLDER = """
import fcntl, os, sys
from azneobert.locks import FileLock
from pathlib import Path
{flock}
FileLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def refusing(number: int) -> Callable[[int, int], None]:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


FLOCKS = {
    "flock": "",
    "granted to everybody": "fcntl.flock = lambda descriptor, operation: None",
    **{
        name: f"def refused(*_): raise OSError(errno.{name}, 'refused')\nimport errno; fcntl.flock = refused"
        for name in ("ENOSYS", "EOPNOTSUPP", "ENOLCK", "EBADF")
    },
}


def patch(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "granted to everybody":
        monkeypatch.setattr("fcntl.flock", lambda *_: None)
    elif kind != "flock":
        monkeypatch.setattr("fcntl.flock", refusing(getattr(errno, kind)))


@pytest.mark.parametrize("kind", FLOCKS)
@pytest.mark.parametrize("place", [".", "run.lock"])
def test_a_lock_excludes_another_holder_until_it_is_given_back(
    kind: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch, kind)
    other = FileLock(tmp_path / place)
    with locked(tmp_path / place):
        assert not other.acquire()
        assert not other.acquire()
    assert other.acquire()
    other.release()
    assert not list(tmp_path.iterdir()), "nothing stays"


@pytest.mark.parametrize("kind", FLOCKS)
def test_a_lock_excludes_another_process_until_that_has_died(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(flock=FLOCKS[kind]), str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    patch(monkeypatch, kind)
    lock = FileLock(file)
    assert not lock.acquire()
    said: list[str] = []
    holder.kill()  # and nobody has waited for it yet
    began = time.monotonic()
    assert lock.acquire(lambda: said.append("waiting"))
    assert time.monotonic() - began < 5
    assert len(said) <= 1
    lock.release()
    holder.wait()


def test_a_copy_of_a_folder_that_is_held_is_free(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run" / "lock"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        lock = FileLock(tmp_path / "copy" / "lock")
        assert lock.acquire()
        lock.release()


def lease_of(file: Path, age_seconds: float, **changes: object) -> Path:
    lease = file.with_name(f"{file.name}.lease")
    lease.write_text(json.dumps(locks._this_process() | {"nonce": "theirs"} | changes))
    then = time.time() - age_seconds
    os.utime(lease, (then, then))
    return lease


@pytest.mark.parametrize(
    ("changes", "age", "taken"),
    [
        ({"host": "another"}, 0, False),
        ({"host": "another"}, 59, False),
        ({"host": "another"}, 61, True),
        ({"pid_namespace": "pid:[1]", "pid": 1 << 30}, 0, False),  # of a container whose processes are not seen here
        ({"boot": "before"}, 30, False),
        ({"boot": "before"}, 61, True),
        ({}, 10_000, False),  # this very process, stopped for long
        ({"pid": 1 << 30}, 0, True),
        ({"started": "1"}, 0, True),  # another process has its number now
    ],
)
def test_a_lease_is_taken_over_from_the_dead_alone(
    changes: dict[str, object], age: float, taken: bool, tmp_path: Path
) -> None:
    lease = lease_of(tmp_path / "lock", age, **changes)
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire() == taken
    assert (json.loads(lease.read_text())["nonce"] == "theirs") == (not taken)
    lock.release()
    assert lease.exists() == (not taken)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 4000])
def test_a_lease_that_says_nothing_counts_while_it_is_fresh(content: bytes, tmp_path: Path) -> None:
    lease = tmp_path / "lock.lease"
    lease.write_bytes(content)
    lock = FileLock(tmp_path / "lock")
    assert not lock.acquire()
    os.utime(lease, (time.time() - 61,) * 2)
    assert lock.acquire()
    lock.release()


def test_who_is_killed_while_making_a_lease_leaves_none(tmp_path: Path) -> None:
    killed = "import os; os.write = lambda *_: os._exit(9)\n" + HOLDER.format(flock="")
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "lock")], check=False)
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]
    with locked(tmp_path / "lock", lambda: pytest.fail("it is waited for, a minute long")):
        pass


def test_without_files_that_have_no_name_one_alone_has_the_lease_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY | os.O_EXCL)  # refused, as by NFS
    monkeypatch.setattr("fcntl.flock", refusing(errno.ENOSYS))
    lock, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert lock.acquire()
    assert not other.acquire()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lock", "lock.lease"]
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_without_hard_links_one_alone_has_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr("fcntl.flock", refusing(errno.ENOSYS))
    lock, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert lock.acquire()
    assert json.loads((tmp_path / "lock.lease").read_text())["pid"] == os.getpid()
    assert not other.acquire()
    lock.release()
    assert sorted(file.name for file in tmp_path.iterdir()) == []


def test_the_holder_s_lease_stays_fresh_and_comes_back_if_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_HEARTBEAT_SECONDS", 0.05)
    lease = tmp_path / "lock.lease"
    with locked(tmp_path / "lock"):
        os.utime(lease, (1, 1))
        wait_until(lambda: time.time() - lease.stat().st_mtime < 10)
        lease.unlink()
        wait_until(lease.exists)
    assert not lease.exists()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_forked_child_does_not_hold_the_lock_and_cannot_give_it_back(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        lock.release()
        os.write(ready[1], b"!")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    other = FileLock(tmp_path / "lock")
    assert not other.acquire(), "the child has not given it back"
    lock.release()
    assert other.acquire(), "the child, which lives, does not hold it"
    other.release()
    os.write(done[1], b"!")
    os.waitpid(child, 0)


def test_a_refusal_is_said_once_with_the_folder_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    patch(monkeypatch, "ENOSYS")
    for _ in range(3):
        with locked(tmp_path):
            pass
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{tmp_path}: the file system refuses flock (Function not implemented)")
    assert "-o flock" in said


def test_where_neither_can_be_had_the_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch, "ENOLCK")
    lock = FileLock(tmp_path / "lock")

    def full(self: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks._Lease, "_make", full)
    with pytest.raises(OSError, match="No space left") as caught:
        lock.acquire()
    assert caught.value.filename == str(tmp_path / "lock.lease")
    lock.release()
    monkeypatch.undo()
    monkeypatch.setattr(locks._Lease, "_make", full)
    with locked(tmp_path / "lock"):  # flock alone
        pass
