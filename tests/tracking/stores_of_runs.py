"""What the tests of tracking ask MLflow, and the run that they track."""

from __future__ import annotations

from mlflow import MlflowClient
from toy import toy_recipe

from azneobert.recipe import Tracking
from azneobert.tracking.record import RunInfo

DOWN = "http://127.0.0.1:9"  # nobody listens there
INFO = RunInfo("toy-phase1", {"model": {"layers": 2}, "seed": 7}, {"azneobert.phase": "phase1"})


def tracking_at(uri: str, **overrides: object) -> Tracking:
    return toy_recipe({"tracking": {"mlflow_uri": uri, "experiment": "tested", **overrides}}).tracking


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(run_id, key)]


def runs_of(uri: str) -> list:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tested")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []
