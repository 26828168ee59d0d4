"""Numbers that go wrong, by the commands that a user types: nothing of them is saved over, registered or shown."""

from __future__ import annotations

import json

import pytest
from project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project.make(tmp_path_factory.mktemp("project") / "azneobert")
    made.run("dvc", "repro")
    return made


def test_a_rate_of_1e30_stops_phase_1_and_leaves_registry_and_metrics_as_they_were(project: Project) -> None:
    before = {file: (project.folder / file).read_bytes() for file in ("outputs/sample/registered.json", "dvc.lock")}
    project.change({"phase1": {"peak_learning_rate": 1e30, "steps": 60}, "runtime": {"checkpoint_every": 5}})
    failed = project.run("dvc", "repro", check=False)
    assert failed.returncode != 0
    [said] = [line for line in (failed.stdout + failed.stderr).splitlines() if line.startswith("error: phase1")]
    assert "peak_learning_rate" in said
    assert "step " in said
    assert "Traceback" not in failed.stderr
    assert {file: (project.folder / file).read_bytes() for file in before} == before
    listed = project.run("azneobert", "registry", "list").stdout
    assert listed.count("phase1") == 1
    assert "phase2" in listed
    for metrics in (project.folder / "outputs/sample/metrics").rglob("*.json"):
        json.loads(metrics.read_text(), parse_constant=pytest.fail)


def test_fine_tuning_that_comes_to_nothing_is_no_accuracy(project: Project) -> None:
    project.run("git", "checkout", "-q", "params.yaml")
    project.change({"finetuning": {"learning_rate": 1e30}})
    failed = project.run("python", "pipelines/finetune.py", "punctuation", check=False)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("error: seed 1: the loss is not finite")
