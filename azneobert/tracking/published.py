"""The record of a run, as its stage publishes it and DVC carries it elsewhere: its points and its identity."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from azneobert.errors import RegistryError
from azneobert.mlflow_place import tracking_uri
from azneobert.mlflow_store import mlflow_client, mlflow_errors
from azneobert.recipe import Tracking
from azneobert.tracking.delivery import deliver_folder, run_of
from azneobert.tracking.points import POINTS
from azneobert.tracking.record import RECORD, new_key, read_record, read_run_id, update_record
from azneobert.tracking.spool import DELIVERED, encode_mark


def publish_record(folder: Path, target: Path) -> None:
    """Copy what a run has recorded in its tracking folder to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    record = read_record(folder)
    if record is not None and record.key is None:  # an older run
        update_record(folder, key=new_key())
    for name in (POINTS, RECORD):
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)


def bring_record(points: Path, record: Path, folder: Path) -> None:
    """Make a tracking folder of what was published. Its points count as delivered to the store that has its run."""
    folder.mkdir(parents=True)
    shutil.copyfile(points, folder / POINTS)
    shutil.copyfile(record, folder / RECORD)
    (folder / DELIVERED).write_text(encode_mark(points.stat().st_size))


def restore_run(published: Path, tracking: Tracking) -> tuple[str, bool]:
    """The id of the MLflow run that published this, and whether the run had to be made, with every point and its end.

    Raises:
        RegistryError: MLflow does not answer, or there is no record.
    """
    record = read_record(published)
    if record is None:
        raise RegistryError(f"{published / RECORD}: no record of a run; bring it with `dvc checkout {published}`")
    with mlflow_errors(tracking_uri(tracking)):
        run = run_of(mlflow_client(tracking), tracking, record)
    if run is not None and run.info.status == record.status:
        return run.info.run_id, False
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tracking"
        bring_record(published / POINTS, published / RECORD, folder)
        if run is None:
            update_record(folder, run_id=None)
        deliver_folder(folder, tracking)
        run_id = read_run_id(folder)
        assert run_id is not None
        return run_id, True
