"""`make report BASE=origin/main`: what a change does to the numbers, as a page to read beside the change.

The commit that the change starts from is reproduced in a git worktree, then the change here: on the same machine, in
the same environment, with one DVC cache. So what differs comes from the change, and what it leaves alone runs once or
never.

It stands beside the workflow that runs it: it is no stage, which is what pipelines/ holds, and no part of the library.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from azneobert.errors import AzNeoBertError
from azneobert.yaml_files import read_yaml

REPORT = Path("report")
GRACE = 120  # seconds that an interrupted training has for its checkpoint
# Nobody keeps this commit: no hooks, no signature, and a name where git has none.
_OURS = ("core.hooksPath=/dev/null", "commit.gpgsign=false", "user.name=report", "user.email=report@localhost")
_GIT = ("git", *(word for setting in _OURS for word in ("-c", setting)))


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: a folder, what reproduces it, and the environment for that."""

    name: str
    folder: Path
    repro: tuple[str, ...]
    environment: dict[str, str]


def main() -> None:
    """Write report/report.md, and report/comment.md for where its pictures cannot go."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="a commit or branch that the change starts from")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("report: stopped; what was reproduced is in DVC's cache"))
    try:
        report(parser.parse_args().base)
    except AzNeoBertError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("report: interrupted; what was reproduced is in DVC's cache")


def report(name: str) -> None:
    """Reproduce both sides and write what differs."""
    start = find_base(name)
    shutil.rmtree(REPORT, ignore_errors=True)  # a former one must not pass for this one's
    with worktree(start) as folder:
        base, change = base_side(folder), Side("change", Path.cwd(), ("make", "repro"), dict(os.environ))
        for side, commit in ((base, start), (change, "HEAD")):
            print(f"\n{side.name}: {subject(commit)}", flush=True)
            reproduce(side)
        write(start, kept_commit(base), (base, change))
    print(f"\n{REPORT}/report.md says what the change does to the numbers")


def find_base(name: str) -> str:
    """The commit that the change starts from: where its history leaves that of `name`, whatever came there since."""
    if not is_told("git", "rev-parse", "--git-dir"):
        raise AzNeoBertError(f"{Path.cwd()}: git knows no repository here, and the report compares commits")
    if not (tip := is_told("git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")):
        raise AzNeoBertError(f"BASE {name}: no such commit here; `git fetch` it, or name another, such as BASE=HEAD~1")
    if not (start := is_told("git", "merge-base", tip, "HEAD")):
        raise AzNeoBertError(
            f"BASE {name}: no commit in common with HEAD; `git fetch --unshallow` brings a whole history"
        )
    return start


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """The files of a commit in a folder of their own, which is removed whatever happens in the meantime."""
    try:
        with tempfile.TemporaryDirectory(prefix="azneobert-report-", ignore_cleanup_errors=True) as scratch:
            folder = Path(scratch) / "base"
            tell(*_GIT, "worktree", "add", "--quiet", "--detach", str(folder), commit)
            yield folder
    finally:
        tell("git", "worktree", "prune")  # git forgets what is gone


def base_side(folder: Path) -> Side:
    """The worktree with this project's DVC cache, and an MLflow store and code of its own.

    Not `make repro`: it would install the worktree into the environment that both use.
    """
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    store = {"PYTHONPATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    side = Side("base", folder, ("dvc", "repro"), dict(os.environ) | store)
    tell("dvc", "cache", "dir", "--local", str(Path(tell("dvc", "cache", "dir")).resolve()), side=side)
    # Data that DVC keeps (`dvc add`) is in no commit; what nobody has pulled is missed by the stage that needs it.
    tell("dvc", "checkout", "--quiet", "--allow-missing", side=side)
    return side


def reproduce(side: Side) -> None:
    """Bring a side's outputs up to date.

    Registering may come out of the cache, from where the other side registered: the MLflow store is told of it before a
    fine-tuning asks for the version. A base that is too old to have that command goes without.
    """
    ready = succeeds(side, "azneobert", "recipe", "check") and succeeds(side, "dvc", "repro", "register")
    if ready:
        succeeds(side, "azneobert", "registry", "restore")
    if not ready or not succeeds(side, *side.repro):
        raise AzNeoBertError(f"{side.name}: it cannot be reproduced; see the lines above")


def kept_commit(base: Side) -> str:
    """The base's results as a commit, since DVC compares commits: its dvc.lock, on no branch."""
    tell("git", "add", "--update", side=base)  # figures may be files of git
    tell("git", "add", "--force", "dvc.lock", side=base)
    tell(*_GIT, "commit", "--quiet", "--allow-empty", "--message", "The base, reproduced", side=base)
    return tell("git", "rev-parse", "HEAD", side=base)


