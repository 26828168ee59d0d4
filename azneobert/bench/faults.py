"""`azneobert bench faults`: real faults at random moments and bytes, and whether the run comes out the same.

Each trial trains a whole phase of a small model with the real commands, injects one fault, and starts the phase again
as a person or a scheduler would. Then it compares with an undisturbed run: the final weights to the last bit, and every
point in MLflow. The same seed draws the same faults in the same order.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from azneobert.bench.proxy import Proxy
from azneobert.bench.report import Row
from azneobert.checkpoint.manifest import verify_checkpoint
from azneobert.errors import AzNeoBertError, CheckpointError, TrainingError
from azneobert.layout import Layout
from azneobert.tracking.points import read_points
from azneobert.yaml_files import read_yaml, write_yaml

STEPS = 240
_NAME = "faults"
_STARTS = 4  # of a phase, at most; one fault costs one start, and a flipped bit may be refused once
_SECONDS = 120.0  # that a start may take
_STALL_SECONDS = 8
_TINY: dict[str, Any] = {
    "name": _NAME,
    "tokenizer": {"vocab_size": 400},
    "model": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 400,
    },
    "phase1": {"sequence_length": 64, "global_batch": 8, "steps": STEPS, "warmup_steps": 10},
    "runtime": {
        "checkpoint_every": 10,
        "keep_checkpoints": 3,
        "log_every": 1,
        "stall_seconds": _STALL_SECONDS,
    },
    "evaluation": {"every": 60, "max_rows_per_collection": 2},
    "tracking": {"experiment": _NAME},
    "registry": {"name": _NAME},
}


@dataclass(frozen=True)
class World:
    """How a trial is trained; each has an undisturbed run of its own to be compared with."""

    engine: str
    processes: int
    workers: int

    def __str__(self) -> str:
        return f"{self.engine} x {self.processes}, {self.workers} loader workers"


WORLDS = (World("plain", 1, 0), World("plain", 1, 1), World("plain", 2, 1), World("zero2", 2, 0))


@dataclass
class Outcome:
    """What became of a trial. `recovery` is the time (s) from the fault until the run that survives it has recorded a
    first new step."""

    kind: str
    world: World
    what: str = ""
    recovery: float | None = None
    points_lost: int = 0
    bytes_lost: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def survived(self) -> bool:
        """Whether the run came out as if nothing had happened."""
        return not self.problems and not self.points_lost and not self.bytes_lost


def bench_faults(minutes: float, seed: int, keep: Path | None = None) -> Iterator[Row]:
    """Inject faults until the time is up, each kind in turn. Yields a row for each kind.

    keep: where the folders of trials that went wrong are left.

    Raises:
        TrainingError: the undisturbed runs cannot be made here.
    """
    draw = random.Random(seed)
    end = time.monotonic() + 60 * minutes
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="azneobert-faults-") as scratch:
        soak = _Soak(Path(scratch))
        waiting: list[Callable[[_Trial, random.Random], None]] = []
        while time.monotonic() < end or not outcomes:
            if not waiting:
                waiting = list(KINDS.values())
                draw.shuffle(waiting)
            fault = waiting.pop()
            trial = soak.trial(next(kind for kind, each in KINDS.items() if each is fault), draw.choice(WORLDS))
            with closing(trial):
                outcomes.append(trial.run(fault, random.Random(draw.getrandbits(64))))
                _say(outcomes[-1], len(outcomes))
                if not outcomes[-1].survived and keep is not None:
                    shutil.copytree(trial.folder, keep / f"trial-{len(outcomes):04d}", symlinks=True)
    yield from rows(outcomes)


def rows(outcomes: list[Outcome]) -> Iterator[Row]:
    """A row for each kind of fault, and one for all."""
    for kind in (*KINDS, None):
        found = [each for each in outcomes if kind in (None, each.kind)]
        if not found:
            continue
        times = [each.recovery for each in found if each.recovery is not None]
        survived = sum(each.survived for each in found)
        note = [f"points lost {sum(e.points_lost for e in found)}", f"bytes lost {sum(e.bytes_lost for e in found)}"]
        if times:
            note.insert(0, f"recovered in {statistics.median(times):.1f} s (median), {max(times):.1f} s (longest)")
        note += [f"{each.what}: {problem}" for each in found for problem in each.problems]
        yield Row(
            kind or "all",
            f"{survived} of {len(found)} survived",
            f"{len(found)} of {len(found)}",
            survived == len(found),
            "; ".join(note),
        )


def _say(outcome: Outcome, number: int) -> None:
    end = "; ".join(outcome.problems) or "the same in the end"
    took = "" if outcome.recovery is None else f" after {outcome.recovery:.1f} s"
    print(f"{number}: {outcome.kind} ({outcome.world}): {outcome.what}{took}: {end}", file=sys.stderr, flush=True)


class _Soak:
    """The project that every trial copies, and the results of its undisturbed runs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._project = folder / "project"
        self._expected: dict[World, tuple[str, dict[int, float]]] = {}
        self._trials = 0
        _make_project(self._project)

    def trial(self, kind: str, world: World) -> _Trial:
        """A fresh copy of the project. If its world has no undisturbed run yet, that run is made first."""
        if world not in self._expected:
            with closing(self._copy("undisturbed", world)) as calm:
                calm.start()
                calm.wait()
                if calm.outcome.problems or not calm.complete():
                    raise TrainingError(f"the undisturbed run of {world} failed: {calm.last_words()}")
                self._expected[world] = calm.weights(), calm.losses()
        made = self._copy(kind, world)
        made.expected = self._expected[world]
        return made

    def _copy(self, kind: str, world: World) -> _Trial:
        self._trials += 1
        folder = self.folder / f"trial-{self._trials}"
        shutil.copytree(self._project, folder, symlinks=True)
        params = read_yaml(folder / "params.yaml")
        params["runtime"] |= {"engine": world.engine, "processes": world.processes, "workers": world.workers}
        write_yaml(folder / "params.yaml", params)
        return _Trial(folder, Outcome(kind, world))


