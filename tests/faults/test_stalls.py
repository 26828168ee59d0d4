"""Stopped ranks, loader workers and launchers, an MLflow that never answers: bounded, said, and nothing of it lost."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from toy import Toy, equal_states, outcome, run_ranks, start_ranks, train_rank

from azneobert.checkpoint.universal import TrainState
from azneobert.environment import EXIT_STOPPED
from azneobert.launching import local
from azneobert.training import watchdog
from azneobert.training.inputs import Inputs

STALL_SECONDS = 4
STEPS = 600
LONG = {
    "phase1": {"steps": STEPS},
    "runtime": {"stall_seconds": STALL_SECONDS, "checkpoint_every": 20},
    "evaluation": {"every": STEPS},
}
BOUND = 45.0  # seconds; what is bounded by STALL_SECONDS, on a busy machine


@pytest.fixture(scope="module")
def undisturbed(make_toy: Callable[..., Toy]) -> Callable[[int], TrainState]:
    """The last state of a run with which nothing happens, by its number of ranks."""
    states: dict[int, TrainState] = {}

    def state(processes: int) -> TrainState:
        if processes not in states:
            toy = make_toy(LONG)
            assert toy.train(processes=processes)
            states[processes] = toy.result()[0]
        return states[processes]

    return state


def rank_with_its_errors_in_a_file(inputs: Inputs) -> bool:
    file = inputs.run.path.parent / f"errors-{os.environ.get('RANK', '0')}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    return train_rank(inputs)


def errors_of(toy: Toy, rank: int = 0) -> list[str]:
    lines = (toy.run().path.parent / f"errors-{rank}.txt").read_text().splitlines()
    return [line for line in lines if line.startswith("error: ")]


def start(toy: Toy, processes: int = 1, points: int = 25) -> list[tuple[Any, Any]]:
    """Ranks without a launcher, some steps after their first checkpoint."""
    children = start_ranks(rank_with_its_errors_in_a_file, toy.inputs(), processes=processes, folder=toy.folder)
    toy.wait_for_points(children[0][0], points)
    return children


def ended_within(child: Any, seconds: float) -> bool:
    child.join(seconds)
    return child.exitcode is not None


def stacks(toy: Toy) -> dict[str, str]:
    """What the last stall has left, by file."""
    newest = max((toy.run().path / "stalls").iterdir())
    return {file.name: file.read_text() for file in newest.iterdir()}


def workers_of(pid: int) -> list[psutil.Process]:
    """The loader's: forked from the rank, whose command line they share."""
    rank = psutil.Process(pid)
    return [child for child in rank.children() if child.cmdline() == rank.cmdline()]


def goes_on_to_the_same_end(toy: Toy, expected: TrainState, processes: int = 1) -> None:
    assert toy.train(processes=processes)
    assert equal_states(toy.result()[0], expected)
    assert sorted(toy.losses()) == list(range(1, STEPS + 1))


def test_a_stopped_rank_is_named_by_one_that_waits_for_it(
    make_toy: Callable[..., Toy], undisturbed: Callable[[int], TrainState]
) -> None:
    toy = make_toy(LONG)
    (first, result), (second, _) = start(toy, processes=2)
    os.kill(second.pid, signal.SIGSTOP)
    try:
        assert ended_within(first, BOUND)
        assert outcome(first, result) == EXIT_STOPPED
        [line] = errors_of(toy)
        assert f"rank 1 ({socket.gethostname()}, pid {second.pid}) is stopped" in line
        assert "rank 0" not in line
        assert "a new start goes on from step-" in line
        assert " in train\n" in stacks(toy)["rank-0.txt"]
        assert json.loads(stacks(toy)["rank-1.json"])["pid"] == second.pid
    finally:
        second.kill()
        second.join()
    goes_on_to_the_same_end(toy, undisturbed(2), processes=2)


def test_a_stopped_worker_of_the_loader_is_named(
    make_toy: Callable[..., Toy], undisturbed: Callable[[int], TrainState]
) -> None:
    toy = make_toy(LONG).with_({"runtime": {"workers": 1}})
    [(child, result)] = start(toy)
    [worker] = workers_of(child.pid)
    worker.suspend()
    assert ended_within(child, BOUND)
    assert outcome(child, result) == EXIT_STOPPED
    assert f"its loader worker {worker.pid} is stopped, waiting for data after step" in errors_of(toy)[0]
    assert "watched" in stacks(toy)["rank-0.txt"]
    assert gone(worker), "a worker outlives its rank"
    goes_on_to_the_same_end(toy, undisturbed(1))


