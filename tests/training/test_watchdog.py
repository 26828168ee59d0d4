"""Ranks that come to no step leave their stacks, say which is behind, and end; those that only take long are left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from azneobert.environment import EXIT_STOPPED
from azneobert.layout import RunFolder
from azneobert.training.watchdog import Heartbeats, Watchdog, heartbeat_file, stacks_file

HEAD = """
    import ctypes, os, sys, time
    from pathlib import Path
    from azneobert.layout import RunFolder
    from azneobert.training import watchdog

    watchdog._BEAT_SECONDS, watchdog._GATHERING_SECONDS, watchdog._OTHERS_SECONDS = 0.1, 0.5, 1.5
    watchdog._HURRY_SECONDS = 0.5
    watchdog.silence_of = lambda seconds: 1.5
    rank, world, seconds, run = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), RunFolder(Path(sys.argv[4]))

    def hang(seconds=60):
        time.sleep(seconds)

    with watchdog.Watchdog(run, rank, world, seconds) as dog:
        dog.start()
        while len(list((run.path / "ranks").glob("*.json"))) < world:
            time.sleep(0.05)
        dog.progress(1)
"""


def start(folder: Path, body: str, world: int = 1, seconds: float = 1.0) -> list[subprocess.Popen[str]]:
    program = textwrap.dedent(HEAD) + textwrap.indent(textwrap.dedent(body), "    ")
    command = [sys.executable, "-c", program]
    return [
        subprocess.Popen(
            [*command, str(rank), str(world), str(seconds), str(folder)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]


def ends(ranks: list[subprocess.Popen[str]], seconds: float = 30) -> list[tuple[int, str]]:
    """The exit code and the errors of each."""
    try:
        said = [rank.communicate(timeout=seconds)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, errors) for rank, errors in zip(ranks, said, strict=True)]


def test_the_rank_behind_is_named_once_and_both_leave_their_stacks_and_end(tmp_path: Path) -> None:
    (code, said), (other_code, other) = ends(start(tmp_path, "dog.progress(2 - rank); hang()", world=2))
    assert (code, other_code) == (EXIT_STOPPED, EXIT_STOPPED)
    [line] = said.splitlines()
    assert line.startswith(f"error: {tmp_path.name}: no step for ")
    assert f": rank 1 ({os.uname().nodename}, pid " in line
    assert "rank 0" not in line
    assert "hangs, training after step 1; stacks are in " in line
    assert line.endswith("a new start begins again, there is no checkpoint yet")
    assert other == ""
    [place] = (tmp_path / "stalls").iterdir()
    for rank in range(2):
        assert " in hang\n" in (place / f"rank-{rank}.txt").read_text()


def test_ranks_that_hang_alike_are_not_told_apart(tmp_path: Path) -> None:
    (_, said), _ = ends(start(tmp_path, "hang()", world=2))
    assert "none of the 2 ranks is behind, all hang in " in said


def test_a_rank_that_saves_is_waited_for_by_the_others(tmp_path: Path) -> None:
    body = """
        if rank == 0:
            with dog.doing("saving"):
                hang(2.0)
        else:
            hang(1.5)  # longer than a step may take, and over before the other rank's heartbeat is gone
        dog.progress(2)
    """
    assert ends(start(tmp_path, body, world=2)) == [(0, ""), (0, "")]
    assert not (tmp_path / "stalls").exists()


def test_a_rank_that_saves_for_ever_is_not(tmp_path: Path) -> None:
    body = """
        with dog.doing("saving"):
            hang()
    """
    [(code, said)] = ends(start(tmp_path, body))
    assert code == EXIT_STOPPED
    assert "hangs, saving after step 1" in said


@pytest.mark.parametrize("asking", ["dog.hurry()", "run.stop_file.touch()"])
def test_a_run_that_was_asked_to_stop_waits_less_long_for_a_step(asking: str, tmp_path: Path) -> None:
    [(code, said)] = ends(start(tmp_path, f"{asking}; hang()", seconds=600))
    assert code == EXIT_STOPPED
    assert "asked to stop, and no step came since: rank 0 " in said


def test_while_c_code_keeps_the_interpreter_the_stacks_come_and_the_others_name_the_rank(tmp_path: Path) -> None:
    body = """
        def busy():
            ctypes.PyDLL(None).usleep(20_000_000)

        hang(0.4)
        busy() if rank == 1 else hang()
    """
    ranks = start(tmp_path, body, world=2, seconds=3)
    code, said = ends(ranks[:1])[0]
    ranks[1].kill()
    ranks[1].communicate()
    assert code == EXIT_STOPPED
    assert ": rank 1 (" in said
    assert " has been silent for " in said
    [place] = (tmp_path / "stalls").iterdir()
    assert " in busy\n" in (place / "rank-1.txt").read_text()


def test_a_process_that_was_stopped_and_goes_on_is_not_late(tmp_path: Path) -> None:
    [rank] = start(tmp_path, "(run.path / 'begun').touch(); hang(1.0); dog.progress(2)", seconds=2)
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    rank.send_signal(signal.SIGSTOP)
    time.sleep(3)
    rank.send_signal(signal.SIGCONT)
    assert ends([rank]) == [(0, "")]


def test_a_rank_that_ends_leaves_no_file_and_no_thread(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with Watchdog(run, 0, 1, 600) as dog:
        dog.start()
        assert heartbeat_file(run, 0).exists()
        assert list(dog.watched(iter([]))) == []
    assert not heartbeat_file(run, 0).exists()
    assert not stacks_file(run, 0).exists()
    with Watchdog(run, 0, 1, 600):
        pass  # refused before it was started


def test_heartbeats_that_are_no_heartbeats_and_those_of_a_former_run_do_not_count(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with Watchdog(run, 0, 1, 600) as dog:
        dog.start()
        beats = Heartbeats(run, 1, {0: os.getpid() + 1})
        beats.look()
        assert not beats.has_begun(0)
        beats = Heartbeats(run, 1, {0: os.getpid()})
        beats.look()
        assert beats.alive(1.0) == [0]
        for content in (b"", b"[1]", b'{"rank": 0}', b"\xff", b"[" * 100_000):
            heartbeat_file(run, 0).write_bytes(content)
            beats.look()
            assert beats.has_begun(0), "half a heartbeat is none, and no end"
