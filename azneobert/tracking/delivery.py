"""Sends what waits in a tracking folder to MLflow: the run, its points, its end and its description, each once.

Points keep their first time stamp, so that MLflow takes a repeated delivery for the same point.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from azneobert.dotted import flatten
from azneobert.mlflow_place import check_place, tracking_uri
from azneobert.mlflow_store import ensure_experiment, find_run, mlflow_client, mlflow_errors
from azneobert.recipe import Tracking
from azneobert.tracking.backlog import send_points, sent_apart
from azneobert.tracking.lock import folder_if_free
from azneobert.tracking.names import NAMING
from azneobert.tracking.points import read_points
from azneobert.tracking.record import (
    RUNNING,
    Record,
    read_record,
    repaired_record,
    tracking_of,
    update_record,
)
from azneobert.tracking.spool import Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

KEY_TAG = "azneobert.run"  # of a run in MLflow: its key
_PARAMS_PER_CALL = 100
_LONGEST_PARAM = 6000


def deliver_folder(folder: Path, tracking: Tracking) -> int | None:
    """Deliver what waits in a folder, with nothing but the folder; returns how many points.

    Returns None, and does nothing, if a live process delivers from this folder itself.

    Raises:
        RegistryError: MLflow does not answer, or refuses the run.
    """
    with folder_if_free(folder) as free:
        if not free:
            return None
        if repaired_record(folder) is None:
            update_record(folder, run_id=None)
        spool = Spool(folder)
        try:
            return deliver(folder, spool, tracking)
        finally:
            spool.close()


def something_waits(folder: Path) -> bool:
    """Whether anything in a folder has not reached MLflow, as far as the folder knows."""
    if not folder.is_dir():
        return False
    with folder_if_free(folder) as free:
        if not free:
            return True
        record = repaired_record(folder)
        spool = Spool(folder)
        spool.close()
        if record is None:
            return bool(read_points(folder))
        return not record.settled or any(True for _ in spool.undelivered())


def fresh_folder(run: Path) -> Path:
    """Make room for a run in `run`/tracking: the former folder is removed, or set aside if something waits in it."""
    if not run.exists():
        return run
    if something_waits(run / "tracking"):
        aside = run.with_name(f"{run.name}.aside-{time.strftime('%Y%m%d-%H%M%S')}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        run.rename(aside)
    else:
        shutil.rmtree(run)
    return run


def deliver(
    folder: Path, spool: Spool, tracking: Tracking, wanted: Record | None = None, *, beside_training: bool = False
) -> int:
    """Send what is waiting, and return how many points. The record must be there; only the caller may use the folder.

    The run gets the status, end and description of `wanted`, by default of the record. With `beside_training`, a large
    backlog is sent by a separate process.

    Raises:
        RegistryError: MLflow does not answer, or refuses the run, or the project was moved or copied since.
    """
    check_place(tracking)
    with mlflow_errors(tracking_uri(tracking)):
        client = mlflow_client(tracking)
        run = _ensure_run(client, folder, spool, tracking)
        sent = _send_points(client, run.info.run_id, spool, tracking, beside_training=beside_training)
        record = read_record(folder)
        assert record is not None
        wanted = wanted or record
        if not record.described:
            _describe(client, run, wanted)
        _set_status(client, run, wanted)  # last: a run that has its end has all the rest
        if not record.described or record.settled != (wanted.status != RUNNING):
            update_record(folder, described=True, settled=wanted.status != RUNNING)
        return sent


def _ensure_run(client: MlflowClient, folder: Path, spool: Spool, tracking: Tracking) -> Run:
    """The run of the folder; if MLflow has deleted it, one with its key, or a new one, gets every point."""
    record = read_record(folder)
    assert record is not None
    run = run_of(client, tracking, record)
    if run is not None and run.info.run_id == record.run_id:
        if record.naming != NAMING:  # what it has under former names stays, too
            spool.set_delivered(0)
            update_record(folder, naming=NAMING)
        return run
    if run is None:
        run = _create_run(client, ensure_experiment(client, tracking_of(record.info, tracking)), record)
    if record.run_id is not None:
        log.warning("%s: MLflow has no run %s; %s gets every point", folder, record.run_id, run.info.run_id)
    spool.set_delivered(0)  # before the run is noted: a kill in between leaves an empty run, not a lost point
    update_record(folder, run_id=run.info.run_id, described=False, settled=False, naming=NAMING)
    return run


def run_of(client: MlflowClient, tracking: Tracking, record: Record) -> Run | None:
    """The run of a record, by its id, else by its key: after a kill, or restored into another store."""
    if record.run_id is not None and (run := find_run(client, record.run_id)) is not None:
        return run
    if record.key is None:
        return None
    found = client.search_runs(
        [ensure_experiment(client, tracking_of(record.info, tracking))],
        f"tags.`{KEY_TAG}` = '{record.key}'",
        max_results=1,
    )
    return found[0] if found else None


def _create_run(client: MlflowClient, experiment: str, record: Record) -> Run:
    return client.create_run(
        experiment,
        start_time=record.started_ms,
        run_name=record.info.name,
        tags={
            "mlflow.user": record.user,
            "mlflow.source.name": record.source,
            "mlflow.source.type": "LOCAL",
        }
        | ({KEY_TAG: record.key} if record.key else {}),
    )


def _send_points(client: MlflowClient, run_id: str, spool: Spool, tracking: Tracking, *, beside_training: bool) -> int:
    sent = 0
    if beside_training:
        for points, mark in sent_apart(tracking, run_id, spool):
            _note_delivered(spool, mark)
            sent += points
    for batch, mark in spool.undelivered():
        send_points(client, run_id, batch)
        _note_delivered(spool, mark)
        sent += len(batch)
    return sent


def _note_delivered(spool: Spool, mark: int) -> None:
    try:
        spool.set_delivered(mark)
    except OSError as error:  # a full disk: they are sent again one day, and MLflow has them once
        log.warning("%s: cannot be written: %s", error.filename, error.strerror)


def _set_status(client: MlflowClient, run: Run, record: Record) -> None:
    if record.status is None:  # an older folder, which does not know it
        return
    if record.status == RUNNING:
        if run.info.status != RUNNING:
            client.update_run(run.info.run_id, status=RUNNING)
    elif (run.info.status, run.info.end_time) != (record.status, record.ended_ms):
        client.set_terminated(run.info.run_id, status=record.status, end_time=record.ended_ms)


def _describe(client: MlflowClient, run: Run, record: Record) -> None:
    """Parameters, tags, description and documents. MLflow's parameters never change: those that are there stay."""
    from mlflow.entities import Param, RunTag

    run_id, info = run.info.run_id, record.info
    flat = flatten(info.params).items()
    params = [Param(k, str(v)[:_LONGEST_PARAM]) for k, v in flat if k not in run.data.params]
    for first in range(0, len(params), _PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[first : first + _PARAMS_PER_CALL])
    tags = info.tags | ({"mlflow.note.content": info.description} if info.description else {})
    client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
    for name, document in info.artifacts.items():
        client.log_dict(run_id, document, name)
