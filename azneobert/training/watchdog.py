"""If no step comes for too long, all ranks write their stacks, a line says who is behind, and the run ends to restart.

Each rank keeps a heartbeat in the run's folder: a thread writes about once a second what the rank does, and how long
that may still take. From these files the ranks, on any machine, find out that none of them makes progress; the launcher
reads them too, since a stopped rank finds out nothing. Imports no torch: the launcher does not need it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil

from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.environment import EXIT_STOPPED
from azneobert.layout import RunFolder

if TYPE_CHECKING:
    from azneobert.data.stream import PackedBatch

STACKS_SIGNAL = signal.SIGUSR2  # asks a rank for the stacks of its threads
PATIENCE = 3  # anything but a step may take this many times as long
FIRST_STEP_SECONDS = 1800.0  # at least, of a first step that compiles for a GPU

_BEAT_SECONDS = 1.0
_HURRY_SECONDS = 30.0  # for a step, at least, once somebody has asked the run to stop
_HURRY_STEPS = 5  # or this many times the longest step
_GATHERING_SECONDS = 2.0  # from the finding to the end: the others' stacks are written meanwhile
_OTHERS_SECONDS = 15.0  # how long a rank that has nothing to say waits for the one that has
_LAST_SECONDS = 30.0  # from the finding to the end of the process at the latest
_BEAT_BYTES = 512  # a heartbeat is written over the one before, in one piece, on a full disk too
_STALLED = {psutil.STATUS_STOPPED: "is stopped", psutil.STATUS_TRACING_STOP: "is stopped by a debugger"}
_STATES = _STALLED | {
    psutil.STATUS_DISK_SLEEP: "waits for a disk",
    psutil.STATUS_ZOMBIE: "has ended",
    psutil.STATUS_DEAD: "has ended",
}
_T = TypeVar("_T", bound="PackedBatch")


@dataclass(frozen=True)
class Heartbeat:
    """What a rank says of itself. `left` is how many more seconds it may go on without a step."""

    rank: int
    host: str
    pid: int
    beat: int
    step: int
    doing: str
    left: float
    asked: bool  # whether it knows that the run was asked to stop


def silence_of(seconds: float) -> float:
    """The seconds of silence after which a rank counts as gone, if a step may take `seconds`."""
    return min(60.0, max(3.0, seconds / 10))  # a network file system shows late what is written elsewhere


def collective_timeout(seconds: float) -> timedelta:
    """How long a collective of the ranks may take at most: longer than the watchdog, which can say more, waits."""
    return timedelta(seconds=2 * max(FIRST_STEP_SECONDS, PATIENCE * seconds))


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine was stopped, as by SIGSTOP or a debugger."""
    return _state(pid) in _STALLED


