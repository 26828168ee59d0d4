"""What changed code does to what is finished: only what it decides runs again, and no finished run is lost."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from project import Project, Reproduced, environment, stages_run


def own_code(project: Project) -> dict[str, str]:
    """An environment in which the project runs its own copy of the package, which a test can edit."""
    return environment() | {"PYTHONPATH": str(project.folder)}


def edit(project: Project, name: str) -> None:
    """Add a comment to a file of the project."""
    file = project.folder / name
    file.write_text(f"{file.read_text()}# edited\n")


def repro(project: Project, *targets: str) -> tuple[list[str], str]:
    """The stages that a `dvc repro` of the project's own code runs, and what it prints."""
    done = subprocess.run(
        ["dvc", "repro", *targets], cwd=project.folder, env=own_code(project), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return stages_run(done.stdout), done.stdout


@pytest.fixture(scope="module")
def kept(pristine: Reproduced, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished project of its own whose recipe keeps finished runs whatever their code."""
    project = pristine.project.copy(tmp_path_factory.mktemp("kept") / "project")
    project.change({"runtime": {"changed_code": "keep"}})
    assert repro(project)[0] == []
    return project


@pytest.mark.parametrize(
    "name", ["azneobert/training/progress.py", "azneobert/checkpoint/convert.py", "azneobert/tracking/tracker.py"]
)
def test_code_that_decides_no_number_makes_no_stage_run_again(name: str, kept: Project) -> None:
    edit(kept, name)
    assert repro(kept)[0] == []


def test_a_finished_run_is_kept_when_its_code_changes_and_nothing_after_it_runs(kept: Project) -> None:
    before = {f: f.stat().st_mtime_ns for f in (kept.folder / "outputs/sample/running").rglob("*.safetensors")}
    edit(kept, "azneobert/engine/optim.py")
    ran, printed = repro(kept)
    assert ran == ["phase1@sample", "phase2@sample"]
    assert printed.count("complete, by other code than today's; kept") == 2
    after = {f: f.stat().st_mtime_ns for f in (kept.folder / "outputs/sample/running").rglob("*.safetensors")}
    assert after == before
    assert repro(kept)[0] == []


def test_a_finished_run_that_is_in_the_cache_alone_comes_back_from_there(kept: Project) -> None:
    # As in a clone that has pulled: there is no run in progress, and DVC deletes the outputs before the stage runs.
    shutil.rmtree(kept.folder / "outputs/sample/running")
    edit(kept, "azneobert/engine/optim.py")
    ran, printed = repro(kept)
    assert ran == ["phase1@sample", "phase2@sample"]
    assert printed.count("brought back from there") == 2
    assert printed.count("complete, by other code than today's; kept") == 2
    assert repro(kept)[0] == []


def test_the_same_change_trains_anew_where_the_recipe_says_so_and_the_former_run_is_kept(kept: Project) -> None:
    project = kept.copy(kept.folder.with_name("retrain"))
    project.change({"runtime": {"changed_code": "retrain"}})
    edit(project, "azneobert/engine/optim.py")
    ran, printed = repro(project, "phase1")
    assert ran == ["phase1@sample"]
    assert "it is complete, and the code has changed since" in printed
    assert len(list((project.folder / "outputs/sample/running").glob("phase1.aside-*"))) == 1


def test_bytecode_beside_the_code_makes_no_stage_run_again(kept: Project) -> None:
    own = {k: v for k, v in own_code(kept).items() if k not in ("PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE")}
    subprocess.run(["python", "pipelines/register.py"], cwd=kept.folder, env=own, check=True, capture_output=True)
    assert list((kept.folder / "azneobert/registry/__pycache__").glob("*.pyc"))
    assert repro(kept)[0] == []


def test_a_run_of_before_that_lies_in_the_stage_s_output_goes_on_from_there(kept: Project) -> None:
    project = kept.copy(kept.folder.with_name("before"))
    root = project.folder / "outputs/sample"
    (root / "running/phase1/checkpoints").rename(root / "phase1/checkpoints")
    (root / "tracking").mkdir()
    (root / "running/phase1/tracking").rename(root / "tracking/phase1")
    shutil.rmtree(root / "running/phase1")
    printed = project.run("python", "pipelines/launch.py", "phase1").stdout
    assert "is in outputs/sample/running/phase1 from now on" in printed
    assert "complete already" in printed
    assert (root / "running/phase1/tracking/points.jsonl").is_file()
