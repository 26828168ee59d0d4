"""What `azneobert runs draw` shows of real toy runs that were stopped and went on in another way: data and files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from PIL import Image
from refusals import refused
from toy import STEPS, Toy
from typer.testing import CliRunner

from azneobert.checkpoint.manifest import Segment
from azneobert.cli import app
from azneobert.errors import AzNeoBertError, CheckpointError
from azneobert.files import write_json
from azneobert.history.clock import account, intervals, seams
from azneobert.history.figures import draw_history, held_out, losses, rates, times
from azneobert.history.record import PhaseRecord, read_phases, tokens_at
from azneobert.layout import HELD_OUT_FIGURE, Layout
from azneobert.pictures import HASH, hash_of
from azneobert.tracking.points import encode_point, read_points
from azneobert.yaml_files import write_yaml

pytestmark = pytest.mark.long  # whole commands, or a model that is trained for them

MakeToy = Callable[..., Toy]
STEP_1, STEP_2 = 8 * 32, 4 * 64  # tokens of a step in phase 1 and in phase 2
PICTURES = ["held_out.png", "loss.png", "rate.png", "time.png"]


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def both(make_toy: MakeToy) -> Toy:
    """Phase 1 to step 4, to step 7 as two ZeRO-2 ranks, to its end as it began; phase 2 at once."""
    toy = make_toy()
    assert not toy.train(stop_after=4)
    assert not toy.with_({"runtime": {"engine": "zero2", "processes": 2}}).train(processes=2, stop_after=3)
    assert toy.train()
    assert toy.train("phase2")
    return toy


@pytest.fixture
def toy(both: Toy, tmp_path: Path) -> Toy:
    return both.copy_to(tmp_path / "outputs" / "toy")


def layout_of(toy: Toy) -> Layout:
    return Layout(toy.folder.name, toy.folder.parent)


def read(toy: Toy) -> list[PhaseRecord]:
    return read_phases(layout_of(toy))


def shift(points: Path, step: int, seconds: float) -> None:
    """As if the process that trained the steps after this one had begun so much later."""
    lines = [p | {"time_ms": p["time_ms"] + round(1000 * seconds * (p["step"] > step))} for p in read_points(points)]
    points.write_bytes(b"".join(map(encode_point, lines)))


def write_reports(toy: Toy) -> dict[str, dict[str, float]]:
    """Those of the evaluate stage, which has the figures of the trainer's last evaluation under the same names."""
    reports = {}
    for phase in ("phase1", "phase2"):
        *_, last = [p["values"] for p in read_points(toy.folder / phase) if "eval/loss" in p["values"]]
        reports[phase] = last
        write_json(layout_of(toy).report(f"evaluate/{phase}"), last | {HELD_OUT_FIGURE: f"rows of {phase}"})
    return reports


def test_seams_stand_at_their_steps_and_tokens_and_say_what_changed(both: Toy) -> None:
    first, second = read(both)
    assert [(s.step, s.tokens, s.what) for s in seams(first)] == [
        (4, 4 * STEP_1, "plain to zero2, 1 to 2 processes"),
        (7, 7 * STEP_1, "zero2 to plain, 2 to 1 processes"),
    ]
    assert seams(second) == []
    by_step = {point.step: point.seconds for point in first.training}
    assert [s.seconds for s in seams(first)] == [by_step[5], by_step[8]]
    assert all(s.stopped > 0 for s in seams(first))


def test_the_second_phase_s_tokens_go_on_where_the_first_s_end(both: Toy) -> None:
    shown = losses(read(both))
    one, two = shown.curves
    assert one.training == [(step * STEP_1, loss) for step, loss in both.losses().items()]
    assert one.end == STEPS * STEP_1
    assert two.training == [(one.end + step * STEP_2, loss) for step, loss in both.losses("phase2").items()]
    assert one.held_out == [(step * STEP_1, loss) for step, loss in both.losses(key="eval/loss").items()]
    assert [mark.place for mark in shown.seams] == [4 * STEP_1, 7 * STEP_1]


def test_the_parts_of_the_time_sum_to_the_clock_of_the_points(both: Toy) -> None:
    for record in read(both):
        moments = [point["time_ms"] / 1000 for point in read_points(both.folder / record.phase)]
        shown = account(record)
        assert shown.clock == pytest.approx(moments[-1] - moments[0])
        assert shown.training + shown.evaluation_and_saving + shown.stopped == pytest.approx(shown.clock)
        metered = sum(part.training for part in intervals(record))
        counted = both.losses(record.phase, "train/tokens_per_second")
        size = STEP_1 if record.phase == "phase1" else STEP_2
        assert 0 < metered <= sum(size / rate for rate in counted.values()) + 1e-6
    assert times(read(both)).accounts == [account(record) for record in read(both)]


