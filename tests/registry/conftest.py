"""A finished run, and a store that holds it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pushed import forget_places
from toy import Toy

from azneobert.registry.relocate import relocate


@pytest.fixture(scope="module")
def trained(make_toy: Callable[..., Toy]) -> Toy:
    toy = make_toy()
    assert toy.train()
    return toy


@pytest.fixture
def toy(trained: Toy, mlflow_uri: str, tmp_path: Path) -> Toy:
    """A finished run and a store of the test's own that holds it."""
    shutil.copy(trained.folder / "mlflow.db", tmp_path / "mlflow.db")
    toy = trained.copy_to(tmp_path / "run").with_({"tracking": {"mlflow_uri": mlflow_uri}})
    relocate(toy.recipe.tracking)
    forget_places()
    return toy
