"""What this project's programs tell each other, and libraries, other than by files: variables and exit codes."""

import ctypes
import os
import signal
import sys
from pathlib import Path

PROCESSES = "AZNEOBERT_PROCESSES"  # how many ranks were asked for; each rank compares
LAUNCHER = "AZNEOBERT_LAUNCHER"  # the process id of the launcher, without which a rank ends; or `slurm`
RECIPE = "AZNEOBERT_RECIPE"  # the file of the recipe that a job was submitted with; without it, params.yaml
GRACE = "AZNEOBERT_GRACE_SECONDS"  # from a request to stop to the forced exit of a rank
CACHE = "AZNEOBERT_CACHE"  # set by a user: what `cache_of_user` says
IMAGE = "AZNEOBERT_IMAGE"  # the digest of the container image that a rank runs in, as its launcher found it

# EX_TEMPFAIL of sysexits.h, start again to go on: from a stage that was asked to stop and has saved its state, or from
# a stage or a rank that no longer reached a next step.
EXIT_STOPPED = 75
EXIT_FORCED = 124  # from a rank, as from timeout(1): asked to stop, it had no checkpoint within the grace time

GRACE_SECONDS = 120.0
SLURM = "slurm"

_PR_SET_PDEATHSIG = 1
SPINS = 10_000  # rounds that a thread waits at a barrier before it sleeps, where every thread has a core


def cache_of_user() -> Path:
    """Where compiled kernels are kept, and which data this machine has verified; default: ~/.cache/azneobert."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "azneobert")


def container_image() -> str | None:
    """The digest of the image that this process runs in, `sha256:...`; None outside of a container.

    For an image that somebody started by hand it is `unknown`.
    """
    if not any(os.environ.get(name) for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")):
        return None
    return os.environ.get(IMAGE) or "unknown"


def grace_seconds() -> float:
    """How long a rank that was asked to stop has for its checkpoint, as its launcher says."""
    try:
        return max(1.0, float(os.environ[GRACE]))
    except (KeyError, ValueError):
        return GRACE_SECONDS


def experiment() -> str | None:
    """The name of the experiment that this stage runs for, as `dvc exp run` gives it; None under `dvc repro`."""
    return os.environ.get("DVC_EXP_NAME")


def experiment_tag() -> dict[str, str]:
    """The tag that marks the runs of an experiment in MLflow."""
    name = experiment()
    return {"azneobert.experiment": name} if name else {}


def quiet_barriers() -> None:
    """Set, before torch is imported, how long its OpenMP threads spin at a barrier: less if this machine is busy.

    By default a thread spins 300,000 rounds. On a busy machine one of the threads waits for a core while the others
    burn theirs, and a step of a small model takes four times as long or more. Without spinning it takes about twice as
    long, but also on an idle machine (docs/results/busy.md). A user's own GOMP_SPINCOUNT takes precedence.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ["GOMP_SPINCOUNT"] = "0" if is_busy() else str(SPINS)


def is_busy(seconds: float = 0.1) -> bool:
    """Whether at least half of this process's cores work for others just now."""
    import psutil

    loads = psutil.cpu_percent(interval=seconds, percpu=True)
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(loads))
    return 2 * sum(loads[core] for core in mine if core < len(loads)) >= 100 * len(mine)


def end_with_parent(number: signal.Signals) -> bool:
    """Make the kernel send this process a signal when the thread that started it ends, whatever ended it.

    Returns whether this works here. A parent that ended before the call is not noticed: compare its process id.
    """
    if not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number) == 0
