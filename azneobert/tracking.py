"""MLflow, and wandb beside it. A run that resumes is the same run; a server that is down stops nothing.

Every point goes to a spool first, a file in the run's own folder, and from there to MLflow in batches by a thread of
its own. What could not be delivered waits in the spool. Points carry their first time stamp, under which MLflow takes a
repeated delivery for the same point, so that each arrives exactly once.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azneobert.errors import RegistryError
from azneobert.recipe import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_POINTS_PER_CALL = 1000
_SECONDS_BETWEEN_DELIVERIES = 5.0
_PARAMS_PER_CALL = 100
_LONGEST_PARAM = 6000


@dataclass(frozen=True)
class RunInfo:
    """What a run is called and described by; sent once, when the run is made."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Spool:
    """Points on disk, append-only: ``points.jsonl``, and how many of its bytes are delivered."""

    def __init__(self, folder: Path):
        self._file = folder / "points.jsonl"
        self._mark = folder / "points.delivered"
        folder.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        self._last_step: dict[str, int] = {}
        for point in read_points(folder):
            self._note(point)
        self._out = self._file.open("a", encoding="utf-8")

    def append(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Keep the values whose key has no point at this step or later yet, and return them.

        A resumed run repeats the steps since its checkpoint, to the last bit: the first record of a step stands.
        """
        fresh = {key: value for key, value in values.items() if step > self._last_step.get(key, -1)}
        if fresh:
            point = {"step": step, "time_ms": time.time_ns() // 1_000_000, "values": fresh}
            self._out.write(json.dumps(point) + "\n")
            self._out.flush()
            self._note(point)
        return fresh

    def undelivered(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Batches of points beyond the mark, each with the mark to set once it is delivered."""
        with self._file.open("rb") as file:
            file.seek(self._delivered())
            batch: list[dict[str, Any]] = []
            metrics = 0
            while (line := file.readline()).endswith(b"\n"):
                batch.append(json.loads(line))
                metrics += len(batch[-1]["values"])
                if metrics > _POINTS_PER_CALL - 50:
                    yield batch, file.tell()
                    batch, metrics = [], 0
            if batch:
                yield batch, file.tell()

    def set_delivered(self, mark: int) -> None:
        """Record that everything up to `mark` has arrived."""
        partial = self._mark.with_suffix(".partial")
        partial.write_text(str(mark))
        partial.replace(self._mark)

    def close(self) -> None:
        """No more points."""
        self._out.close()

    def _delivered(self) -> int:
        return int(self._mark.read_text()) if self._mark.exists() else 0

    def _note(self, point: dict[str, Any]) -> None:
        self._last_step.update(dict.fromkeys(point["values"], point["step"]))

    def _drop_torn_line(self) -> None:
        if self._file.exists():
            content = self._file.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self._file, whole)


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
        self._wandb = _start_wandb(folder, tracking, info)
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
                for first in range(0, len(metrics), _POINTS_PER_CALL):
                    client.log_batch(run_id, metrics=metrics[first : first + _POINTS_PER_CALL])
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


def tracking_uri(tracking: Tracking) -> str:
    """The MLflow store: the environment's MLFLOW_TRACKING_URI, or the recipe's."""
    return os.environ.get("MLFLOW_TRACKING_URI", tracking.mlflow_uri)


def mlflow_client(tracking: Tracking) -> MlflowClient:
    """A client of the recipe's store that gives up on a dead server in seconds, not minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    # Not mlflow.set_tracking_uri: it writes to the environment, which would then decide for every other recipe.
    return MlflowClient(tracking_uri(tracking))


def ensure_experiment(client: MlflowClient, tracking: Tracking) -> str:
    """The id of the recipe's experiment, which is made if it is not there."""
    found = client.get_experiment_by_name(tracking.experiment)
    return found.experiment_id if found else client.create_experiment(tracking.experiment)


def read_points(folder: Path) -> list[dict[str, Any]]:
    """Every point of the run whose spool is in `folder`, oldest first: `step`, `time_ms` and `values`."""
    file = folder / "points.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def read_run_id(folder: Path) -> str | None:
    """The MLflow run of a tracking folder, or None while MLflow has not answered yet."""
    found = read_run(folder)
    return found["run_id"] if found else None


def read_run(folder: Path) -> dict[str, Any]:
    """`run_id`, and whether MLflow has its parameters and tags (`described`); empty while there is no run."""
    file = folder / "run.json"
    return {"described": True, **json.loads(file.read_text())} if file.exists() else {}


def attach_files(tracking: Tracking, run_id: str, files: list[Path]) -> None:
    """Attach files to a run.

    Raises:
        RegistryError: MLflow does not answer.
    """
    with mlflow_errors(tracking_uri(tracking)):
        client = mlflow_client(tracking)
        for file in files:
            client.log_artifact(run_id, str(file))


def flat_params(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys, which is what MLflow's tables compare."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flat_params(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow and its transport raise into one line that names the store."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:  # MLflow passes on the errors of SQLAlchemy, requests and the file system alike
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise RegistryError(f"MLflow at {uri}: {first_line[:300]}") from error


def _start_wandb(folder: Path, tracking: Tracking, info: RunInfo) -> Any:
    if tracking.wandb == "off":
        return None
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb
    except ImportError:
        log.warning("tracking.wandb is %s but wandb is not installed: pip install 'azneobert[wandb]'", tracking.wandb)
        return None
    identity = folder / "wandb_id"
    if not identity.exists():
        identity.write_text(secrets.token_hex(4))
    try:
        return wandb.init(
            project=tracking.wandb_project,
            name=info.name,
            id=identity.read_text(),
            resume="allow",
            mode=tracking.wandb,
            dir=folder,
            config=flat_params(info.params),
        )
    except wandb.Error as error:
        log.warning("wandb: %s; this run is recorded in MLflow alone", " ".join(str(error).split()))
        return None
