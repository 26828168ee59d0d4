"""A rank's place by SLURM's variables, and an earlier start that still trains when the next one begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from azneobert.environment import GRACE, LAUNCHER, SLURM
from azneobert.errors import TrainingError
from azneobert.launching import place
from azneobert.launching.place import ask_former_start_to_stop, join_launcher
from azneobert.layout import RunFolder

ROOT = Path(__file__).parents[2]
JOIN = """
import os, sys
from pathlib import Path
from azneobert.launching.place import join_launcher
from azneobert.layout import RunFolder
join_launcher(RunFolder(Path(sys.argv[1])))
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME")
print([os.environ.get(name) for name in names])
{more}
"""


def joined(folder: Path, more: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    gone = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME")
    env = {k: v for k, v in os.environ.items() if k not in gone} | {LAUNCHER: SLURM} | variables
    command = [sys.executable, "-c", JOIN.format(more=more), str(folder)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


PLACE = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_CPUS_PER_TASK": "3",
    "MASTER_ADDR": "127.0.0.1",
}


def test_a_rank_takes_the_place_that_slurm_gives_it(tmp_path: Path) -> None:
    last = joined(tmp_path, **PLACE).stdout.splitlines()[-1]
    assert last == "['5', '1', '8', '3', 'lo']"


def test_one_rank_alone_is_no_world(tmp_path: Path) -> None:
    alone = PLACE | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}
    assert joined(tmp_path, **alone).stdout.splitlines()[-1] == "[None, None, None, '3', None]"


def test_slurm_s_variables_count_for_its_own_launcher_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    for name, value in PLACE.items():  # a shell of `srun --pty`, in which somebody starts ranks here
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(LAUNCHER, raising=False)
    join_launcher(RunFolder(tmp_path))
    assert "RANK" not in os.environ


def test_without_a_place_the_line_says_what_to_start(tmp_path: Path) -> None:
    done = joined(tmp_path, **(PLACE | {"SLURM_PROCID": ""}))
    assert "SLURM: does not say this rank's place" in done.stderr
    assert "slurm/submit" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_before_the_training_hears_it_leaves_the_stop_file(number: signal.Signals, tmp_path: Path) -> None:
    more = f"import signal; os.kill(os.getpid(), {int(number)}); print('alive')"
    done = joined(tmp_path / "run", more, **PLACE)
    assert done.stdout.splitlines()[-1] == "alive"
    assert (tmp_path / "run" / "stop").exists()


FORMER = """
import sys, time
from pathlib import Path
from azneobert.layout import RunFolder
from azneobert.training.inputs import run_lock
run = RunFolder(Path(sys.argv[1]))
with run_lock(run):
    print("training", flush=True)
    while not (run.stop_file.exists() and {heeds}):
        time.sleep(0.02)
    {before_the_end}
"""


def former_start(run: RunFolder, *, heeds: bool = True, before_the_end: str = "pass") -> subprocess.Popen[str]:
    program = FORMER.format(heeds=heeds, before_the_end=before_the_end)
    run.path.mkdir(parents=True)
    started = subprocess.Popen(
        [sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert started.stdout
    assert started.stdout.readline() == "training\n"
    return started


def test_an_earlier_start_is_asked_to_stop_and_waited_for(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "phase1")
    former = former_start(run)
    ask_former_start_to_stop(run)
    assert former.wait(10) == 0
    assert not run.stop_file.exists(), "this start is not asked to stop"


def test_who_is_asked_to_stop_meanwhile_stays_asked(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "phase1")
    former = former_start(run, before_the_end="run.stop_file.write_text('asked by a signal'); time.sleep(0.1)")
    ask_former_start_to_stop(run)
    assert former.wait(10) == 0
    assert run.stop_file.exists()


def test_where_there_is_none_nothing_is_asked(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "phase1")
    ask_former_start_to_stop(run)
    assert not run.stop_file.exists()


def test_one_that_does_not_end_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GRACE, "1")
    monkeypatch.setattr(place, "LEASE_SECONDS", 0.1)
    monkeypatch.setattr(place, "_MARGIN_SECONDS", 0.1)
    run = RunFolder(tmp_path / "phase1")
    former = former_start(run, heeds=False)
    began = time.monotonic()
    with pytest.raises(TrainingError, match="was asked to stop and has trained on here for 1 s; end it"):
        ask_former_start_to_stop(run)
    assert time.monotonic() - began < 10
    former.kill()
    former.wait()
