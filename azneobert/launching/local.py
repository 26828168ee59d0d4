"""The ranks of a phase on this machine: started directly, stopped by a stop file, never left behind.

No launcher stands between: `torchrun` and `accelerate launch` kill their ranks at a signal, in the middle of a
checkpoint. A rank ends when its launcher dies, whatever killed it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from azneobert.environment import LAUNCHER, PROCESSES
from azneobert.errors import TrainingError
from azneobert.printable import printable

GRACE_SECONDS = 120.0  # from a request to stop to the forced exit of a rank
_MARGIN_SECONDS = 30.0  # what a launcher gives its ranks on top of theirs
_OTHERS_SECONDS = 15.0  # how long the others may go on when one rank has failed
_POLL_SECONDS = 0.1
_LINES_KEPT = 200
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1


class Rank:
    """One rank's process. The main one's errors are shown as they come, the others' are kept until they matter."""

    def __init__(self, number: int, command: list[str], environment: dict[str, str]):
        self.number = number
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)
        # A session of its own: Ctrl-C on a terminal reaches the launcher alone, which asks the ranks to stop.
        self.process = subprocess.Popen(
            command, env=os.environ | environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, name=f"rank-{number}", daemon=True)
        self._reader.start()

    def error(self) -> str:
        """What the rank said last: its own error line where it has one."""
        self._reader.join(5)
        said = [line for line in self.lines if line.strip()]
        errors = [line for line in said if line.startswith("error: ")]
        return (errors or said or [f"it ended with {self._ending()} and without a word"])[-1].removeprefix("error: ")

    def _ending(self) -> str:
        code = self.process.returncode
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            # The launcher says the error itself, with what became of the phase.
            if self.number == 0 and not line.startswith("error: "):
                print(printable(line.rstrip("\n")), file=sys.stderr, flush=True)


def run_ranks(command: list[str], processes: int, stop_file: Path, grace_seconds: float = GRACE_SECONDS) -> Rank | None:
    """Run a command as `processes` ranks until all have ended; a signal to this process asks them to stop.

    Returns the first rank that failed, if any. Whether the phase is complete or stopped is `outcome`'s to say.
    """
    ranks = [Rank(number, command, environment) for number, environment in enumerate(_environments(processes))]
    try:
        with _stopping(stop_file) as asked:
            return _wait(ranks, asked, grace_seconds + _MARGIN_SECONDS)
    finally:
        for rank in ranks:
            if rank.process.poll() is None:
                rank.process.kill()
                rank.process.wait()


def end_with_launcher() -> None:
    """Have the kernel end this rank, by SIGTERM and so behind a checkpoint, when the process that launched it dies."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):  # it died before the kernel was asked
        raise TrainingError("the launcher has died; start the phase again")


def _environments(processes: int) -> list[dict[str, str]]:
    """What each rank's environment says of its place."""
    common = {PROCESSES: str(processes), LAUNCHER: str(os.getpid())}
    if processes == 1:
        return [common]
    # Ranks that all took all cores would wait for each other at every barrier.
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    common |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads), "WORLD_SIZE": str(processes)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _stopping(stop_file: Path) -> Iterator[list[float]]:
    """While this lasts, a signal to this process makes the stop file; when it came is in the list."""
    asked: list[float] = []

    def on_signal(*_: object) -> None:
        asked.append(time.monotonic())
        stop_file.parent.mkdir(parents=True, exist_ok=True)
        stop_file.touch()

    former = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _wait(ranks: list[Rank], asked: list[float], limit: float) -> Rank | None:
    failed: Rank | None = None
    failed_at = 0.0
    while running := [rank for rank in ranks if rank.process.poll() is None]:
        now = time.monotonic()
        if failed is None and (failed := _first_failed(ranks)):
            failed_at = now
        # The others may wait in a collective, for ever, for one that has failed.
        if (failed and now > failed_at + _OTHERS_SECONDS) or (asked and now > asked[0] + limit):
            for rank in running:
                rank.process.kill()
        time.sleep(_POLL_SECONDS)
    return failed or _first_failed(ranks)


def _first_failed(ranks: list[Rank]) -> Rank | None:
    return next((rank for rank in ranks if rank.process.returncode), None)
