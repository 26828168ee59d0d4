"""Sends many waiting points to MLflow from a separate process, while the training goes on.

For a thousand figures MLflow takes 150 ms of Python, for which the thread that trains would have to wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azneobert.errors import AzNeoBertError, RegistryError
from azneobert.mlflow_place import tracking_uri
from azneobert.recipe import Tracking
from azneobert.tracking.names import figures_in_mlflow
from azneobert.tracking.spool import POINTS_PER_CALL, Spool, lines_between, standing_batches

if TYPE_CHECKING:
    from mlflow import MlflowClient

Points = list[dict[str, Any]]

_FEWEST_BYTES = 1 << 20  # some 3,000 points; a process takes seconds to start
_NICE = 10  # since all cores of the machine train


def send_points(client: MlflowClient, run_id: str, points: Points) -> None:
    """Send points, each of their figures under MLflow's name for it."""
    from mlflow.entities import Metric

    metrics = [
        Metric(name, value, point["time_ms"], step)
        for point in points
        for name, value, step in figures_in_mlflow(point)
    ]
    for first in range(0, len(metrics), POINTS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[first : first + POINTS_PER_CALL])


def sent_apart(tracking: Tracking, run_id: str, spool: Spool) -> Iterator[tuple[int, int]]:
    """Send what waits in the file, if it is much; yields the number of points in each batch and the mark it reaches.

    Raises:
        RegistryError: MLflow does not answer, or the process has failed.
    """
    work = spool.backlog()
    if work["end"] - work["start"] < _FEWEST_BYTES:
        return
    job = work | {"run_id": run_id, "tracking": tracking.model_dump(mode="json")}
    process = subprocess.Popen(
        [sys.executable, "-m", "azneobert.tracking.backlog"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C goes to the training, which will end this process
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with suppress(BrokenPipeError), process.stdin as asked:
            asked.write(json.dumps(job))
        for line in process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                raise RegistryError(answer["error"])
            yield answer["points"], answer["mark"]
        if process.wait():
            where = f"MLflow at {tracking_uri(tracking)}"
            raise RegistryError(
                f"{where}: the process that delivers has ended with exit code {process.returncode}; "
                "use `azneobert runs deliver`"
            )
    finally:
        process.kill()
        process.wait()


def _work(job: dict[str, Any]) -> None:
    """Send a part of a file of points, and say after each batch how far it goes."""
    from azneobert.mlflow_store import mlflow_client, mlflow_errors

    tracking = Tracking.model_validate(job["tracking"])
    starts = {int(segment): step for segment, step in job["starts"].items()}
    file = Path(job["file"])
    with mlflow_errors(tracking_uri(tracking)):
        client = mlflow_client(tracking)
        lines = lines_between(file, job["start"], job["end"])
        for points, mark in standing_batches(lines, job["start"], starts, file):
            send_points(client, job["run_id"], points)
            print(json.dumps({"points": len(points), "mark": mark}), flush=True)


def main() -> None:
    """Do the work that standard input names, until it is done or nobody reads its answers any more."""
    os.nice(_NICE)
    try:
        _work(json.load(sys.stdin))
    except AzNeoBertError as error:
        print(json.dumps({"error": str(error)}), flush=True)
    except BrokenPipeError:  # the training has ended
        os._exit(1)


if __name__ == "__main__":
    main()
