"""`azneobert runs`: what it delivers and compares, a line a run, one line and exit code 1 where MLflow is away."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from refusals import refused
from toy import toy_recipe
from typer.testing import CliRunner

from azneobert import cli
from azneobert.errors import RegistryError
from azneobert.recipe import Recipe
from azneobert.tracking.record import RunInfo, read_record, read_run_id, update_record
from azneobert.tracking.tracker import Tracker
from azneobert.yaml_files import write_yaml

DOWN = "http://127.0.0.1:9"  # nobody listens there


@pytest.fixture
def recipe(mlflow_uri: str) -> Recipe:
    """A project in the current folder, whose MLflow is there."""
    recipe = toy_recipe({"tracking": {"mlflow_uri": mlflow_uri}})
    write_yaml(Path("params.yaml"), recipe.model_dump(mode="json"))
    return recipe


def run_without_mlflow(folder: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", DOWN)
        tracker = Tracker(folder, recipe.tracking, RunInfo(folder.parent.name))
        tracker.log(1, {"a": 1.0})
        tracker.log(2, {"a": 2.0})
        tracker.finish("FINISHED")


def deliver() -> tuple[int, list[str]]:
    result = CliRunner().invoke(cli.app, ["runs", "deliver"])
    return result.exit_code, result.output.splitlines()


def test_what_waits_is_said_once_also_of_a_run_that_was_set_aside(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deliver() == (0, ["outputs/toy: no runs there"])
    places = [Path("outputs/toy/running/phase1/tracking"), Path("outputs/toy/running/phase1/tracking.aside-1")]
    for place in places:
        run_without_mlflow(place, recipe, monkeypatch)
    assert deliver() == (0, [f"{place}: delivered 2 points" for place in places])
    assert deliver() == (0, [f"{place}: all there" for place in places])
    client = MlflowClient(recipe.tracking.mlflow_uri)
    for place in places:
        run = client.get_run(str(read_run_id(place)))
        assert (run.info.status, run.data.metrics) == ("FINISHED", {"a": 2.0})


def test_a_live_run_is_left_to_itself(recipe: Recipe) -> None:
    folder = Path("outputs/toy/running/phase1/tracking")
    tracker = Tracker(folder, recipe.tracking, RunInfo("phase1"))
    assert deliver() == (0, [f"{folder}: a process that is at work here delivers them itself"])
    tracker.finish("FINISHED")


def test_mlflow_that_does_not_answer_is_one_line(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for phase in ("phase1", "phase2"):
        run_without_mlflow(Path(f"outputs/toy/running/{phase}/tracking"), recipe, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DOWN)
    monkeypatch.setattr(sys, "argv", ["azneobert", "runs", "deliver"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert str(ended.value.code).startswith(f"error: MLflow at {DOWN}: ")
    assert "\n" not in str(ended.value.code)
    assert capsys.readouterr().out == ""


def test_a_run_that_mlflow_refuses_does_not_keep_back_the_others(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, fine = (Path(f"outputs/toy/running/{phase}/tracking") for phase in ("phase1", "phase2"))
    for folder in (refused, fine):
        run_without_mlflow(folder, recipe, monkeypatch)
    record = read_record(refused)
    assert record is not None
    update_record(refused, info=replace(record.info, tags={"a|b": "c"}))
    code, lines = deliver()
    assert code == 1
    [error, delivered] = sorted(lines)  # one stream each
    assert error.startswith(f"error: {refused}: MLflow at ")
    assert delivered == f"{fine}: delivered 2 points"


def compare(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["runs", "compare", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_two_runs_are_compared_by_settings_figures_addresses_and_a_picture(recipe: Recipe) -> None:
    for name, rate in (("first", 0.001), ("second", 0.0005)):
        tracker = Tracker(Path(name), recipe.tracking, RunInfo(name, {"phase": {"rate": rate}, "seed": 7}))
        for step in range(1, 4):
            tracker.log(step, {"train/loss": 5.0 / step, "train/tokens": step * 4096.0})
        tracker.finish("FINISHED")
    code, said = compare("first", "second", "--output", "both.png")
    assert code == 0
    [setting] = [line for line in said.splitlines() if "phase.rate" in line]
    assert "0.001" in setting
    assert "0.0005" in setting
    assert "seed" not in said
    [tokens] = [line for line in said.splitlines() if "train/optimizer/tokens" in line]
    assert tokens.count("12,288") == 2
    for against, metric in (("steps", "loss"), ("tokens", "loss_by_tokens")):
        [page] = [line for line in said.splitlines() if line.startswith(f"both curves against {against}: ")]
        assert f"/#/metric?runs=%5B%22{read_run_id(Path('first'))}%22%2C%22{read_run_id(Path('second'))}" in page
        assert f"metric=%22train%2F{metric}%22" in page
    assert "`azneobert ui`" in said
    assert Path("both.png").read_bytes().startswith(b"\x89PNG")
    code, said = compare("first", "first")
    assert "no setting differs" in said


def test_a_run_that_is_not_there_is_one_line(recipe: Recipe) -> None:
    with refused(RegistryError, "has no runs"):
        compare("first", "second")
