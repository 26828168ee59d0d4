"""What a phase leaves for a person."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

from refusals import refused
from toy import STEPS, Toy

from azneobert.errors import TrainingError
from azneobert.training.report import write_report


def test_the_report_holds_every_recorded_step_and_a_picture(make_toy: Callable[..., Toy], tmp_path: Path) -> None:
    toy = make_toy()
    assert toy.train()
    metrics = write_report(toy.inputs(), tmp_path / "plots")
    with (tmp_path / "plots" / "phase1.csv").open() as file:
        losses = {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}
    assert losses == toy.losses()
    assert metrics["steps"] == STEPS
    assert metrics["train_loss"] == losses[STEPS]
    assert (tmp_path / "plots" / "phase1.png").read_bytes().startswith(b"\x89PNG")


def test_a_complete_run_without_its_points_is_refused_in_one_line(make_toy: Callable[..., Toy], tmp_path: Path) -> None:
    toy = make_toy()
    assert toy.train()
    shutil.rmtree(toy.inputs().tracking)
    with refused(TrainingError, "tracking/phase1", "no points", "bring that folder along"):
        write_report(toy.inputs(), tmp_path / "plots")
    assert not (tmp_path / "plots").exists()
