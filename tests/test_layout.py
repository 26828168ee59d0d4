"""Where outputs lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused

from azneobert.errors import DataError
from azneobert.layout import Layout, read_report


def test_runs_in_progress_lie_apart_from_what_dvc_knows(tmp_path: Path) -> None:
    layout = Layout("mine", tmp_path)
    run = layout.running("phase1")
    places = (run.checkpoints, run.tracking, run.stop_file, run.outcome_file)
    assert {place.parent for place in places} == {tmp_path / "mine/running/phase1"}
    assert run.lock_file.parent == run.path.parent  # which stays where it is when the run is set aside
    assert layout.finished("phase1") == tmp_path / "mine/phase1"


def test_points_wait_in_every_run_also_in_one_that_was_set_aside(tmp_path: Path) -> None:
    layout = Layout("mine", tmp_path)
    assert layout.tracking_folders() == []
    for name in ("phase1/tracking", "phase1.aside-1/tracking", "phase2/tracking.aside-2"):
        (layout.root / "running" / name).mkdir(parents=True)
    (layout.root / "running/phase1/tracking/points.jsonl").touch()
    (layout.root / "running/phase1.aside-1/tracking/run.json").touch()
    (layout.root / "running/phase2/tracking.aside-2/points.jsonl").touch()
    (layout.root / "running/phase2/tracking").mkdir()  # nothing recorded yet
    found = [folder.relative_to(layout.root / "running").as_posix() for folder in layout.tracking_folders()]
    assert found == ["phase1/tracking", "phase1.aside-1/tracking", "phase2/tracking.aside-2"]


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"a": NaN}', b"\xff"])
def test_numbers_that_cannot_be_read_are_one_line(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    if content is not None:
        file.write_bytes(content)
    with refused(DataError, str(file), "dvc"):
        read_report(file)
    file.write_text('{"a": 1}')
    assert read_report(file) == {"a": 1}
