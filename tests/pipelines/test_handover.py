"""The second person's first hour: clone, pull, and everything is there; also after a move, and in an experiment."""

from __future__ import annotations

import time
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from project import Project, Reproduced, stages_run

from azneobert.tracking.points import read_points

SENTENCE = "Bakı Azərbaycanın [MASK] şəhəridir."


@pytest.fixture(scope="module")
def handed_over(pristine: Reproduced, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project whose outputs lie in a remote, dvc.lock in git."""
    folder = tmp_path_factory.mktemp("handover")
    project = pristine.project.copy(folder / "project")
    project.run("dvc", "remote", "add", "-d", "storage", str(folder / "remote"))
    project.commit()
    project.run("dvc", "push", "-q")
    return project


@pytest.fixture
def clone(handed_over: Project, tmp_path: Path) -> Project:
    """A clone that has pulled."""
    project = handed_over.clone(tmp_path / "clone")
    project.run("dvc", "pull", "-q")
    return project


def experiment_runs(project: Project, name: str) -> list[Run]:
    """The runs of an experiment in the project's own MLflow."""
    client = mlflow.MlflowClient(f"sqlite:///{project.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("azneobert-finetuning")
    return list(client.search_runs([experiment.experiment_id], f"tags.`azneobert.experiment` = '{name}'"))


def test_a_clone_that_pulls_has_everything_and_trains_nothing(clone: Project, handed_over: Project) -> None:
    assert stages_run(clone.run("dvc", "repro").stdout) == []
    listed = clone.run("azneobert", "registry", "list").stdout
    assert listed.count("restored, sha256") == 2
    assert "@phase1" in listed
    assert "@phase2" in listed
    assert "phase" in clone.run("azneobert", "fill-mask", SENTENCE).stdout
    repeated = clone.run("azneobert", "registry", "restore").stdout.splitlines()
    assert len(repeated) == 6
    assert all("there already" in line for line in repeated[:5])
    assert "models:/azneobert-sample-punctuation/1" in repeated[5]
    assert not clone.run("git", "status", "--porcelain").stdout
    made = clone.run("make", "repro").stdout
    assert stages_run(made) == []
    assert "pretraining" in made


def test_it_works_where_it_is_moved_to_and_a_copy_leaves_the_original_alone(clone: Project, tmp_path: Path) -> None:
    clone.run("azneobert", "registry", "restore")
    clone.folder.rename(tmp_path / "moved")
    moved = Project(tmp_path / "moved")
    assert stages_run(moved.run("dvc", "repro").stdout) == []
    assert "@phase2" not in moved.run("azneobert", "registry", "list").stderr
    refused = moved.run("azneobert", "fill-mask", SENTENCE, check=False)
    assert refused.returncode == 1
    assert "`azneobert registry relocate`" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    moved.run("azneobert", "registry", "relocate")
    assert "probability" in moved.run("azneobert", "fill-mask", SENTENCE).stdout
    assert "nothing" in moved.run("azneobert", "registry", "relocate").stdout

    copy = moved.copy(tmp_path / "copy", relocate=False)
    before = contents(moved.folder / "mlruns")
    failed = copy.run("python", "pipelines/register.py", check=False)
    assert failed.returncode == 1
    assert "`azneobert registry relocate`" in failed.stderr
    copy.run("azneobert", "registry", "relocate")
    copy.change({"finetuning": {"batch_size": 8}})
    assert stages_run(copy.run("dvc", "repro").stdout) == ["finetune@punctuation"]
    assert contents(moved.folder / "mlruns") == before


def contents(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_an_experiment_in_a_folder_of_its_own_runs_fine_tuning_alone_and_uses_this_mlflow(clone: Project) -> None:
    clone.run("azneobert", "registry", "restore")
    ran = clone.run("dvc", "exp", "run", "--temp", "-n", "slower", "-S", "finetuning.learning_rate=1e-4").stdout
    assert stages_run(ran) == ["finetune@punctuation"]
    runs = experiment_runs(clone, "slower")
    assert [(run.info.run_name, run.info.status) for run in runs] == [
        ("punctuation models:/azneobert-sample/2 seed 1", "FINISHED")
    ]
    assert runs[0].info.artifact_uri.removeprefix("file://").startswith(str(clone.folder / "mlruns"))
    shown = clone.run("dvc", "exp", "show", "--only-changed", "--md").stdout
    assert "slower" in shown
    assert "punctuation.macro_f1" in shown
    assert "phase1.loss" not in shown
    difference = clone.run("dvc", "metrics", "diff", "HEAD", "slower").stdout
    assert "punctuation." in difference
    assert "phase" not in difference


def test_experiments_in_the_queue_do_so_too_and_one_that_fails_leaves_its_log(clone: Project) -> None:
    clone.run("azneobert", "registry", "restore")
    clone.run("dvc", "exp", "run", "--queue", "-n", "smaller", "-S", "finetuning.batch_size=8")
    clone.run("dvc", "exp", "run", "--queue", "-n", "astray", "-S", "finetuning.model=models:/nobody@phase2")
    clone.run("dvc", "queue", "start", "-j", "1")
    deadline = time.monotonic() + 500
    while "Queued" in (status := clone.run("dvc", "queue", "status").stdout) or "Running" in status:
        assert time.monotonic() < deadline, status
        time.sleep(2)
    clone.run("dvc", "queue", "stop", "--kill")
    assert [run.info.status for run in experiment_runs(clone, "smaller")] == ["FINISHED"], status
    error = clone.folder / "outputs/sample/failed/astray/error.txt"
    assert "models:/nobody@phase2" in error.read_text()
    assert "models:/nobody@phase2" in clone.run("dvc", "queue", "logs", "astray").stdout


def test_an_experiment_leaves_the_aliases_where_they_are(clone: Project) -> None:
    clone.run("azneobert", "registry", "restore")
    change = ["-S", "phase2.peak_learning_rate=1e-4"]
    ran = clone.run("dvc", "exp", "run", "--temp", "-n", "other", *change).stdout
    assert [stage for stage in stages_run(ran) if stage.startswith(("phase", "register"))] == [
        "phase2@sample",
        "register@sample",
    ]
    client = mlflow.MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    model = client.get_registered_model("azneobert-sample")
    assert {alias: str(number) for alias, number in model.aliases.items()} == {"phase1": "1", "phase2": "2"}
    assert [version.version for version in client.search_model_versions("name = 'azneobert-sample'")] != ["1", "2"]
    assert "models:/azneobert-sample/3" in experiment_runs(clone, "other")[0].data.tags["azneobert.model"]


def test_checkout_by_force_keeps_the_checkpoints_of_a_run_in_progress(clone: Project) -> None:
    clone.change({"phase1": {"steps": 4000, "peak_learning_rate": 1e-4}})
    running = clone.folder / "outputs/sample/running/phase1"
    started = clone.start("dvc", "repro", "phase1")
    deadline = time.monotonic() + 120
    while not any(running.glob("checkpoints/step-*")):
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (running / "stop").touch()
    assert started.wait(60)
    kept = {file: file.stat().st_size for file in running.glob("checkpoints/step-*/*")}
    assert kept
    clone.run("dvc", "checkout", "--force", "-q")
    assert {file: file.stat().st_size for file in running.glob("checkpoints/step-*/*")} == kept
    assert read_points(running / "tracking")