def test_nothing_is_stopped_but_at_the_seams(both: Toy) -> None:
    first, second = read(both)
    assert [(part.from_step, part.to_step) for part in intervals(first) if part.stopped] == [(4, 5), (7, 8)]
    assert [part for part in intervals(second) if part.stopped] == []


def test_a_stop_after_which_nothing_has_changed_is_known_by_the_clock(toy: Toy) -> None:
    before = account(read(toy)[1])
    shift(toy.folder / "phase2" / "points.jsonl", 2, 3600)
    _, record = read(toy)
    [seam] = seams(record)
    assert (seam.step, seam.tokens, seam.what) == (2, 2 * STEP_2, "stop")
    assert seam.stopped == pytest.approx(3600, abs=before.clock)
    after = account(record)
    assert after.clock == pytest.approx(before.clock + 3600)
    # What the meter counted is never more than the time between two points, of which one is longer now.
    assert after.training == pytest.approx(before.training, abs=0.1)
    assert after.training + after.evaluation_and_saving + after.stopped == pytest.approx(after.clock)


def test_a_short_stop_is_known_by_a_process_that_has_held_less_memory(toy: Toy) -> None:
    shift(toy.folder / "phase2" / "points.jsonl", 2, 5)
    _, record = read(toy)
    one, two, three, four = record.training
    held = [(one, 2.0), (two, 2.5), (three, 2.25), (four, 2.25)]
    record = replace(record, training=tuple(replace(point, memory=memory) for point, memory in held))
    assert [(seam.step, seam.what) for seam in seams(record)] == [(2, "stop")]
    unknown = replace(record, training=tuple(replace(point, memory=None) for point in record.training))
    assert seams(unknown) == []


def test_a_pause_as_short_as_a_save_is_none(toy: Toy) -> None:
    shift(toy.folder / "phase2" / "points.jsonl", 2, 20)
    _, record = read(toy)
    assert seams(record) == []
    assert account(record).evaluation_and_saving >= 20


def test_curves_of_the_rate_end_where_the_run_stopped(toy: Toy) -> None:
    shift(toy.folder / "phase2" / "points.jsonl", 2, 3600)
    phases = read(toy)
    shown = rates(phases)
    assert [(s.phase, len(s.points)) for s in shown.stretches] == [
        ("phase1", 4),
        ("phase1", 3),
        ("phase1", 3),
        ("phase2", 2),
        ("phase2", 2),
    ]
    logged = [rate for phase in ("phase1", "phase2") for rate in toy.losses(phase, "train/tokens_per_second").values()]
    assert [rate for stretch in shown.stretches for _, rate in stretch.points] == logged
    first = phases[0].points[0].seconds
    stops = [seam.stopped for record in phases for seam in seams(record)]
    between = phases[1].points[0].seconds - phases[0].points[-1].seconds
    assert [end - start for start, end in shown.gaps] == pytest.approx([*stops[:2], between, stops[2]])
    assert [mark.place for mark in shown.seams] == [s.seconds - first for record in phases for s in seams(record)]
    for (start, end), (left, right) in zip(shown.gaps, pairwise(shown.stretches), strict=True):
        assert left.points[-1][0] <= start < end <= right.points[0][0]


def test_a_run_that_was_killed_and_made_steps_anew_has_each_once_and_a_seam_where_it_went_back(
    make_toy: MakeToy,
) -> None:
    # Checkpoints at 3 and 6; killed behind step 8. Other ranks train 7 and 8 anew, and stop before the next checkpoint.
    toy = make_toy()
    assert toy.train(kill_after=8) < 0
    assert not toy.with_({"runtime": {"processes": 2}}).train(processes=2, stop_after=1)
    [record] = read(toy)
    assert record.folder == toy.run().tracking
    assert [point.step for point in record.training] == list(range(1, 8))
    assert [(s.step, s.what) for s in seams(record)] == [(6, "1 to 2 processes")]
    shown = account(record)
    assert shown.training + shown.evaluation_and_saving + shown.stopped == pytest.approx(shown.clock)
    shutil.rmtree(toy.run().checkpoints / "step-00000007")  # as it was before that
    assert [(s.step, s.what) for s in seams(read(toy)[0])] == [(6, "not in a checkpoint yet")]


