"""The main job, at toy size, through the commands that a user types."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import mlflow
import pytest
from project import COLLECTIONS, Reproduced, stages_run

from azneobert.checkpoint.manifest import read_manifest
from azneobert.environment import EXIT_STOPPED
from azneobert.tracking.points import read_points
from azneobert.tracking.record import read_record, read_run_id

STAGES_OF_A_REPRO = len(COLLECTIONS) + 1 + 1 + len(COLLECTIONS) + 2 + 2 + 2 + 1 + 1


def test_make_repro_runs_every_stage_and_says_where_to_look_next(reproduced: Reproduced) -> None:
    assert len(stages_run(reproduced.printed)) == STAGES_OF_A_REPRO
    for hint in ("azneobert ui", "models:/azneobert-sample/2", "phase1.png", "azneobert fill-mask"):
        assert hint in reproduced.printed
    assert "up to date" in reproduced.project.run("dvc", "status").stdout


def test_both_phases_are_registered_and_load_without_remote_code(reproduced: Reproduced, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    listed = reproduced.project.run("azneobert", "registry", "list").stdout
    assert "phase1" in listed
    assert "phase2" in listed
    reproduced.project.run("azneobert", "registry", "pull", "models:/azneobert-sample@phase2", str(tmp_path / "model"))
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", trust_remote_code=False)
    assert model.config.hidden_size == 32
    asked = ("pull", "models:/azneobert-sample@phase2", str(tmp_path / "checkpoint"), "--checkpoint", "--no-moments")
    reproduced.project.run("azneobert", "registry", *asked)
    reproduced.project.run("azneobert", "checkpoint", "verify", str(tmp_path / "checkpoint"))


def test_mlflow_itself_downloads_the_same_bytes(reproduced: Reproduced, tmp_path: Path) -> None:
    uri = "models:/azneobert-sample@phase1"
    reproduced.project.run("azneobert", "registry", "pull", uri, str(tmp_path / "ours"))
    reproduced.project.run(
        "mlflow", "artifacts", "download", "--artifact-uri", uri, "--dst-path", str(tmp_path / "theirs")
    )
    ours = {f.relative_to(tmp_path / "ours"): f.read_bytes() for f in (tmp_path / "ours").rglob("*") if f.is_file()}
    theirs = {
        f.relative_to(tmp_path / "theirs"): f.read_bytes() for f in (tmp_path / "theirs").rglob("*") if f.is_file()
    }
    assert theirs.keys() - ours.keys() == {Path("registered_model_meta")}, "MLflow says which version it is"
    assert {name: theirs[name] for name in ours} == ours


def test_the_checkpoint_names_commit_tokens_and_run(reproduced: Reproduced) -> None:
    folder = reproduced.project.folder
    manifest = read_manifest(folder / "outputs/sample/phase2/checkpoint")
    assert len(manifest.segments[-1].git_commit) == 40
    assert set(manifest.lineage["tokens_md5"]) == set(manifest.recipe["data"]["order"])
    assert all(md5.endswith(".dir") for md5 in manifest.lineage["tokens_md5"].values())
    assert manifest.lineage["mlflow_run_id"] == read_run_id(folder / "outputs/sample/running/phase2/tracking")
    assert manifest.lineage["started_from"]["phase"] == "phase1"
    assert manifest.lineage["started_from"]["step"] == 12


def test_mlflow_holds_one_run_a_phase_with_curve_settings_and_lineage(reproduced: Reproduced) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{reproduced.project.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("azneobert")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"sample-phase1", "sample-phase2"}
    of_all = client.search_runs([client.get_experiment_by_name("azneobert-finetuning").experiment_id])
    [tuned] = [run for run in of_all if "azneobert.experiment" not in run.data.tags]  # others may have tried things
    assert tuned.info.run_name == "punctuation models:/azneobert-sample/2 seed 1"
    runs[tuned.info.run_name] = tuned
    phase1 = runs["sample-phase1"]
    assert phase1.info.status == "FINISHED"
    assert all(run.info.end_time > run.info.start_time for run in runs.values())
    assert "phase1 of recipe sample" in phase1.data.tags["mlflow.note.content"]
    assert not [tag for run in runs.values() for tag in run.data.tags.values() if tag.startswith(("{", "["))]
    assert phase1.data.params["model.hidden_size"] == "32"
    assert len(phase1.data.tags["azneobert.git_commit"]) == 40
    history = client.get_metric_history(phase1.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 13))
    attached = {artifact.path for artifact in client.list_artifacts(phase1.info.run_id)}
    assert {"phase1.png", "recipe.yaml", "lineage.json"} <= attached


def test_the_reports_hold_documents_fertility_and_rows(reproduced: Reproduced) -> None:
    reports = reproduced.project.folder / "outputs/sample/reports"
    cc100 = json.loads((reports / "documents/cc100.json").read_text())
    assert cc100["documents"] == cc100["kept"] + sum(cc100["dropped"].values())
    assert cc100["dropped"]["language"] > 0
    fertility = json.loads((reports / "tokenizer.json").read_text())
    assert all({"azneobert", "qwen3.5", "deepseek-v4"} <= set(figures) for figures in fertility.values())
    rows = json.loads((reports / "rows/phase2.json").read_text())
    assert sum(share for key, share in rows.items() if key.startswith("share/")) == pytest.approx(1, abs=1e-3)
    client = mlflow.MlflowClient(f"sqlite:///{reproduced.project.folder}/mlflow.db")
    run = client.get_run(str(read_run_id(reproduced.project.folder / "outputs/sample/running/phase2/tracking")))
    assert run.data.params["rows.rows"] == str(rows["rows"])


def test_tokens_exist_once_in_the_cache_and_the_workspace(reproduced: Reproduced) -> None:
    for array in (reproduced.project.folder / "outputs/sample/tokens").rglob("tokens.npy"):
        assert array.stat().st_nlink >= 2, "a copy of the cache, not a link to it"
    assert "is whole" in reproduced.project.run("azneobert", "data", "verify").stdout


def test_a_second_make_repro_runs_nothing(reproduced: Reproduced) -> None:
    assert stages_run(reproduced.project.run("make", "repro").stdout) == []


def test_metrics_parameters_and_offline_plots_show(reproduced: Reproduced) -> None:
    project = reproduced.project
    metrics = json.loads(project.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    numbers = [key for file in metrics.values() for key, value in file["data"].items()]
    assert sorted(numbers) == [*("phase1", "phase1", "phase2", "phase2"), "punctuation", "tokens_per_word"]
    columns = project.run("dvc", "metrics", "show").stdout.splitlines()[0].split()
    assert {"phase2.loss", "phase2.masked_perplexity", "phase2.loss_by_length.0000-0127"} <= set(columns)
    assert len(columns) <= 16, "few: they have a column each"
    page = (project.folder / project.run("dvc", "plots", "show").stdout.strip().removeprefix("file://")).read_text()
    assert not re.search(r"<script[^>]+src=", page), "a page that loads a script does not work offline"
    assert page.count("vegaEmbed('#") >= 3
    assert page.count("<img") >= 2


def test_params_diff_and_exp_run_take_a_changed_number(reproduced: Reproduced) -> None:
    project = reproduced.project
    project.change({"finetuning": {"batch_size": 8}})
    assert "finetuning.batch_size" in project.run("dvc", "params", "diff").stdout
    project.run("git", "checkout", "-q", "params.yaml")
    ran = project.run("dvc", "exp", "run", "-S", "finetuning.batch_size=32").stdout
    assert stages_run(ran) == ["finetune@punctuation"]
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")


def test_how_a_run_is_carried_out_makes_no_stage_run_again(reproduced: Reproduced) -> None:
    project = reproduced.project
    project.change({"runtime": {"log_every": 2, "keep_checkpoints": 5, "checkpoint_every": 3}})
    try:
        assert "up to date" in project.run("dvc", "status").stdout
        project.change({"tracking": {"wandb_project": "other"}})
        status = project.run("dvc", "status").stdout
    finally:
        project.run("git", "checkout", "-q", "params.yaml")
    assert [line for line in status.splitlines() if line.startswith("phase") or line.startswith("evaluate")] == []


def test_a_changed_number_runs_the_stages_that_depend_on_it_and_no_other(reproduced: Reproduced) -> None:
    project = reproduced.project
    project.change({"phase2": {"peak_learning_rate": 1.0e-4}})
    try:
        ran = stages_run(project.run("dvc", "repro").stdout)
    finally:
        project.run("git", "checkout", "-q", ".")
    assert ran == ["phase2@sample", "evaluate@sample-phase2", "register@sample", "finetune@punctuation"]
    assert list((project.folder / "outputs/sample/running").glob("phase2.aside-*")), "the former run must be kept"
    project.run("dvc", "checkout", "-q")
    assert stages_run(project.run("dvc", "repro").stdout) == []
    # The alias is where it was put last, at version 3; fine-tuning takes the version that this pipeline registered.
    project.change({"finetuning": {"batch_size": 8}})
    try:
        assert stages_run(project.run("dvc", "repro").stdout) == ["finetune@punctuation"]
        record = read_record(project.folder / "outputs/sample/finetune/punctuation")
        assert record is not None
        assert record.info.tags["azneobert.model"] == "models:/azneobert-sample/2"
    finally:
        project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")
    project.run("python", "pipelines/register.py")


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"phase1": {"sequence_length": 4096}}, ["params.yaml", "phase1.sequence_length 4096", "use 512 or less"]),
        ({"runtime": {"processes": 3}}, ["phase1.global_batch 8", "3 processes", "6 or 9"]),
        ({"data": {"files": {"cc100": {"path": "data/nowhere"}}}}, ["data/nowhere", "no such source"]),
        ({"tokenizer": {"vocab_size": 401}}, ["tokenizer.vocab_size 401", "model.vocab_size 400"]),
    ],
)
def test_bad_input_is_refused_before_any_stage_runs(reproduced: Reproduced, edits: dict, words: list[str]) -> None:
    project = reproduced.project
    project.change(edits)
    try:
        done = project.run("make", "repro", check=False)
    finally:
        project.run("git", "checkout", "-q", "params.yaml")
    assert done.returncode != 0
    assert stages_run(done.stdout) == []
    assert "Traceback" not in done.stderr
    error = next(line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert all(word in error for word in words), error


def test_a_truncated_token_store_stops_the_training_stage_in_one_line(reproduced: Reproduced, tmp_path: Path) -> None:
    project = reproduced.project.copy(tmp_path / "project")
    tokens = project.folder / "outputs/sample/tokens/wikipedia/train/tokens.npy"
    content = tokens.read_bytes()
    tokens.unlink()
    tokens.write_bytes(content[:-100])
    before = sorted((project.folder / "outputs/sample/running/phase1/checkpoints").rglob("*"))
    (project.folder / "outputs/sample/running/phase1/stop").touch()  # which makes no stop of a failure
    done = project.run("python", "pipelines/launch.py", "phase1", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "tokens.npy" in done.stderr
    assert "truncated" in done.stderr
    assert sorted((project.folder / "outputs/sample/running/phase1/checkpoints").rglob("*")) == before


def test_two_zero2_ranks_stop_at_sigterm_with_a_checkpoint_and_one_plain_process_goes_on(
    reproduced: Reproduced, tmp_path: Path
) -> None:
    project = reproduced.project.copy(tmp_path / "project")
    outputs = project.folder / "outputs/sample"
    running = outputs / "running/phase1"
    shutil.rmtree(running)
    project.change({"phase1": {"steps": 500}, "runtime": {"engine": "zero2", "processes": 2, "checkpoint_every": 1000}})
    started = project.start("python", "pipelines/launch.py", "phase1")
    deadline = time.monotonic() + 120
    while not any(point["step"] >= 5 for point in read_points(running / "tracking")):
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == EXIT_STOPPED
    (checkpoint,) = (running / "checkpoints").glob("step-*")
    manifest = read_manifest(checkpoint)
    assert 5 <= manifest.step < 500
    assert [(each.engine, each.world_size) for each in manifest.segments] == [("zero2", 2)]
    project.change({"runtime": {"engine": "plain", "processes": 1}})
    project.run("python", "pipelines/launch.py", "phase1")
    steps = [p["step"] for p in read_points(running / "tracking") if "train/loss" in p["values"]]
    assert steps == list(range(1, 501))


def test_killed_with_9_and_repeated_it_ends_with_the_same_loss_to_the_last_bit(
    pristine: Reproduced, tmp_path: Path
) -> None:
    project = pristine.project.copy(tmp_path / "project")
    shutil.rmtree(project.folder / "outputs/sample/running/phase1")
    project.change({"phase1": {"steps": 60}, "runtime": {"checkpoint_every": 7}})
    points = project.folder / "outputs/sample/running/phase1/tracking"
    started = project.start("make", "repro")
    deadline = time.monotonic() + 300
    while not any(point["step"] >= 25 for point in read_points(points)):
        assert started.poll() is None, "make repro ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    wait_for_group(started.pid)  # DVC takes a lock for held as long as its process has not been reaped
    assert not (project.folder / "outputs/sample/metrics/phase1.json").exists()

    project.run("dvc", "repro", "phase1")
    interrupted = read_points(points)
    run_id = read_run_id(points)
    losses = {point["step"]: point["values"]["train/loss"] for point in interrupted if "train/loss" in point["values"]}
    client = mlflow.MlflowClient(f"sqlite:///{project.folder}/mlflow.db")
    history = client.get_metric_history(run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 61)), "one MLflow run, each step once"

    points.parent.rename(points.parent.with_name("interrupted"))
    (project.folder / "dvc.lock").unlink()  # or what the run has left would come back from the cache
    project.run("python", "pipelines/launch.py", "phase1")
    whole = {p["step"]: p["values"]["train/loss"] for p in read_points(points) if "train/loss" in p["values"]}
    assert whole == losses


def wait_for_group(group: int, seconds: float = 60) -> None:
    """Until no process of a group that was killed is left."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes of group {group} are still there")