class Heartbeats:
    """The ranks of a run as a reader of their heartbeats sees them; all times are by the reader's own clock."""

    def __init__(self, run: RunFolder, world_size: int, pids: Mapping[int, int] | None = None):
        """`pids` are the ranks' processes on this machine, if the reader has started them."""
        self.run = run
        self._world_size = world_size
        self._pids = pids or {}
        self._seen: dict[int, tuple[Heartbeat, float]] = {}
        self._looked = time.monotonic()

    def look(self) -> None:
        """Read all heartbeats. A pause of the reader itself, as in a suspended job, makes no rank late."""
        now = time.monotonic()
        pause = now - self._looked
        self._looked = now
        for rank in range(self._world_size):
            known, changed = self._seen.get(rank, (None, now))
            try:
                found = _read(heartbeat_file(self.run, rank))
            except FileNotFoundError:  # not begun, or ended
                self._seen.pop(rank, None)
                continue
            except (OSError, ValueError, TypeError, RecursionError):  # it is just being written
                continue
            if self._pids.get(rank, found.pid) != found.pid:
                continue  # from an earlier run
            if known is None or (found.pid, found.beat) != (known.pid, known.beat):
                self._seen[rank] = found, now
            elif pause > 10 * _BEAT_SECONDS:
                self._seen[rank] = known, changed + pause

    def has_begun(self, rank: int) -> bool:
        """Whether a rank keeps a heartbeat."""
        return rank in self._seen

    def silent(self, rank: int, seconds: float) -> bool:
        """Whether a rank of the run has given no sign of life for `seconds`."""
        return rank not in self._seen or self._looked - self._seen[rank][1] >= seconds

    def late(self, rank: int) -> bool:
        """Whether a rank has used up the time that it gave itself."""
        return rank in self._seen and self._seen[rank][0].left <= self._looked - self._seen[rank][1]

    def alive(self, seconds: float) -> list[int]:
        """The ranks that have given a sign of life within `seconds`."""
        return [rank for rank in range(self._world_size) if not self.silent(rank, seconds)]

    def verdict(self, silence: float) -> str:
        """Which ranks hold up the others, and in what state they are."""
        seen = [beat for beat, _ in self._seen.values()]
        found = [beat for beat in seen if self.silent(beat.rank, silence) or _stopped_processes(beat)]
        missing = [rank for rank in range(self._world_size) if rank not in self._seen]
        said = [self._describe(beat, silence) for beat in found]
        said += [f"rank {rank} {self._state_of(self._pids.get(rank))}" for rank in missing]
        if not said:
            last = min((beat.step for beat in seen), default=0)
            behind = [beat for beat in seen if beat.step == last]
            if len(behind) == self._world_size > 1 and len({beat.doing for beat in behind}) == 1:
                return f"none of the {self._world_size} ranks is behind, all hang in {behind[0].doing}"
            said = [self._describe(beat, silence) for beat in behind]
        return "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")

    def report(self, why: str, silence: float) -> str:
        """Gather the stacks that the ranks have written; returns one line: what was found and what to do."""
        verdict = self.verdict(silence)
        place = self._gather()
        steps = CheckpointFolder(self.run.checkpoints, 1).steps()
        resume = f"goes on from {steps[-1].name}" if steps else "begins again, there is no checkpoint yet"
        return f"{self.run.path.name}: {why}: {verdict}; stacks are in {place}; a new start {resume}"

    def _describe(self, beat: Heartbeat, silence: float) -> str:
        local = beat.host == socket.gethostname()
        state = _STATES.get(_state(beat.pid)) if local else None
        workers = _stopped_processes(beat) if local else []
        if state is None and self.silent(beat.rank, silence):
            state = f"has been silent for {self._looked - self._seen[beat.rank][1]:.0f} s"
        elif state is None and workers:
            state = f"waits: its loader worker {workers[0].pid} {_STATES[workers[0].status()]}"
        return f"rank {beat.rank} ({beat.host}, pid {beat.pid}) {state or 'hangs'}, {beat.doing} after step {beat.step}"

    def _state_of(self, pid: int | None) -> str:
        """The state of a rank that keeps no heartbeat."""
        unknown = "has no heartbeat: it has ended, has not begun, or does not end"
        state = _STATES.get(_state(pid), unknown) if pid is not None else unknown
        return f"(pid {pid}) {state}" if pid is not None else state

    def _gather(self) -> Path:
        place = self.run.path / "stalls" / time.strftime("%Y%m%d-%H%M%S")
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            for rank in range(self._world_size):
                for name in (heartbeat_file(self.run, rank), stacks_file(self.run, rank), _trace_file(self.run, rank)):
                    if name.exists() and name.stat().st_size:
                        shutil.copyfile(name, place / f"rank-{name.name}")
        return place


