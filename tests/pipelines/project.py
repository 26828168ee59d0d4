"""A copy of this project at toy size, in a folder of its own, driven by its real commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azneobert.yaml_files import read_yaml, write_yaml

ROOT = Path(__file__).parents[2]

TOY = {
    "tokenizer": {"vocab_size": 400},
    "model": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 400,
    },
    "phase1": {"sequence_length": 64, "global_batch": 8, "steps": 12, "warmup_steps": 2},
    "phase2": {"sequence_length": 128, "global_batch": 4, "steps": 4, "warmup_steps": 1},
    "runtime": {"checkpoint_every": 4, "log_every": 1},
    "evaluation": {"every": 6, "max_rows_per_collection": 2},
    "finetuning": {"epochs": 1, "seeds": [1], "max_length": 64},
}
COLLECTIONS = ["wikipedia", "folklor", "cc100"]


@dataclass
class Reproduced:
    """A toy project after its first `make repro`, and what that printed."""

    project: Project
    printed: str


class Project:
    """A project in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def make(cls, folder: Path) -> Project:
        """The working tree's files, committed to a repository of their own, with a sample recipe of seconds."""
        project = cls.take(folder)
        project.keep_collections(COLLECTIONS)
        project.change(TOY)
        project.commit()
        return project

    @classmethod
    def take(cls, folder: Path) -> Project:
        """The working tree's files as they are, without dvc.lock, whose outputs are not there."""
        project = cls(folder)
        files = _run(["git", "ls-files", "-co", "--exclude-standard"], ROOT).stdout.splitlines()
        for name in files:
            if (ROOT / name).is_file():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        (folder / "dvc.lock").unlink(missing_ok=True)
        return project.with_environment()

    def clone(self, folder: Path) -> Project:
        """What `git clone` brings elsewhere; its environment is this one."""
        _run(["git", "clone", "-q", str(self.folder), str(folder)], self.folder)
        return Project(folder).with_environment()

    def with_environment(self) -> Project:
        """Give it this environment, which counts as made from its files: `make` must not install it there."""
        if not (self.folder / ".venv").exists():
            (self.folder / ".venv").symlink_to(ROOT / ".venv")
        for name in ("pyproject.toml", "constraints.txt"):
            os.utime(self.folder / name, (0, 0))
        return self

    def copy(self, folder: Path, *, relocate: bool = True) -> Project:
        """The same project, outputs and all, to break."""
        _run(["cp", "-a", str(self.folder), str(folder)], self.folder)  # outputs stay links to the cache
        copy = Project(folder)
        if relocate and (folder / "mlflow.db").exists():
            copy.run("azneobert", "registry", "relocate")
        return copy

    def change(self, edits: dict[str, Any]) -> None:
        """Change the recipe that runs: a block, a key, a value."""
        file = self.folder / "params.yaml"
        params = read_yaml(file)
        _merge(params, edits)
        write_yaml(file, params)

    def keep_collections(self, names: list[str]) -> None:
        """Take the others out of the recipe."""
        file = self.folder / "params.yaml"
        params = read_yaml(file)
        params["data"]["files"] = {name: params["data"]["files"][name] for name in names}
        params["data"]["order"] = names
        write_yaml(file, params)

    def commit(self) -> None:
        """Commit everything, as `dvc exp run` and the lineage ask for."""
        if not (self.folder / ".git").exists():
            self.run("git", "init", "-q")
        self.run("git", "add", "-A")
        self.run("git", "-c", "commit.gpgsign=false", "commit", "-q", "--allow-empty", "-m", "toy")

    def run(self, *command: str, check: bool = True, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder."""
        return _run(list(command), self.folder, check=check, timeout=timeout)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in a session of its own, so that all of it can be killed."""
        return subprocess.Popen(
            command, cwd=self.folder, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True, text=True
        )


def stages_run(printed: str) -> list[str]:
    """The stages that a `dvc repro` says it runs."""
    return re.findall(r"Running stage '([^']+)'", printed)


def environment() -> dict[str, str]:
    """This environment, with the project's programs first, and nothing that says where this suite's runs are kept."""
    path = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    # `dvc exp run` commits, and a machine that runs tests need not have a name to commit under.
    who = {f"GIT_{role}_{what}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return kept | who | {"PATH": path, "OMP_NUM_THREADS": "1"}


def _run(command: list[str], cwd: Path, *, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(f"{command} exited with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def _merge(target: dict[str, Any], edits: dict[str, Any]) -> None:
    for key, value in edits.items():
        if isinstance(value, dict):
            _merge(target[key], value)
        else:
            target[key] = value
