"""Ctrl-C in a stage is one line; and what a stage sets before torch is imported is set before."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from project import ROOT, Reproduced, environment

STAGES = [
    file for file in sorted((ROOT / "pipelines").glob("*.py")) if "run_stage(" in file.read_text(encoding="utf-8")
]


def heed_ctrl_c() -> None:
    """A suite in the background of a shell hands on that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("file", [file for file in STAGES if file.stem != "stage"], ids=lambda file: file.stem)
def test_a_stage_imports_what_stages_share_before_anything_else(file: Path) -> None:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    first = next(node for node in body if isinstance(node, ast.Import | ast.ImportFrom))
    assert isinstance(first, ast.ImportFrom)
    assert first.module == "stage"


def test_what_stages_share_sets_how_long_threads_spin_and_imports_nothing_slow() -> None:
    program = "import os, sys, stage; print(os.environ['GOMP_SPINCOUNT'], {'torch', 'mlflow'} & sys.modules.keys())"
    own = {k: v for k, v in environment().items() if k != "GOMP_SPINCOUNT"} | {"PYTHONPATH": str(ROOT / "pipelines")}

    def said(env: dict[str, str]) -> str:
        return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True).stdout.strip()

    assert said(own) in ("10000 set()", "0 set()")  # the second where the machine is busy
    assert said(own | {"GOMP_SPINCOUNT": "7"}) == "7 set()", "a person's own setting goes before"


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (["ingest.py", "wikipedia"], "ingest wikipedia: interrupted; what it has read so far is kept"),
        (["tokens.py", "wikipedia"], "tokens wikipedia: interrupted; the parts that it has tokenized are kept"),
        (["evaluate.py", "phase1"], "evaluate phase1: interrupted; what the stages before it have made is kept"),
        (["finetune.py", "punctuation"], "finetune punctuation: interrupted; what the stages before it"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_ctrl_c_is_one_line_that_says_what_is_kept(reproduced: Reproduced, command: list[str], kept: str) -> None:
    # Stopped at its first look at the recipe, wherever a slow machine is by then.
    program = (
        "import os, runpy, signal, sys; sys.path.insert(0, 'pipelines'); import stage; "
        "stage.load_recipe = lambda *_: os.kill(os.getpid(), signal.SIGINT); "
        f"sys.argv = {command!r}; runpy.run_path('pipelines/{command[0]}', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=reproduced.project.folder,
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    lines = [line for line in done.stderr.splitlines() if "WARNING" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(kept)
    assert lines[0].endswith(". `dvc repro` goes on")
    assert done.returncode == -signal.SIGINT


def test_ctrl_c_while_torch_is_imported_is_one_line_too(reproduced: Reproduced) -> None:
    started = subprocess.Popen(
        [sys.executable, "pipelines/evaluate.py", "phase1"],
        cwd=reproduced.project.folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    deadline = time.monotonic() + 120
    while "libtorch" not in Path(f"/proc/{started.pid}/maps").read_text():
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(started.pid, signal.SIGINT)
    _, errors = started.communicate(timeout=120)
    assert "Traceback" not in errors
    assert "evaluate phase1: interrupted; " in errors
