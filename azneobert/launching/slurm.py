"""A phase as a job of SLURM: submitted, found again, watched to its end. A phase has at most one job.

The job does not need its watcher: it requeues itself until the phase is complete. The watcher shows the job's log, and
submits another job where jobs may not be requeued.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from azneobert.environment import EXIT_STOPPED, GRACE, LAUNCHER, RECIPE, SLURM
from azneobert.errors import TrainingError
from azneobert.files import read_json, write_json, write_whole
from azneobert.launching import cluster
from azneobert.launching.cluster import ClusterAwayError, Job
from azneobert.launching.container import Image, within
from azneobert.launching.outcome import Ended, read_outcome
from azneobert.launching.settings import LaunchSettings
from azneobert.layout import JobFolder, RunFolder
from azneobert.locks import locked
from azneobert.pace import time_stamp
from azneobert.printable import printable

TEMPLATE = Path("slurm/phase.sh")
_LINE_SECONDS = 1.0  # between two looks at the log
_RELEASES = 3  # how often to release a job that SLURM holds after a node could not start it
_TAIL = 1 << 20  # bytes at the end of the log that are searched for an error
_RAISED = re.compile(r"(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception): .+)")  # the end of a traceback
_PASSING = ("TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE")  # ends that are not the run's fault


@dataclass(frozen=True)
class PhaseJob:
    """What is to be trained, and how: everything that a job needs."""

    phase: str
    recipe: str  # its name
    recipe_file: Path
    run: RunFolder
    folder: JobFolder
    identity: str  # of what is trained: a job with another identity trains something else
    command: list[str]  # of a rank: a program and its arguments
    settings: LaunchSettings
    image: Image | None = None  # that the ranks run in

    @property
    def name(self) -> str:
        """The job's name in SLURM. A project in another folder has jobs of its own."""
        project = hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:8]
        return f"{self.recipe}-{self.phase}-{project}"

    @property
    def world_sizes(self) -> set[int]:
        """How many ranks there may be."""
        low, high = self.settings.node_range
        return {nodes * self.settings.ranks_per_node for nodes in range(low, high + 1)}


@dataclass(frozen=True)
class JobRecord:
    """The record of a job: its number, what it trains, and the byte at which its part of the log begins."""

    job_id: str
    identity: str
    log_from: int


def find(wanted: PhaseJob) -> Job | None:
    """The waiting or running job of this phase: by its number, or by its name if the number was not recorded.

    Raises:
        TrainingError: the job trains something else.
        ClusterAwayError: SLURM does not answer.
    """
    record = read_record(wanted.folder)
    job = cluster.find_job(record.job_id) if record and record.job_id else None
    if job is None or job.finished or job.name != wanted.name:
        job = next(iter(cluster.jobs_called(wanted.name)), None)
    if job and record and record.identity != wanted.identity:
        raise TrainingError(
            f"job {job.id}: is {job.state} and trains {wanted.phase} of another recipe or other data; "
            f"use `scancel {job.id}`, or put back what it was submitted with, {wanted.folder.recipe}"
        )
    if job and record and record.job_id != job.id:  # whoever submitted the job was killed before recording its number
        write_json(wanted.folder.record, asdict(replace(record, job_id=job.id)))
    return job


def submit(wanted: PhaseJob, *, afresh: bool = True) -> str:
    """Submit a job for the phase. Returns its number. `afresh`: the starts of earlier jobs no longer count.

    Raises:
        TrainingError: there is no SLURM here, or it refuses the job.
    """
    folder = wanted.folder
    write_whole(folder.recipe, wanted.recipe_file.read_bytes())
    write_whole(folder.script, script_of(wanted).encode())
    folder.log.touch()
    wanted.run.outcome_file.unlink(missing_ok=True)  # an outcome that a rank writes from now on is this job's
    if afresh:
        folder.starts.unlink(missing_ok=True)
    record = JobRecord("", wanted.identity, folder.log.stat().st_size)
    write_json(folder.record, asdict(record))  # until the number is recorded, the job is found by its name
    try:
        record = replace(record, job_id=cluster.submit(folder.script))
    except TrainingError:
        folder.record.unlink()
        raise
    write_json(folder.record, asdict(record))
    return record.job_id


