"""A finished run, and a store that holds it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy import Toy


@pytest.fixture(scope="module")
def trained(make_toy: Callable[..., Toy]) -> Toy:
    toy = make_toy()
    assert toy.train()
    return toy


@pytest.fixture
def toy(trained: Toy, mlflow_uri: str, tmp_path: Path) -> Iterator[Toy]:
    """A finished run and a store of the test's own that holds it."""
    shutil.copy(trained.folder / "mlflow.db", tmp_path / "mlflow.db")
    yield trained.copy_to(tmp_path / "run").with_({"tracking": {"mlflow_uri": mlflow_uri}})
    shutil.rmtree(
        trained.folder / "mlruns", ignore_errors=True
    )  # the copied run keeps its artifacts in the first place
