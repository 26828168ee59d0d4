"""`azneobert ui` where there is nothing to start, or where it cannot: an address, or one line."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from refusals import refused
from toy import toy_recipe
from typer.testing import CliRunner

from azneobert import cli
from azneobert.errors import RegistryError
from azneobert.tracking.pages import curves_page, runs_page
from azneobert.tracking.record import RunInfo
from azneobert.tracking.server import free_port, running_server
from azneobert.tracking.tracker import Tracker
from azneobert.yaml_files import write_yaml


def project(uri: str) -> None:
    recipe = toy_recipe({"tracking": {"mlflow_uri": uri}})
    write_yaml(Path("params.yaml"), recipe.model_dump(mode="json"))


@pytest.mark.long
def test_a_store_that_is_a_server_already_is_an_address_alone(mlflow_uri: str, tmp_path: Path) -> None:
    tracking = toy_recipe({"tracking": {"mlflow_uri": mlflow_uri}}).tracking
    Tracker(tmp_path / "run", tracking, RunInfo("phase1")).finish("FINISHED")
    port = free_port(0)
    with running_server(tracking, port) as process:
        project(f"http://127.0.0.1:{port}/")
        result = CliRunner().invoke(cli.app, ["ui"])
        assert result.exit_code == 0, result.output
        assert result.output.splitlines() == [f"runs: {runs_page(f'http://127.0.0.1:{port}', '1')}"]
    assert process.poll() is not None


def test_a_port_that_is_taken_is_one_line(mlflow_uri: str) -> None:
    project(mlflow_uri)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with refused(RegistryError, f"port {port} of 127.0.0.1", "use --port 0"):
            free_port(port)
        result = CliRunner().invoke(cli.app, ["ui", "--port", str(port)])
        assert isinstance(result.exception, RegistryError)


def test_a_server_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    tracking = toy_recipe({"tracking": {"mlflow_uri": "nosuch://store"}}).tracking
    with refused(RegistryError, "mlflow server: has not started: "), running_server(tracking, free_port(0)):
        pytest.fail("there is no server")


def test_addresses_are_as_the_pages_take_them() -> None:
    assert runs_page("http://h:1", "7") == "http://h:1/#/experiments/7/runs?workflowType=machine_learning"
    assert runs_page("http://h:1", None) == "http://h:1/#/experiments"
    assert curves_page("http://h:1", ["a", "b"], ["7"], "train/loss") == (
        "http://h:1/#/metric?runs=%5B%22a%22%2C%22b%22%5D&metric=%22train%2Floss%22&experiments=%5B%227%22%5D"
        "&plot_metric_keys=%5B%22train%2Floss%22%5D&x_axis=step&line_smoothness=1"
    )
