"""What is wrong with a job is one line, before anything is touched; and `azneobert jobs` shows what there is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cluster import until
from scene import STEPS, Scene

from azneobert.tracking.points import read_points


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command has for a user."""
    assert done.returncode, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def outputs(scene: Scene) -> set[Path]:
    """The files of the recipe's outputs, but for what was handed to SLURM."""
    return {file for file in scene.layout.root.rglob("*") if file.is_file() and "jobs" not in file.parts}


CLOSED = "PartitionName=closed Nodes=ALL AllowAccounts=physics State=UP"


@pytest.mark.cluster(more=CLOSED)
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"partition": "nowhere"}, ("nvalid partition", "closed, main")),
        ({"options": ["--no-such-option"]}, ("unrecognized option", "no-such-option")),
        ({"nodes": 3}, ("launch.yaml: 3 ranks", "8 does not divide over 3")),
        ({"nodes": 5}, ("launch.yaml: 5 ranks",)),
        ({"account": "two words"}, ("launch.yaml: account", "one word")),
        ({"gpu": 8}, ("launch.yaml: gpu", "unknown key")),
        ({"time": "tomorrow"}, ("launch.yaml: time",)),
        ({"time": 1, "warning_seconds": 60}, ("launch.yaml: warning_seconds 60",)),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_cannot_be_submitted(settings: dict[str, Any], said: tuple[str, ...], scene: Scene) -> None:
    scene.launch(**settings)
    before = outputs(scene)
    commands = [["slurm/submit", "phase1"]]
    if settings == {"partition": "nowhere"}:
        commands.append(["dvc", "repro", "-s", "phase1"])
    for command in commands:
        line = error_of(scene.ask(*command))
        assert not [words for words in said if words not in line], line
    assert outputs(scene) == before
    assert "none was handed to SLURM" in scene.ask("azneobert", "jobs").stdout


@pytest.mark.long  # sbatch tries for as long as it is let
@pytest.mark.cluster(nodes=1, more="MaxJobCount=2")  # of which SLURM takes one
def test_a_full_queue(scene: Scene) -> None:
    scene.launch(nodes=1)
    scene.cluster.run("sbatch", "--wrap=sleep 300", "--output=/dev/null")
    line = error_of(scene.ask("slurm/submit", "phase1"))
    assert "try again later" in line or "sbatch: refused the job" in line, line


def test_a_login_node_without_slurm(scene: Scene, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "sh", "env", "git", "dirname", "id", "uname"):
        (programs / name).symlink_to(shutil.which(name) or "")
    path = f"{scene.project.folder / '.venv' / 'bin'}:{programs}"
    before = outputs(scene)
    line = error_of(scene.ask("slurm/submit", "phase1", PATH=path))
    assert "no such program here" in line
    assert "launcher: local" in line
    assert outputs(scene) == before


def test_a_job_that_dies_at_once(scene: Scene) -> None:
    scene.launch(setup="exit 3")
    line = error_of(scene.ask("dvc", "repro", "-s", "phase1"))
    assert "job 1 has ended (FAILED, exit code 3:0)" in line
    assert str(scene.job_folder.log.relative_to(scene.project.folder)) in line


def test_a_job_whose_ranks_find_something_wrong(scene: Scene) -> None:
    scene.launch(
        setup="chmod 000 outputs/sample/rows/phase1/train/meta.json; rm outputs/sample/rows/phase1/train/length.npy"
    )
    line = error_of(scene.ask("dvc", "repro", "-s", "phase1"))
    assert "length.npy" in line
    assert scene.log().count("started on") == 1, "the queue mends nothing"


def test_a_job_of_another_recipe_is_not_taken_for_this_one(scene: Scene) -> None:
    assert scene.ask("slurm/submit", "phase1").returncode == 0
    number = scene.job_id()
    scene.project.change({"seed": 7})
    line = error_of(scene.ask("slurm/submit", "phase1"))
    assert f"job {number}" in line
    assert f"scancel {number}" in line
    assert scene.cluster.jobs() == [number]


def test_two_who_submit_at_once_have_one_job(scene: Scene) -> None:
    both = [scene.start("slurm/submit", "phase1") for _ in range(2)]
    printed = sorted(each.ends() for each in both)
    assert len(scene.cluster.jobs()) == 1
    assert "nothing was submitted" in printed[0]
    assert f"job {scene.job_id()} submitted" in printed[1]


@pytest.mark.long
def test_a_script_that_is_submitted_twice_trains_once(scene: Scene) -> None:
    assert scene.ask("slurm/submit", "phase1").returncode == 0
    scene.reach(1)
    other = scene.cluster.run("sbatch", "--parsable", str(scene.job_folder.script))
    scene.reach(STEPS)
    until(lambda: scene.cluster.job(other)["JobState"] == "COMPLETED", 90, "the second job")
    assert "complete already" in scene.log()
    steps = [point["step"] for point in read_points(scene.run.tracking) if "train/loss" in point["values"]]
    assert steps == list(range(1, STEPS + 1))


def test_the_script_is_printed_and_nothing_is_submitted(scene: Scene) -> None:
    scene.launch(account="physics", setup="module load cuda", options=["--exclusive"], gpus=4, cache="/scratch/me")
    done = scene.ask("slurm/submit", "phase1", "--dry-run")
    assert done.returncode == 0
    for line in ("#SBATCH --account=physics", "#SBATCH --gpus-per-node=4", "#SBATCH --exclusive", "module load cuda"):
        assert line in done.stdout.splitlines()
    assert "cache=/scratch/me" in done.stdout
    assert "@" not in done.stdout.split("set -u")[0].replace("USR1@60", "")
    assert scene.cluster.jobs() == []
    script = scene.project.folder / "printed.sh"
    script.write_text(done.stdout)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_jobs_shows_what_waits_and_what_runs(scene: Scene) -> None:
    occupied = scene.cluster.run(
        "sbatch", "--parsable", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 300"
    )
    assert scene.ask("slurm/submit", "phase1").returncode == 0
    number = scene.job_id()
    until(lambda: scene.cluster.job(number)["Reason"] in ("Resources", "Priority"), 30, "a reason")
    shown = scene.ask("azneobert", "jobs").stdout
    assert f"sample  phase1  {number}    PENDING" in shown
    assert f"sample phase1, job {number}: " in shown
    scene.cluster.run("scancel", occupied)
    scene.reach(50)
    row = next(line for line in scene.ask("azneobert", "jobs").stdout.splitlines() if "phase1" in line).split()
    assert row[2:5] == [number, "RUNNING", "n[0-1]"]
    assert row[6:8] == ["of", str(STEPS)]
    assert "step-000000" in " ".join(row)
    followed = scene.start("azneobert", "jobs", "--follow", "--seconds=1")
    printed = followed.ends()
    assert "COMPLETED" in printed.splitlines()[-1]
