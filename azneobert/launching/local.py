"""The ranks of a phase on this machine: started directly, stopped by a stop file, never left behind.

No other launcher is used: at a signal, `torchrun` and `accelerate launch` kill their ranks even in the middle of a
checkpoint. A rank ends when its launcher dies, whatever killed the launcher.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from azneobert.environment import EXIT_FORCED, EXIT_STOPPED, GRACE, GRACE_SECONDS, LAUNCHER, PROCESSES
from azneobert.launching.outcome import Ended, read_outcome
from azneobert.layout import RunFolder
from azneobert.printable import printable
from azneobert.training.watchdog import STACKS_SIGNAL, Heartbeats, is_stopped, silence_of, stacks_file

_MARGIN_SECONDS = 30.0  # what a launcher gives its ranks on top of their own grace
_OTHERS_SECONDS = 15.0  # how long the others may go on when one rank has failed
_POLL_SECONDS = 0.1
_LINES_KEPT = 200
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_FLIGHT_RECORDER = "TORCH_FR_BUFFER_SIZE"  # how many collectives a rank remembers
_LOOK_SECONDS = 1.0
_STOPPED_SECONDS = 10.0  # how long a run that was asked to end waits for a rank that is stopped
_SILENT_SECONDS = 30.0  # how long it waits for a rank that gives no sign of life
_MARGIN_OF_RANKS = 15.0  # time for ranks that are alive to report a stall themselves


class Rank:
    """One rank's process. Rank 0's standard error is shown at once; that of the others is kept until it matters."""

    def __init__(self, number: int, command: list[str], environment: dict[str, str]):
        self.number = number
        self.stalled: str | None = None  # why it counts as stalled, if it came to no further step
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)
        # A session of its own: Ctrl-C on a terminal reaches the launcher alone, which asks the ranks to stop.
        self.process = subprocess.Popen(
            command, env=os.environ | environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, name=f"rank-{number}", daemon=True)
        self._reader.start()

    def error(self) -> str:
        """The rank's own error line, or else its last line. For a killed rank without one, the signal."""
        self._reader.join(5)
        said = [line for line in self.lines if line.strip()]
        errors = [line for line in said if line.startswith("error: ")]
        if not errors and (self.process.returncode < 0 or not said):
            return f"it ended with {self._ending()} and without an error of its own"
        return (errors or said)[-1].removeprefix("error: ")

    def _ending(self) -> str:
        code = self.process.returncode
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            # The launcher prints the error line itself, with what became of the phase.
            if self.number == 0 and not line.startswith("error: "):
                print(printable(line.rstrip("\n")), file=sys.stderr, flush=True)


def train_here(
    phase: str, command: list[str], processes: int, run: RunFolder, stall_seconds: float, grace_seconds: float
) -> Ended:
    """Train a phase in `processes` ranks on this machine with `run_ranks`. Returns how it ended."""
    for file in (run.stop_file, run.outcome_file):  # remove requests and outcomes of earlier runs
        file.unlink(missing_ok=True)
    failed = run_ranks(command, processes, run, stall_seconds, grace_seconds)
    outcome = read_outcome(run)
    if outcome.state == "complete":
        return Ended("complete")
    if outcome.state == "stopped":
        return Ended(
            "stopped", f"{phase}: stopped as asked at step {outcome.step}, with a checkpoint; start again to go on"
        )
    if failed is None:
        return Ended(
            "failed", f"{phase}: the ranks have ended and left no checkpoint of that step; look at what they printed"
        )
    if failed.stalled:
        return Ended("stalled", failed.stalled)
    if failed.process.returncode == EXIT_FORCED:
        return Ended(
            "failed",
            f"{phase}: asked to stop, rank {failed.number} had no checkpoint within {grace_seconds:.0f} s and was "
            "ended; start again to go on from the one before",
        )
    return Ended("failed", failed.error() if failed.number == 0 else f"rank {failed.number}: {failed.error()}")


def run_ranks(
    command: list[str],
    processes: int,
    run: RunFolder,
    stall_seconds: float = 600.0,
    grace_seconds: float = GRACE_SECONDS,
) -> Rank | None:
    """Run a command as `processes` ranks until all have ended; a signal to this process asks them to stop.

    Ranks that come to no step for `stall_seconds` and cannot report it themselves leave their stacks and are ended.

    Returns the first rank that failed, if any. `read_outcome` says whether the phase is complete or stopped.
    """
    ranks = [
        Rank(number, command, environment) for number, environment in enumerate(_environments(processes, grace_seconds))
    ]
    try:
        with _stopping(run.stop_file) as asked:
            return _wait(ranks, asked, grace_seconds + _MARGIN_SECONDS, _Overseer(ranks, run, asked, stall_seconds))
    finally:
        for rank in ranks:
            if rank.process.poll() is None:
                rank.process.kill()
                rank.process.wait()


def _environments(processes: int, grace_seconds: float) -> list[dict[str, str]]:
    """The environment of each rank, which states its place among the others."""
    common = {PROCESSES: str(processes), LAUNCHER: str(os.getpid()), GRACE: str(grace_seconds)}
    common |= {_FLIGHT_RECORDER: os.environ.get(_FLIGHT_RECORDER, "2000")}
    if processes == 1:
        return [common]
    # If every rank took all cores, ranks would wait for each other at every barrier.
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
    """While the block runs, a signal to this process makes the stop file. The list holds the time of the signal."""
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


