"""Two runs in one folder on every kind of file system that users have met: the second waits, and both end whole."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy import ENDLESS, Overrides, Toy, outcome, start_ranks, train_rank

from azneobert import locks
from azneobert.checkpoint.manifest import verify_checkpoint
from azneobert.training.inputs import Inputs


def train_under(kind: str, inputs: Inputs) -> bool:
    """A rank on a file system whose flock is of this kind."""

    def flock(descriptor: int, operation: int) -> None:
        if kind != "granted to everybody":
            number = getattr(errno, kind)
            raise OSError(number, os.strerror(number))

    fcntl.flock = flock
    for stream in (1, 2):
        os.dup2(os.open(f"said-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    return train_rank(inputs)


def said(toy: Toy) -> str:
    """What the ranks of `train_under` have said."""
    return "".join(file.read_text() for file in toy.folder.glob("said-*"))


KINDS = ["granted to everybody", "ENOSYS", "ENOLCK"]


@pytest.fixture
def toy(make_toy: Callable[[Overrides | None], Toy]) -> Toy:
    return make_toy(None)


def started(kind: str, toy: Toy) -> tuple[Any, Any]:
    [child] = start_ranks(train_under, kind, toy.inputs(), folder=toy.folder)
    return child


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_run_waits_for_the_first_and_finds_it_complete(kind: str, toy: Toy) -> None:
    children = [started(kind, toy), started(kind, toy)]
    assert [outcome(*child) for child in children] == [True, True]
    assert said(toy).count("another process is training here") == 1
    assert sorted(toy.losses()) == list(range(1, 11))
    for folder in toy.checkpoints().steps():
        verify_checkpoint(folder)
    assert not list(toy.folder.rglob("*.lease*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_killed_holds_nobody_up(kind: str, toy: Toy) -> None:
    endless = toy.with_(ENDLESS)
    child, connection = started(kind, endless)
    endless.wait_for_points(child, 3)
    assert list(toy.folder.rglob("*.lease"))
    os.kill(child.pid, signal.SIGKILL)
    outcome(child, connection)
    points = len(endless.losses())
    began = time.monotonic()
    child, connection = started(kind, endless)
    endless.wait_for_points(child, points + 3)
    assert time.monotonic() - began < locks.LEASE_SECONDS / 2
    os.kill(child.pid, signal.SIGKILL)
    outcome(child, connection)


def test_a_loader_s_worker_does_not_inherit_the_run_s_lock(toy: Toy) -> None:
    endless = toy.with_({**ENDLESS, "runtime": {**ENDLESS["runtime"], "workers": 1}})
    [(child, connection)] = start_ranks(train_rank, endless.inputs(), folder=toy.folder)
    endless.wait_for_points(child, 3)
    workers = [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
    assert workers
    lock = str(endless.run().lock_file)
    assert lock in open_files(child.pid)
    assert not any(lock in open_files(worker) for worker in workers)
    os.kill(child.pid, signal.SIGKILL)
    outcome(child, connection)


def open_files(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return found


def test_a_file_system_on_which_nothing_can_be_locked_is_refused_before_the_first_step(toy: Toy) -> None:
    error = outcome(*start_ranks(train_without_leases, toy.inputs(), folder=toy.folder)[0])
    assert isinstance(error, OSError), error
    assert error.errno == errno.EPERM
    assert str(error.filename).endswith("running/.phase1.lock.lease")
    assert "the file system refuses flock" in said(toy)
    assert toy.losses() == {}


def train_without_leases(inputs: Inputs) -> bool:
    """A rank on a file system with neither flock nor files that only one can make."""

    def refused(lease: object) -> bool:
        raise OSError(errno.EPERM, "Operation not permitted")

    locks._Lease._make = refused  # type: ignore[method-assign,assignment]
    return train_under("ENOSYS", inputs)
