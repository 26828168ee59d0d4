"""`make report`: what a change does to the numbers, and nothing left of how it was found."""

from __future__ import annotations

import importlib
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from project import ROOT, Project, Reproduced, stages_run


@pytest.fixture
def clone(pristine: Reproduced, tmp_path: Path) -> Project:
    """The toy project with its cache and without the rest: neither outputs nor an MLflow store, as on a CI machine."""
    project = pristine.project.copy(tmp_path / "project", relocate=False)
    shutil.rmtree(project.folder / "outputs")
    shutil.rmtree(project.folder / "mlruns")
    (project.folder / "mlflow.db").unlink()
    return project


def worktrees(project: Project) -> list[str]:
    return project.run("git", "worktree", "list").stdout.splitlines()


def test_the_report_of_a_change_of_fine_tuning_shows_its_figures_alone(clone: Project) -> None:
    clone.change({"finetuning": {"learning_rate": 5.0e-3}})
    clone.commit()
    printed = clone.run("make", "report", "BASE=HEAD~1").stdout
    base, change = printed.split("\nchange: ", 1)
    assert stages_run(base) == [], "the cache has all of it"
    # The cache knows what is registered, and no store of this machine does: it is told before the fine-tuning.
    assert stages_run(change) == ["finetune@punctuation"]

    page = (clone.folder / "report/report.md").read_text()
    metrics, params = re.findall(r"^## (?:Metrics|Parameters)\n\n(.*?)\n\n", page, re.M | re.S)
    header, _, *rows = metrics.splitlines()
    assert [word.strip() for word in header.strip("|").split("|")] == ["Path", "Metric", "base", "change", "Change"]
    assert rows
    assert all("finetune" in row for row in rows), metrics
    assert re.findall(r"finetuning\.learning_rate +\| 0\.0005 +\| 0\.005", params)
    assert len(params.splitlines()) == 3

    linked = re.findall(r"\]\((.*?)\)", page)
    assert linked == [f"{side}/phase{n}.png" for n in (1, 2) for side in ("base", "change")]
    assert all((clone.folder / "report" / link).is_file() for link in linked)
    comment = (clone.folder / "report/comment.md").read_text()
    assert metrics in comment
    assert "](" not in comment

    assert "not committed" not in page
    assert len(worktrees(clone)) == 1
    assert clone.run("git", "status", "--porcelain").stdout.split() in ([], ["M", "dvc.lock"])


@pytest.mark.parametrize("table", ["", "| Path | Metric | 0123 | workspace | Change |\n|--|--|--|--|--|"])
def test_where_nothing_differs_the_page_says_so(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / ".github")
    script = importlib.import_module("report")
    monkeypatch.setattr(script, "tell", lambda *command: table)
    assert script.differences("metrics", "0123") == "None differs."


def test_a_base_that_is_no_commit_is_one_line_and_a_former_report_stays(clone: Project) -> None:
    (clone.folder / "report").mkdir()
    done = clone.run("python", ".github/report.py", "origin/nowhere", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: BASE origin/nowhere: no such commit here; ")
    assert (clone.folder / "report").is_dir()


def test_a_folder_that_is_no_repository_is_one_line(tmp_path: Path, clone: Project) -> None:
    shutil.move(clone.folder / ".git", tmp_path / "away")
    done = clone.run("python", ".github/report.py", "HEAD", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "git knows no repository here" in done.stderr


def test_a_base_that_cannot_be_reproduced_is_named_and_its_worktree_removed(clone: Project) -> None:
    clone.change({"data": {"files": {"cc100": {"path": "data/nowhere"}}}})
    clone.commit()
    done = clone.run("python", ".github/report.py", "HEAD", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: base: it cannot be reproduced")
    assert "Traceback" not in done.stderr
    assert len(worktrees(clone)) == 1


def test_the_base_runs_its_own_code(clone: Project) -> None:
    package = clone.folder / "azneobert/__init__.py"
    before = package.read_text()
    package.write_text(f'{before}\nraise SystemExit("error: the code of the base")\n')
    clone.commit()
    package.write_text(before)
    done = clone.run("python", ".github/report.py", "HEAD", check=False)
    assert done.stderr.splitlines()[0] == "error: the code of the base"
    assert done.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_report_that_is_stopped_leaves_no_worktree(clone: Project, number: signal.Signals) -> None:
    clone.change({"phase1": {"steps": 100_000}})
    clone.commit()
    started = clone.start("python", ".github/report.py", "HEAD")
    try:
        deadline = time.monotonic() + 120
        while len(found := worktrees(clone)) == 1 or not training(Path(found[1].split()[0])):
            assert started.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        base = Path(found[1].split()[0])
        started.send_signal(number)
        assert started.wait(120) == 1
    finally:
        started.terminate()
        started.wait()
    assert len(worktrees(clone)) == 1
    assert not base.parent.exists()


def training(folder: Path) -> bool:
    """Whether phase 1 has begun to train in a folder."""
    return (folder / "outputs/sample/running/phase1/tracking/points.jsonl").is_file()