class _Overseer:
    """Sees from outside what ranks cannot report: that one of them, or all of them, were stopped."""

    def __init__(self, ranks: list[Rank], run: RunFolder, asked: list[float], seconds: float):
        self._run = run
        self._asked = asked
        self._seconds = seconds
        self._beats = Heartbeats(run, len(ranks), {rank.number: rank.process.pid for rank in ranks})
        self._stopped: dict[int, float] = {}  # since when each is stopped
        self._begun: dict[int, float] = {}  # when each last had a heartbeat file; a rank removes it at its end
        self._stuck: float | None = None
        self._looked = time.monotonic()

    def finds(self, running: list[Rank]) -> str | None:
        """One line on why the ranks must be ended, or None. Looks about once a second."""
        now = time.monotonic()
        if now < self._looked + _LOOK_SECONDS:
            return None
        pause, self._looked = now - self._looked, now
        self._beats.look()
        self._begun |= {rank.number: now for rank in running if self._beats.has_begun(rank.number)}
        if pause > _SILENT_SECONDS:  # this process itself was stopped, perhaps together with the ranks
            self._stopped.clear()
            self._begun = dict.fromkeys(self._begun, now)
            self._stuck = None
        stopped = [rank for rank in running if is_stopped(rank.process.pid)]
        self._stopped = {rank.number: self._stopped.get(rank.number, now) for rank in stopped}
        if self._asked and self._deaf(running, now):
            return self._report("asked to stop, and no step came since", running)
        if not self._hang(running, now):
            self._stuck = None
            return None
        self._stuck = self._stuck or now
        margin = silence_of(self._seconds) + _MARGIN_OF_RANKS if self._beats.alive(_MARGIN_OF_RANKS) else 0.0
        return self._report(f"no step for {self._seconds:.0f} s", running) if now >= self._stuck + margin else None

    def _deaf(self, running: list[Rank], now: float) -> bool:
        """Whether some rank cannot notice the request to stop."""
        waited = now - self._asked[0]
        stopped = [since for since in self._stopped.values() if now - since >= _STOPPED_SECONDS]
        silent = [rank for rank in running if self._silent(rank, _SILENT_SECONDS)]
        return bool(stopped and waited >= _STOPPED_SECONDS) or bool(silent and waited >= _SILENT_SECONDS)

    def _hang(self, running: list[Rank], now: float) -> bool:
        if any(now - since >= self._seconds for since in self._stopped.values()):
            return True
        return all(
            self._beats.late(rank.number)
            or self._silent(rank, self._seconds)
            or now - self._begun.get(rank.number, now) >= self._seconds
            for rank in running
        )

    def _silent(self, rank: Rank, seconds: float) -> bool:
        return self._beats.has_begun(rank.number) and self._beats.silent(rank.number, seconds)

    def _report(self, why: str, running: list[Rank]) -> str:
        for rank in running:
            if rank.number in self._stopped:
                _stacks_from_outside(rank.process.pid, self._run, rank.number)
            elif self._beats.has_begun(rank.number):
                rank.process.send_signal(STACKS_SIGNAL)
        time.sleep(_LOOK_SECONDS)
        return self._beats.report(why, _STOPPED_SECONDS)


def _stacks_from_outside(pid: int, run: RunFolder, rank: int) -> None:
    """Write the stacks of a stopped process, if py-spy is installed and may look into it."""
    program = shutil.which("py-spy")
    if program is None:
        return
    with suppress(OSError, subprocess.TimeoutExpired), stacks_file(run, rank).open("ab") as file:
        command = [program, "dump", "--nonblocking", "--pid", str(pid)]
        subprocess.run(command, stdout=file, stderr=subprocess.DEVNULL, timeout=10, check=False)


def _wait(ranks: list[Rank], asked: list[float], limit: float, overseer: _Overseer) -> Rank | None:
    failed: Rank | None = None
    failed_at = 0.0
    while running := [rank for rank in ranks if rank.process.poll() is None]:
        now = time.monotonic()
        if failed is None and (failed := _first_failed(ranks)):
            failed_at = now
            if failed.process.returncode == EXIT_STOPPED:
                failed.stalled = failed.error()
        if failed is None and (found := overseer.finds(running)):
            failed = running[0]
            failed.stalled = found
        # The others may wait forever in a collective for the rank that has failed.
        late = failed and (failed.stalled or now > failed_at + _OTHERS_SECONDS)
        if late or (asked and now > asked[0] + limit):
            for rank in running:
                rank.process.kill()
        time.sleep(_POLL_SECONDS)
    return failed or _first_failed(ranks)


def _first_failed(ranks: list[Rank]) -> Rank | None:
    """The failed rank that explains the others' failures: of those that have ended, preferably one that was killed."""
    failed = [rank for rank in ranks if rank.process.returncode]
    return min(failed, key=lambda rank: rank.process.returncode > 0, default=None)
