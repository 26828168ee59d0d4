"""A run has an identity and a history: what trained which steps, and which points are whose."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from refusals import refused
from toy import STEPS, Toy

from azneobert.checkpoint.universal import copy_without_moments
from azneobert.errors import CheckpointError
from azneobert.tracking.points import read_points
from azneobert.tracking.record import read_record, read_run_id
from azneobert.training.folder import prepare_folder
from azneobert.training.inputs import Inputs
from azneobert.training.position import changes, with_defaults

MakeToy = Callable[..., Toy]


@pytest.fixture(scope="module")
def stopped(make_toy: MakeToy) -> Toy:
    toy = make_toy()
    assert not toy.train(stop_after=4)
    return toy


@pytest.fixture
def toy(stopped: Toy, tmp_path: Path) -> Toy:
    return stopped.copy_to(tmp_path / "run")


def history(toy: Toy) -> list[tuple[int, str, str, int | None]]:
    return [(s.from_step, s.code_sha256, s.engine, s.world_size) for s in toy.result()[1].segments]


def test_a_run_that_goes_on_unchanged_has_one_segment(toy: Toy) -> None:
    assert toy.train()
    assert history(toy) == [(0, "toy", "plain", 1)]
    assert {point["segment"] for point in read_points(toy.run().tracking)} == {0}


def test_other_code_is_another_segment_from_the_step_of_the_checkpoint_on(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = toy.inputs(code="edited")
    monkeypatch.setattr(Toy, "inputs", lambda self, *_: edited)
    assert toy.train()
    assert history(toy) == [(0, "toy", "plain", 1), (4, "edited", "plain", 1)]
    points = read_points(toy.run().tracking)
    assert {p["step"]: p["segment"] for p in points if p["step"] and "train/loss" in p["values"]} == {
        step: int(step > 4) for step in range(1, STEPS + 1)
    }


def test_another_number_of_processes_is_another_segment(toy: Toy) -> None:
    assert toy.with_({"runtime": {"processes": 2}}).train(processes=2)
    assert history(toy) == [(0, "toy", "plain", 1), (4, "toy", "plain", 2)]


def test_points_after_the_checkpoint_of_a_killed_run_are_the_new_segment_s(make_toy: MakeToy) -> None:
    # Checkpoints at 3 and 6; killed behind step 8, whose points stand until another segment trains these steps anew.
    toy = make_toy()
    assert toy.train(kill_after=8) == -signal.SIGKILL
    assert max(toy.losses()) >= 7
    changed = toy.with_({"training": {"weight_decay": 0.5}})
    assert changed.train(accept_changed=("training.weight_decay",))
    starts = [segment.from_step for segment in toy.result()[1].segments]
    assert starts == [0, 6]
    points = [p for p in read_points(toy.run().tracking) if "train/loss" in p["values"]]
    assert [p["step"] for p in points] == list(range(1, STEPS + 1))
    assert [p["segment"] for p in points] == [0] * 6 + [1] * (STEPS - 6)
    settings = {segment.settings for segment in toy.result()[1].segments}
    assert len(settings) == 2


def test_a_run_of_format_2_goes_on_with_its_lineage_as_the_first_segment(toy: Toy) -> None:
    newest = toy.checkpoints().steps()[-1]
    content = json.loads((newest / "manifest.json").read_text())
    (segment,) = content.pop("segments")
    del content["sha256"], content["moments"]
    content["format_version"] = 2
    content["lineage"] |= {key: segment[key] for key in ("git_commit", "git_dirty", "code_sha256", "versions")}
    content["lineage"]["engine"] = {"name": "plain", "world_size": 1}
    (newest / "manifest.json").write_text(json.dumps(content))
    assert toy.train()
    assert history(toy) == [(0, "toy", "plain", 1), (4, "toy", "plain", 1)]
    first, second = toy.result()[1].segments
    assert (first.settings, len(second.settings)) == ("unknown", 64)  # what format 2 did not record
    assert toy.result()[1].format_version == 3


# Whose points


def runs_of(toy: Toy) -> list[str]:
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    experiment = client.get_experiment_by_name(toy.recipe.tracking.experiment)
    assert experiment is not None
    return [run.info.run_id for run in client.search_runs([experiment.experiment_id])]


def tracking_aside(toy: Toy) -> list[Path]:
    return list(toy.run().path.glob("tracking.aside-*"))


def test_points_of_a_run_whose_checkpoints_are_gone_are_not_another_run_s(make_toy: MakeToy) -> None:
    toy = make_toy()
    assert toy.train()
    former = toy.losses()
    shutil.rmtree(toy.run().checkpoints)
    other = toy.with_({"phase1": {"peak_learning_rate": 1e-4}})
    assert other.train()
    assert len(tracking_aside(toy)) == 1
    assert len(runs_of(toy)) == 2
    assert other.losses().keys() == former.keys()
    assert other.losses()[STEPS] != former[STEPS]


def test_the_same_run_begun_anew_keeps_its_points_and_its_run(make_toy: MakeToy) -> None:
    toy = make_toy()
    assert toy.train(kill_after=2) == -signal.SIGKILL
    assert toy.checkpoints().steps() == []
    run_id = read_run_id(toy.run().tracking)
    assert toy.train()
    assert read_run_id(toy.run().tracking) == run_id
    assert tracking_aside(toy) == []
    assert sorted(toy.losses()) == list(range(1, STEPS + 1))


def test_begun_anew_by_other_code_its_points_are_set_aside(make_toy: MakeToy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = make_toy()
    assert toy.train(kill_after=2) == -signal.SIGKILL
    edited = toy.inputs(code="edited")
    monkeypatch.setattr(Toy, "inputs", lambda self, *_: edited)
    assert toy.train()
    assert len(tracking_aside(toy)) == 1
    assert sorted(toy.losses()) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("same", [True, False])
def test_a_folder_of_before_is_adopted_if_its_run_is_the_checkpoint_s(same: bool, toy: Toy) -> None:
    run_id = read_run_id(toy.run().tracking)
    written = {"run_id": run_id if same else "another", "described": True}
    (toy.run().tracking / "run.json").write_text(json.dumps(written))
    assert toy.train()
    assert len(tracking_aside(toy)) == (0 if same else 1)
    record = read_record(toy.run().tracking)
    assert record is not None
    assert record.info.identity == toy.result()[1].identity
    assert (record.run_id == run_id) is same


# Identity


def test_a_setting_that_was_not_there_yet_counts_as_its_default(toy: Toy) -> None:
    identity = toy.result()[1].identity
    recorded = json.loads(json.dumps(identity))
    del recorded["phase"]["mixture"], recorded["phase"]["carry"]
    assert with_defaults(recorded) == identity
    assert changes(recorded, identity, ()) == []
    del recorded["phase"]["steps"]  # has none, and is named
    assert changes(recorded, identity, ()) != []


def test_a_setting_that_is_not_the_default_is_a_change(toy: Toy) -> None:
    identity = toy.result()[1].identity
    recorded = json.loads(json.dumps(identity))
    del recorded["phase"]["mixture"]
    mixture = [{"min_tokens": 0, "share": 1.0}]
    found = changes(recorded, identity | {"phase": identity["phase"] | {"mixture": mixture}}, ())
    assert len(found) == 1
    assert found[0].startswith("phase.mixture: None there")


# Moments


def test_a_phase_that_carries_moments_is_refused_a_checkpoint_without_them(make_toy: MakeToy) -> None:
    toy = make_toy()
    assert toy.train()
    finished = toy.folder / "phase1" / "checkpoint"
    lean = finished.with_name("lean")
    lean.mkdir()
    copy_without_moments(finished, lean)
    shutil.rmtree(finished)
    lean.rename(finished)
    with refused(CheckpointError, "holds no moments", "phase2.carry.moments: false"):
        toy.train("phase2")
    assert toy.with_({"phase2": {"carry": {"moments": False}}}).train("phase2")


def test_a_complete_run_of_other_code_is_as_the_recipe_says(make_toy: MakeToy) -> None:
    toy = make_toy()
    assert toy.train()
    keep = toy.with_({"runtime": {"changed_code": "keep"}})
    inputs: Inputs = replace(keep.inputs(), provenance={**keep.inputs().provenance, "code_sha256": "edited"})
    assert prepare_folder(inputs)
    assert not prepare_folder(replace(inputs, recipe=toy.recipe))
