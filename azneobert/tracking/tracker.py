"""MLflow, and wandb beside it. A run that resumes is the same run; a server that is down stops nothing.

Every point goes to a spool first, a file in the run's own folder, and from there to MLflow in batches by a thread of
its own. What could not be delivered waits in the spool. Points carry their first time stamp, under which MLflow takes a
repeated delivery for the same point, so that each arrives exactly once.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from azneobert.errors import RegistryError
from azneobert.mlflow_store import ensure_experiment, mlflow_client, mlflow_errors, tracking_uri
from azneobert.recipe import Tracking
from azneobert.tracking.record import RunInfo, flat_params, read_run, read_run_id
from azneobert.tracking.spool import POINTS_PER_CALL, Spool
from azneobert.tracking.wandb_run import start_wandb

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_DELIVERIES = 5.0
_PARAMS_PER_CALL = 100
_LONGEST_PARAM = 6000


class Tracker:
    """One MLflow run, found again by the id in ``run.json`` of its folder."""

    def __init__(self, folder: Path, tracking: Tracking, info: RunInfo):
        self.spool = Spool(folder)
        self._folder = folder
        self._tracking = tracking
        self._info = info
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._warned = False
        self._wandb = start_wandb(folder, tracking, info)
        self._try_delivery()  # now, so that every checkpoint can name its run
        self._thread = threading.Thread(target=self._deliver_now_and_then, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """The MLflow run, or None while MLflow has not answered yet."""
        return read_run_id(self._folder)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values at an optimizer step; never waits for a server, never raises because of one."""
        fresh = self.spool.append(step, values)
        if self._wandb and fresh:
            self._wandb.log(fresh, step=step)

    def deliver(self) -> str:
        """Send what is waiting, and return the run's id.

        Raises:
            RegistryError: MLflow does not answer.
        """
        with self._lock, mlflow_errors(tracking_uri(self._tracking)):
            from mlflow.entities import Metric

            client = mlflow_client(self._tracking)
            run_id = self.run_id or self._create_run(client)
            if not read_run(self._folder)["described"]:
                self._describe(client, run_id)
            for points, mark in self.spool.undelivered():
                metrics = [Metric(k, v, p["time_ms"], p["step"]) for p in points for k, v in p["values"].items()]
                for first in range(0, len(metrics), POINTS_PER_CALL):
                    client.log_batch(run_id, metrics=metrics[first : first + POINTS_PER_CALL])
                self.spool.set_delivered(mark)
            return run_id

    def finish(self, status: str) -> None:
        """End the run as FINISHED, KILLED or FAILED; what cannot be delivered now waits in the spool."""
        self._done.set()
        self._thread.join()
        self._try_delivery(status)
        self.spool.close()
        if self._wandb:
            self._wandb.finish(exit_code=int(status == "FAILED"))

    def _deliver_now_and_then(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN_DELIVERIES):
            self._try_delivery()

    def _try_delivery(self, status: str = "RUNNING") -> None:
        try:
            run_id = self.deliver()
            with mlflow_errors(tracking_uri(self._tracking)):
                mlflow_client(self._tracking).update_run(run_id, status=status)
        except RegistryError as error:
            if not self._warned or status != "RUNNING":
                log.warning("%s; points wait in %s and are sent when the stage runs again", error, self._folder)
            self._warned = True

    def _create_run(self, client: MlflowClient) -> str:
        run = client.create_run(ensure_experiment(client, self._tracking), run_name=self._info.name)
        self._note_run(run.info.run_id, described=False)
        return run.info.run_id

    def _describe(self, client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Param, RunTag

        params = [Param(k, str(v)[:_LONGEST_PARAM]) for k, v in flat_params(self._info.params).items()]
        for first in range(0, len(params), _PARAMS_PER_CALL):
            client.log_batch(run_id, params=params[first : first + _PARAMS_PER_CALL])
        client.log_batch(run_id, tags=[RunTag(k, v) for k, v in self._info.tags.items()])
        self._note_run(run_id, described=True)

    def _note_run(self, run_id: str, *, described: bool) -> None:
        partial = self._folder / "run.json.partial"
        partial.write_text(json.dumps({"run_id": run_id, "described": described}) + "\n")
        partial.replace(self._folder / "run.json")
