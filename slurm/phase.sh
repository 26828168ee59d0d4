#!/usr/bin/env bash
@options@
# A phase of pretraining as a job of SLURM: it starts a rank for each GPU of the job, has a checkpoint saved before the
# time is over, and requeues itself until the phase is complete. It runs outside the container, beside SLURM's programs.
# The lines above and the settings below are generated; `slurm/submit phase1 --dry-run` shows the whole.
set -u
@settings@

restart=${SLURM_RESTART_COUNT:-0}
say() { echo "$(date '+%Y-%m-%d %H:%M:%S')  $phase  job $SLURM_JOB_ID: $*"; }
fail() { echo "error: $phase: $*"; exit 1; }
again() { exit 75; } # tells the process that waits for the job to submit another
newest() { ls "$run/checkpoints" 2>/dev/null | grep -x 'step-[0-9]*' | sort | tail -n 1 | grep . || echo none; }
field() { scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null | tr ' ' '\n' | sed -n "s/^$1=//p"; }

# Another start needs a chance of progress: give up if the last three all began at the checkpoint that is newest now.
check_hope() {
  [ "$(wc -l <"$job/starts")" -le "$max_requeues" ] ||
    fail "was requeued $max_requeues times and is not complete; raise max_requeues in launch.yaml, then start again"
  if [ "$(wc -l <"$job/starts")" -ge 3 ] && [ "$(tail -n 3 "$job/starts" | cut -d' ' -f3 | sort -u)" = "$(newest)" ]; then
    fail "two requeues brought no new checkpoint (the newest: $(newest)); look into $job/log.txt, then start again"
  fi
}

requeue() { # $1: why
  check_hope
  # If the job is cancelled, out of time, or already requeued by SLURM, this start does not decide what comes next.
  [ "$(field JobState)" = RUNNING ] && [ "$(field Restarts)" = "$restart" ] || again
  if [ "$requeue" = yes ]; then
    say "$1; queued again"
    if scontrol requeue "$SLURM_JOB_ID"; then
      sleep 300 # SLURM ends this script meanwhile
      exit 0
    fi
  fi
  say "$1; it cannot be requeued here: \`dvc repro\` submits another job"
  again
}

cd "$project" || fail "$project: no such folder on $(hostname); expected the project on a file system of all nodes"
mkdir -p "$run" "$job" && touch "$job/starts"
rm -f "$run/stop" "$run/outcome.json" "$job"/rank-*.log
# The stop file reaches the ranks on every node. A signal would reach their launcher, which would end them.
trap 'echo "asked by a signal to job $SLURM_JOB_ID" >"$run/stop"' USR1 TERM
check_hope
say "started on $SLURM_JOB_NODELIST, requeued $restart times, newest checkpoint: $(newest)"
echo "$SLURM_JOB_ID $restart $(newest) $SLURM_JOB_NODELIST" >>"$job/starts"

# Nodes find each other by address: on its own node, a name may stand for 127.0.1.1.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol --oneliner show node "$first" | tr ' ' '\n' | sed -n 's/^NodeAddr=//p')
case $MASTER_ADDR in
  '' | *[!0-9.]*)
    resolved=$(getent ahostsv4 "$MASTER_ADDR" | awk '$1 !~ /^127/ { print $1; exit }')
    MASTER_ADDR=${resolved:-$(hostname -I | cut -d' ' -f1)}
    ;;
