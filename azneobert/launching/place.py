"""A rank's place among the others, as its launcher gave it. It is set before torch asks for it."""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import socket
import sys
from pathlib import Path

import psutil

from azneobert.environment import LAUNCHER, PROCESSES, SLURM, end_with_parent, grace_seconds
from azneobert.errors import TrainingError
from azneobert.layout import RunFolder
from azneobert.locks import LEASE_SECONDS, FileLock

_MARGIN_SECONDS = 60.0  # of a former start, on top of its grace


def join_launcher(run: RunFolder) -> None:
    """Take the place that the launcher gives. A local rank ends with its launcher; SLURM's signals ask a rank to stop.

    Raises:
        TrainingError: the launcher has died, or SLURM does not say which rank this is.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher == SLURM:
        _hear_signals(run.stop_file)
        _join_slurm()
    elif launcher is not None and sys.platform.startswith("linux"):
        # When the launching process dies, the kernel sends this rank SIGTERM, so it ends after a checkpoint.
        end_with_parent(signal.SIGTERM)
        if os.getppid() != int(launcher):  # the launcher died before the request to the kernel
            raise TrainingError("launcher: has died; start the phase again")


def ask_former_start_to_stop(run: RunFolder) -> None:
    """If an earlier start of the same job still trains, make it save and end, so that nothing is trained twice.

    SLURM starts a job elsewhere when a node no longer answers, and cannot end what runs there.

    Raises:
        TrainingError: it does not end.
    """
    run.lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.lock_file)
    if not lock.acquire():
        mine = f"taken over by another start, {secrets.token_hex(8)}\n"
        run.stop_file.write_text(mine)
        print(f"{run.path}: an earlier start still trains here, it was asked to stop; waiting for it", flush=True)
        limit = grace_seconds() + LEASE_SECONDS + _MARGIN_SECONDS
        if not lock.acquire(lambda: None, limit):
            raise TrainingError(
                f"{run.path}: an earlier start was asked to stop and has trained on here for {limit:.0f} s; end it"
            )
        if run.stop_file.exists() and run.stop_file.read_text() == mine:  # no new request to this start
            run.stop_file.unlink()
    lock.release()


def _hear_signals(stop_file: Path) -> None:
    """Until the training handles signals itself, a signal makes the stop file, which the training will find."""

    def asked(*_: object) -> None:
        stop_file.parent.mkdir(parents=True, exist_ok=True)
        stop_file.touch()

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, asked)


def _join_slurm() -> None:
    try:
        rank, local_rank, world_size = (
            int(os.environ[name]) for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
        )
        address = os.environ["MASTER_ADDR"]
    except (KeyError, ValueError) as error:
        raise TrainingError(f"SLURM: does not say this rank's place ({error}); start it with slurm/submit") from None
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", str(cores)))
    if world_size > 1:
        places = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": world_size}
        os.environ |= {name: str(number) for name, number in places.items()}
        if interface := _interface_towards(address):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    asked_for = os.environ.get(PROCESSES)
    print(f"rank {rank} of {asked_for} on {socket.gethostname()}: {cores} cores, {address}", flush=True)


def _interface_towards(address: str) -> str | None:
    """The network interface by which this host reaches another. Gloo would use the one of the host's own name."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    except ValueError:  # a name
        return None
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing
        except OSError:
            return None
        mine = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == mine for each in addresses):
            return str(name)
    return None
