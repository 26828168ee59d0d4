"""Stopped ranks, loader workers and launchers, an MLflow that never answers: bounded, said, and nothing of it lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from refusals import refused
from toy import ROOT, Toy, equal_states, outcome, run_ranks, start_ranks, train_rank

from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.checkpoint.universal import TrainState, read_checkpoint
from azneobert.environment import EXIT_STOPPED
from azneobert.errors import RegistryError, TrainingError
from azneobert.layout import RunFolder
from azneobert.mlflow_store import check_store
from azneobert.tracking.delivery import deliver_folder
from azneobert.training.inputs import Inputs
from azneobert.training.watchdog import heartbeat_file
from azneobert.yaml_files import write_yaml

STALL_SECONDS = 4
STEPS = 400
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


def stacks(run: RunFolder) -> dict[str, str]:
    """What the last stall has left, by file."""
    newest = max((run.path / "stalls").iterdir())
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
    (first, _), (second, _) = start(toy, processes=2)
    os.kill(second.pid, signal.SIGSTOP)
    try:
        assert ended_within(first, BOUND)
        assert first.exitcode == EXIT_STOPPED
        [line] = errors_of(toy)
        assert f"rank 1 ({socket.gethostname()}, pid {second.pid}) is stopped" in line
        assert "rank 0" not in line
        assert "a new start goes on from step-" in line
        assert " in train\n" in stacks(toy.run())["rank-0.txt"]
        assert json.loads(stacks(toy.run())["rank-1.json"])["pid"] == second.pid
    finally:
        second.kill()
        second.join()
    goes_on_to_the_same_end(toy, undisturbed(2), processes=2)


@pytest.mark.parametrize("engine", ["plain", "zero2"])
def test_a_rank_that_has_lost_another_says_so_in_a_line(engine: str, make_toy: Callable[..., Toy]) -> None:
    toy = make_toy(LONG).with_({"runtime": {"engine": engine, "processes": 2}})
    (first, connection), (second, _) = start(toy, processes=2)
    second.kill()
    with refused(
        TrainingError, "phase1: rank 0 has lost another rank", "start again to go on from the last checkpoint"
    ):
        raise outcome(first, connection)


def test_a_stopped_worker_of_the_loader_is_named(
    make_toy: Callable[..., Toy], undisturbed: Callable[[int], TrainState]
) -> None:
    toy = make_toy(LONG).with_({"runtime": {"workers": 1}})
    [(child, _)] = start(toy)
    [worker] = workers_of(child.pid)
    worker.suspend()
    with killed_in_the_end(worker):
        assert ended_within(child, BOUND)
        assert child.exitcode == EXIT_STOPPED
        assert f"its loader worker {worker.pid} is stopped, waiting for data after step" in errors_of(toy)[0]
        assert "watched" in stacks(toy.run())["rank-0.txt"]
        assert gone(worker), "a worker outlives its rank"
    goes_on_to_the_same_end(toy, undisturbed(1))


@contextmanager
def killed_in_the_end(*processes: psutil.Process) -> Iterator[None]:
    """No process that a failing test leaves behind holds up the others."""
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()


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
    with killed_in_the_end(stopped, alive):
        child.kill()
        child.join()
        assert gone(stopped)
        assert gone(alive)
    goes_on_to_the_same_end(toy, undisturbed(1))


# Under the launcher


@dataclass
class Project:
    """A project's folder in which phase 1 can be launched as its stage does it."""

    folder: Path
    processes: int

    @classmethod
    def of(cls, toy: Toy, processes: int) -> Project:
        project = cls(toy.folder / "project", processes)
        outputs = project.folder / "outputs" / "toy"
        shutil.copytree(toy.corpus / "tokens", outputs / "tokens")
        shutil.copytree(toy.corpus / "rows" / "32", outputs / "rows" / "phase1")
        (outputs / "tokenizer").mkdir()
        shutil.copy(toy.corpus / "tokenizer.json", outputs / "tokenizer")
        (project.folder / "pipelines").symlink_to(ROOT / "pipelines")
        recipe = toy.with_({"runtime": {"processes": processes}}).recipe
        write_yaml(project.folder / "params.yaml", recipe.model_dump(mode="json"))
        return project

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / "outputs" / "toy" / "running" / "phase1")

    def start(self) -> subprocess.Popen[str]:
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, "pipelines/launch.py", "phase1"]
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def ranks_at_work(self, launcher: subprocess.Popen[str], points: int = 25) -> list[int]:
        """The process ids of the ranks, some steps after the first checkpoint."""
        file, deadline = self.run.tracking / "points.jsonl", time.monotonic() + 120
        while not (file.exists() and file.read_text().count("\n") >= points):
            assert launcher.poll() is None, "the launcher has ended"
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.02)
        files = [heartbeat_file(self.run, rank) for rank in range(self.processes)]
        return [json.loads(file.read_text())["pid"] for file in files]

    def goes_on_to_the_same_end(self, expected: TrainState) -> None:
        again = self.start()
        _, said = again.communicate(timeout=180)
        assert again.returncode == 0, said
        newest = CheckpointFolder(self.run.checkpoints, 9).latest()
        assert newest is not None
        assert equal_states(read_checkpoint(newest[0])[0], expected)


