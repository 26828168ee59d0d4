"""dvc.lock, which is in git, is that of this tree: its code, its parameters, and all that its data half makes.

What a phase leaves names the commit and the run, so no two machines make the same of it: it is not compared.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from project import ROOT, Project, stages_run

from azneobert.yaml_files import read_yaml

DATA_HALF = ("ingest", "deduplicate", "tokenizer", "tokens", "rows")
REMEDY = "use `make lock`, and commit dvc.lock"

pytestmark = pytest.mark.skipif(
    read_yaml(ROOT / "params.yaml") != read_yaml(ROOT / "recipes/sample.yaml"),
    reason="dvc.lock is compared where params.yaml is the sample",
)


@pytest.fixture(scope="module")
def locked() -> dict[str, Any]:
    """The stages of dvc.lock."""
    stages = read_yaml(ROOT / "dvc.lock", 64 << 20)["stages"]
    assert isinstance(stages, dict)
    return stages


def test_it_holds_the_stages_of_the_sample_and_no_others(locked: dict[str, Any], tmp_path: Path) -> None:
    listed = Project.take(tmp_path / "project")
    listed.commit()
    assert sorted(locked) == sorted(listed.run("dvc", "stage", "list", "--name-only").stdout.split()), REMEDY


def test_its_code_and_its_parameters_are_today_s(locked: dict[str, Any]) -> None:
    params = read_yaml(ROOT / "params.yaml")
    stale = set()
    for name, stage in locked.items():
        for dep in stage.get("deps", []):
            file = ROOT / dep["path"]
            made_here = dep["path"].startswith("outputs/") or file.is_dir()
            if not made_here and hashlib.md5(file.read_bytes()).hexdigest() != dep["md5"]:
                stale.add(f"{name}: {dep['path']}")
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            if look_up(params, key) != value:
                stale.add(f"{name}: {key}")
    assert not stale, REMEDY


def test_the_data_half_is_made_again_byte_for_byte(locked: dict[str, Any], tmp_path: Path) -> None:
    project = Project.take(tmp_path / "project")
    project.commit()
    ran = stages_run(project.run("dvc", "repro", "rows").stdout)
    assert {stage.split("@")[0] for stage in ran} == set(DATA_HALF)
    made = read_yaml(project.folder / "dvc.lock", 64 << 20)["stages"]
    assert {name: hashes(made[name]) for name in ran} == {name: hashes(locked[name]) for name in ran}, REMEDY


def hashes(stage: dict[str, Any]) -> dict[str, str]:
    return {out["path"]: out["md5"] for out in stage["outs"]}


def look_up(params: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        params = params[part]
    return params