class Watchdog:
    """Keeps the heartbeat of this rank, and ends the rank when no rank makes progress.

    A step may take `seconds`; anything named by `doing`, and all before the first step, `PATIENCE` times that. `start`
    it when the folder belongs to the run; use it as a context manager. `step` is how many steps are done.
    """

    def __init__(self, run: RunFolder, rank: int, world_size: int, seconds: float, *, first: float = 0.0):
        self._run = run
        self._rank = rank
        self._seconds = seconds
        self._first = max(first, PATIENCE * seconds)
        self._silence = silence_of(seconds)
        self._others = Heartbeats(run, world_size)
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self.step, self._doing, self._begun = 0, "starting", False
        self._since, self._longest = time.monotonic(), 0.0
        self._deadline = self._since + self._first
        self._hurry: float | None = None
        self._beat = 0

    def __enter__(self) -> Watchdog:
        return self

    def start(self) -> None:
        """Begin to watch."""
        self._since = time.monotonic()
        self._deadline = self._since + self._first
        heartbeat_file(self._run, self._rank).parent.mkdir(parents=True, exist_ok=True)
        self._stacks = stacks_file(self._run, self._rank).open("wb")
        faulthandler.register(STACKS_SIGNAL, self._stacks, all_threads=True)
        self._write()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        if self._thread is None:
            return
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        faulthandler.unregister(STACKS_SIGNAL)
        self._stacks.close()
        for file in (heartbeat_file(self._run, self._rank), stacks_file(self._run, self._rank)):
            file.unlink(missing_ok=True)

    def progress(self, step: int) -> None:
        """Note how many steps are done."""
        now = time.monotonic()
        if self._begun:
            self._longest = max(self._longest, now - self._since)
        self.step, self._doing, self._since, self._begun = step, "training", now, True
        self._deadline = now + self._seconds

    def now(self, what: str) -> None:
        """Name what follows, which may take as long as `doing` allows."""
        self._doing = what
        self._deadline = time.monotonic() + PATIENCE * self._seconds

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Name what is done inside: something other than a step, which may take longer."""
        before = self._doing
        self.now(what)
        yield
        self._doing, self._since = before, time.monotonic()
        self._deadline = self._since + (self._seconds if self._begun else self._first)

    def watched(self, batches: Iterator[_T]) -> Iterator[_T]:
        """The same batches; the heartbeat shows when the rank waits for one."""
        while True:
            self._doing = "waiting for data"
            batch = next(batches, None)
            self._doing = "training"
            if batch is None:
                return
            yield batch

    def hurry(self) -> None:
        """Note that the run was asked to stop: from now on a step may not take as long."""
        if self._hurry is None:
            self._hurry = time.monotonic()

    def _left(self) -> float:
        deadline = self._deadline
        if self._hurry is not None and self._begun and self._doing in ("training", "waiting for data"):
            began = max(self._hurry, self._since)
            deadline = min(deadline, began + max(_HURRY_SECONDS, _HURRY_STEPS * self._longest))
        return deadline - time.monotonic()

    def _watch(self) -> None:
        former = time.monotonic()
        while not self._done.wait(_BEAT_SECONDS):
            now = time.monotonic()
            if now - former > 10 * _BEAT_SECONDS:  # this process was stopped and goes on: no step caused the pause
                self._deadline += now - former
            former = now
            if self._hurry is None and self._run.stop_file.exists():
                self.hurry()
            self._write()
            left = self._left()
            # The stacks are written even if this thread gets no turn because C code holds the interpreter.
            faulthandler.dump_traceback_later(max(left, 0) + 2 * _BEAT_SECONDS, file=self._stacks)
            if left <= 2 * self._silence:
                self._others.look()
            if left <= 0 and all(self._others.late(rank) for rank in self._others.alive(self._silence)):
                self._end()

    def _end(self) -> None:
        """Leave the stacks, have the lowest rank that is alive say what was found, and end this process."""
        try:
            faulthandler.dump_traceback_later(_LAST_SECONDS, exit=True)  # in case anything hangs from here on
            faulthandler.dump_traceback(self._stacks, all_threads=True)
            trace = threading.Thread(target=self._dump_collectives, daemon=True)  # it asks a GPU that may hang too
            trace.start()
            trace.join(_GATHERING_SECONDS)
            alive = self._others.alive(self._silence)
            if self._rank == min(alive, default=self._rank):
                self._wait(_GATHERING_SECONDS)
                why = "asked to stop, and no step came since" if self._hurry else f"no step for {self._idle():.0f} s"
                line = f"error: {self._others.report(why, self._silence)}\n"
                os.write(2, line.encode(errors="replace"))  # no lock of Python's that the main thread may hold
            else:
                self._wait(_OTHERS_SECONDS)
        finally:
            os._exit(EXIT_STOPPED)

    def _wait(self, seconds: float) -> None:
        """Wait, and show the others meanwhile that this rank can speak."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._write()
            time.sleep(_BEAT_SECONDS / 2)
        self._others.look()

    def _idle(self) -> float:
        return time.monotonic() - self._since

    def _write(self) -> None:
        self._beat += 1
        asked = self._hurry is not None
        place = (self._rank, socket.gethostname()[:128], os.getpid(), self._beat)
        beat = Heartbeat(*place, self.step, self._doing, round(self._left(), 1), asked)
        with contextlib.suppress(OSError):  # other code reports a full disk
            descriptor = os.open(heartbeat_file(self._run, self._rank), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.write(descriptor, json.dumps(asdict(beat)).encode().ljust(_BEAT_BYTES - 1) + b"\n")
            finally:
                os.close(descriptor)

    def _dump_collectives(self) -> None:
        """Write what NCCL's flight recorder knows of the last collectives, if it runs."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return
        _trace_file(self._run, self._rank).write_bytes(torch._C._distributed_c10d._dump_fr_trace_json())


def read_heartbeat(run: RunFolder, rank: int = 0) -> Heartbeat | None:
    """What a rank says of itself; None if it does not run, or is just writing."""
    try:
        return _read(heartbeat_file(run, rank))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def heartbeat_file(run: RunFolder, rank: int) -> Path:
    """Where a rank keeps its heartbeat."""
    return run.path / "ranks" / f"{rank}.json"


def stacks_file(run: RunFolder, rank: int) -> Path:
    """Where a rank writes the stacks of its threads."""
    return run.path / "ranks" / f"{rank}.txt"


def _trace_file(run: RunFolder, rank: int) -> Path:
    return run.path / "ranks" / f"{rank}.nccl.json"


def _read(file: Path) -> Heartbeat:
    with file.open("rb") as opened:
        return Heartbeat(**json.loads(opened.read(2 * _BEAT_BYTES)))


def _state(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:
        return str(psutil.STATUS_DEAD)


def _stopped_processes(beat: Heartbeat) -> list[psutil.Process]:
    """The processes of a rank on this machine, itself first, that were stopped or wait for a disk."""
    if beat.host != socket.gethostname():
        return []
    found = []
    with contextlib.suppress(psutil.Error):
        rank = psutil.Process(beat.pid)
        for process in (rank, *rank.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                if process.status() in _STATES:
                    found.append(process)
    return found
