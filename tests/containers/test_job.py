"""A phase as a job whose ranks run in the image is the run without one to the last bit; what is wrong is one line."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from cluster import until
from scene import Scene, curve

from azneobert.checkpoint.manifest import MOMENTS, WEIGHTS, Manifest, read_manifest, verify_checkpoint
from azneobert.launching.container import find_image

STEPS = 60


def checkpoint(scene: Scene) -> Path:
    return scene.layout.finished("phase1") / "checkpoint"


def finished(scene: Scene) -> Manifest:
    """The manifest of the finished phase's checkpoint, whose files are whole."""
    return verify_checkpoint(checkpoint(scene))


def whole(scene: Scene, undisturbed: Scene) -> None:
    """The finished phase is the bare one: every point of its curve, every bit of weights and moments."""
    assert curve(scene) == curve(undisturbed)
    [here, there] = [finished(each) for each in (scene, undisturbed)]
    assert here.step == STEPS
    for name in (WEIGHTS, *MOMENTS):
        assert here.files[name] == there.files[name], name


def test_two_nodes_in_containers_are_the_bare_run(scene: Scene, undisturbed: Scene, image: Path) -> None:
    printed = scene.start("dvc", "repro", "phase1").ends(seconds=300)
    whole(scene, undisturbed)
    digest = find_image(image).digest
    assert f"in {image}, {digest}" in printed
    [here] = finished(scene).segments
    [there] = finished(undisturbed).segments
    assert (here.image, there.image) == (digest, None)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=scene.project.folder, capture_output=True, text=True)
    assert (here.git_commit, here.git_dirty) == (commit.stdout.strip(), False)
    assert here.code_sha256 == there.code_sha256
    assert here.versions["torch"] == there.versions["torch"]
    shown = scene.ask("azneobert", "checkpoint", "inspect", str(checkpoint(scene)), COLUMNS="2000").stdout
    assert f"image {digest}" in shown


@pytest.mark.parametrize("how", ["stop file", "signal to the ranks", "requeue by SLURM"])
def test_a_requeue_in_the_same_image_is_no_segment(how: str, scene: Scene, undisturbed: Scene, image: Path) -> None:
    done = scene.start("dvc", "repro", "phase1")
    scene.reach(5)
    if how == "stop file":
        scene.run.stop_file.touch()
    elif how == "requeue by SLURM":  # SIGTERM to all processes
        scene.cluster.run("scontrol", "requeue", scene.job_id())
    else:
        scene.cluster.run("scancel", "--signal=USR1", scene.job_id())
    scene.requeued()
    done.ends(seconds=300)
    whole(scene, undisturbed)
    assert [segment.image for segment in finished(scene).segments] == [find_image(image).digest], "the same image"
    newest = scene.job_folder.starts.read_text().splitlines()[1].split()[2]
    assert int(newest.removeprefix("step-")) % 20, "it was saved where it was"


def test_from_no_image_into_one_is_a_segment(scene: Scene, undisturbed: Scene, image: Path) -> None:
    scene.launch(requeue=False)
    first = scene.start("slurm/submit", "phase1")
    first.ends()
    scene.reach(5)
    scene.run.stop_file.touch()
    stopped = step_at_the_end(scene)
    scene.launch(container=str(image))
    scene.start("dvc", "repro", "phase1").ends(seconds=300)
    whole(scene, undisturbed)
    segments = finished(scene).segments
    assert [(each.from_step, each.image) for each in segments] == [(0, None), (stopped, find_image(image).digest)]


def step_at_the_end(scene: Scene) -> int:
    """The step of the newest checkpoint, when nothing of the job runs any more."""
    until(lambda: not scene.cluster.jobs(), 90, "the end of the job")
    newest = max((scene.run.checkpoints).glob("step-*"))
    return read_manifest(newest).step


def error_of(scene: Scene) -> str:
    """The one line that `dvc repro` has for a user."""
    done = scene.ask("dvc", "repro", "-s", "phase1")
    assert done.returncode, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"container": "nowhere.sif"}, ("launch.yaml: container: ", "nowhere.sif: no such image", "null for none")),
        ({"container": "azneobert"}, ("launch.yaml: container: ", "expected a file as containers/azneobert.sif")),
        ({"setup": "rm image.sif", "container": "image.sif"}, ("image.sif: no such image on", "all nodes")),
        ({"setup": "export APPTAINER_BIND=/nowhere"}, ("does not run on", "/nowhere")),
        ({"cache": "/sys/kernel"}, ("/sys/kernel: cannot be written on", "cache in launch.yaml")),
    ],
    ids=["missing", "no image", "gone", "mount", "cache"],
)
def test_what_is_wrong_is_one_line(settings: dict[str, Any], said: tuple[str, ...], scene: Scene, image: Path) -> None:
    (scene.project.folder / "image.sif").symlink_to(image)
    scene.launch(**({"container": str(image)} | settings))
    line = error_of(scene)
    assert not [words for words in said if words not in line], line
    assert scene.log().count("started on") <= 1, "the queue mends nothing"
