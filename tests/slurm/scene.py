"""A toy project beside a cluster, driven by the commands that a user types."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import Any

from cluster import Cluster, until
from project import Project, environment

from azneobert.layout import Layout
from azneobert.tracking.points import read_points

STEPS = 240
SIZE = {
    "phase1": {"steps": STEPS, "warmup_steps": 20},
    "phase2": {"steps": 20},
    "runtime": {"engine": "zero2", "processes": 2, "checkpoint_every": 40, "log_every": 1},
    "evaluation": {"every": 120},
}
TWO_NODES = {"gpus": 0, "ranks": 1, "nodes": 2, "cpus": 1, "time": "30:00", "warning_seconds": 60, "poll_seconds": 0.5}


class Scene:
    """A toy project beside a cluster."""

    def __init__(self, project: Project, cluster: Cluster):
        self.project = project
        self.cluster = cluster
        self.layout = Layout("sample", project.folder / "outputs")
        self.run = self.layout.running("phase1")
        self.job_folder = self.layout.job("phase1")
        self.started: list[Started] = []

    def launch(self, **settings: Any) -> None:
        """Write launch.yaml: two nodes of one rank each, and what is said here."""
        lines = [f"{key}: {json.dumps(value)}" for key, value in ({"launcher": "slurm"} | TWO_NODES | settings).items()]
        (self.project.folder / "launch.yaml").write_text("\n".join(lines) + "\n")

    def environment(self) -> dict[str, str]:
        """The environment of a user on a login node of the cluster."""
        mine = environment()
        path = f"{mine['PATH']}{os.pathsep}{self.cluster.environment['PATH']}"
        # dash, which stays between dvc and a stage where bash would become the stage.
        return mine | {"PATH": path, "SHELL": "/bin/sh", "SLURM_CONF": self.cluster.environment["SLURM_CONF"]}

    def start(self, *command: str) -> Started:
        """Start a command of a user."""
        return Started(self, command)

    def ask(self, *command: str, **changed: str) -> subprocess.CompletedProcess[str]:
        """Run a command of a user to its end."""
        return subprocess.run(
            command,
            cwd=self.project.folder,
            env=self.environment() | changed,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def step(self) -> int:
        """How many steps the run has recorded, or -1."""
        points = read_points(self.run.tracking)
        return max((point["step"] for point in points), default=-1)

    def reach(self, step: int, seconds: float = 90) -> None:
        """Wait until so many steps are recorded."""
        until(lambda: self.step() >= step, seconds, f"step {step}")

    def job_id(self) -> str:
        """The number of the phase's job."""
        number = json.loads(self.job_folder.record.read_text())["job_id"]
        assert isinstance(number, str)
        return number

    def log(self) -> str:
        """The log of the phase's jobs."""
        return self.job_folder.log.read_text() if self.job_folder.log.exists() else ""

    def requeued(self, times: int = 1, seconds: float = 90) -> None:
        """Wait until the job waits in the queue again, and let it start."""
        until(lambda: int(self.cluster.job(self.job_id())["Restarts"]) >= times, seconds, f"requeue {times}")
        until(
            lambda: self.cluster.job(self.job_id())["JobState"] != "COMPLETING", seconds, "the end of the former start"
        )

        # By itself SLURM lets two minutes pass between a requeue and the next start. At once, the end of the former
        # start's script may be taken for that of the next one's.
        time.sleep(3)
        asked = 0.0

        def started() -> bool:
            nonlocal asked
            if time.monotonic() > asked + 4:  # not at every look: each one puts the begin off by a moment
                asked = time.monotonic()
                self.cluster.start_now(self.job_id())
            return self.log().count("started on") > times

        until(started, seconds, "another start")


class Started:
    """A command that runs; its output goes to a file."""

    def __init__(self, scene: Scene, command: tuple[str, ...]):
        self._file = scene.project.folder / f"printed-{time.monotonic_ns()}.txt"
        with self._file.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                cwd=scene.project.folder,
                env=scene.environment(),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        scene.started.append(self)

    def printed(self) -> str:
        """What it has printed so far."""
        return self._file.read_text(errors="replace")

    def ends(self, code: int = 0, seconds: float = 150) -> str:
        """Wait for its end, with this exit code; what it has printed."""
        found = self.process.wait(seconds)
        assert found == code, f"exit code {found}:\n{self.printed()[-4000:]}"
        return self.printed()

    def kill(self) -> None:
        """Kill it and all that it started here, by SIGKILL."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


def curve(scene: Scene, phase: str = "phase1") -> list[tuple[int, dict[str, float]]]:
    """The loss, gradient norm and learning rate of every step of a finished phase, and its held-out losses."""
    kept = ("train/loss", "train/grad_norm", "train/lr", "train/tokens")
    points = read_points(scene.layout.finished(phase))
    rows = [(p["step"], {k: v for k, v in p["values"].items() if k in kept or k.startswith("eval/")}) for p in points]
    return sorted(((step, values) for step, values in rows if values), key=lambda row: (row[0], sorted(row[1])))