def gone(process: psutil.Process, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_killed_run_leaves_no_worker_and_its_folder_is_free(
    make_toy: Callable[..., Toy], undisturbed: Callable[[int], TrainState]
) -> None:
    toy = make_toy(LONG).with_({"runtime": {"workers": 2}})
    [(child, _)] = start(toy)
    stopped, alive = workers_of(child.pid)
    stopped.suspend()  # such a one does not notice by itself that its parent is no more
    child.kill()
    child.join()
    assert gone(stopped)
    assert gone(alive)
    goes_on_to_the_same_end(toy, undisturbed(1))


# Under the launcher


def launch(toy: Toy, processes: int, disturb: Callable[[list[int]], None]) -> local.Rank | None:
    """Train by the launcher; `disturb` gets the ranks' process ids some steps after the first checkpoint."""
    toy.folder.mkdir(exist_ok=True)
    (toy.folder / "inputs.pickle").write_bytes(pickle.dumps(toy.inputs()))
    program = (
        "import os, pickle; from pathlib import Path; from azneobert.launching.local import end_with_launcher; "
        "from toy import train_rank; end_with_launcher(); "
        f"os.chdir({str(toy.folder)!r}); train_rank(pickle.loads(Path('inputs.pickle').read_bytes()))"
    )

    def when_it_runs() -> None:
        points = toy.run().tracking / "points.jsonl"
        deadline = time.monotonic() + 120
        while not (points.exists() and points.read_text().count("\n") >= 25) and time.monotonic() < deadline:
            time.sleep(0.02)
        files = [watchdog.heartbeat_file(toy.run(), rank) for rank in range(processes)]
        disturb([json.loads(file.read_text())["pid"] for file in files])

    disturber = threading.Thread(target=when_it_runs)
    disturber.start()
    failed = local.run_ranks([sys.executable, "-c", program], processes, toy.run(), toy.recipe.runtime.stall_seconds)
    disturber.join()
    return failed


@pytest.fixture(autouse=True)
def ranks_find_the_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ["PYTHONPATH"]]))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def test_the_launcher_names_the_only_rank_when_it_is_stopped(
    make_toy: Callable[..., Toy], undisturbed: Callable[[int], TrainState]
) -> None:
    toy, when = make_toy(LONG), []

    def stop(pids: list[int]) -> None:
        os.kill(pids[0], signal.SIGSTOP)
        when.append(time.monotonic())

    failed = launch(toy, 1, stop)
    assert time.monotonic() - when[0] < BOUND
    assert failed is not None
    assert failed.stalled is not None
    assert f"no step for {STALL_SECONDS} s: rank 0 ({socket.gethostname()}, pid " in failed.stalled
    assert ") is stopped, " in failed.stalled
    goes_on_to_the_same_end(toy, undisturbed(1))


def test_sigterm_with_a_stopped_rank_ends_in_seconds(
    make_toy: Callable[..., Toy], undisturbed: Callable[[int], TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_STOPPED_SECONDS", 3.0)
    toy, when = make_toy(LONG).with_({"runtime": {"stall_seconds": 600}}), []

    def stop_one_and_ask(pids: list[int]) -> None:
        os.kill(pids[1], signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGTERM)
        when.append(time.monotonic())

    failed = launch(toy, 2, stop_one_and_ask)
    assert time.monotonic() - when[0] < 30
    assert failed is not None
    assert failed.stalled is not None
    assert "asked to stop, and no step came since: rank 1 " in failed.stalled
    assert " in train\n" in stacks(toy)["rank-0.txt"], "a rank that is alive is asked for its stacks"
    goes_on_to_the_same_end(toy, undisturbed(2), processes=2)


# MLflow


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An address where connections are taken and nothing is ever answered."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def timed_rank(inputs: Inputs) -> tuple[bool, float]:
    began = time.monotonic()
    return rank_with_its_errors_in_a_file(inputs), time.monotonic() - began


def test_an_mlflow_that_never_answers_costs_a_run_no_more_than_its_bounds(
    make_toy: Callable[..., Toy], undisturbed: Callable[[int], TrainState], silent_server: str
) -> None:
    up = make_toy(LONG).with_({"runtime": {"stall_seconds": 600}})
    down = up.with_({"tracking": {"mlflow_uri": silent_server}})
    [(complete, seconds)] = run_ranks(timed_rank, down.inputs(), folder=down.folder)
    assert complete
    assert seconds < 10 + 60 + 30
    assert equal_states(down.result()[0], undisturbed(1))
    said = (down.run().path.parent / "errors-0.txt").read_text()
    assert "no answer in 10 s; points wait in" in said
    assert "Traceback" not in said
    assert up.train()  # complete already; what waits is delivered by the next command
    from azneobert.tracking.delivery import deliver_folder

    assert deliver_folder(up.run().tracking, up.recipe.tracking) == STEPS + 2  # a point a step, two validations
