"""Two runs side by side: what differs, the figures, the picture, and which runs are meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from refusals import refused
from stores_of_runs import DOWN, INFO, runs_of, tracking_at

from azneobert.errors import RegistryError
from azneobert.tracking.compare import compared_runs, differing_params, draw_curves, paired_figures
from azneobert.tracking.published import publish_record, restore_run
from azneobert.tracking.record import FINETUNING, RunInfo, tracking_of, update_record
from azneobert.tracking.tracker import Tracker


def record(folder: Path, uri: str, name: str, rate: float, tokens: int, steps: int = 30) -> str | None:
    params = {"phase": {"peak_learning_rate": rate}, "seed": 7} | ({"extra": "yes"} if rate < 1e-3 else {})
    tracker = Tracker(folder, tracking_at(uri), RunInfo(name, params))
    for step in range(1, steps + 1):
        tracker.log(step, {"train/loss": 5.0 / step, "train/tokens": float(step * tokens), "train/mfu": 0.5})
    tracker.log(steps, {"eval/loss": rate, "eval/accuracy": 0.5, "eval/loss/news": 1.0})
    tracker.finish("FINISHED")
    return tracker.run_id


def test_settings_figures_and_curves(mlflow_uri: str, tmp_path: Path) -> None:
    one = record(tmp_path / "1", mlflow_uri, "one", 1e-3, 1024)
    record(tmp_path / "2", mlflow_uri, "two", 5e-4, 2048, steps=20)
    a, b = compared_runs(tracking_at(mlflow_uri), [str(one)[:12], "two"])
    assert (a.name, a.id, b.name) == ("one", one, "two")
    assert differing_params(a, b) == [("extra", "", "yes"), ("phase.peak_learning_rate", "0.001", "0.0005")]
    assert paired_figures(a, b) == [
        ("train/loss", 5 / 30, 5 / 20),
        ("validation/loss", 1e-3, 5e-4),
        ("validation/accuracy", 0.5, 0.5),
        ("train/optimizer/tokens", 30 * 1024, 20 * 2048),
        ("train/speed/mfu", 0.5, 0.5),
    ]
    assert a.by_steps == [(step, 5.0 / step) for step in range(1, 31)]
    assert b.by_tokens == [(step * 2048, 5.0 / step) for step in range(1, 21)]
    draw_curves(tmp_path / "both.png", [a, b])
    draw_curves(tmp_path / "again.png", [a, b])
    draw_curves(tmp_path / "other.png", [a, a])
    pictures = [(tmp_path / f"{name}.png").read_bytes() for name in ("both", "again", "other")]
    assert pictures[0].startswith(b"\x89PNG")
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_step_that_was_recorded_anew_after_a_rewind_stands_once(mlflow_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    tracker.log(1, {"train/loss": 1.0})
    tracker.log(2, {"train/loss": 99.0})
    tracker.deliver()
    tracker.begin_segment(1)
    tracker.log(2, {"train/loss": 2.0})
    tracker.finish("FINISHED")
    [run] = compared_runs(tracking_at(mlflow_uri), [INFO.name])
    assert run.by_steps == [(1, 1.0), (2, 2.0)]


def test_who_is_meant_is_one_line_with_what_there_is(mlflow_uri: str, tmp_path: Path) -> None:
    with refused(RegistryError, mlflow_uri, "has no runs"):
        compared_runs(tracking_at(mlflow_uri), ["one"])
    ids = [record(tmp_path / str(number), mlflow_uri, "same", 1e-3, 8, steps=1) for number in range(2)]
    with refused(RegistryError, "same is 2 runs", "use an id of", *map(str, ids)):
        compared_runs(tracking_at(mlflow_uri), ["same", str(ids[0])])
    for unknown in ("other", "", "f" * 32):
        with refused(RegistryError, f"no run {unknown}", "expected a name or an id of same ("):
            compared_runs(tracking_at(mlflow_uri), [unknown, str(ids[0])])
    with refused(RegistryError, f"MLflow at {DOWN}"):
        compared_runs(tracking_at(DOWN), ["same", "same"])


@pytest.fixture
def fine_tuned(mlflow_uri: str, tmp_path: Path) -> Path:
    info = replace(INFO, name="punctuation models:/toybert/1 seed 1", group=FINETUNING)
    tracker = Tracker(tmp_path / "tuned", tracking_at(mlflow_uri), info)
    tracker.log(0, {"test/accuracy/pretrained": 0.75})
    tracker.finish("FINISHED")
    return tmp_path / "tuned"


def test_fine_tuning_has_an_experiment_of_its_own_and_is_compared_by_all_its_figures(
    fine_tuned: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    assert runs_of(mlflow_uri) == []
    asked = ["punctuation models:/toybert/1 seed 1"] * 2
    a, b = compared_runs(tracking_at(mlflow_uri), asked)
    assert paired_figures(a, b) == [("test/accuracy/pretrained", 0.75, 0.75)]
    with refused(RegistryError, "has no points of train/loss", "leave out --output"):
        draw_curves(tmp_path / "both.png", [a, b])


def test_fine_tuning_that_is_restored_goes_to_the_same_experiment(
    fine_tuned: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    publish_record(fine_tuned, tmp_path / "published")
    update_record(tmp_path / "published", run_id=None)
    other = tracking_at(mlflow_uri, experiment="elsewhere")
    run_id, made = restore_run(tmp_path / "published", other)
    assert made
    assert restore_run(tmp_path / "published", other) == (run_id, False)
    [run] = compared_runs(other, [run_id])
    assert tracking_of(RunInfo("", group=FINETUNING), other).experiment == "elsewhere-finetuning"
    [first] = compared_runs(tracking_at(mlflow_uri), ["punctuation models:/toybert/1 seed 1"])
    assert run.experiment != first.experiment
