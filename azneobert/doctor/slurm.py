"""SLURM as its commands describe it. No job is started; inside a job, a step reads the clocks of its nodes."""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from azneobert.doctor.finding import Findings, Subject, nearest_folder, ok, problem, warning
from azneobert.doctor.mounts import mount_of
from azneobert.doctor.programs import ask
from azneobert.errors import RecipeError, TrainingError
from azneobert.launching.settings import FILE, TEMPLATE, load_launch

_SHOWN = 6  # partitions
_SECONDS_TO_SAVE = 30  # KillWait's default; with less, a cancelled job has no time for a checkpoint
_ADMINISTRATOR = "wait, or ask the administrator whether slurmctld runs and slurm.conf or SLURM_CONF is right"


@dataclass
class Partition:
    """A partition, with the number of nodes of all kinds."""

    name: str
    is_up: bool
    time_limit: str
    preemption: str
    nodes: int
    resources: set[str]

    def __str__(self) -> str:
        resources = f", {', '.join(sorted(self.resources))}" if self.resources else ""
        return f"{self.name}: {self.nodes} nodes{resources}, time limit {self.time_limit}, preemption {self.preemption}"


def look_at_slurm(subject: Subject) -> Findings:
    """Partitions with their limits, whether jobs are requeued, and how long a cancelled one has to save."""
    if shutil.which("sinfo") is None:
        yield ok("no SLURM here")
        return
    try:
        partitions = partitions_of(ask("sinfo", "--noheader", "--format=%R|%a|%l|%M|%D|%G"))
    except TrainingError as error:
        kind = problem if _job() else warning  # a machine may have the commands, and no cluster
        yield kind(f"its commands are here, but no cluster: {error}", _ADMINISTRATOR)
        return
    for partition in partitions[:_SHOWN]:
        if partition.is_up:
            yield ok(f"partition {partition}")
        else:
            yield warning(f"partition {partition}: down", "use another partition")
    if len(partitions) > _SHOWN:
        yield ok(f"and {len(partitions) - _SHOWN} more partitions: sinfo shows them")
    if shutil.which("scontrol") is None:  # as in many containers
        yield warning("scontrol is not here: requeue and signals are not known", "ask outside of the container")
        return
    yield from _look_at_settings(settings_of(ask("scontrol", "show", "config")))
    if job := _job():
        yield from _look_at_job(settings_of_job(ask("scontrol", "--oneliner", "show", "job", job)))


def look_at_launch(subject: Subject) -> Findings:
    """Where launch.yaml has the phases run, and where the jobs keep compiled kernels."""
    try:
        settings = load_launch()
    except RecipeError as error:
        yield problem(str(error), f"correct it, or begin anew with `cp {TEMPLATE} {FILE}`")
        return
    if settings.launcher == "local":
        yield ok(f"phases run on this machine; `cp {TEMPLATE} {FILE}` has them run as jobs of SLURM")
        return
    cache = settings.cache or "a folder of each node for temporary files"
    yield ok(
        f"phases are jobs of SLURM: {settings.nodes} nodes, {settings.ranks_per_node} ranks a node, {settings.time}, "
        f"partition {settings.partition or 'of the cluster'}; compiled kernels in {cache}"
    )
    if shutil.which("sbatch") is None:
        yield problem("sbatch: no such program here", "work on a login node, or use launcher: local in launch.yaml")
    if settings.cache and mount_of(nearest_folder(Path(settings.cache))).is_network:
        yield warning(
            f"launch.yaml: cache {settings.cache}: a network file system, where compiled kernels meet stale handles",
            "use a folder of the node, or leave it to the default",
        )


def partitions_of(said: str) -> list[Partition]:
    """The partitions of `sinfo`, which has a line for each kind of nodes."""
    found: dict[str, Partition] = {}
    for line in said.splitlines():
        name, state, limit, preemption, nodes, resources = line.split("|")
        partition = found.setdefault(name, Partition(name, state == "up", limit, preemption.lower(), 0, set()))
        partition.nodes += int(nodes)
        partition.resources |= {resources} - {"(null)", ""}
    return list(found.values())


def settings_of(said: str) -> dict[str, str]:
    """What `scontrol show config` prints, by name."""
    pairs = (line.partition("=") for line in said.splitlines())
    return {name.strip(): value.strip() for name, mark, value in pairs if mark}


def settings_of_job(said: str) -> dict[str, str]:
    """What `scontrol show job` prints on one line, by name."""
    return dict(re.findall(r"(\w+)=(\S*)", said))


def _look_at_settings(settings: dict[str, str]) -> Findings:
    if settings.get("JobRequeue") == "0":
        yield warning("jobs are not requeued after a node fails (JobRequeue=0)", "sbatch --requeue")
    else:
        yield ok("jobs are requeued after a node fails (JobRequeue=1)")
    seconds = int(re.match(r"\d*", settings.get("KillWait", ""))[0] or 0)  # type: ignore[index]
    found = f"a cancelled job has {seconds} s from SIGTERM to SIGKILL (KillWait)"
    if seconds < _SECONDS_TO_SAVE:
        yield warning(f"{found}, too few for a checkpoint", "scancel --signal=USR1 JOB before scancel JOB")
    else:
        yield ok(found)
    preemption = settings.get("PreemptMode", "OFF")
    if "CANCEL" in preemption:
        yield warning(
            f"a preempted job is cancelled and not requeued (PreemptMode={preemption})",
            "use a partition that does not preempt, or `dvc repro`, which submits the next job",
        )
    else:
        yield ok(f"PreemptMode={preemption}")


def _look_at_job(job: dict[str, str]) -> Findings:
    what = f"job {job.get('JobId')}: {job.get('NumNodes')} nodes until {job.get('EndTime')}"
    if job.get("Requeue") == "0":
        yield warning(f"{what}, which is not requeued after a node fails", "sbatch --requeue")
    else:
        yield ok(f"{what}, requeued after a node fails")


def clocks_of_nodes() -> dict[str, tuple[float, float, float]]:
    """The time of each node of this job, and this host's time before and after reading it; empty for a single node.

    Raises:
        TrainingError: srun does not answer.
    """
    nodes = os.environ.get("SLURM_JOB_NUM_NODES") or os.environ.get("SLURM_NNODES") or "1"
    if not _job() or nodes == "1" or shutil.which("srun") is None:
        return {}
    before = time.time()
    program = 'echo "$SLURMD_NODENAME $(date +%s.%N)"'
    shape = (f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpus-per-task=1")
    said = ask("srun", "--overlap", "--immediate=5", *shape, "--mem=0", "sh", "-c", program)
    after = time.time()
    pairs = (line.split() for line in said.splitlines())
    return {name: (float(moment), before, after) for name, moment in pairs}


def _job() -> str | None:
    return os.environ.get("SLURM_JOB_ID")
