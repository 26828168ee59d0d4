"""What a job's log says of its end, and how it is shown on; the jobs themselves are tried in tests/slurm."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from azneobert.files import write_json
from azneobert.launching.slurm import JobRecord, _Log, last_error, read_record
from azneobert.layout import JobFolder

STARTED = "2026-11-29 12:00:00  phase1  job 7: started on n[0-1], requeued 0 times, newest checkpoint: none"
LOST = "error: phase1: rank 0 has lost another rank, which has ended or cannot be reached"


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path / "jobs" / "phase1")
    write_json(folder.record, asdict(JobRecord("7", "identity", 0)))
    return folder


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([STARTED, LOST, "error: rank 1: tokens.npy: truncated"], "rank 1: tokens.npy: truncated"),
        ([STARTED, LOST], LOST.removeprefix("error: ")),
        (["error: of a start before", STARTED, "step 4"], None),
        (
            [STARTED, "Traceback (most recent call last):", "  File ...", "RuntimeError: CUDA error"],
            "RuntimeError: CUDA error",
        ),
        ([STARTED, "[rank1]: torch.distributed.DistError: no"], "torch.distributed.DistError: no"),
        (["slurmstepd: error: execve(): no such file"], "slurmstepd: error: execve(): no such file"),
        ([], None),
    ],
)
def test_the_error_of_a_job_is_the_cause_in_its_last_start(
    lines: list[str], said: str | None, folder: JobFolder
) -> None:
    folder.log.write_text("".join(f"{line}\n" for line in lines))
    assert last_error(folder, "7") == said


def test_what_earlier_jobs_wrote_is_not_this_one_s(folder: JobFolder) -> None:
    before = "error: of a job before\n"
    folder.log.write_text(f"{before}the reason\n")
    write_json(folder.record, asdict(JobRecord("7", "identity", len(before))))
    assert last_error(folder, "7") == "the reason"


def test_the_log_is_shown_once_whoever_shows_it(folder: JobFolder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.log.write_text("step 1\nerror: is said at the end\nstep 2\nhal")
    _Log(folder).show()
    assert capsys.readouterr().out == "step 1\nstep 2\n"
    with folder.log.open("a") as log:
        log.write("f\n\x1b[2Jstep 3\n")
    _Log(folder).show()
    assert capsys.readouterr().out == "half\n\\x1b[2Jstep 3\n"
    folder.log.write_text("anew\n")
    _Log(folder).show()
    assert capsys.readouterr().out == "anew\n"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"job_id": "7"}', '{"job_id": "7", "identity": "", "log_from": 0, "more": 1}']
)
def test_a_record_that_says_nothing_is_none(content: str, folder: JobFolder) -> None:
    folder.record.write_text(content)
    assert read_record(folder) is None
