"""The addresses of MLflow's pages: its own first page shows none of the runs of a training."""

from __future__ import annotations

import json
from urllib.parse import quote

from azneobert.mlflow_place import tracking_uri
from azneobert.recipe import Tracking

PORT = 5000  # of `azneobert ui`, unless another one is asked for
HOST = "127.0.0.1"


def server_of(tracking: Tracking) -> str | None:
    """The address of the recipe's store if it is a server; None if it is something else, such as a file."""
    uri = tracking_uri(tracking)
    return uri.rstrip("/") if uri.startswith(("http://", "https://")) else None


def runs_page(server: str, experiment: str | None) -> str:
    """The list of an experiment's runs, from which the charts are one click away; without one, the list of all."""
    if experiment is None:
        return f"{server}/#/experiments"
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def curves_page(server: str, runs: list[str], experiments: list[str], metric: str) -> str:
    """The curves of one metric of several runs, against its steps."""
    asked = {"runs": runs, "metric": metric, "experiments": experiments, "plot_metric_keys": [metric]}
    fields = [f"{key}={quote(json.dumps(value, separators=(',', ':')), safe='')}" for key, value in asked.items()]
    return f"{server}/#/metric?{'&'.join(fields)}&x_axis=step&line_smoothness=1"
