"""Points survive on disk, each step once, and what is delivered is not offered again."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from azneobert.tracking.points import encode_point, read_points
from azneobert.tracking.spool import Spool, encode_mark


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


# Segments


def logged(folder: Path, steps: range, value: float, **segment: int) -> None:
    spool = Spool(folder, **segment)
    for step in steps:
        spool.append(step, {"a": value})
    spool.close()


def standing(folder: Path) -> list[tuple[int, int, float]]:
    return [(p["segment"], p["step"], p["values"]["a"]) for p in read_points(folder)]


def test_a_new_segment_takes_the_place_of_what_came_after_its_first_step(tmp_path: Path) -> None:
    logged(tmp_path, range(1, 7), 1.0, segment=0)
    logged(tmp_path, range(4, 6), 2.0, segment=1, from_step=3)
    assert standing(tmp_path) == [(0, 1, 1.0), (0, 2, 1.0), (0, 3, 1.0), (1, 4, 2.0), (1, 5, 2.0)]
    logged(tmp_path, range(4, 7), 3.0, segment=1, from_step=3)  # the same segment, resumed: its first record stands
    assert standing(tmp_path)[3:] == [(1, 4, 2.0), (1, 5, 2.0), (1, 6, 3.0)]
    logged(tmp_path, range(2, 4), 4.0, segment=2, from_step=1)
    assert standing(tmp_path) == [(0, 1, 1.0), (2, 2, 4.0), (2, 3, 4.0)]


def test_a_run_that_went_back_to_before_its_newest_segment_is_another_segment(tmp_path: Path) -> None:
    logged(tmp_path, range(1, 7), 1.0, segment=0)
    logged(tmp_path, range(5, 7), 2.0, segment=1, from_step=4)
    logged(tmp_path, range(3, 5), 3.0, segment=0, from_step=2)
    assert standing(tmp_path) == [(0, 1, 1.0), (0, 2, 1.0), (2, 3, 3.0), (2, 4, 3.0)]


def test_points_that_stand_no_more_are_not_delivered(tmp_path: Path) -> None:
    logged(tmp_path, range(1, 7), 1.0, segment=0)
    logged(tmp_path, range(4, 6), 2.0, segment=1, from_step=3)
    spool = Spool(tmp_path)
    [(points, mark)] = spool.undelivered()
    spool.close()
    assert [(p["segment"], p["step"]) for p in points] == [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5)]
    assert mark == (tmp_path / "points.jsonl").stat().st_size


def test_points_are_read_from_a_file_of_any_name_and_of_before(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    file.write_text('{"step": 1, "time_ms": 5, "values": {"a": 1.0}}\n{"step": 2, "time_ms": 6, "val')
    assert read_points(file) == [{"step": 1, "time_ms": 5, "values": {"a": 1.0}, "segment": 0}]
    assert read_points(tmp_path / "none") == read_points(tmp_path) == []


# Damage


A_DIGIT = b"a digit of the step"


@pytest.mark.parametrize(
    "damage",
    [A_DIGIT, b"\xff", b"[]", b"{}", b"null", b'{"step": 2, "time_ms": 1, "values": {"a": "x"}}', b"[" * 100_000, b""],
)
def test_a_damaged_line_is_set_aside_in_one_line_and_the_others_go_on(
    damage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logged(tmp_path, range(1, 6), 1.0)
    file = tmp_path / "points.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"step": 2', b'"step": 9') if damage is A_DIGIT else damage + b"\n"
    content = b"".join(lines)
    file.write_bytes(content)
    (tmp_path / "points.delivered").write_text(str(sum(map(len, lines[:3]))))
    assert [p["step"] for p in read_points(tmp_path)] == [1, 3, 4, 5]
    assert file.read_bytes() == content, "reading changes nothing"
    caplog.clear()
    spool = Spool(tmp_path)
    assert [p["step"] for batch, _ in spool.undelivered() for p in batch] == [4, 5]
    spool.close()
    assert [copy.read_bytes() for copy in tmp_path.glob("points.jsonl.damaged-*")] == [content]
    [said] = [record.getMessage() for record in caplog.records]
    assert f"{file}: line 2 is damaged" in said
    assert "\n" not in said
    caplog.clear()
    assert [p["step"] for p in read_points(tmp_path)] == [1, 3, 4, 5]
    Spool(tmp_path).close()
    assert not caplog.records, "what is mended is said once"


@pytest.mark.parametrize("mark", [b"", b"many", b"-3", b"999999999", b"7", b"\xff\xfe", b"9" * 5000])
def test_a_mark_that_fits_no_line_is_set_aside_and_all_is_sent_again(
    mark: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logged(tmp_path, range(1, 4), 1.0)
    (tmp_path / "points.delivered").write_bytes(mark)
    spool = Spool(tmp_path)
    assert [p["step"] for batch, _ in spool.undelivered() for p in batch] == [1, 2, 3]
    spool.close()
    assert [copy.read_bytes() for copy in tmp_path.glob("points.delivered.damaged-*")] == [mark]
    [said] = [record.getMessage() for record in caplog.records]
    assert f"{tmp_path}/points.delivered: holds" in said
    assert "\n" not in said


@pytest.mark.parametrize("number", [0, 2, 4])
@pytest.mark.parametrize("end", [b" ", b"}", b"\x0b", b"\x8a"])
def test_a_damaged_end_of_a_line_costs_no_point(
    number: int, end: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logged(tmp_path, range(1, 6), 1.0)
    lines = (tmp_path / "points.jsonl").read_bytes().splitlines(keepends=True)
    lines[number] = lines[number][:-1] + end
    (tmp_path / "points.jsonl").write_bytes(b"".join(lines))
    assert [p["step"] for p in read_points(tmp_path)] == [1, 2, 3, 4, 5]
    spool = Spool(tmp_path)
    spool.append(6, {"a": 1.0})
    assert [p["step"] for batch, _ in spool.undelivered() for p in batch] == [1, 2, 3, 4, 5, 6]
    spool.close()
    assert (tmp_path / "points.jsonl").read_bytes().count(b"\n") == 6
    [said] = [record.getMessage() for record in caplog.records]
    assert f"{tmp_path}/points.jsonl: was damaged; what the checksums could say was mended" in said


def test_a_mark_at_the_end_of_another_line_is_known_by_its_checksum(tmp_path: Path) -> None:
    logged(tmp_path, range(1, 4), 1.0)
    first = len((tmp_path / "points.jsonl").read_bytes().splitlines(keepends=True)[0])
    (tmp_path / "points.delivered").write_text(encode_mark(2 * first).replace(str(2 * first), str(3 * first)))
    spool = Spool(tmp_path)
    assert [p["step"] for batch, _ in spool.undelivered() for p in batch] == [1, 2, 3]
    spool.close()


def test_lines_damaged_under_an_open_spool_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path)
    for step in range(1, 5):
        spool.append(step, {"a": 1.0})
    with (tmp_path / "points.jsonl").open("r+b") as file:
        file.write(b"\xff")
    assert [p["step"] for batch, _ in spool.undelivered() for p in batch] == [2, 3, 4]
    assert "is damaged; passed over" in caplog.text
    spool.close()


# A full disk; tests/faults has a real one


def test_points_wait_while_there_is_no_room_and_are_offered_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no such folder"))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    spool = Spool(tmp_path)
    spool.append(1, {"a": 1.0})
    with monkeypatch.context() as patched:
        patched.setattr("os.write", full)
        for step in (2, 3):
            spool.append(step, {"a": float(step)})
        [(points, mark)] = spool.undelivered()
        assert [p["step"] for p in points] == [1, 2, 3]
        spool.set_delivered(mark)
    spool.append(4, {"a": 4.0})
    assert mark == (tmp_path / "points.jsonl").read_bytes().rindex(b'{"segment"')
    assert [p["step"] for batch, _ in spool.undelivered() for p in batch] == [4]
    spool.close()
    assert [p["step"] for p in read_points(tmp_path)] == [1, 2, 3, 4]
    assert [record.getMessage().split(": ")[1][:23] for record in caplog.records] == [
        "cannot be written (No s",
        "can be written again; n",
    ]


def test_one_bit_of_a_line_is_mended_by_its_checksum(tmp_path: Path) -> None:
    points = [{"step": step, "time_ms": 1, "segment": 0, "values": {"a": 0.5 * step}} for step in (1, 2, 3)]
    lines = [encode_point(point) for point in points]
    for bit in range(0, 8 * (len(lines[1]) - 1), 5):  # each bit of a byte comes, and most bytes
        damaged = bytearray(lines[1])
        damaged[bit // 8] ^= 1 << bit % 8
        if damaged.count(b"\n") == 1:  # a line that falls in two is a line that is lost
            (tmp_path / "points.jsonl").write_bytes(lines[0] + damaged + lines[2])
            found = [(point["step"], point["values"]) for point in read_points(tmp_path)]
            assert found == [(1, {"a": 0.5}), (2, {"a": 1.0}), (3, {"a": 1.5})], bit


def test_two_bits_are_not_guessed(tmp_path: Path) -> None:
    lines = [encode_point({"step": step, "time_ms": 1, "segment": 0, "values": {"a": 1.0}}) for step in (1, 2)]
    damaged = lines[0].replace(b'"step": 1', b'"step": 2')
    assert damaged.count(b"2") > lines[0].count(b"2")
    (tmp_path / "points.jsonl").write_bytes(damaged + lines[1])
    assert [point["step"] for point in read_points(tmp_path)] == [2]