def test_what_changed_is_said_of_every_kind(both: Toy) -> None:
    start = Segment(0, "abc", False, "code", engine="plain", world_size=1, settings="s", image="i")
    first = read(both)[0]

    def said(**changes: Any) -> str:
        record = replace(first, segments=(start, replace(start, from_step=2, **changes)), starts=())
        [(step, what)] = record.changes
        assert step == 2
        return what

    assert said(git_commit="def") == "other commit"
    assert said(git_commit="def", code_sha256="edited") == "other code"
    assert said(versions={"torch": "3"}, image=None, settings="t") == "other versions, other image, other settings"
    assert said(world_size=None) == "1 to unknown processes"
    assert said() == "stop"


def test_tokens_between_points_lie_on_the_line(both: Toy) -> None:
    training = [point for point in read(both)[0].training if point.step in (4, 8)]
    assert [tokens_at(step, training) / STEP_1 for step in (0, 2, 4, 6, 8, 10)] == [0, 2, 4, 6, 8, 10]


def test_the_command_draws_pictures_that_keep_the_hash_of_their_data(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_yaml(Path("params.yaml"), toy.recipe.model_dump(mode="json"))
    reports = write_reports(toy)
    for folder in ("one", "two"):
        done = CliRunner().invoke(app, ["runs", "draw", "--output", folder])
        assert done.exit_code == 0, done.output
    assert "phase1, after step 4: plain to zero2, 1 to 2 processes, " in done.output
    assert sorted(file.name for file in Path("one").iterdir()) == PICTURES
    assert all(Path("one", name).read_bytes() == Path("two", name).read_bytes() for name in PICTURES)
    phases = read(toy)
    bars = held_out({phase: report | {HELD_OUT_FIGURE: phase} for phase, report in reports.items()})
    shown = {"held_out.png": bars, "loss.png": losses(phases), "rate.png": rates(phases), "time.png": times(phases)}
    for name in PICTURES:
        with Image.open(Path("one", name)) as picture:
            assert picture.info[HASH] == hash_of(shown[name])
            assert min(picture.size) > 300
    assert pyplot.get_fignums() == []


def test_held_out_losses_stand_side_by_side_by_collection_and_length(toy: Toy) -> None:
    reports = write_reports(toy)
    shown = held_out(reports)
    assert shown.collections["phase2"] == {
        name: reports["phase2"][f"eval/loss/{name}"] for name in ("wikipedia", "news", "folklor")
    }
    assert shown.lengths == {p: {"0000-0127": reports[p]["eval/loss_by_length/0000-0127"]} for p in reports}
    by_collection, by_length = shown.draw().axes
    heights = [bar.get_height() for bar in by_collection.patches]
    assert heights == [*shown.collections["phase1"].values(), *shown.collections["phase2"].values()]
    places = [bar.get_x() + bar.get_width() / 2 for bar in by_length.patches]
    assert places == pytest.approx([-0.2, 0.2])


def test_without_an_evaluation_the_other_pictures_are_drawn_and_it_is_said_what_makes_it(
    toy: Toy, tmp_path: Path
) -> None:
    drawn = draw_history(layout_of(toy), tmp_path / "pictures")
    assert sorted(file.name for file in drawn.files) == PICTURES[1:]
    assert drawn.missing == [
        f"{layout_of(toy).report(f'evaluate/{phase}')}: no such file; `dvc repro` makes it"
        for phase in ("phase1", "phase2")
    ]


def test_records_that_are_missing_are_one_line(toy: Toy, tmp_path: Path) -> None:
    with refused(AzNeoBertError, "outputs/none", "no phase has recorded a step", "`dvc repro`"):
        draw_history(Layout("none"), tmp_path / "pictures")
    (toy.folder / "phase1" / "points.jsonl").unlink()
    with refused(AzNeoBertError, "phase1/points.jsonl", "holds no step", "`dvc repro phase1`"):
        read(toy)
    shutil.rmtree(toy.folder / "phase1")  # what is in progress is there all the same
    assert [record.folder for record in read(toy)] == [toy.run().tracking, toy.folder / "phase2"]
    (toy.folder / "phase2" / "checkpoint" / "manifest.json").unlink()
    with refused(CheckpointError, "phase2/checkpoint", "manifest.json is missing"):
        read(toy)