class _Trial:
    """A phase in a folder of its own: started, disturbed, started again, compared."""

    def __init__(self, folder: Path, outcome: Outcome):
        self.folder = folder
        self.outcome = outcome
        self.expected: tuple[str, dict[int, float]] = ("", {})
        self.layout = Layout(_NAME, folder / "outputs")
        self.checkpoints = self.layout.running("phase1").checkpoints
        self.environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "AZNEOBERT_CACHE": str(folder / "cache"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self.environment.pop("DVC_ROOT", None)
        self._process: subprocess.Popen[bytes] | None = None
        self._fault: tuple[int, float] = (STEPS, 0.0)  # newest step recorded before the fault; its time
        self._cleanup: list[Callable[[], None]] = []

    def close(self) -> None:
        """End what runs, undo what was done to the machine, remove the folder."""
        self.kill_all()
        for undo in reversed(self._cleanup):
            undo()
        shutil.rmtree(self.folder, ignore_errors=True)

    def on_close(self, undo: Callable[[], None]) -> None:
        """Register something to undo at the end."""
        self._cleanup.append(undo)

    # Its life

    def run(self, fault: Callable[[_Trial, random.Random], None], draw: random.Random) -> Outcome:
        """Train, inject the fault, and start again until the phase is complete. Returns the outcome."""
        try:
            fault_step = draw.randrange(15, STEPS - 30)
            self.start()
            self.reach(fault_step)
            time.sleep(draw.uniform(0, 0.2))
            self._fault = self.newest_step(), time.monotonic()
            fault(self, draw)
            starts = 1
            while self.wait() != 0:
                starts += 1
                if starts > _STARTS:
                    raise TrainingError(f"not complete after {_STARTS} starts: {self.last_words()}")
                self._fault, self.outcome.recovery = (self.newest_step(), self._fault[1]), None
                self.start()
            self._compare()
        except (AzNeoBertError, OSError, psutil.Error) as error:
            self.outcome.problems.append(" ".join(str(error).split())[:400])
        return self.outcome

    def start(self) -> None:
        """Start the phase, as the stage of `dvc repro` does."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "pipelines/launch.py", "phase1"],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> int:
        """Wait until the phase has ended. Returns its exit code.

        Raises:
            TrainingError: it runs for longer than a start may take.
        """
        assert self._process is not None
        deadline = time.monotonic() + _SECONDS
        while self._process.poll() is None:
            self._note_recovery()
            if time.monotonic() > deadline:
                self.kill_all()
                raise TrainingError(f"no end within {_SECONDS:.0f} s: {self.last_words()}")
            time.sleep(0.05)
        self._note_recovery()
        self.kill_all()  # processes that outlive the launcher would train beside the next start
        return self._process.returncode

    def reach(self, step: int) -> None:
        """Wait until a step is recorded.

        Raises:
            TrainingError: the run has ended before, or does not get there.
        """
        assert self._process is not None
        deadline = time.monotonic() + _SECONDS
        while self.newest_step() < step:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TrainingError(f"step {step} was not reached: {self.last_words()}")
            time.sleep(0.02)

    def processes(self) -> list[psutil.Process]:
        """The launcher, its ranks and their loader workers, as far as they are alive."""
        assert self._process is not None
        with suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(self._process.pid)
            return [launcher, *launcher.children(recursive=True)]
        return []

    def kill_all(self) -> None:
        """End every process of the trial, those too whose launcher is gone."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        here = str(self.folder)
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.cwd() == here:
                    process.kill()
                    process.wait(10)

    # What it has come to

    def newest_step(self) -> int:
        """The last step that is recorded, on disk; 0 where there is none."""
        file = self.layout.running("phase1").tracking / "points.jsonl"
        try:
            tail = file.read_bytes()[-4096:].splitlines()
        except OSError:
            return 0
        steps = [line.partition(b'"step": ')[2].partition(b",")[0] for line in tail]
        return max((int(step) for step in steps if step.isdigit()), default=0)

    def complete(self) -> bool:
        """Whether the phase has left its checkpoint."""
        return (self.layout.finished("phase1") / "checkpoint" / "manifest.json").is_file()

    def weights(self) -> str:
        """The sha256 of the weights that the phase has left."""
        manifest = verify_checkpoint(self.layout.finished("phase1") / "checkpoint")
        return "".join(
            manifest.files[name]["sha256"] for name in sorted(manifest.files) if name.endswith("safetensors")
        )

    def losses(self) -> dict[int, float]:
        """The training loss of each step, as the phase has left it."""
        points = read_points(self.layout.finished("phase1"))
        return {point["step"]: point["values"]["train/loss"] for point in points if "train/loss" in point["values"]}

    def last_words(self) -> str:
        """What it said last."""
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["nothing"])[-1][:400]

    def said(self, part: str) -> bool:
        """Whether a line of what it printed holds this."""
        return part in (self.folder / "log").read_text(errors="replace")

    def _note_recovery(self) -> None:
        if self.outcome.recovery is None and self.newest_step() > self._fault[0]:
            self.outcome.recovery = time.monotonic() - self._fault[1]

    def _compare(self) -> None:
        weights, losses = self.expected
        if self.weights() != weights:
            self.outcome.problems.append("other weights than the undisturbed run's")
        found = self._delivered()
        self.outcome.points_lost = len(losses.keys() - found.keys())
        if other := [step for step, loss in losses.items() if found.get(step, loss) != loss]:
            self.outcome.problems.append(f"another loss from step {other[0]} on")
        if self.said("Traceback (most recent call last)"):
            self.outcome.problems.append("a traceback was printed")
        for folder in self.checkpoints.glob("step-*"):
            try:
                verify_checkpoint(folder)
            except CheckpointError:
                self.outcome.bytes_lost += sum(file.stat().st_size for file in folder.iterdir())

    def _delivered(self) -> dict[int, float]:
        """The loss of each step in MLflow, after the waiting points are delivered."""
        done = subprocess.run(
            [sys.executable, "-c", "from azneobert.cli import main; main()", "runs", "deliver"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        if done.returncode:
            raise TrainingError(f"`azneobert runs deliver` failed: {done.stderr[-300:]}")
        query = "SELECT step, value FROM metrics WHERE key = 'train/loss' ORDER BY timestamp"
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as store:
            return dict(store.execute(query).fetchall())


# The faults


def _killed(trial: _Trial, draw: random.Random) -> None:
    """kill -9 of any process: the launcher, a rank, a loader's worker."""
    victim = draw.choice(trial.processes())
    trial.outcome.what = f"kill -9 of {_role(victim, trial)} at step {trial.newest_step()}"
    victim.kill()


def _stopped(trial: _Trial, draw: random.Random) -> None:
    """SIGSTOP of a rank or a worker: nothing dies, and nothing goes on."""
    victim = draw.choice(trial.processes()[1:])
    trial.outcome.what = f"SIGSTOP of {_role(victim, trial)} at step {trial.newest_step()}"
    victim.suspend()


def _asked_to_stop(trial: _Trial, draw: random.Random) -> None:
    """SIGTERM, SIGINT or SIGUSR1 to the launcher, as a scheduler sends them."""
    number = draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    trial.outcome.what = f"{number.name} at step {trial.newest_step()}"
    trial.processes()[0].send_signal(number)


def _flipped_checkpoint(trial: _Trial, draw: random.Random) -> None:
    """Power is lost, and one bit in a file of the checkpoints is flipped."""
    trial.kill_all()
    files = [file for file in trial.checkpoints.rglob("*") if file.is_file() and not file.name.startswith(".")]
    trial.outcome.what = _flip(draw.choice(files), draw, trial)


def _flipped_data(trial: _Trial, draw: random.Random) -> None:
    """One bit of the tokens or plans is flipped while the run is down. The run must refuse it; then it is repaired."""
    trial.kill_all()
    places = (trial.layout.tokens, trial.layout.rows("phase1"))
    files = [file for place in places for file in place.rglob("*") if file.is_file() and file.stat().st_size]
    file = draw.choice(files)
    former = file.read_bytes()
    trial.outcome.what = _flip(file, draw, trial)
    trial.start()
    if trial.wait() == 0:
        trial.outcome.problems.append("trained to the end on changed data")
    elif not trial.said(str(file.relative_to(trial.folder).parent)):
        trial.outcome.problems.append(f"the damage is not named: {trial.last_words()}")
    file.write_bytes(former)


def _flipped_tracking(trial: _Trial, draw: random.Random) -> None:
    """One bit is flipped, while the run is down, in the files that are delivered to MLflow."""
    trial.kill_all()
    folder = trial.layout.running("phase1").tracking
    files = [file for file in folder.iterdir() if file.stat().st_size and not file.name.startswith(".")]
    trial.outcome.what = _flip(draw.choice(files), draw, trial)


def _full_disk(trial: _Trial, draw: random.Random) -> None:
    """The disk of the checkpoints is full for some seconds. The checkpoints move to a small disk first."""
    trial.kill_all()
    size = sum(file.stat().st_size for file in trial.checkpoints.rglob("*") if file.is_file())
    disk = trial.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={2 * size + (1 << 20)}", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:  # this process may not mount: there is no other way to a file system this small
        raise TrainingError("no small disk can be mounted here")

    def unmount() -> None:
        subprocess.run(["umount", "-l", str(disk)], check=False, capture_output=True)

    trial.on_close(unmount)
    shutil.copytree(trial.checkpoints, disk / "checkpoints")
    shutil.rmtree(trial.checkpoints)
    trial.checkpoints.symlink_to(disk / "checkpoints")
    before = trial.newest_step()
    trial.start()
    trial.reach(min(STEPS - 20, before + draw.randrange(5, 40)))
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 14))
    seconds = draw.uniform(0.5, 3)
    trial.outcome.what = f"disk full for {seconds:.1f} s at step {trial.newest_step()}"
    time.sleep(seconds)
    ballast.unlink()


