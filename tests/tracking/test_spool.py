"""Points survive on disk, each step once, and what is delivered is not offered again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from azneobert.tracking.spool import Spool, read_points


def test_points_survive_on_disk_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(1, {"train/loss": 5.5})
    spool.append(2, {"train/loss": 5.25, "train/lr": 0.125})
    points = read_points(tmp_path)  # while the spool is open: every point is on disk as soon as it is recorded
    assert [(p["step"], p["values"]) for p in points] == [
        (1, {"train/loss": 5.5}),
        (2, {"train/loss": 5.25, "train/lr": 0.125}),
    ]
    assert abs(points[0]["time_ms"] / 1000 - time.time()) < 60
    spool.close()


@pytest.mark.parametrize("torn", ['{"step": 3, "time_ms": 17', "{", '{"step": 3, "time_ms": 1, "values": {"a": 1.0}}'])
def test_a_torn_last_line_costs_that_point_and_no_other(torn: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(1, {"a": 1.0})
    spool.append(2, {"a": 2.0})
    spool.close()
    with (tmp_path / "points.jsonl").open("a") as file:
        file.write(torn)  # the process died before the end of the line
    again = Spool(tmp_path)
    assert again.append(3, {"a": 3.0}) == {"a": 3.0}
    again.close()
    assert [(p["step"], p["values"]["a"]) for p in read_points(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_step_that_is_recorded_already_stays_as_it_is(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    first.append(4, {"train/loss": 4.0})
    first.append(5, {"train/loss": 5.0})
    first.close()
    resumed = Spool(tmp_path)
    assert resumed.append(4, {"train/loss": 9.0}) == {}
    assert resumed.append(5, {"train/loss": 9.0, "eval/loss": 1.0}) == {"eval/loss": 1.0}
    assert resumed.append(6, {"train/loss": 6.0}) == {"train/loss": 6.0}
    resumed.close()
    losses = [(p["step"], p["values"]["train/loss"]) for p in read_points(tmp_path) if "train/loss" in p["values"]]
    assert losses == [(4, 4.0), (5, 5.0), (6, 6.0)]


def test_what_is_delivered_is_not_offered_again_and_batches_stay_under_mlflows_limit(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(1, 1001):
        spool.append(step, {f"key{i}": float(step) for i in range(7)})
    batches = list(spool.undelivered())
    assert [p["step"] for batch, _ in batches for p in batch] == list(range(1, 1001))
    assert max(sum(len(p["values"]) for p in batch) for batch, _ in batches) <= 1000
    spool.set_delivered(batches[2][1])
    assert next(spool.undelivered())[0][0]["step"] == batches[2][0][-1]["step"] + 1
    spool.set_delivered(batches[-1][1])
    spool.close()
    assert list(Spool(tmp_path).undelivered()) == []