def write(start: str, reproduced: str, sides: tuple[Side, Side]) -> None:
    """Write the page with its pictures, and the same without them."""
    # dvc.lock has just been brought up to date: it says nothing of the change.
    edited = tell("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    change = subject("HEAD") + (" and what is not committed" if edited else "")
    text = "\n\n".join(
        [
            "# What the change does to the numbers",
            f"| | |\n|---|---|\n| base | {cell(subject(start))} |\n| change | {cell(change)} |",
            f"Both made on one machine ({machine()}) in one environment, one after the other.",
            "## Metrics",
            differences("metrics", reproduced),
            "## Parameters",
            differences("params", reproduced),
        ]
    )
    rows = [f"| {name} | {' | '.join(row)} |" for name, row in pictures(sides).items()]
    REPORT.mkdir(exist_ok=True)
    (REPORT / "comment.md").write_text(f"{text}\n", encoding="utf-8")
    table = "\n".join(["| | base | change |", "|---|---|---|", *rows])
    (REPORT / "report.md").write_text(f"{text}\n\n## Loss\n\n{table}\n", encoding="utf-8")


def differences(what: str, reproduced: str) -> str:
    """DVC's table of the metrics or params that differ, with the two sides by their names here."""
    table = tell("dvc", what, "diff", "--md", reproduced).splitlines()
    if len(table) < 3:  # DVC prints the head of an empty table
        return "None differs."
    header = table[0].replace(reproduced, "base".ljust(len(reproduced))).replace("workspace", "change   ")
    return "\n".join([header, *table[1:]])


def pictures(sides: tuple[Side, Side]) -> dict[str, list[str]]:
    """The pictures of the losses, copied beside the page: by phase, how the page shows that of each side."""
    shown: dict[str, list[str]] = {}
    for side in sides:
        for picture in sorted((outputs(side) / "plots").glob("phase*.png")):
            copy = Path(side.name) / picture.name
            (REPORT / copy).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, REPORT / copy)
            shown.setdefault(picture.stem, ["", ""])[sides.index(side)] = f"![{side.name}, {picture.stem}]({copy})"
    return shown


def outputs(side: Side) -> Path:
    """Where the recipe of a side leaves what it makes."""
    recipe: dict[str, Any] = read_yaml(side.folder / "params.yaml")
    return side.folder / "outputs" / str(recipe.get("name"))


def subject(commit: str) -> str:
    """A commit as a person knows it."""
    return tell("git", "log", "-1", "--format=%h %s", commit)


def cell(text: str) -> str:
    """A text as a cell of a table."""
    return text.replace("|", r"\|")


def machine() -> str:
    """What the numbers were made on and with."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, torch {version('torch')}"


def tell(*command: str, side: Side | None = None) -> str:
    """What a quick command prints; its failure is this program's."""
    done = _told(command, side)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise AzNeoBertError(f"`{' '.join(command)[:80]}`: {said}")
    return done.stdout.strip()


def is_told(*command: str, side: Side | None = None) -> str:
    """What a quick command prints; nothing where it fails."""
    done = _told(command, side)
    return "" if done.returncode else done.stdout.strip()


def _told(command: tuple[str, ...], side: Side | None) -> subprocess.CompletedProcess[str]:
    place = {"cwd": side.folder, "env": side.environment} if side else {}
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, **place)  # type: ignore[call-overload]
    except FileNotFoundError:
        raise AzNeoBertError(f"{command[0]}: no such program here; `make report` has those of .venv") from None


def succeeds(side: Side, *command: str) -> bool:
    """Run a long command in a side. Whatever stops this program stops it like Ctrl-C, and waits for its checkpoint."""
    process = subprocess.Popen(command, cwd=side.folder, env=side.environment, start_new_session=True)
    try:
        return process.wait() == 0
    except BaseException:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(GRACE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        raise


if __name__ == "__main__":
    main()
