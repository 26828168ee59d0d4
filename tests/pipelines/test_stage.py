"""What the stages share, and that dvc.yaml says the same as the code."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from project import environment

from azneobert.yaml_files import read_yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the stages share."""
    monkeypatch.syspath_prepend(ROOT / "pipelines")
    return importlib.import_module("stage")


@pytest.fixture(scope="module")
def pipeline() -> dict[str, Any]:
    """The content of dvc.yaml."""
    return read_yaml(ROOT / "dvc.yaml")


@pytest.mark.parametrize("name", ["deduplicate", "tokenizer", "import_tokenizer", "rows", "register"])
def test_dvc_runs_a_stage_again_when_the_order_that_it_uses_changes(pipeline: dict[str, Any], name: str) -> None:
    stage = pipeline["stages"][name]
    assert "data.order" in stage.get("do", stage)["params"]


@pytest.mark.parametrize("name", ["phase1", "phase2", "evaluate"])
def test_how_a_run_is_carried_out_and_recorded_is_no_parameter_of_training(pipeline: dict[str, Any], name: str) -> None:
    assert not [param for param in pipeline["stages"][name]["params"] if param.startswith(("runtime", "tracking"))]


@pytest.mark.parametrize(
    ("recipe", "stages"),
    [
        ("sample", {"ingest@cc100", "tokenizer@bpe", "tokens@sample-cc100", "phase1@sample", "finetune@punctuation"}),
        ("h200", {"ingest@pdfs", "stream@cc100", "import_tokenizer@published", "tokens@h200-cc100", "phase2@h200"}),
    ],
)
def test_dvc_makes_the_stages_of_a_recipe(recipe: str, stages: set[str], tmp_path: Path) -> None:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(ROOT / f"recipes/{recipe}.yaml", tmp_path / "params.yaml")
    for command in (["init", "-q", "--no-scm"], ["stage", "list", "--name-only"]):
        done = subprocess.run(["dvc", *command], cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    assert stages <= set(found)
    assert len(found) == len(set(found)) == 32, "eleven collections twice, and ten others"


@pytest.fixture
def run_with(stage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a stage of one argument that may be a collection of the sample recipe; gives back what it was told."""

    def run(*arguments: str) -> str:
        told: list[str] = []
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["stage.py", *arguments])
        stage.run_stage(
            lambda recipe, paths, options: told.append(options.collection),
            collection=lambda recipe: recipe.data.order,
        )
        return told[0]

    return run


def test_a_stage_takes_each_collection_of_the_recipe(run_with: Callable[..., str]) -> None:
    assert [run_with("wikipedia"), run_with("cc100")] == ["wikipedia", "cc100"]


def test_a_collection_that_the_recipe_does_not_have_is_refused_with_those_that_it_has(
    run_with: Callable[..., str],
) -> None:
    with pytest.raises(SystemExit) as refusal:
        run_with("books")
    assert str(refusal.value).startswith(
        "error: collection: 'books' is not in recipe sample; expected one of wikipedia, "
    )
    assert "\n" not in str(refusal.value)
