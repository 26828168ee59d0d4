"""What this project's programs say to each other beside files: environment variables and exit codes."""

PROCESSES = "AZNEOBERT_PROCESSES"  # how many ranks were asked for; each rank compares
LAUNCHER = "AZNEOBERT_LAUNCHER"  # the process id of the launcher, without which a rank ends
CACHE = "AZNEOBERT_CACHE"  # set by a user: where compiled kernels are kept; default: ~/.cache/azneobert

EXIT_STOPPED = 75  # of a stage; EX_TEMPFAIL of sysexits.h: asked to stop, state saved, start again to go on
EXIT_FORCED = 124  # of a rank, as of timeout(1): asked to stop, and no checkpoint within the grace time
