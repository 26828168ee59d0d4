"""Ranks end with a checkpoint when asked, with an error that is shown when they fail, and with their launcher."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from azneobert.launching import local
from azneobert.launching.local import run_ranks, train_here
from azneobert.launching.outcome import Ended
from azneobert.layout import RunFolder

ROOT = Path(__file__).parents[2]


def program(folder: Path, body: str) -> list[str]:
    """A command that runs this as a rank; `rank`, `folder` and `stop` are there for it to use."""
    file = folder / "rank.py"
    head = """
        import os, sys, time, signal
        from pathlib import Path
        folder = Path(__file__).parent
        stop = folder / "stop"
        rank = int(os.environ.get("RANK", "0"))
    """
    file.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    return [sys.executable, str(file)]


def waited_for(condition: object, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("processes", [1, 3])
def test_each_rank_knows_its_place_and_who_started_it(processes: int, tmp_path: Path) -> None:
    body = """
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "AZNEOBERT_PROCESSES", "OMP_NUM_THREADS")
        (folder / f"{rank}.txt").write_text(" ".join(os.environ.get(name, "-") for name in names))
        assert os.environ["AZNEOBERT_LAUNCHER"] == str(os.getppid())
    """
    assert run_ranks(program(tmp_path, body), processes, RunFolder(tmp_path)) is None
    threads = os.environ["OMP_NUM_THREADS"]  # what is set stays
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(processes)]
    if processes == 1:
        assert said == [f"- - - - 1 {threads}"]
    else:
        assert said == [f"{rank} {rank} 3 127.0.0.1 3 {threads}" for rank in range(3)]


@pytest.mark.parametrize("failing", [0, 2])
def test_the_error_of_whichever_rank_failed_is_found_and_the_others_do_not_wait_for_it(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_OTHERS_SECONDS", 0.5)
    body = f"""
        if rank == {failing}:
            print("WARNING: something", file=sys.stderr)
            sys.exit("error: tokens.npy: truncated")
        time.sleep(60)
    """
    began = time.monotonic()
    failed = run_ranks(program(tmp_path, body), 3, RunFolder(tmp_path))
    assert time.monotonic() - began < 20
    assert failed is not None
    assert failed.number == failing
    assert failed.error() == "tokens.npy: truncated"


def test_a_rank_that_dies_without_a_word_is_named_with_its_signal(tmp_path: Path) -> None:
    failed = run_ranks(program(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)"), 1, RunFolder(tmp_path))
    assert failed is not None
    assert failed.error() == "it ended with signal SIGKILL and without an error of its own"


def test_what_was_asked_and_said_before_does_not_count_now(tmp_path: Path) -> None:
    for name in ("stop", "outcome.json"):
        (tmp_path / name).touch()
    command = program(tmp_path, "sys.exit(any((folder / name).exists() for name in ('stop', 'outcome.json')))")
    ended = train_here("phase1", command, 1, RunFolder(tmp_path), 600, 120)
    assert ended == Ended("failed", ended.line)
    assert "the ranks have ended and left no checkpoint" in ended.line


def test_a_signal_to_the_launcher_makes_the_stop_file_and_reaches_no_rank(tmp_path: Path) -> None:
    body = """
        signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
        (folder / f"ready-{rank}").touch()
        while not stop.exists():
            time.sleep(0.02)
    """

    def ask() -> None:
        assert waited_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    asker = threading.Thread(target=ask)
    asker.start()
    assert run_ranks(program(tmp_path, body), 2, RunFolder(tmp_path)) is None
    asker.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ranks_that_do_not_stop_in_time_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_MARGIN_SECONDS", 0.2)
    body = "(folder / 'ready').touch(); time.sleep(60)"

    def ask() -> None:
        assert waited_for((tmp_path / "ready").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    asker = threading.Thread(target=ask)
    asker.start()
    began = time.monotonic()
    failed = run_ranks(program(tmp_path, body), 1, RunFolder(tmp_path), grace_seconds=0.2)
    asker.join()
    assert time.monotonic() - began < 30
    assert failed is not None
    assert failed.process.returncode == -signal.SIGKILL


def test_killing_the_launcher_with_9_ends_the_ranks_by_sigterm(tmp_path: Path) -> None:
    body = f"""
        sys.path.insert(0, {str(ROOT)!r})
        from azneobert.launching.place import join_launcher
        from azneobert.layout import RunFolder

        def told(*_):
            (folder / f"told-{{rank}}").touch()
            os._exit(0)

        signal.signal(signal.SIGTERM, told)
        join_launcher(RunFolder(folder))
        (folder / f"ready-{{rank}}").touch()
        time.sleep(60)
    """
    command = program(tmp_path, body)
    launcher = (
        "from pathlib import Path; from azneobert.launching.local import run_ranks; "
        "from azneobert.layout import RunFolder; "
        f"run_ranks({command!r}, 2, RunFolder(Path('.')))"
    )
    started = subprocess.Popen([sys.executable, "-c", launcher], cwd=ROOT)
    assert waited_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    started.kill()
    started.wait()
    assert waited_for(lambda: len(list(tmp_path.glob("told-*"))) == 2)


@pytest.mark.parametrize("asked", [False, True])
def test_a_rank_that_is_stopped_before_its_first_heartbeat_is_named_and_ended(
    asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_STOPPED_SECONDS", 1.0)
    body = """
        (folder / f"ready-{rank}").touch()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)
    """

    def ask() -> None:
        assert waited_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    asker = threading.Thread(target=ask if asked else lambda: None)
    asker.start()
    began = time.monotonic()
    failed = run_ranks(program(tmp_path, body), 2, RunFolder(tmp_path), 600 if asked else 1)
    asker.join()
    assert time.monotonic() - began < 20
    assert failed is not None
    assert failed.stalled is not None
    assert re.search(r"; rank 1 \(pid \d+\) is stopped; stacks are in ", failed.stalled)


def test_a_rank_that_does_not_come_to_its_end_is_ended(tmp_path: Path) -> None:
    body = f"""
        sys.path.insert(0, {str(ROOT)!r})
        from azneobert.layout import RunFolder
        from azneobert.training.watchdog import Watchdog

        with Watchdog(RunFolder(folder), rank, 1, 600) as dog:
            dog.start()
            time.sleep(2.5)
        time.sleep(60)
    """
    began = time.monotonic()
    failed = run_ranks(program(tmp_path, body), 1, RunFolder(tmp_path), 2)
    assert time.monotonic() - began < 20
    assert failed is not None
    assert failed.stalled is not None
    assert "or does not end" in failed.stalled
