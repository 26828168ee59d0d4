"""Runs MLflow's server on a store that is no server, for as long as somebody looks at its pages."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

from azneobert.errors import RegistryError
from azneobert.mlflow_place import ARTIFACTS, database_file, location_of, store_uri
from azneobert.recipe import Tracking
from azneobert.tracking.pages import HOST

_SECONDS_TO_START = 120.0
_SECONDS_TO_END = 10.0


def free_port(port: int) -> int:
    """The port, or for 0 one that is free.

    Raises:
        RegistryError: it is taken, or this user may not use it.
    """
    with closing(socket.socket()) as probe:
        # As the server does: a port that another server left a moment ago counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise RegistryError(f"port {port} of {HOST}: {error.strerror}; use --port 0 for a free one") from error
        return int(probe.getsockname()[1])


@contextmanager
def running_server(tracking: Tracking, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run MLflow's server for the block, once it answers; it ends with all its processes when the block ends.

    Raises:
        RegistryError: it does not start.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store_uri(tracking)]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    if database := database_file(tracking):  # for experiments that a person makes on the page
        command += ["--default-artifact-root", location_of(database.parent / ARTIFACTS)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    with tempfile.TemporaryDirectory(prefix="azneobert-server-") as scratch:
        said = Path(scratch) / "said"
        with said.open("wb") as out:
            # In a session of its own: only this process gets Ctrl-C, and the server's workers end with the server.
            process = subprocess.Popen(
                command,
                env=quiet | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            _wait_until_it_answers(process, port, said)
            yield process
        finally:
            _end(process)


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, said: Path) -> None:
    end = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < end:
        if process.poll() is not None:
            lines = [line.strip() for line in said.read_text(errors="replace").splitlines() if line.strip()]
            raise RegistryError(f"mlflow server: has not started: {lines[-1][:300] if lines else process.returncode}")
        with suppress(OSError), urlopen(f"http://{HOST}:{port}/health", timeout=2):
            return
        time.sleep(0.2)
    raise RegistryError(f"mlflow server: no answer in {_SECONDS_TO_START:.0f} s; start it again")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, which are one group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        process.wait(_SECONDS_TO_END)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
