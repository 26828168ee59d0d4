"""What a phase leaves for the stages after it, and for a person."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from toy import STEPS, Toy

from azneobert.checkpoint.manifest import verify_checkpoint
from azneobert.errors import CheckpointError, TrainingError
from azneobert.layout import finished_checkpoint
from azneobert.tracking.record import read_record
from azneobert.training.report import publish, write_report


@pytest.fixture(scope="module")
def finished(make_toy: Callable[..., Toy]) -> Toy:
    toy = make_toy()
    assert toy.train()
    return toy


def report(toy: Toy, folder: Path, plots: Path) -> dict[str, Any]:
    return write_report(toy.recipe, "phase1", folder, plots)


def test_the_report_holds_every_recorded_step_and_a_picture(finished: Toy, tmp_path: Path) -> None:
    metrics = report(finished, finished.folder / "phase1", tmp_path)
    with (tmp_path / "phase1.csv").open() as file:
        losses = {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}
    assert losses == finished.losses()
    assert metrics == {"phase1": {"loss": finished.losses(key="eval/loss")[STEPS]}}
    assert losses[STEPS] < losses[1]
    assert (tmp_path / "phase1.png").read_bytes().startswith(b"\x89PNG")


def test_the_curves_hold_nothing_of_the_machine_whatever_the_points_do(finished: Toy, tmp_path: Path) -> None:
    # As when a run goes on on a GPU whose peak is known, and then on another.
    points = [json.loads(line) for line in (finished.folder / "phase1" / "points.jsonl").read_text().splitlines()]
    for point in points:
        point.pop("crc", None)
        if point["step"] in (4, 5) and "train/loss" in point["values"]:
            point["values"]["train/mfu"] = 0.5
        if point["step"] == 7:
            point["values"].pop("train/loader_share", None)
    (tmp_path / "points.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    report(finished, tmp_path, tmp_path / "plots")
    with (tmp_path / "plots" / "phase1.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert set(rows) == set(range(1, STEPS + 1))
    assert {name for row in rows.values() for name in row} == {"step", "loss", "grad_norm", "lr", "tokens"}


def test_a_step_whose_loss_was_no_number_is_no_point_of_the_curve(finished: Toy, tmp_path: Path) -> None:
    points = [json.loads(line) for line in (finished.folder / "phase1" / "points.jsonl").read_text().splitlines()]
    for point in points:
        point.pop("crc", None)
        if point["step"] == 5:
            point["values"].pop("train/loss", None)
    points.append({"step": 5, "time_ms": 1, "segment": 0, "values": {"guards/skipped_updates": 1.0}})
    (tmp_path / "points.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    report(finished, tmp_path, tmp_path / "plots")
    with (tmp_path / "plots" / "phase1.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [n for n in range(1, STEPS + 1) if n != 5]


def test_a_held_out_loss_that_is_no_number_is_no_metric(finished: Toy, tmp_path: Path) -> None:
    points = (finished.folder / "phase1" / "points.jsonl").read_text().splitlines()
    last = json.loads(points[-1])
    last.pop("crc")
    last["values"]["eval/loss"] = float("nan")
    (tmp_path / "points.jsonl").write_text("\n".join([*points[:-1], json.dumps(last)]) + "\n")
    with refused(TrainingError, str(tmp_path), "the held-out loss at the end is nan"):
        report(finished, tmp_path, tmp_path / "plots")


def test_a_run_without_its_points_is_refused_in_one_line(finished: Toy, tmp_path: Path) -> None:
    with refused(TrainingError, "points.jsonl", "no points", "bring the run's folder along"):
        report(finished, tmp_path / "nothing", tmp_path / "plots")
    assert not (tmp_path / "plots").exists()


def test_what_a_finished_run_leaves_is_its_last_checkpoint_and_its_record_and_no_link(
    finished: Toy, tmp_path: Path
) -> None:
    publish(finished.run(), tmp_path)
    checkpoint, manifest = finished_checkpoint(tmp_path)
    assert manifest.step == STEPS
    assert verify_checkpoint(checkpoint) == finished.result()[1]
    assert (tmp_path / "points.jsonl").read_bytes() == (finished.run().tracking / "points.jsonl").read_bytes()
    assert read_record(tmp_path) == read_record(finished.run().tracking)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert all(file.stat().st_nlink == 1 for file in files)
    assert {file.parent.name for file in files} == {"checkpoint", tmp_path.name}
    publish(finished.run(), tmp_path)  # once more, over it
    assert finished_checkpoint(tmp_path)[1] == manifest


def test_a_finished_checkpoint_that_is_damaged_or_absent_is_refused_by_name(finished: Toy, tmp_path: Path) -> None:
    with refused(CheckpointError, "phase1/checkpoint", "no finished checkpoint", "dvc repro phase1"):
        finished_checkpoint(tmp_path / "phase1")
    shutil.copytree(finished.folder / "phase1", tmp_path / "phase1")
    weights = tmp_path / "phase1" / "checkpoint" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    with refused(CheckpointError, "weights.safetensors", "changed", "`azneobert cache check`, then `dvc repro phase1`"):
        finished_checkpoint(tmp_path / "phase1")
