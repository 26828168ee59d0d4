"""A real SLURM for a test: munged, slurmctld and a slurmd for each emulated node, in one temporary folder.

All nodes are this host, on ports of their own. Nothing of the system is read or written: SLURM_CONF names the folder's
own slurm.conf, and munge has its own key and socket.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

_CONF = """\
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait={kill_wait}
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout={slurmd_timeout}
MessageTimeout=10
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
{more}
"""


def missing() -> list[str]:
    """The programs of SLURM that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a condition to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)


class Cluster:
    """A cluster of so many nodes with so many cores; use as a context manager."""

    def __init__(
        self, nodes: int = 1, cores: int = 2, *, kill_wait: int = 15, slurmd_timeout: int = 30, more: str = ""
    ):
        self._names = [f"n{number}" for number in range(nodes)]
        self._cores = cores
        self._options = {"kill_wait": kill_wait, "slurmd_timeout": slurmd_timeout, "more": more}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # the path of a socket has 107 characters
        self.folder.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.environment = kept | {"PATH": _PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir()
        host, (port, *ports) = socket.gethostname().split(".")[0], _free_ports(1 + len(self._names))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={each} CPUs={self._cores} RealMemory=4000"
            for name, each in zip(self._names, ports, strict=True)
        )
        conf = _CONF.format(
            host=host, port=port, user=getpass.getuser(), folder=self.folder, nodes=nodes, **self._options
        )
        (self.folder / "slurm.conf").write_text(conf)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        place = self.folder / "munge"
        munge = [
            f"--socket={place}/socket",
            f"--key-file={key}",
            f"--pid-file={place}/pid",
            f"--seed-file={place}/seed",
        ]
        self._spawn("munged", "--foreground", "--force", "--num-threads=2", *munge)
        until((place / "socket").exists, 10, "munged")
        self._spawn("slurmctld", "-D", "-i")
        for name in self._names:
            self.start_node(name)
        until(lambda: self.states() == ["idle"] * len(self._names), 30, "nodes idle")

    def _spawn(self, program: str, *arguments: str, name: str | None = None) -> None:
        found = shutil.which(program, path=_PATH)
        assert found
        with (self.folder / f"{name or program}.out").open("ab") as out:
            self._processes[name or program] = subprocess.Popen(
                [found, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    def start_node(self, name: str) -> None:
        """Start a node's daemon."""
        self._spawn("slurmd", "-D", "-N", name, name=name)

    def kill_node(self, name: str) -> None:
        """Kill a node's daemon; what it has started lives on."""
        self._processes[name].kill()
        self._processes[name].wait(10)

    def crash_node(self, name: str) -> None:
        """Kill a node's daemon and all that it has started, as a machine does that loses its power."""
        self.kill_node(name)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                variables = process.environ()
                ours = variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if ours and variables.get("SLURMD_NODENAME") == name:
                    for each in (process.parent(), process):
                        if each and each.name().startswith(("slurmstepd", "python", "bash", "srun", "sleep")):
                            each.kill()

    def stop_controller(self) -> None:
        """End slurmctld: jobs run on, and nobody can ask for them."""
        self._processes["slurmctld"].terminate()
        self._processes["slurmctld"].wait(20)

    def start_controller(self) -> None:
        """Start slurmctld again, with what it knew."""
        self._spawn("slurmctld", "-D")
        until(lambda: "idle" in self.states() or "mixed" in self.states(), 30, "the controller")

    def states(self) -> list[str]:
        """The state of each node."""
        said = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False)
        return list(dict(line.split() for line in said.splitlines()).values())  # a node stands under each partition

    def down(self) -> list[str]:
        """The nodes that SLURM misses."""
        return self.run("sinfo", "--noheader", "--Node", "--states=down", "--format=%N", check=False).split()

    def run(self, *command: str, check: bool = True) -> str:
        """What a program of SLURM prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert not (check and done.returncode), f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def jobs(self) -> list[str]:
        """The numbers of the jobs that wait, run or end."""
        return self.run("squeue", "--noheader", "--format=%i").split()

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "--oneliner", "show", "job", number)))

    def start_now(self, number: str) -> None:
        """Let a requeued job start, which would wait for two minutes."""
        with suppress(AssertionError):
            self.run("scontrol", "update", f"JobId={number}", "StartTime=now")

    def _stop(self) -> None:
        with suppress(Exception):
            self.run("scancel", f"--user={getpass.getuser()}", "--full", "--signal=KILL", check=False)
            self.run("scancel", f"--user={getpass.getuser()}", check=False)
            until(lambda: not self.jobs(), 20, "jobs ended")
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