def _mlflow(trial: _Trial, draw: random.Random) -> None:
    """MLflow away, slow, silent, or its database locked, for some seconds."""
    how = draw.choice(["refuse", "hang", "slow", "locked"])
    seconds = draw.uniform(1, 12)
    trial.outcome.what = f"MLflow: {how} for {seconds:.1f} s at step {trial.newest_step()}"
    if how == "locked":
        with closing(sqlite3.connect(trial.folder / "mlflow.db", isolation_level=None, timeout=20)) as store:
            store.execute("BEGIN EXCLUSIVE")
            time.sleep(seconds)
            store.execute("ROLLBACK")
        return
    trial.kill_all()
    with _server(trial) as port, Proxy(port) as proxy:
        stored = trial.environment["MLFLOW_TRACKING_URI"]
        trial.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{proxy.port}"
        proxy.mode = draw.choice(["pass", how])
        trial.start()
        with suppress(TrainingError):  # it may be through before
            trial.reach(min(STEPS - 20, trial.newest_step() + draw.randrange(5, 60)))
        proxy.mode = how
        time.sleep(seconds)
        proxy.mode = draw.choice(["pass", how])
        trial.wait()
        trial.environment["MLFLOW_TRACKING_URI"] = stored


KINDS: dict[str, Callable[[_Trial, random.Random], None]] = {
    "kill -9 of any process": _killed,
    "SIGSTOP of a rank or worker": _stopped,
    "SIGTERM, SIGINT, SIGUSR1": _asked_to_stop,
    "a bit of a checkpoint": _flipped_checkpoint,
    "a bit of tokens or plans": _flipped_data,
    "a bit of the tracking files": _flipped_tracking,
    "disk full": _full_disk,
    "MLflow away, slow, silent, locked": _mlflow,
}


