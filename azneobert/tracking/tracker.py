"""MLflow, and wandb beside it. A run that resumes is the same run; a server that is down or hangs stops nothing.

Every point goes to a spool first, a file in the run's own folder, from which a separate thread sends it to MLflow in
batches. What could not be delivered waits in the folder, with all that is needed to deliver it without this process.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

from azneobert.errors import RegistryError
from azneobert.mlflow_place import tracking_uri
from azneobert.mlflow_store import mlflow_is_installed
from azneobert.recipe import Tracking
from azneobert.tracking.delivery import deliver
from azneobert.tracking.lock import hold_folder
from azneobert.tracking.record import RunInfo, open_record, read_run_id, update_record
from azneobert.tracking.spool import Spool
from azneobert.tracking.system_metrics import SystemMetrics
from azneobert.tracking.wandb_run import start_wandb

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_DELIVERIES = 5.0
_LONGEST_PAUSE = 300.0  # the pause doubles after each delivery that fails, up to this
_SECONDS_OF_THE_START = 10.0  # that a run waits for MLflow before it goes on
_SECONDS_OF_THE_END = 60.0  # and before it ends


class Tracker:
    """One run, recorded in its folder; the MLflow run is found again by the id in ``run.json``.

    A run that goes on under other settings is another `segment`, with a higher number, which begins at `from_step`:
    points of earlier segments after that step do not stand any more.
    """

    def __init__(
        self,
        folder: Path,
        tracking: Tracking,
        info: RunInfo,
        *,
        segment: int = 0,
        from_step: int = 0,
        system_metrics: bool = False,
    ):
        self._folder_lock = hold_folder(folder)
        self._record = open_record(folder, info)
        self.spool = Spool(folder, segment, from_step)
        self._folder = folder
        self._tracking = tracking
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._warned = False
        self._wandb = start_wandb(folder, tracking, info)
        self._system = SystemMetrics(tracking_uri(tracking)) if system_metrics else None
        self._tried = threading.Event()
        if mlflow_is_installed():
            import mlflow  # noqa: F401 - here: in the thread it would run beside the imports of the main one

        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()
        # Wait, so that every checkpoint can name its run; a large backlog may take longer.
        if not self._tried.wait(_SECONDS_OF_THE_START) and self.run_id is None:
            self._say(f"MLflow at {tracking_uri(tracking)}: no answer in {_SECONDS_OF_THE_START:.0f} s")

    @property
    def run_id(self) -> str | None:
        """The MLflow run as it is now, or None while MLflow has not answered yet."""
        return read_run_id(self._folder)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values at an optimizer step; never waits for a server, never raises because of one."""
        fresh = self.spool.append(step, values)
        if self._wandb and fresh:
            self._wandb.log(fresh, step=step)

    def begin_segment(self, from_step: int) -> None:
        """Note that the run has gone back to a step: its points after that step are recorded anew."""
        self.spool.begin_segment(from_step)

    def deliver(self) -> str:
        """Send what is waiting, and return the run's id.

        Raises:
            RegistryError: MLflow does not answer.
        """
        self._deliver()
        run_id = self.run_id
        assert run_id is not None
        return run_id

    def finish(self, status: str) -> None:
        """End the run as FINISHED, KILLED or FAILED; what cannot be delivered now waits in the folder."""
        ended_ms = time.time_ns() // 1_000_000
        try:
            update_record(self._folder, status=status, ended_ms=ended_ms)
        except OSError as error:  # a full disk, which may have ended the run; MLflow can still be told
            log.warning("%s: the end of the run cannot be noted: %s", self._folder, error.strerror)
        self._record = replace(self._record, status=status, ended_ms=ended_ms)
        self._done.set()
        self._thread.join(_SECONDS_OF_THE_END)
        if self._thread.is_alive():  # it ends with the process, and what it has sent by then counts
            self._say(f"MLflow at {tracking_uri(self._tracking)}: has not taken all in {_SECONDS_OF_THE_END:.0f} s")
        if self._wandb:
            self._wandb.finish(exit_code=int(status == "FAILED"))

    def _work(self) -> None:
        pause = _SECONDS_BETWEEN_DELIVERIES
        try:
            self._try_delivery()
            self._tried.set()
            while not self._done.wait(pause):
                if self._try_delivery():
                    pause = _SECONDS_BETWEEN_DELIVERIES
                    if self._system:
                        self._system.keep(self.run_id)
                else:
                    pause = min(2 * pause, _LONGEST_PAUSE)
            if self._system:
                self._system.stop()
            self._try_delivery()
        finally:
            self._tried.set()
            self.spool.close()
            self._folder_lock.release()

    def _deliver(self) -> None:
        with self._lock:
            deliver(self._folder, self.spool, self._tracking, self._record, beside_training=True)

    def _try_delivery(self) -> bool:
        try:
            self._deliver()
        except RegistryError as error:
            if self._done.is_set() or not self._warned:
                self._say(str(error))
            return False
        return True

    def _say(self, found: str) -> None:
        log.warning("%s; points wait in %s: use `azneobert runs deliver`", found, self._folder)
        self._warned = True
