"""SLURM as its programs show it: jobs, the queue, nodes. Only `submit`, `exclude` and `release` change anything."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from azneobert.errors import TrainingError

_SECONDS = 60.0  # of one question
_SUBMIT_SECONDS = 90.0  # if the queue is full, sbatch itself retries for longer than that
FINISHED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}


# The reason why a job waits if a node could not start it: for example, the node's daemon has restarted and still finds
# what it had started before.
LAUNCH_FAILED = "launch_failed_requeued_held"


class ClusterAwayError(TrainingError):
    """SLURM does not answer just now."""


@dataclass(frozen=True)
class Job:
    """A job as `scontrol show job` describes it. `reason` is why it waits, or why it has ended."""

    id: str
    name: str
    state: str
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    exit_code: str = ""
    partition: str = ""
    start: str = ""
    failed_node: str = ""
    excluded: str = ""

    @property
    def finished(self) -> bool:
        """Whether it neither runs nor will."""
        return self.state in FINISHED

    @property
    def pending(self) -> bool:
        """Whether it waits for nodes."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")


def find_job(job_id: str) -> Job | None:
    """A job that SLURM still knows. SLURM forgets ended jobs after some minutes.

    Raises:
        ClusterAwayError: SLURM does not answer.
    """
    done = _ask("scontrol", "--oneliner", "show", "job", job_id)
    if done.returncode:
        if "Invalid job id" in done.stderr:
            return _accounted(job_id)
        raise ClusterAwayError(f"scontrol: {_said(done)}")
    return _job(done.stdout)


def jobs_called(name: str) -> list[Job]:
    """This user's jobs of a name that wait or run, the oldest first.

    Raises:
        ClusterAwayError: SLURM does not answer.
    """
    done = _ask("squeue", "--noheader", "--me", f"--name={name}", "--format=%i", "--sort=i")
    if done.returncode:
        raise ClusterAwayError(f"squeue: {_said(done)}")
    found = (find_job(job_id) for job_id in done.stdout.split())
    return [job for job in found if job and not job.finished]


def submit(script: Path) -> str:
    """Hand a batch script to SLURM. Returns the number of the job.

    Raises:
        TrainingError: there is no SLURM here, or it refuses the job.
    """
    try:
        done = _ask("sbatch", "--parsable", str(script), seconds=_SUBMIT_SECONDS)
    except subprocess.TimeoutExpired as error:
        said = _last_line(error.stderr) or "no answer"
        raise TrainingError(f"sbatch: took no job within {_SUBMIT_SECONDS:.0f} s ({said}); try again later") from None
    if done.returncode:
        raise TrainingError(f"sbatch: refused the job: {_said(done)}{_remedy(done.stderr)}")
    return done.stdout.strip().split(";")[0]


def place_in_queue(job: Job) -> tuple[int, int] | None:
    """A job's place among the jobs that wait for its partition (the next one has 1), and how many wait."""
    listed = ["--noheader", "--states=PENDING", f"--partition={job.partition}", "--sort=-p,i", "--format=%i"]
    done = _ask("squeue", *listed)
    waiting = done.stdout.split()
    return (waiting.index(job.id) + 1, len(waiting)) if job.id in waiting else None


def failed_nodes(job: Job, nodes: str) -> set[str]:
    """The nodes of a job's last start that are down, and the node that, by SLURM, has failed under the job."""
    done = _ask("sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N %T")
    down = {line.split()[0] for line in done.stdout.splitlines() if re.search("down|fail", line)}
    return down | {job.failed_node} - {""}


def exclude(job: Job, failed: set[str], nodes_needed: int) -> bool:
    """Keep a waiting job off nodes that have failed under it, if enough others are left. Returns whether it did."""
    done = _ask("sinfo", "--noheader", "--Node", f"--partition={job.partition}", "--format=%N %T")
    up = {line.split()[0] for line in done.stdout.splitlines() if not re.search("down|drain|fail", line)}
    if len(up - failed) < nodes_needed:
        return False
    nodes = ",".join(filter(None, [job.excluded, *sorted(failed)]))
    return _ask("scontrol", "update", f"JobId={job.id}", f"ExcNodeList={nodes}").returncode == 0


def release(job: Job) -> bool:
    """Release a held job, so that it waits like others. Returns whether SLURM lets this user do so."""
    return _ask("scontrol", "release", job.id).returncode == 0


def _accounted(job_id: str) -> Job | None:
    """A job that has left the queue, if the cluster keeps accounts."""
    if shutil.which("sacct") is None:
        return None
    columns = "--format=JobName,State,ExitCode,NodeList"
    done = _ask("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job_id}", columns)
    if done.returncode or not done.stdout.strip():
        return None
    name, state, exit_code, nodes = done.stdout.splitlines()[-1].split("|")[:4]
    return Job(id=job_id, name=name, state=state.split()[0], nodes=nodes, exit_code=exit_code)


def _job(text: str) -> Job:
    fields = dict(re.findall(r"(\w[\w/:]*)=(\S*)", text))

    def field(name: str) -> str:
        value = fields.get(name, "")
        return "" if value in ("(null)", "None", "Unknown", "N/A") else value

    return Job(
        id=field("JobId"),
        name=field("JobName"),
        state=field("JobState"),
        reason=field("Reason"),
        nodes=field("NodeList"),
        restarts=int(field("Restarts") or 0),
        exit_code=field("ExitCode"),
        partition=field("Partition"),
        start=field("StartTime"),
        failed_node=field("FailedNode"),
        excluded=field("ExcNodeList"),
    )


def _remedy(said: str) -> str:
    """What to look at, chosen by SLURM's message."""
    if "partition" in said and "account" not in said:
        found = _ask("sinfo", "--noheader", "--format=%R").stdout.split()
        return f"; use a partition that is there: {', '.join(sorted(set(found)))}" if found else ""
    if "account" in said:
        return (
            "; use an account of yours that the partition takes, as `sacctmgr show associations user=$USER` lists them"
        )
    if "limit" in said or "QOS" in said:
        return "; end or await a job of yours, or ask for less"
    return ""


def _ask(program: str, *arguments: str, seconds: float = _SECONDS) -> subprocess.CompletedProcess[str]:
    if shutil.which(program) is None:
        raise TrainingError(
            f"{program}: no such program here; start this on a login node of the cluster, or use `launcher: local`"
        )
    try:
        return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        if program == "sbatch":
            raise
        raise ClusterAwayError(f"{program}: no answer within {seconds:.0f} s") from None


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return _last_line(done.stderr) or f"exit code {done.returncode}"


def _last_line(text: str | bytes | None) -> str:
    """The last line that is not empty, without the program's name in front."""
    decoded = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
    lines = [line.strip() for line in decoded.splitlines() if line.strip() and not line.startswith("Try ")]
    return re.sub(r"^(\w+: )(error: )?", "", lines[-1]) if lines else ""