def read_record(folder: JobFolder) -> JobRecord | None:
    """The record of the last job of a phase; None if it is missing or cannot be read."""
    try:
        return JobRecord(**read_json(folder.record))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def submitting(folder: JobFolder) -> Iterator[None]:
    """While the block runs, no other process looks for a job of the phase and submits one."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with locked(folder.lock_file):
        yield


def script_of(wanted: PhaseJob) -> str:
    """The batch script of a job: the template, filled with the options for SLURM and the script's settings."""
    settings, folder = wanted.settings, wanted.folder
    project = Path.cwd()
    options = {
        "job-name": wanted.name,
        "account": settings.account,
        "partition": settings.partition,
        "qos": settings.qos,
        "time": settings.time,
        "nodes": settings.nodes,
        "ntasks-per-node": settings.ranks_per_node,
        "cpus-per-task": settings.cpus,
        "gpus-per-node": settings.gpus or None,
        "mem": settings.memory,
        "signal": f"B:USR1@{settings.warning_seconds}",
        "chdir": _quoted(str(project)),
        "output": _quoted(str(project / folder.log).replace("%", "%%")),
        "open-mode": "append",
        "dependency": "singleton",  # two jobs of this name never run at once, whoever submitted them
    }
    lines = [f"--{name}={value}" for name, value in options.items() if value is not None]
    lines += ["--requeue" if settings.requeue else "--no-requeue", *settings.options]
    values = {
        "project": str(project),
        "phase": wanted.phase,
        "run": str(wanted.run.path),
        "job": str(folder.path),
        "ranks": str(settings.ranks_per_node),
        "requeue": "yes" if settings.requeue else "no",
        "max_requeues": str(settings.max_requeues),
        "image": str(wanted.image.path) if wanted.image else "",
        "image_digest": wanted.image.digest if wanted.image else "",
        "image_stat": wanted.image.stat if wanted.image else "",
    }
    container = within(wanted.image, settings.gpus > 0) if wanted.image else []
    program, *arguments = wanted.command
    if wanted.image:
        program = "python"  # the image's
    cache = shlex.quote(settings.cache) if settings.cache else "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/azneobert-$(id -un)"
    exported = {LAUNCHER: SLURM, RECIPE: str(folder.recipe), GRACE: str(settings.grace_seconds)}
    said = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    said += [f"cache={cache}", f"within=({shlex.join(container)})"]
    said += [f"command=({shlex.join([*container, program, *arguments])})"]
    said += [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]
    template = TEMPLATE.read_text(encoding="utf-8")
    for place, content in {
        "@options@": "\n".join(f"#SBATCH {line}" for line in lines),
        "@settings@": "\n".join(said),
        "@setup@": settings.setup.rstrip("\n"),
    }.items():
        template = template.replace(f"{place}\n", f"{content}\n" if content else "", 1)
    return template