esac
# Other jobs on this node and earlier starts get other ports. Below 30000 no system assigns ports by itself.
MASTER_PORT=$((15000 + $(echo "$project $SLURM_JOB_ID $restart" | cksum | cut -d' ' -f1) % 15000))
while (exec 3<>"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
export MASTER_ADDR MASTER_PORT

per_node=${SLURM_GPUS_ON_NODE:-0}
[ "$per_node" -gt 0 ] || per_node=$ranks
export AZNEOBERT_PROCESSES=$((SLURM_JOB_NUM_NODES * per_node))

# Compiled kernels lie on the node, since a network file system gives stale handles.
if [ ! -d "$cache" ]; then mkdir -m 700 -p "$cache" 2>/dev/null; fi
[ -O "$cache" ] || cache=$(mktemp -d)
export AZNEOBERT_CACHE=$cache TRITON_CACHE_DIR=$cache/triton TORCHINDUCTOR_CACHE_DIR=$cache/inductor

@setup@

export AZNEOBERT_HELPERS=""
if [ -n "$image" ]; then
  command -v apptainer >/dev/null ||
    fail "apptainer: no such program on $(hostname); use \`setup: module load apptainer\` in launch.yaml, or container: null"
  # The image may have been replaced since the job was submitted.
  [ "$(stat -Lc '%s %Y' "$image" 2>/dev/null)" = "$image_stat" ] ||
    image_digest=sha256:$(sha256sum "$image" 2>/dev/null | cut -d' ' -f1)
  export AZNEOBERT_IMAGE=$image_digest
  export APPTAINER_BIND=${APPTAINER_BIND:+$APPTAINER_BIND,}$cache
  # Without setuid a squashfuse process in the job mounts the image. A signal that SLURM sends to all processes would
  # end it, and with it the ranks, in the middle of their checkpoint. Apptainer resets ignored and blocked signals.
  AZNEOBERT_HELPERS=$cache/helpers
  # Check on each node that the image is there and runs, and that the cache can be written from within it.
  look='n=$(hostname)
    mkdir -m 700 -p "$AZNEOBERT_CACHE" 2>/dev/null
    (fuse=$(command -v squashfuse_ll) && mkdir -p "$AZNEOBERT_HELPERS" && cd "$AZNEOBERT_HELPERS" &&
      [ ! -x squashfuse_ll ] && printf "#!/bin/sh\ntrap \"\" USR1 TERM\nexec \"%s\" \"\$@\"\n" "$fuse" >new.$$ &&
      chmod 700 new.$$ && mv new.$$ squashfuse_ll) 2>/dev/null
    PATH=$AZNEOBERT_HELPERS:$PATH
    [ -f "$0" ] || { echo "$0: no such image on $n; put it on a file system of all nodes"; exit 1; }
    said=$("$@" true 2>&1) || { echo "$0: does not run on $n: $(echo "$said" | grep FATAL | tail -n 1)"; exit 1; }
    "$@" sh -c "touch \"\$AZNEOBERT_CACHE/.written\"" 2>/dev/null ||
      { echo "$AZNEOBERT_CACHE: cannot be written on $n; use another folder of the node as cache in launch.yaml"; exit 1; }'
  found=$(srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --cpus-per-task="$SLURM_CPUS_PER_TASK" --export=ALL --input=none bash -c "$look" "$image" "${within[@]}" 2>&1) ||
    fail "$(echo "$found" | grep -v '^srun: \|^slurmstepd: ' | head -n 1)"
  say "in $image, $AZNEOBERT_IMAGE"
fi

# Each rank ignores signals until the training handles them. Ranks other than 0 write output to files of their own.
begin='trap "" USR1 TERM; [ "$SLURM_PROCID" = 0 ] || exec >"$0/rank-$SLURM_PROCID.log" 2>&1
  PATH=${AZNEOBERT_HELPERS:+$AZNEOBERT_HELPERS:}$PATH; exec "$@"'
begun=$(wc -c <"$job/log.txt")
# srun does not inherit --cpus-per-task; without it, all threads and workers of a rank share one core.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$AZNEOBERT_PROCESSES" --ntasks-per-node="$per_node" \
  --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 --export=ALL --input=none \
  bash -c "$begin" "$job" "${command[@]}" &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?

said() { tail -c "+$((begun + 1))" "$job/log.txt" | cat - "$job"/rank-*.log 2>/dev/null | grep "$@"; }
case $(sed -n 's/.*"state": *"\([a-z]*\)".*/\1/p' "$run/outcome.json" 2>/dev/null) in
  complete) say "complete" && exit 0 ;;
  stopped) requeue "stopped as asked behind $(newest)" ;;
esac
# If something killed or stopped a rank, another start can go on. A rank that lost another rank is only a consequence.
# An error that some rank reports is a cause, which waiting in the queue does not mend.
passing=' has lost another rank\| no step for \|, and no step came \|a worker of the data loader has ended'
if said '^error: \|^\(\[rank[0-9]*\]: \)\?Traceback' | grep -qv "$passing" && [ "$code" -ne 75 ]; then
  grep -H '^error: ' "$job"/rank-*.log 2>/dev/null | sed 's/.*rank-\([0-9]*\).log:error: /error: rank \1: /' | head -n 3
  exit 1
fi
[ "$code" -eq 75 ] || [ "$code" -gt 128 ] || said -q "$passing" ||
  fail "the ranks ended with exit code $code on $SLURM_JOB_NODELIST, without an error of their own; look into $job/log.txt"
requeue "the ranks ended with exit code $code: $(said '^error: \|^srun: error' | head -n 1 | cut -c1-300)"
