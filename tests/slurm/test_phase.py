"""A phase as a job: the local run's numbers, whatever becomes of the job on the way, in one run, nothing twice."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from cluster import until
from scene import STEPS, Scene, curve

from azneobert.checkpoint.manifest import read_manifest
from azneobert.tracking.points import read_points


def whole(scene: Scene, undisturbed: Scene) -> None:
    """The finished phase is the undisturbed one: every step once and the same, in one MLflow run."""
    assert curve(scene) == curve(undisturbed)
    recorded = [line for line in (scene.run.tracking / "points.jsonl").read_text().splitlines() if "train/loss" in line]
    steps = [point["step"] for point in read_points(scene.layout.finished("phase1")) if "train/loss" in point["values"]]
    assert steps == list(range(1, STEPS + 1))
    assert len(recorded) < STEPS + 45, "no more is trained again than since the last checkpoint"
    runs = scene.ask("python", "-c", COUNT_RUNS).stdout.split()
    assert runs == ["1"], runs


COUNT_RUNS = """
from mlflow import MlflowClient
client = MlflowClient("sqlite:///mlflow.db")
runs = client.search_runs([e.experiment_id for e in client.search_experiments()], "tags.`azneobert.phase` = 'phase1'")
print(len(runs))
"""


@pytest.mark.long
def test_two_phases_on_two_nodes_are_the_local_run(scene: Scene, undisturbed: Scene) -> None:
    printed = scene.start("dvc", "repro", "phase2").ends(seconds=200)
    whole(scene, undisturbed)
    assert curve(scene, "phase2") == curve(undisturbed, "phase2")
    assert "submitted" in printed
    assert f"step {STEPS}/{STEPS}" in printed, "the job's log is shown"
    assert scene.log().count("started on") == 1


def test_a_requeue_by_slurm(scene: Scene, undisturbed: Scene) -> None:
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(50)
    scene.cluster.run("scontrol", "requeue", scene.job_id())
    scene.requeued()
    assert "PENDING" in done.ends()
    whole(scene, undisturbed)


@pytest.mark.parametrize(
    "how", ["warning", *(pytest.param(how, marks=pytest.mark.long) for how in ("signal to the ranks", "stop file"))]
)
def test_who_asks_it_to_stop_gets_a_checkpoint_and_the_queue_again(how: str, scene: Scene, undisturbed: Scene) -> None:
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(50)
    if how == "stop file":
        scene.run.stop_file.touch()
    else:
        scene.cluster.run("scancel", *(["--batch"] if how == "warning" else []), "--signal=USR1", scene.job_id())
    number = scene.job_id()
    scene.requeued()
    done.ends()
    whole(scene, undisturbed)
    assert scene.job_id() == number, "the job itself goes on, and no other"
    assert re.search(r"stopped as asked behind step-0+\d+; queued again", scene.log())
    steps = [
        int(line.split()[2].removeprefix("step-")) for line in scene.job_folder.starts.read_text().splitlines()[1:]
    ]
    assert steps[0] % 40, "it was saved where it was, and not at the next multiple"


def ranks(scene: Scene) -> list[psutil.Process]:
    """The processes of the ranks, once there are two."""
    found: list[psutil.Process] = []

    def both() -> bool:
        found[:] = []
        for file in sorted((scene.run.path / "ranks").glob("*.json")):
            with suppress(psutil.NoSuchProcess, ValueError):  # of an earlier start, or just being written
                found.append(psutil.Process(json.loads(file.read_text())["pid"]))
        return len(found) == 2

    until(both, 60, "two ranks")
    return found


def test_out_of_time_before_the_ranks_have_saved(scene: Scene, undisturbed: Scene) -> None:
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(50)
    first = scene.job_id()
    for rank in ranks(scene):
        rank.suspend()  # SLURM looks at its clock every 30 s; it wakes them when it ends them
    scene.cluster.run("scontrol", "update", f"JobId={first}", "EndTime=now")
    until(lambda: scene.job_id() != first, 120, "another job")
    done.ends()
    assert scene.cluster.job(first)["JobState"] == "TIMEOUT"
    whole(scene, undisturbed)


def test_scancel_ends_it_behind_a_checkpoint_and_a_new_start_goes_on(scene: Scene, undisturbed: Scene) -> None:
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(50)
    number = scene.job_id()
    scene.cluster.run("scancel", number)
    printed = done.ends(code=255)
    assert re.search(rf"job {number} was cancelled, behind the checkpoint of step \d+; start again to go on", printed)
    scene.start("dvc", "repro", "phase1").ends()
    assert scene.job_id() != number
    whole(scene, undisturbed)


@pytest.mark.cluster(slurmd_timeout=10)
@pytest.mark.parametrize("node", ["n0", pytest.param("n1", marks=pytest.mark.long)])
def test_a_node_that_crashes(node: str, scene: Scene, undisturbed: Scene) -> None:
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(50)
    scene.cluster.crash_node(node)
    until(lambda: node in " ".join(scene.cluster.down()), 90, "the loss of the node")
    scene.cluster.start_node(node)
    scene.requeued()
    done.ends()
    whole(scene, undisturbed)


@pytest.mark.cluster(slurmd_timeout=10)
def test_a_node_whose_daemon_is_killed_while_its_rank_trains_on(scene: Scene, undisturbed: Scene) -> None:
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(50)
    scene.cluster.kill_node("n1")
    former = ranks(scene)
    for rank in former:
        rank.suspend()  # or the phase would be complete before SLURM misses the node
    until(lambda: int(scene.cluster.job(scene.job_id())["Restarts"]) == 1, 90, "requeue")
    for rank in former:
        with suppress(psutil.NoSuchProcess):  # the other node's daemon may have ended its rank
            rank.resume()
    scene.cluster.start_node("n1")
    scene.requeued()
    done.ends()
    whole(scene, undisturbed)


def test_a_killed_dvc_leaves_the_job_and_the_next_one_comes_back_to_it(scene: Scene, undisturbed: Scene) -> None:
    first = scene.start("dvc", "repro", "phase1")
    scene.reach(50)
    number = scene.job_id()
    for rank in ranks(scene):
        rank.suspend()  # or the phase is complete before the next dvc has begun
    first.process.kill()  # and nothing that it has started
    first.process.wait()
    second = scene.start("dvc", "repro", "phase1")
    until(lambda: "is there already" in second.printed(), 60, "the next dvc")
    for rank in ranks(scene):
        rank.resume()
    printed = second.ends()
    assert f"job {number} is there already" in printed
    assert scene.cluster.job(number)["Restarts"] == "0"
    whole(scene, undisturbed)
    shown = re.findall(r"phase1  step (\d+)/", first.printed() + printed)
    assert shown == re.findall(r"phase1  step (\d+)/", scene.log()), "each line of the log once"
    assert re.findall(r"phase1  step (\d+)/", first.printed())


@pytest.mark.long
def test_who_waits_outlasts_a_slurm_that_is_away(scene: Scene, undisturbed: Scene) -> None:
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(50)
    scene.cluster.stop_controller()
    until(lambda: "waiting for it" in done.printed(), 90, "a line")
    scene.cluster.start_controller()
    done.ends()
    whole(scene, undisturbed)


def test_ctrl_c_leaves_the_job_too(scene: Scene) -> None:
    first = scene.start("dvc", "repro", "phase1")
    scene.reach(20)
    os.killpg(first.process.pid, signal.SIGINT)
    first.process.wait(60)
    assert f"job {scene.job_id()} goes on by itself" in first.printed()
    assert scene.cluster.job(scene.job_id())["JobState"] == "RUNNING"


def test_a_rank_that_is_killed_is_no_end(scene: Scene, undisturbed: Scene) -> None:
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(50)
    ranks(scene)[1].kill()
    scene.requeued()
    done.ends()
    whole(scene, undisturbed)


@pytest.mark.long
def test_where_a_job_may_not_be_requeued_who_waits_submits_another(scene: Scene, undisturbed: Scene) -> None:
    scene.launch(requeue=False)
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(50)
    first = scene.job_id()
    scene.run.stop_file.touch()
    done.ends()
    assert scene.job_id() != first
    assert "it cannot be requeued here" in scene.log()
    whole(scene, undisturbed)


def test_a_requeue_on_half_the_nodes(scene: Scene, undisturbed: Scene) -> None:
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(50)
    number = scene.job_id()
    scene.cluster.run("scancel", "--batch", "--signal=USR1", number)
    until(lambda: scene.cluster.job(number)["JobState"] == "PENDING", 60, "the queue")
    scene.cluster.run("scontrol", "update", f"JobId={number}", "NumNodes=1", "NumTasks=1", "NumCPUs=1")
    scene.requeued()
    done.ends()
    segments = read_manifest(scene.layout.finished("phase1") / "checkpoint").segments
    assert [segment.world_size for segment in segments] == [2, 1]
    [here, there] = [dict(curve_of_losses(each)) for each in (scene, undisturbed)]
    assert here.keys() == there.keys()
    assert max(abs(here[step] - there[step]) for step in here) < 0.02


def curve_of_losses(scene: Scene) -> list[tuple[int, float]]:
    return [(step, values["train/loss"]) for step, values in curve(scene) if "train/loss" in values]


def test_requeues_that_bring_nothing_end_with_a_line(scene: Scene) -> None:
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(1)
    for times in range(1, 4):
        ranks(scene)[1].kill()
        if times < 3:
            scene.requeued(times)
    printed = done.ends(code=255)
    assert "two requeues brought no new checkpoint (the newest: none)" in printed
    assert scene.log().count("started on") == 3


@pytest.mark.long
def test_no_more_requeues_than_launch_yaml_allows(scene: Scene) -> None:
    scene.launch(max_requeues=1)
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(30)
    scene.run.stop_file.touch()
    scene.requeued()
    scene.reach(50)
    scene.run.stop_file.touch()
    printed = done.ends(code=255)
    assert "was requeued 1 times and is not complete; raise max_requeues in launch.yaml" in printed
    scene.launch(max_requeues=2)  # a person who starts it again begins to count anew
    scene.start("dvc", "repro", "phase1").ends()


@pytest.mark.long
@pytest.mark.cluster(nodes=3, slurmd_timeout=10)
def test_a_failed_node_is_left_out_where_others_are_there(scene: Scene, undisturbed: Scene) -> None:
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(50)
    scene.cluster.kill_node("n1")
    former = ranks(scene)
    for rank in former:
        rank.suspend()
    until(lambda: int(scene.cluster.job(scene.job_id())["Restarts"]) == 1, 90, "requeue")
    until(lambda: "n1" in scene.cluster.job(scene.job_id())["ExcNodeList"], 30, "the node left out")
    for rank in former:
        with suppress(psutil.NoSuchProcess):
            rank.resume()  # no daemon ends it: it trains on until the next start asks it to stop
    scene.cluster.start_node("n1")
    scene.requeued()
    printed = done.ends()
    assert "node n1 has failed under it and is left out from now on" in printed
    assert "n[0,2]" in scene.job_folder.starts.read_text().splitlines()[-1]
    whole(scene, undisturbed)


def test_a_rank_has_the_cores_that_it_was_given(scene: Scene) -> None:
    scene.launch(nodes=1, cpus=2)
    done = scene.start("slurm/submit", "phase1")
    assert f"job {scene.job_id() if done.process.wait(60) == 0 else '?'} submitted" in done.printed()
    scene.reach(1)
    assert re.search(r"rank 0 of 1 on .*: 2 cores", scene.log())
    assert Path(scene.project.folder / "outputs/sample/jobs/phase1/job.sh").exists()
