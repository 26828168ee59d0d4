"""This host beside disk and GPU: git, Apptainer, limits of a process, the clock."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from azneobert.doctor.disk import checkpoint_bytes
from azneobert.doctor.finding import Findings, Subject, ok, problem, size_of, warning
from azneobert.doctor.programs import ask
from azneobert.doctor.slurm import clocks_of_nodes
from azneobert.errors import TrainingError
from azneobert.mlflow_place import project_root
from azneobert.provenance import UNKNOWN, git_state

_FILES = 4096  # open at once: loaders' workers, sockets of ranks, libraries
_SHARED = 1 << 30  # bytes of /dev/shm, through which loaders' workers hand over batches
_SKEW_SECONDS = 2.0  # file systems keep times to 2 s, at worst
_REFUSED_SECONDS = 300.0  # from this skew on, munge (which SLURM needs) and stores like S3 refuse requests
_NAMESPACES = Path("/proc/sys/user/max_user_namespaces")


def look_at_git(subject: Subject) -> Findings:
    """Whether a run will know its commit."""
    if shutil.which("git") is None:
        yield warning("git is not installed: no run will know its commit", "install git")
        return
    root = project_root()
    commit, changed = git_state(root)
    # Ask without git_state's settings for containers, as DVC and a person do.
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    if "dubious ownership" in asked.stderr:
        yield warning(
            f"{root}: dubious ownership: it belongs to another user, and git answers only where it is told to",
            f"git config --global --add safe.directory {root}",
        )
    elif commit == UNKNOWN:
        yield warning(f"{root}: no commit of git: no run will know what code it was", "git init, and commit")
    else:
        yield ok(f"commit {commit[:12]}{', with changes that are in no commit' if changed else ''}")


def look_at_apptainer(subject: Subject) -> Findings:
    """Whether containers run here, and which host settings leak into this one."""
    inside = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    if inside:
        if not os.environ.get("PYTHONNOUSERSITE"):
            yield warning(
                f"inside {inside}: packages of the host's home are imported before the container's",
                "set PYTHONNOUSERSITE=1",
            )
        else:
            yield ok(f"inside {inside}")
        return
    program = next((name for name in ("apptainer", "singularity") if shutil.which(name)), None)
    if program is None:
        yield ok("not installed; only runs in a container need it")
        return
    try:
        version = ask(program, "--version")
    except TrainingError as error:
        yield warning(f"{error}", "install it anew, or do without a container")
        return
    if os.getuid() and _NAMESPACES.exists() and _NAMESPACES.read_text().strip() == "0":
        yield warning(
            f"{version}, but user namespaces are off: it runs only where it is installed setuid",
            "ask the administrator for user.max_user_namespaces, or for the setuid package",
        )
    else:
        yield ok(version)


def look_at_limits(subject: Subject) -> Findings:
    """The limits of a process. A job may have other limits than a login."""
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    fine = []
    if files != resource.RLIM_INFINITY and files < _FILES:
        can = most_files == resource.RLIM_INFINITY or most_files >= _FILES
        how = f"ulimit -n {_FILES}" if can else "ask the administrator for a higher limit in limits.conf"
        yield warning(f"open files: {files:,}, expected {_FILES:,}", how)
    else:
        fine.append(f"open files {_limit(files)}")
    needed = checkpoint_bytes(subject.recipe) if subject.recipe else 0
    if most != resource.RLIM_INFINITY and most < needed:
        yield problem(f"file size: {size_of(most)}, a checkpoint takes {size_of(needed)}", "ulimit -f unlimited")
    for number, name, option in ((resource.RLIMIT_CPU, "seconds of CPU", "-t"), (resource.RLIMIT_AS, "memory", "-v")):
        limit = resource.getrlimit(number)[0]
        if limit == resource.RLIM_INFINITY:
            fine.append(f"{name} unlimited")
        else:
            yield warning(
                f"{name} of a process: {limit:,}, after which it is killed or refused",
                f"ulimit {option} unlimited, or train in a job: this may be a login node",
            )
    memory_locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if memory_locked != resource.RLIM_INFINITY and any(Path("/sys/class/infiniband").glob("*")):
        yield warning(
            f"locked memory: {size_of(memory_locked)}, and NCCL locks buffers for InfiniBand",
            "ulimit -l unlimited; in SLURM the administrator sets LimitMEMLOCK=infinity for slurmd",
        )
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < _SHARED:
        yield warning(
            f"{shared}: {size_of(size)}, through which loaders' workers and NCCL hand over data",
            "enlarge it (docker run --shm-size=8g), or set runtime.workers: 0",
        )
    if fine:
        yield ok(", ".join(fine))


def _limit(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else f"{number:,}"


def look_at_clock(subject: Subject) -> Findings:
    """This host's clock against the file system's, and, in a job of several nodes, against theirs."""
    place = subject.outputs()
    skews = {}
    try:
        with tempfile.TemporaryFile(dir=place, prefix=".doctor-") as file:
            before = time.time()
            os.utime(file.fileno())  # without a time, so the file system uses its own clock
            skews[f"the file system of {place}"] = beyond(os.fstat(file.fileno()).st_mtime, before, time.time())
    except OSError as error:
        yield warning(f"the clock of the file system is not known: {place}: {error.strerror}", "make it writable")
    try:
        nodes = clocks_of_nodes()
    except TrainingError as error:
        nodes = {}
        yield warning(f"the clocks of this job's nodes are not known: {error}", "compare `date` on each")
    skews |= {f"node {name}": beyond(*times) for name, times in nodes.items()}
    for name, seconds in skews.items():
        if abs(seconds) > _SKEW_SECONDS:
            kind = problem if abs(seconds) > _REFUSED_SECONDS else warning
            direction = "ahead of" if seconds > 0 else "behind"
            yield kind(
                f"{name} is {abs(seconds):,.0f} s {direction} this host",
                "have the administrator synchronize the clocks (chrony); munge and S3 refuse from 300 s on",
            )
    right = [name for name, seconds in skews.items() if abs(seconds) <= _SKEW_SECONDS]
    count = sum(name.startswith("node ") for name in right)
    shown = [name for name in right if not name.startswith("node ")] + [f"{count} nodes of this job"] * bool(count)
    if shown:
        more = "" if nodes else "; those of other nodes are read within a job"
        yield ok(f"right by this host's: {', '.join(shown)}{more}")


def beyond(moment: float, before: float, after: float) -> float:
    """The least seconds by which a clock, read between two readings of this one, is ahead (positive) or behind."""
    return moment - after if moment > after else moment - before if moment < before else 0.0
