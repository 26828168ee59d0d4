"""The environment variables by which this project's programs speak to each other, and those that a user may set."""

PROCESSES = "AZNEOBERT_PROCESSES"  # how many ranks were asked for; each rank compares
LAUNCHER = "AZNEOBERT_LAUNCHER"  # the process id of the launcher, without which a rank ends
CACHE = "AZNEOBERT_CACHE"  # where compiled kernels are kept; default: ~/.cache/azneobert