def _flip(file: Path, draw: random.Random, trial: _Trial) -> str:
    content = bytearray(file.read_bytes())
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    with file.open("r+b") as opened:  # in its place, as a disk does it
        opened.write(content)
    return f"bit {bit} of byte {place:,} of {file.relative_to(trial.folder)}"


def _role(process: psutil.Process, trial: _Trial) -> str:
    tree = trial.processes()
    if process == tree[0]:
        return "the launcher"
    return "a rank" if process.ppid() == tree[0].pid else "a loader worker"


@contextmanager
def _server(trial: _Trial) -> Iterator[int]:
    """MLflow's own server over the trial's database, on a free port."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{trial.folder}/mlflow.db", "--default-artifact-root", "mlruns"]
    with (trial.folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=trial.folder.parent,
            env=trial.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise TrainingError("MLflow's server does not start")
            time.sleep(0.2)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _make_project(folder: Path) -> None:
    """A project at toy size, its data made by the stages themselves.

    Raises:
        TrainingError: this is not a checkout of the project, or a stage fails.
    """
    root = Path(__file__).parents[2]
    recipe = root / "recipes" / "sample.yaml"
    if not recipe.is_file():
        raise TrainingError(f"{recipe}: no such file; run `azneobert bench faults` in a checkout of the project")
    folder.mkdir(parents=True)
    (folder / "pipelines").symlink_to(root / "pipelines")
    params = read_yaml(recipe)
    collections = list(params["data"]["files"])[:2]
    for collection in collections:
        source = params["data"]["files"][collection]
        source["path"] = str(root / source["path"])
    params["data"]["files"] = {collection: params["data"]["files"][collection] for collection in collections}
    params["data"]["order"] = collections
    _merge(params, _TINY)
    write_yaml(folder / "params.yaml", params)
    stages = [["ingest", c] for c in collections] + [["deduplicate"], ["tokenizer"]]
    stages += [["tokens", c] for c in collections] + [["rows", "phase1"]]
    for stage in stages:
        command = [sys.executable, f"pipelines/{stage[0]}.py", *stage[1:]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TrainingError(f"{' '.join(stage)} failed: {done.stderr[-300:]}")


def _merge(target: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            _merge(target[key], value)
        else:
            target[key] = value