def ends_with_a_line(launcher: subprocess.Popen[str], seconds: float) -> str:
    """What the stage says, which must be one line, and must end as one that is started again."""
    _, said = launcher.communicate(timeout=seconds)
    assert launcher.returncode == EXIT_STOPPED
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    return line


def test_the_launcher_names_the_only_rank_when_it_is_stopped(
    make_toy: Callable[..., Toy], undisturbed: Callable[[int], TrainState]
) -> None:
    project = Project.of(make_toy(LONG), 1)
    launcher = project.start()
    [pid] = project.ranks_at_work(launcher)
    os.kill(pid, signal.SIGSTOP)
    line = ends_with_a_line(launcher, BOUND)
    assert f"phase1: no step for {STALL_SECONDS} s: rank 0 ({socket.gethostname()}, pid {pid}) is stopped, " in line
    assert "; stacks are in outputs/toy/running/phase1/stalls/" in line
    assert not psutil.pid_exists(pid)
    project.goes_on_to_the_same_end(undisturbed(1))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_that_is_killed_is_one_line(
    processes: int, make_toy: Callable[..., Toy], undisturbed: Callable[[int], TrainState]
) -> None:
    project = Project.of(make_toy(LONG).with_({"runtime": {"workers": 1}}), processes)
    launcher = project.start()
    pids = project.ranks_at_work(launcher)
    workers_of(pids[-1])[0].kill()
    _, said = launcher.communicate(timeout=BOUND)
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    # With half a batch in its pipe torch waits for the other half, and it is the watchdog that ends the run.
    expected = "a worker of the data loader has ended (" if launcher.returncode == 1 else "no step"
    assert launcher.returncode in (1, 75)
    assert any(expected in line for line in lines), lines
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    project.goes_on_to_the_same_end(undisturbed(processes))


def test_a_rank_that_finds_a_stall_itself_is_heard_through_the_launcher(make_toy: Callable[..., Toy]) -> None:
    project = Project.of(make_toy(LONG), 2)
    launcher = project.start()
    first, second = project.ranks_at_work(launcher)
    os.kill(first, signal.SIGSTOP)
    line = ends_with_a_line(launcher, BOUND)
    assert line.count("rank 0 (") == 1
    assert f"pid {first}) is stopped, " in line
    assert f"pid {second}" not in line


def test_sigterm_with_a_stopped_rank_ends_in_seconds(
    make_toy: Callable[..., Toy], undisturbed: Callable[[int], TrainState]
) -> None:
    project = Project.of(make_toy(LONG).with_({"runtime": {"stall_seconds": 600}}), 2)
    launcher = project.start()
    _, second = project.ranks_at_work(launcher)
    os.kill(second, signal.SIGSTOP)
    launcher.terminate()
    line = ends_with_a_line(launcher, 30)
    assert f"asked to stop, and no step came since: rank 1 ({socket.gethostname()}, pid {second}) is stopped" in line
    assert " in train\n" in stacks(project.run)["rank-0.txt"], "a rank that is alive is asked for its stacks"
    project.goes_on_to_the_same_end(undisturbed(2))


# MLflow


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
    began = time.monotonic()
    with refused(
        RegistryError, f"MLflow at {silent_server}: no answer in 10 s"
    ):  # as `azneobert runs deliver` asks first
        check_store(down.recipe.tracking)
    assert time.monotonic() - began < 30
    assert deliver_folder(up.run().tracking, up.recipe.tracking) == STEPS + 2  # a point a step, two validations
