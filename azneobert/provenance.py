"""Where a number comes from: the commit, the code that decides it, the versions of what that code uses."""

from __future__ import annotations

import ast
import hashlib
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import azneobert
from azneobert.environment import container_image

_PACKAGE = Path(azneobert.__file__).parent
UNKNOWN = "unknown"

# Files that a stage imports and that do not decide its outputs. All others that it imports are in its `deps`.
NOT_DECIDING = {
    "azneobert/errors.py": "the kinds of errors",
    "azneobert/printable.py": "how text from elsewhere is printed",
    "azneobert/recipe.py": "each setting that a stage reads is one of its parameters",
    "azneobert/settings.py": "checks what a recipe says",
    "azneobert/task_settings.py": "each setting of a task is a parameter of its stage",
    "azneobert/yaml_files.py": "reads the recipe, and writes what a person reads",
    "azneobert/provenance.py": "says what a number is made of",
    "azneobert/mlflow_place.py": "where runs are recorded",
    "azneobert/mlflow_store.py": "how they are recorded there",
    "azneobert/tracking": "how points reach MLflow, not what they are",
    "azneobert/dvc_files.py": "what DVC has locked and cached",
    "azneobert/layout.py": "where outputs lie, not what they are",
    "azneobert/environment.py": "the names of variables",
    "azneobert/locks.py": "who works in a folder",
    "azneobert/registry/start.py": "brings the checkpoint that a phase starts from, which its identity names",
    "azneobert/scratch.py": "where a push and a pull work meanwhile",
    "azneobert/checkpoint/finite.py": "what is no checkpoint",
    "azneobert/pace.py": "when a person may expect the end",
    "azneobert/launching": "how ranks are started, and found again",
    "azneobert/data/integrity.py": "whether the data are whole",
    "azneobert/data/progress.py": "what an interrupted stage goes on from, to the same end",
    "azneobert/training/progress.py": "what a person sees of a run",
    "azneobert/training/watchdog.py": "when a run that hangs is ended: it goes on to the last bit",
    "azneobert/training/stopping.py": "when a run stops: it goes on to the last bit",
    "azneobert/training/folder.py": "which run goes on and which is set aside",
    "pipelines/interruption.py": "what Ctrl-C prints",
    "pipelines/stage.py": "reads the recipe, prints errors",
    "pipelines/failure.py": "keeps why a stage failed",
    "pipelines/job.py": "hands a phase to SLURM",
    "pipelines/recover.py": "finds what a stage has made already",
}
# These start another program, which no import shows.
_STARTS = {"pipelines/launch.py": ("pipelines/pretrain.py",)}
_PACKAGES = ("azneobert", "torch", "accelerate", "deepspeed", "safetensors", "tokenizers", "numpy")
_GPU_PACKAGES = ("triton", "flash-attn-4", "quack-kernels")  # recorded where they are installed


def deciding_files(*entries: str, root: Path | None = None) -> list[str]:
    """The files of this project that decide what some of its files compute: all that they import, except NOT_DECIDING.

    `entries` and the result are paths from the project's root. Imports inside functions count, those for type checkers
    alone do not. Without a `root`, the package is the one that is imported, and its stages are those of this folder.
    """
    found: set[str] = set()
    waiting = [*entries, *(started for entry in entries for started in _STARTS.get(entry, ()))]
    while waiting:
        name = waiting.pop()
        if name not in found and not _is_excluded(name):
            found.add(name)
            waiting += imported_files(name, root)
    return sorted(found)


def imported_files(name: str, root: Path | None = None) -> set[str]:
    """The files of this project that a file imports, as paths from the root; a package stands for none of its files."""
    names = set()
    for module in _imported_modules(ast.parse(_place(name, root).read_text(encoding="utf-8"))):
        beside = f"{PurePosixPath(name).parent}/{module}.py"
        inside = f"{module.replace('.', '/')}.py"
        names |= {candidate for candidate in (beside, inside) if _place(candidate, root).is_file()}
    return names


def code_sha256(*entries: str, root: Path | None = None) -> str:
    """The sha256 of the files that decide what some files compute, names and bytes."""
    digest = hashlib.sha256()
    for name in deciding_files(*entries, root=root):
        digest.update(f"{name}\n".encode())
        digest.update(_place(name, root).read_bytes())
    return digest.hexdigest()


def _place(name: str, root: Path | None) -> Path:
    if root is None:  # in a container, or in a copy of the project, the package that runs may lie elsewhere
        root = _PACKAGE.parent if name.startswith(f"{_PACKAGE.name}/") else Path.cwd()
    return root / name


def git_state(root: Path | None = None) -> tuple[str, bool | None]:
    """The commit of a folder, by default this one, and whether a file differs from it.

    If git does not answer, both are unknown, never clean. params.yaml and dvc.lock do not count: every checkpoint
    holds the whole recipe, and DVC writes its lock as it runs.
    """
    root = root or Path.cwd()
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!params.yaml", ":!dvc.lock")
    return (commit or UNKNOWN), (None if status is None or not commit else bool(status))


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide numbers."""
    return {"python": platform.python_version(), **_versions_of(_PACKAGES + _GPU_PACKAGES)}


def _versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            if package not in _GPU_PACKAGES:
                found[package] = UNKNOWN
    return found


def run_provenance() -> dict[str, Any]:
    """What trains a run: the commit, whether files differ from it, code, versions, container image."""
    commit, dirty = git_state()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "code_sha256": code_sha256("azneobert/training/run.py"),
        "versions": versions(),
        "image": container_image(),
    }


def _is_excluded(name: str) -> bool:
    return any(name == excluded or name.startswith(f"{excluded}/") for excluded in NOT_DECIDING)


def _imported_modules(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file's imports may stand for: `from a.b import c` is a.b, and a.b.c if that is a module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            yield from _imported_modules(node)


def _git(root: Path, *arguments: str) -> str | None:
    # In a container the folder may belong to another user, and git would refuse to answer.
    command = ["git", "-c", f"safe.directory={root}", *arguments]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
