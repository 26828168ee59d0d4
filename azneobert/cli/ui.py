"""`azneobert ui`: MLflow's server on the recipe's store, and the address at which it shows the runs of a training."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from azneobert.cli.console import console
from azneobert.cli.recipe import RecipeName
from azneobert.cli.registry import restore_if_fresh
from azneobert.errors import RegistryError
from azneobert.mlflow_place import tracking_uri
from azneobert.recipe import Tracking
from azneobert.recipe_files import open_recipe
from azneobert.tracking.pages import HOST, PORT, runs_page, server_of


def ui(
    name: RecipeName = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to answer; 0 takes a free port.")] = PORT,
) -> None:
    """Start MLflow's server on the recipe's runs and print the address that shows them; Ctrl-C ends it."""
    from azneobert.tracking.server import free_port, running_server

    _, recipe = open_recipe(name)
    tracking = recipe.tracking
    if server := server_of(tracking):
        console.print(f"runs: {runs_page(server, _experiment(tracking))}")
        return
    port = free_port(port)
    with _until_it_is_asked_to_end():
        restore_if_fresh(recipe)
        experiment = _experiment(tracking)
        console.print("starting MLflow's server, which takes some seconds; Ctrl-C ends it")
        sys.stdout.flush()
        with running_server(tracking, port) as process:
            console.print(f"runs: {runs_page(f'http://{HOST}:{port}', experiment)}")
            if experiment is None:
                console.print(f"experiment {tracking.experiment} has no runs yet; `dvc repro` makes some")
            sys.stdout.flush()
            process.wait()
            raise RegistryError(f"mlflow server: has ended with exit code {process.returncode}; start it again")


def _experiment(tracking: Tracking) -> str | None:
    """The id of the recipe's experiment. It is not made here: a clone with an experiment would not restore its runs."""
    from azneobert.mlflow_store import mlflow_client, mlflow_errors

    with mlflow_errors(tracking_uri(tracking)):
        found = mlflow_client(tracking).get_experiment_by_name(tracking.experiment)
    return found.experiment_id if found else None


@contextmanager
def _until_it_is_asked_to_end() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block, and are no error."""
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, former)
