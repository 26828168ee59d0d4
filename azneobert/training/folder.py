"""A phase's folder before it is trained: which run goes on, which is complete, which is set aside. Nothing is lost."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from azneobert.checkpoint.manifest import Manifest
from azneobert.tracking.points import read_points
from azneobert.tracking.record import read_record
from azneobert.training.inputs import Inputs, open_streams, run_lock
from azneobert.training.position import Position, changes, code_changed, run_identity

LINEAGE = "lineage.json"  # of a run in MLflow


def prepare_folder(inputs: Inputs, accept_changed: tuple[str, ...] = ()) -> bool:
    """Make a run's folder ready: set aside what another run left there, refuse what cannot be trained.

    Returns whether the run is complete already. The recipe (`runtime.changed_code`) decides whether a complete run of
    other code counts as complete.

    Raises:
        AzNeoBertError: an input is missing, damaged, or does not fit the others.
    """
    with run_lock(inputs.run):
        inputs.run.outcome_file.unlink(missing_ok=True)
        complete, changed = _found(inputs, accept_changed)
        if changed:
            print(
                f"{inputs.run.path} holds another run ({'; '.join(changed[:3])}): "
                f"kept in {set_aside(inputs.run.path).name}, starting anew",
                flush=True,
            )
        return complete and not changed


def is_complete(inputs: Inputs, accept_changed: tuple[str, ...] = ()) -> bool:
    """Whether the run is complete in its folder. Nothing there is changed.

    Raises:
        AzNeoBertError: an input is missing, damaged, or does not fit the others.
    """
    complete, changed = _found(inputs, accept_changed)
    return complete and not changed


def _found(inputs: Inputs, accept_changed: tuple[str, ...]) -> tuple[bool, list[str]]:
    """Whether the run in the folder is complete, and how it differs from the run that is asked for."""
    identity = run_identity(inputs, open_streams(inputs)[0])
    newest = inputs.checkpoints.latest()
    if newest is None:
        return False, []
    _, manifest = newest
    changed = changes(manifest.identity, identity, accept_changed)
    complete = manifest.step >= inputs.recipe.phase(inputs.phase).steps
    if complete and not changed:
        changed = _changed_code(inputs, manifest)
    return complete, changed


def settle_tracking(inputs: Inputs, position: Position) -> None:
    """Make sure that the run's tracking folder holds points of this run or none; another run's are set aside.

    An older folder without an identity belongs to this run if its MLflow run is the one of the checkpoint.
    """
    folder, resumed = inputs.run.tracking, position.resumed
    record = read_record(folder)
    if record is None:
        ours = resumed is not None or not read_points(folder)
    elif record.info.identity is None:
        ours = resumed is not None and record.run_id == resumed.lineage.get("mlflow_run_id")
    elif resumed is not None:
        ours = record.info.identity in (resumed.identity, position.identity)
    else:  # stopped before its first checkpoint: does it begin as it began then?
        began = record.info.artifacts.get(LINEAGE) == lineage_document(inputs, position)
        ours = began and not changes(record.info.identity, position.identity, ())
    if folder.exists() and not ours:
        print(f"{folder} holds points of another run: kept in {set_aside(folder).name}", flush=True)


def lineage_document(inputs: Inputs, position: Position) -> dict[str, Any]:
    """What MLflow keeps about how a run was made, besides its settings."""
    segments = [asdict(segment) for segment in position.segments]
    return {**inputs.lineage, "started_from": position.started_from, "segments": segments}


def set_aside(folder: Path) -> Path:
    """Move a folder out of the way of another run; returns its new path."""
    while (aside := folder.with_name(f"{folder.name}.aside-{time.strftime('%Y%m%d-%H%M%S')}")).exists():
        time.sleep(0.1)
    return folder.rename(aside)


def _changed_code(inputs: Inputs, manifest: Manifest) -> list[str]:
    if not code_changed(inputs, manifest):
        return []
    if inputs.recipe.runtime.changed_code == "retrain":
        return ["it is complete, and the code has changed since"]
    print(f"{inputs.phase}: complete, by other code than today's; kept, as runtime.changed_code: keep says", flush=True)
    return []
