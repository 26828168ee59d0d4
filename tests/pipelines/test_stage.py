"""What the stages share, and that dvc.yaml says the same as the code."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the stages share."""
    monkeypatch.syspath_prepend(ROOT / "pipelines")
    return importlib.import_module("stage")


@pytest.fixture(scope="module")
def pipeline() -> dict[str, Any]:
    """The content of dvc.yaml."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    return loaded


def test_dvc_ingests_again_when_the_code_changes_that_an_interrupted_ingest_depends_on(
    stage: ModuleType, pipeline: dict[str, Any]
) -> None:
    named = [dep for dep in pipeline["stages"]["ingest"]["deps"] if dep.startswith("azneobert/")]
    assert sorted(named) == sorted(stage.INGEST_CODE)
    assert all((ROOT / name).is_file() for name in named)
