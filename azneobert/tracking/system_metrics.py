"""Processor, memory and GPUs beside a run's points, by MLflow's own monitor; what is missed in an outage stays lost."""

from __future__ import annotations

import logging
from typing import Any

from azneobert.mlflow_place import absolute_uri

log = logging.getLogger(__name__)


class SystemMetrics:
    """The monitor of one run, started again if it has ended. Its failures are caught here: nothing depends on it."""

    def __init__(self, uri: str):
        self._uri = absolute_uri(uri)
        self._monitor: Any = None
        self._run_id: str | None = None

    def keep(self, run_id: str | None) -> None:
        """Make sure that a monitor runs; it ends by itself when MLflow does not answer it."""
        try:
            if run_id is not None and not (run_id == self._run_id and self._alive()):
                self.stop()
                self._start(run_id)
        except Exception as error:  # of psutil, of a GPU's driver, of MLflow
            log.debug("no system metrics: %s", error)

    def stop(self) -> None:
        """End the monitor, so that the run can be ended after it."""
        monitor, self._monitor = self._monitor, None
        try:
            if monitor is not None:
                monitor.finish()
        except Exception as error:
            log.debug("system metrics: %s", error)

    def _alive(self) -> bool:
        thread = self._monitor and self._monitor._process
        return thread is not None and thread.is_alive()

    def _start(self, run_id: str) -> None:
        # MLflow's loggers print to the terminal by themselves.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL + 1)
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=self._uri)
        monitor.start()
        self._monitor, self._run_id = monitor, run_id
