"""What this project's programs say to each other, and to libraries, beside files: variables and exit codes."""

import os

PROCESSES = "AZNEOBERT_PROCESSES"  # how many ranks were asked for; each rank compares
LAUNCHER = "AZNEOBERT_LAUNCHER"  # the process id of the launcher, without which a rank ends
CACHE = "AZNEOBERT_CACHE"  # set by a user: where compiled kernels are kept; default: ~/.cache/azneobert

EXIT_STOPPED = 75  # of a stage; EX_TEMPFAIL of sysexits.h: asked to stop, state saved, start again to go on
EXIT_FORCED = 124  # of a rank, as of timeout(1): asked to stop, and no checkpoint within the grace time

_SPINS = "GOMP_SPINCOUNT"


def quiet_barriers() -> None:
    """Have torch's OpenMP threads sleep soon at a barrier; to be called before torch is imported.

    They spin 300,000 rounds each time, which is right where every thread has a core. Beside other work one of them is
    without a core, the others burn theirs, and a step of a small model takes ten times as long (docs/results/busy.md).
    """
    os.environ.setdefault(_SPINS, "1000")
