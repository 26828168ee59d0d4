"""What the tests share. The toy corpus and MLflow's empty database are made once a session and copied."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "HF_HUB_OFFLINE": "1",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(_name, _value)
os.environ.pop("MLFLOW_TRACKING_URI", None)
# Child processes test this checkout, whatever the environment's editable install points to.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # Compiling torch, mlflow and transformers takes every child process 20 s, so keep the compiled files.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "azneobert-pycache")

from toy import Overrides, Toy, lively, toy_recipe, write_corpus  # noqa: E402 - imports torch, under the settings above


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder in which the test runs, with the recipes, and the sample as params.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(__file__).parents[1] / "recipes", "recipes")
    shutil.copy("recipes/sample.yaml", "params.yaml")
    return tmp_path


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database that already has its tables, since making them takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def mlflow_uri(empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database of the test's own. MLflow keeps the last URI in the environment, which the next test must not see."""
    import mlflow

    monkeypatch.chdir(tmp_path)  # artifacts go to ./mlruns
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    yield f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(None)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer, token stores and row plans of toy size."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, toy_recipe())
    return folder


@pytest.fixture(scope="session")
def encoder(toy_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder in the registry's form: two layers of random weights, a tokenizer of 300 tokens."""
    from azneobert.model.export import export_transformers

    folder = tmp_path_factory.mktemp("encoder") / "export"
    model = lively(toy_recipe().model)
    weights = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    export_transformers(weights, model.config, toy_corpus / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="session")
def make_toy(
    toy_corpus: Path, empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Overrides | None], Toy]:
    """Makes a toy run in a new folder with a database of its own; takes overrides of the recipe."""

    def make(overrides: Overrides | None = None) -> Toy:
        folder = tmp_path_factory.mktemp("run")
        shutil.copy(empty_mlflow, folder / "mlflow.db")
        recipe = toy_recipe({"tracking": {"mlflow_uri": f"sqlite:///{folder}/mlflow.db"}})
        return Toy(toy_corpus, folder, recipe).with_(overrides)

    return make
