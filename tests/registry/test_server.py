"""The registry behind a real MLflow server that asks for a password and passes the artifacts through itself."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from pushed import FIGURES, digests, push_newest
from refusals import refused
from toy import Toy

from azneobert.errors import RegistryError
from azneobert.registry.champion import promote
from azneobert.registry.delete import delete
from azneobert.registry.pull import pull, pull_checkpoint
from azneobert.registry.versions import find_version, list_versions

pytestmark = pytest.mark.long
USER, PASSWORD = "admin", "a-password-of-the-tests"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder}/auth.db\nadmin_username = {USER}\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the tests",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--port", str(port)]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}", server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"MLflow's server did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture
def served(toy: Toy, address: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Toy:
    """The finished run, and a model of the test's own on the server."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    name = re.sub(r"\W", "-", request.node.name)[-40:].strip("-_")
    return toy.with_({"tracking": {"mlflow_uri": address}, "registry": {"name": name}})


def test_a_version_goes_up_and_comes_down_and_every_verb_works(served: Toy, tmp_path: Path) -> None:
    tracking, name = served.recipe.tracking, served.recipe.registry.name
    first = push_newest(served, ["phase1"])
    assert push_newest(served, ["phase1"]) == first
    folder = pull(f"models:/{name}@phase1", tmp_path / "pulled", tracking)
    assert (folder / "model.safetensors").is_file()
    checkpoint = pull_checkpoint(first.uri, tmp_path / "checkpoint", tracking)
    assert digests(checkpoint) == digests(served.checkpoints().steps()[-1])
    second = push_newest(served, [], FIGURES | {"eval/loss": 5.0})
    assert promote(first.uri, tracking, force=True).former is None
    with refused(RegistryError, "held-out data", "--force"):
        promote(second.uri, tracking)
    promote(second.uri, tracking, force=True)
    assert find_version(f"models:/{name}@champion", tracking).number == second.number
    delete(first.uri, tracking, force=True)
    assert [version.number for version in list_versions(tracking, name)] == [second.number]
    pull(second.uri, tmp_path / "second", tracking)


def test_mlflow_s_loaders_load_it_from_the_server(served: Toy) -> None:
    name = served.recipe.registry.name
    push_newest(served, ["phase2"])
    mlflow.set_tracking_uri(served.recipe.tracking.mlflow_uri)
    try:
        [word] = mlflow.pyfunc.load_model(f"models:/{name}@phase2").predict(["Bakı [MASK] şəhərdir."])
        assert isinstance(word, str)
    finally:
        mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_login_that_is_refused_is_one_line(
    password: str | None, served: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if password is None:
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    uri, address = f"models:/{served.recipe.registry.name}@phase1", served.recipe.tracking.mlflow_uri
    with refused(RegistryError, f"MLflow at {address}", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        pull(uri, tmp_path / "pulled", served.recipe.tracking)
    with refused(RegistryError, f"MLflow at {address}", "MLFLOW_TRACKING_PASSWORD"):
        push_newest(served, ["phase1"])