def watch(wanted: PhaseJob, job_id: str) -> Ended:
    """Show a job's log until the job ends. Submit another if the run only stopped and SLURM does not requeue the job.

    Ctrl-C, SIGTERM and the end of the process that started this one end the watching alone: the job goes on.
    """
    shown, asker = _Log(wanted.folder), _asker()
    former = {number: signal.signal(number, _leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            job = _until_finished(wanted, job_id, shown, asker)
            ended = _how_it_ended(wanted, job_id, job)
            if ended is not None:
                return ended
            with submitting(wanted.folder):
                found = find(wanted)
                job_id = found.id if found else submit(wanted, afresh=False)
            _say(wanted.phase, f"job {job_id} goes on")
    except _Left:
        print(
            f"{wanted.phase}: job {job_id} goes on by itself; `dvc repro` comes back to it, `scancel {job_id}` ends it",
            file=sys.stderr,
        )
        sys.exit(EXIT_STOPPED)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class _Left(BaseException):
    """Whoever watches was asked to end."""


def _leave(*_: object) -> None:
    raise _Left


def _asker() -> psutil.Process | None:
    """Who waits for this process: dvc, or whoever typed the stage's command.

    dvc runs a stage by `$SHELL -c COMMAND`. bash becomes the command; dash, which is /bin/sh on Debian, stays between
    the two and outlives a dvc that is killed.
    """
    parent = psutil.Process().parent()
    with suppress(psutil.Error):
        if parent and parent.cmdline()[1:-1][-1:] == ["-c"]:
            return parent.parent() or parent
    return parent


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _until_finished(wanted: PhaseJob, job_id: str, shown: _Log, asker: psutil.Process | None) -> Job | None:
    """Wait for the end of a job. Returns what SLURM says of it; None if SLURM no longer knows it."""
    told, released = "", 0
    left_out: set[str] = set()
    asked = away_since = 0.0
    while True:
        now = time.monotonic()
        if asker and not _lives(asker):  # dvc was killed: another dvc may be waiting for the job by now
            raise _Left
        shown.show()
        if now >= asked + wanted.settings.poll_seconds:
            asked = now
            try:
                job = cluster.find_job(job_id)
            except ClusterAwayError as error:
                if not away_since:
                    _say(wanted.phase, f"{error}; waiting for it")
                away_since = away_since or now
            else:
                away_since = 0.0
                if job is None or job.finished:
                    time.sleep(_LINE_SECONDS)  # a network file system may show writes of other nodes late
                    shown.show()
                    return job
                if job.pending and job.restarts:
                    left_out |= _exclude(wanted, job, left_out)
                if job.pending and job.reason == cluster.LAUNCH_FAILED and released < _RELEASES:
                    released += 1
                    _release(wanted, job)
                line = _standing(job)
                if line != told:
                    told = line
                    _say(wanted.phase, f"job {job.id}: {line}")
        time.sleep(min(_LINE_SECONDS, wanted.settings.poll_seconds))


def _exclude(wanted: PhaseJob, job: Job, left_out: set[str]) -> set[str]:
    """Keep a requeued job off nodes that failed under it, even if they come up again. Returns newly excluded nodes."""
    starts = wanted.folder.starts.read_text().splitlines() if wanted.folder.starts.is_file() else []
    nodes = starts[-1].split()[3] if starts else ""
    with suppress(TrainingError):
        failed = cluster.failed_nodes(job, nodes) - left_out
        if failed and cluster.exclude(job, failed, wanted.settings.node_range[0]):
            names = ", ".join(sorted(failed))
            _say(wanted.phase, f"job {job.id}: node {names} has failed under it and is left out from now on")
            return failed
    return set()


def _release(wanted: PhaseJob, job: Job) -> None:
    with suppress(TrainingError):
        if cluster.release(job):
            _say(wanted.phase, f"job {job.id}: SLURM could not start it on a node and held it back; released")


def _standing(job: Job) -> str:
    if not job.pending:
        return f"{job.state} on {job.nodes}" if job.nodes else job.state
    said = [f"{job.state}: {job.reason}" if job.reason else job.state]
    with suppress(TrainingError):
        if place := cluster.place_in_queue(job):
            said.append(f"{place[0]} of {place[1]} that wait for {job.partition}")
    if job.start:
        said.append(f"not before {job.start.replace('T', ' ')}")
    return ", ".join(said)


def _how_it_ended(wanted: PhaseJob, job_id: str, job: Job | None) -> Ended | None:
    """What became of the phase in this job; None if another job can go on."""
    phase, outcome = wanted.phase, read_outcome(wanted.run)
    if outcome.state == "complete":
        return Ended("complete")
    state = job.state if job else "unknown to SLURM by now"
    if state == "CANCELLED":
        saved = "and saved nothing more" if outcome.step is None else f"behind the checkpoint of step {outcome.step}"
        return Ended("stopped", f"{phase}: job {job_id} was cancelled, {saved}; start again to go on")
    # The script's exit code says that another start can go on. Killed, as by a failing node, it cannot say so.
    passing = job is not None and (job.exit_code.startswith(f"{EXIT_STOPPED}:") or not job.exit_code.endswith(":0"))
    if passing or outcome.state == "stopped" or state in _PASSING:
        return None
    if error := last_error(wanted.folder, job_id):
        return Ended("failed", error)
    code = f", exit code {job.exit_code}" if job and job.exit_code else ""
    return Ended(
        "failed",
        f"{phase}: job {job_id} has ended ({state}{code}) without an error of its own; look into {wanted.folder.log}",
    )


def last_error(folder: JobFolder, job_id: str) -> str | None:
    """The error line in a job's log that explains the end of its last start."""
    try:
        record = read_record(folder)
        with folder.log.open("rb") as file:
            file.seek(max(record.log_from if record else 0, folder.log.stat().st_size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    marks = [number for number, line in enumerate(lines) if f"job {job_id}: started on" in line]
    lines = lines[marks[-1] :] if marks else lines
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    causes = [line for line in errors if " has lost another rank" not in line]
    raised = [match[1] for line in lines if (match := _RAISED.match(line))]
    # If the script never got to its first message, use the last line, such as a shell's that found no program.
    said = [line for line in lines if line.strip()] if not marks else []
    return next((found[0] for found in (causes, errors, raised, said[-1:]) if found), None)


class _Log:
    """The log of a job, shown from where the last watcher stopped. Error lines are left to the end."""

    def __init__(self, folder: JobFolder):
        self._folder = folder
        try:
            self._shown = int(folder.shown.read_text())
        except (OSError, ValueError):
            self._shown = 0

    def show(self) -> None:
        """Print the whole lines that have come since."""
        try:
            with self._folder.log.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._shown:  # another file has replaced the log
                    self._shown = 0
                file.seek(self._shown)
                content = file.read(_TAIL)
        except OSError:
            return
        content = content[: content.rfind(b"\n") + 1]
        if not content:
            return
        for line in content.decode(errors="replace").splitlines():
            if not line.startswith("error: "):
                print(printable(line), flush=True)
        self._shown += len(content)
        with suppress(OSError):
            write_whole(self._folder.shown, str(self._shown).encode())


def _say(phase: str, what: str) -> None:
    print(f"{time_stamp()}  {phase}  {what}", flush=True)


def _quoted(text: str) -> str:
    if '"' in text or "\n" in text:
        raise TrainingError(f"{text!r}: SLURM takes no such path; use a folder without quotes in its name")
    return f'"{text}"'
