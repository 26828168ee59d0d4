"""`azneobert doctor` on machines that lack something: each thing in the way is one line with its remedy."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from toy import ROOT, toy_recipe
from typer.testing import CliRunner

from azneobert import locks
from azneobert.cli import app
from azneobert.cli import doctor as command
from azneobert.doctor import disk, features, gpu, host, slurm, tracking
from azneobert.doctor.checkup import Check, examine
from azneobert.doctor.finding import Finding, Findings, Subject, ok, problem, size_of, warning
from azneobert.doctor.mounts import Mount, mount_of
from azneobert.layout import Layout
from azneobert.recipe import Recipe, load_recipe
from azneobert.yaml_files import read_yaml, write_yaml

Look = Callable[[Subject], Findings]


def look(at: Look, recipe: Recipe | None = None, seconds: float = 30) -> list[Finding]:
    return list(examine((Check("area", at, seconds),), Subject(recipe)))


def statuses(found: list[Finding]) -> list[str]:
    return [finding.status for finding in found]


def one(found: list[Finding], status: str) -> Finding:
    [finding] = [finding for finding in found if finding.status == status]
    assert status == "ok" or finding.remedy
    return finding


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project's folder, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.fixture
def commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes the only folder of commands, of which each prints something and may fail."""
    place = folder / "commands"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))

    def make(**printed: tuple[str, int]) -> Path:
        for name, (text, code) in printed.items():
            program = place / name.replace("_", "-")
            program.write_text(f"#!/bin/sh\nprintf '%s\\n' '{text}' >&{2 if code else 1}\nexit {code}\n")
            program.chmod(0o755)
        return place

    return make


# Running checks


def test_a_check_that_fails_crashes_or_hangs_ends_no_other(folder: Path) -> None:
    def fails(_: Subject) -> Findings:
        yield ok("before")
        raise ZeroDivisionError("by\nzero")

    def crashes(_: Subject) -> Findings:
        yield ok("before")
        os.kill(os.getpid(), signal.SIGKILL)

    def hangs(_: Subject) -> Findings:
        (folder / "made").touch()
        try:
            yield ok("before")
            child = subprocess.Popen(["sleep", "1000"])
            (folder / "pid").write_text(str(child.pid))
            time.sleep(1000)
        finally:
            (folder / "made").unlink()

    def is_fine(_: Subject) -> Findings:
        yield ok("as ever")

    looks = {"fails": (fails, 9.0), "crashes": (crashes, 9.0), "hangs": (hangs, 0.5), "is fine": (is_fine, 9.0)}
    began = time.monotonic()
    found = list(examine(tuple(Check(name, *each) for name, each in looks.items()), Subject(None)))
    assert time.monotonic() - began < 5
    assert [(finding.area, finding.status) for finding in found] == [
        *(("fails", "ok"), ("fails", "problem"), ("crashes", "ok"), ("crashes", "problem")),
        *(("hangs", "ok"), ("hangs", "problem"), ("is fine", "ok")),
    ]
    said = {finding.area: finding.found for finding in found}
    assert said["fails"] == "the check failed: ZeroDivisionError: by"
    assert "SIGKILL" in said["crashes"]
    assert said["hangs"].startswith("no answer within ")
    assert not (folder / "made").exists(), "what it has made is removed"
    assert not is_running(int((folder / "pid").read_text())), "what it has started is ended"


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_check_that_does_not_heed_the_request_to_end_is_killed() -> None:
    def deaf(_: Subject) -> Findings:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        yield ok("before")
        time.sleep(1000)

    began = time.monotonic()
    assert statuses(look(deaf, seconds=0.2)) == ["ok", "problem"]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_who_ends_the_command_ends_the_check_which_removes_what_it_has_made(
    ended_by: signal.Signals, folder: Path
) -> None:
    program = """
import tempfile, time
from azneobert.doctor.checkup import Check, examine
from azneobert.doctor.finding import Subject, ok

def hangs(_):
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir="."):
        yield ok("begun")
        time.sleep(1000)

for finding in examine((Check("area", hangs, 100),), Subject(None)):
    print(finding.found, flush=True)
"""
    program = (
        f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler){program}"  # in the background too
    )
    doctor = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert doctor.stdout is not None
    assert doctor.stdout.readline() == b"begun\n"
    assert list(folder.glob(".doctor-*"))
    doctor.send_signal(ended_by)
    assert doctor.wait(10)
    deadline = time.monotonic() + 5
    while list(folder.iterdir()):
        assert time.monotonic() < deadline, "something stays"
        time.sleep(0.05)


def test_what_is_shown_is_one_line_without_escapes_and_passwords() -> None:
    def hostile(_: Subject) -> Findings:
        yield warning("a\nb\x1b[2J http://me:secret@host", "c\nd")

    [finding] = look(hostile)
    assert finding.found == "a\\nb\\x1b[2J http://me:***@host"
    assert finding.remedy == "c\\nd"


# The command


LIGHT = tuple(check for check in command.CHECKS if check.area not in ("torch", "DeepSpeed", "DVC remote", "disk speed"))


def test_json_holds_every_area_and_each_problem_has_a_remedy(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"], catch_exceptions=False)
    said = json.loads(result.output)
    assert {finding["area"] for finding in said["findings"]} == {"recipe", *(check.area for check in command.CHECKS)}
    for status in ("problem", "warning"):
        assert said[f"{status}s"] == sum(finding["status"] == status for finding in said["findings"])
    assert all(finding["remedy"] for finding in said["findings"] if finding["status"] != "ok")
    wrong = [finding["area"] for finding in said["findings"] if finding["status"] == "problem"]
    assert wrong == ["DVC cache", "DVC remote"], "the folder is no DVC project, and nothing else is wrong"
    assert result.exit_code == 1
    assert not list(recipes.glob(".doctor-*"))


def test_lines_are_aligned_and_plain_where_no_terminal_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def three(_: Subject) -> Findings:
        yield ok("fine")
        yield warning("slow", "do this")
        yield problem("broken", "do that")

    monkeypatch.setattr(command, "CHECKS", (Check("git", three),))
    shutil.copy(ROOT / "recipes" / "sample.yaml", "params.yaml")
    result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "ok      recipe       params.yaml: sample",
        "ok      git          fine",
        "warning git          slow",
        "                     do this",
        "problem git          broken",
        "                     do that",
        "problems: 1, warnings: 1",
    ]
    monkeypatch.setattr(command, "CHECKS", (Check("git", lambda _: (yield ok("fine"))),))
    assert CliRunner().invoke(app, ["doctor"], catch_exceptions=False).exit_code == 0


@pytest.mark.parametrize("is_there", [True, False])
def test_a_wrong_recipe_is_a_problem_of_its_own_and_the_other_checks_go_on(
    is_there: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "CHECKS", LIGHT)
    if is_there:
        content = read_yaml(ROOT / "recipes" / "sample.yaml")
        content["model"]["hiden_size"] = 32
        write_yaml(folder / "params.yaml", content)
    result = CliRunner().invoke(app, ["doctor", "--json"], catch_exceptions=False)
    first, *others = json.loads(result.output)["findings"]
    assert result.exit_code == 1
    assert (first["area"], first["status"]) == ("recipe", "problem")
    assert ("hiden_size: unknown key" if is_there else "params.yaml: no such file") in first["found"]
    assert first["remedy"]
    assert {finding["area"] for finding in others} == {check.area for check in LIGHT}
    assert not [finding for finding in others if "the check failed" in finding["found"]]


def test_the_page_explains_every_area() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    for area in ("recipe", *(check.area for check in command.CHECKS)):
        assert f"| **{area}**" in page


# Disk


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """The outputs' file system, of 1 MB, which is gone with the test."""
    place = folder / "outputs"
    place.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True, check=False
        )
    except OSError as error:
        pytest.skip(f"no small file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path) -> None:
    """Take all the room that is left."""
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(disk).free == 0


def test_a_full_disk_is_a_problem_and_nothing_is_left_on_it(small_disk: Path) -> None:
    fill(small_disk)
    recipe = toy_recipe({"model": {"vocab_size": 30_000}, "tokenizer": {"vocab_size": 30_000}})
    room = one(look(disk.look_for_room, recipe), "problem")
    assert room.found.startswith("0 B free on tmpfs at ")
    assert "lower runtime.keep_checkpoints" in str(room.remedy)
    assert one(look(disk.look_at_speed, recipe), "warning").found.startswith("not measured: 0 B free")
    tried = look(features.look_at_file_system, recipe)
    assert "No space left" in one(tried, "problem").found
    assert "in memory: gone after a restart" in one(tried, "warning").found
    look(host.look_at_clock, recipe)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_database_on_a_full_disk_is_a_problem(small_disk: Path, empty_mlflow: Path) -> None:
    shutil.copy(empty_mlflow, small_disk / "mlflow.db")
    recipe = toy_recipe({"tracking": {"mlflow_uri": f"sqlite:///{small_disk}/mlflow.db"}})
    fill(small_disk)
    found = one(look(tracking.look_at_mlflow, recipe), "problem")
    assert "full" in found.found
    assert found.remedy == "free room on its disk"


def test_room_is_counted_as_a_run_counts_it_at_its_start(folder: Path) -> None:
    recipe = toy_recipe({"runtime": {"keep_checkpoints": 2, "keep_every": 0}})
    assert disk.checkpoint_bytes(recipe) == 12 * disk.count_parameters(recipe.model)
    assert disk.checkpoints_to_come(recipe, "phase1") == 3
    steps = Layout(recipe.name).running("phase1").checkpoints
    for number, left in ((1, 2), (2, 1), (3, 1)):
        (steps / f"step-{number:08d}").mkdir(parents=True)
        assert disk.checkpoints_to_come(recipe, "phase1") == left
    every = recipe.runtime.checkpoint_every
    milestones = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"keep_every": every})})
    assert disk.checkpoints_to_come(milestones, "phase1") == 1 + recipe.phase1.steps // every - 1


@pytest.mark.parametrize(("checkpoints", "status"), [(2.9, "problem"), (3.1, "warning"), (8.1, "ok")])
def test_room_for_one_phase_alone_is_a_warning(
    checkpoints: float, status: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe({"runtime": {"keep_checkpoints": 2, "keep_every": 0}})
    usage = type(shutil.disk_usage("/"))(1 << 50, 0, int(checkpoints * disk.checkpoint_bytes(recipe)))
    monkeypatch.setattr(disk, "_LITTLE", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert statuses(look(disk.look_for_room, recipe)) == [status]


def test_speed_is_measured_by_a_file_that_has_no_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        names.append(list(folder.iterdir()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(disk, "_PIECES", 16)
    written, read, is_same = disk.measure_speed(folder)
    assert written > 0
    assert read > 0
    assert is_same
    assert names == [[]] * 3


def test_a_disk_too_slow_for_a_last_checkpoint_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy_recipe()
    for seconds, status in ((119, "ok"), (121, "warning")):
        speed = disk.checkpoint_bytes(recipe) / seconds
        monkeypatch.setattr(disk, "measure_speed", lambda _, speed=speed: (speed, speed, True))
        assert statuses(look(disk.look_at_speed, recipe)) == [status]
    monkeypatch.setattr(disk, "measure_speed", lambda _: (1e9, 1e9, False))
    assert statuses(look(disk.look_at_speed, recipe)) == ["problem"]


def test_outputs_that_are_a_link_to_nowhere_are_a_problem(folder: Path) -> None:
    (folder / "outputs").symlink_to("/nowhere/at/all")
    for at in (disk.look_for_room, features.look_at_file_system, host.look_at_clock):
        found = one(look(at, toy_recipe()), "problem")
        assert "outputs: is a link to /nowhere/at/all" in found.found
        assert found.remedy == "make that folder, or move outputs away"


# What saving needs of a file system


def refusing(number: int) -> Callable[..., Any]:
    def refused(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return refused


def test_a_good_file_system_is_one_line_and_nothing_is_left_there(folder: Path) -> None:
    found = [finding for finding in look(features.look_at_file_system) if "in memory" not in finding.found]
    for name in features._ATTEMPTS:
        assert name in one(found, "ok").found
    assert len(found) == 1
    assert not list(folder.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_flock_is_refused_the_mount_option_is_named(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", refusing(number))
    found = [finding for finding in look(features.look_at_file_system) if "in memory" not in finding.found]
    assert statuses(found) == ["warning", "warning", "ok"], "a lease does its work"
    assert os.strerror(number) in found[0].found
    assert "-o flock" in str(found[0].remedy)
    assert "a run's lock" in found[2].found


def test_flock_that_nfs_refuses_on_a_read_only_descriptor_is_told_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    flock = fcntl.flock

    def as_on_nfs(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", as_on_nfs)
    found = [finding for finding in look(features.look_at_file_system) if "in memory" not in finding.found]
    assert statuses(found) == ["warning", "ok"]
    assert found[0].found.startswith("flock on a read-only descriptor is refused (Bad file descriptor)")


def test_flock_that_excludes_nobody_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    found = look(features.look_at_file_system)
    assert "flock excludes nobody: a lease file does its work" in [finding.found for finding in found]


def test_where_neither_flock_nor_a_lease_can_be_had_it_is_a_problem(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", refusing(errno.ENOSYS))
    monkeypatch.setattr(locks._Lease, "_make", refusing(errno.EPERM))
    assert "cannot be locked" in one(look(features.look_at_file_system), "problem").found


def test_a_lock_that_two_processes_get_is_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks.FileLock, "acquire", lambda self: True)
    assert "two runs would write one folder" in one(look(features.look_at_file_system), "problem").found


@pytest.mark.parametrize(
    ("what", "status", "named"),
    [
        ("os.link", "warning", "hard links are refused"),
        ("pathlib.Path.replace", "problem", "rename over another file is refused"),
        ("azneobert.doctor.features.sync", "problem", "fsync of a folder is refused"),
        ("mmap.mmap", "problem", "mmap, by which checkpoints and plans are read, is refused"),
    ],
)
def test_what_a_file_system_refuses_is_named(
    what: str, status: str, named: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(what, refusing(errno.EOPNOTSUPP))
    found = [finding for finding in look(features.look_at_file_system) if named in finding.found]
    assert statuses(found) == [status]
    assert "Operation not supported" in found[0].found
    assert not list(folder.iterdir())


def test_what_a_file_system_does_not_do_in_silence_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def copying(source: Path, target: Path, **folders: int) -> None:
        link(source, target, **folders) if folders else shutil.copy(source, target)  # a lease is made with folders

    monkeypatch.setattr("os.link", copying)
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: None)
    found = [finding.found for finding in look(features.look_at_file_system)]
    assert "a hard link is another file: DVC keeps outputs twice" in found
    assert "a rename leaves another content than it was given" in found


def test_a_folder_that_is_not_ours_is_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.mkdir", refusing(errno.EACCES))
    assert "cannot be written: Permission denied" in one(look(features.look_at_file_system), "problem").found


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /home rw - nfs4 server:/home rw,local_lock=none
31 22 0:41 / /with\\040space rw - lustre server@tcp:/x rw,flock
32 31 0:42 / /with\\040space ro - tmpfs tmpfs rw
"""


def test_a_mount_is_found_as_the_kernel_lists_it(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert str(mount_of(Path("/homes/me"), mounts)) == "ext4 at /"
    home = mount_of(Path("/home/me/.cache"), mounts)
    assert (home.kind, home.point, home.is_network, home.is_in_memory) == ("nfs4", "/home", True, False)
    assert "local_lock=none" in home.options
    over = mount_of(Path("/with space/x"), mounts)
    assert (over.kind, over.is_in_memory, "ro" in over.options) == ("tmpfs", True, True)
    assert mount_of(Path("/"), tmp_path / "none").kind == "an unknown file system"


def test_caches_on_a_network_file_system_are_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZNEOBERT_CACHE", str(folder / "cache"))
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert statuses(look(disk.look_at_caches)) == ["ok"]
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "nfs" / "triton"))
    (folder / "nfs").mkdir()
    nfs, local = Mount("/nfs", "nfs4", frozenset()), Mount("/", "ext4", frozenset())
    monkeypatch.setattr(disk, "mount_of", lambda path: nfs if "nfs" in path.parts else local)
    found = one(look(disk.look_at_caches), "warning")
    assert "stale handles" in found.found
    assert found.remedy == "set TRITON_CACHE_DIR to a folder of this node"
    monkeypatch.setattr(disk, "mount_of", lambda path: nfs)
    assert look(disk.look_at_caches)[0].remedy == "set AZNEOBERT_CACHE to a folder of this node"


# GPUs


RIGHT = "NVIDIA H200, 570.86, 143771, 10, 0"


def test_a_machine_without_a_gpu_can_train_but_for_what_is_made_for_gpus(commands: Callable[..., Path]) -> None:
    commands()
    assert one(look(gpu.look_at_gpus, toy_recipe()), "ok").found == "no GPU: training runs on the CPU"
    made_for = toy_recipe({"training": {"compute_dtype": "bfloat16"}})
    assert "in a job" in str(one(look(gpu.look_at_gpus, made_for), "warning").remedy).replace("within", "in")
    assert one(look(gpu.look_at_kernels, toy_recipe()), "ok").found.startswith("attention reference, blocks torch")
    by_name = toy_recipe({"runtime": {"attention": "fa4"}})
    found = one(look(gpu.look_at_kernels, by_name), "problem")
    assert "runtime.attention: fa4 needs CUDA" in found.found
    assert found.remedy == "use auto"


def test_a_driver_that_does_not_answer_is_a_problem(commands: Callable[..., Path]) -> None:
    commands(nvidia_smi=("NVIDIA-SMI has failed because it could not communicate with the driver", 9))
    assert "could not communicate" in one(look(gpu.look_at_gpus, toy_recipe()), "problem").found


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA")
def test_a_gpu_that_this_torch_cannot_use_is_a_problem(commands: Callable[..., Path]) -> None:
    commands(nvidia_smi=(f"{RIGHT}\n{RIGHT}", 0))
    found = look(gpu.look_at_gpus, toy_recipe())
    assert found[0].found == "2 x NVIDIA H200, 140 GiB, driver 570.86"
    assert "is built for the CPU alone" in one(found, "problem").found


def test_gpus_that_are_few_busy_or_damaged_are_named(
    commands: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, damaged = RIGHT.replace(", 10,", ", 90000,"), RIGHT[:-1] + "3"
    commands(nvidia_smi=("\n".join((RIGHT, busy, damaged, RIGHT.replace(", 0", ", [N/A]"))), 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    found = look(gpu.look_at_gpus, toy_recipe({"runtime": {"processes": 8}, "phase2": {"global_batch": 8}}))
    said = [(finding.status, finding.found) for finding in found[1:]]
    assert said == [
        ("warning", "GPU 1: 90000 of 143771 MiB are in use by others"),
        ("problem", "GPU 2: 3 memory errors that were not corrected"),
        ("problem", "runtime.processes is 8, and torch sees 4 GPUs here"),
    ]


@pytest.mark.parametrize(
    ("generation", "packages", "dtype", "expected"),
    [
        (9, {"quack", "flash_attn.cute", "flash_attn_interface"}, "bfloat16", []),
        (9, {"quack"}, "bfloat16", ["fa4: needs its library", "fa3: needs its library"]),
        (9, set(), "bfloat16", ["fa4: needs its library", "fa3: needs its library", "fused: needs the package quack"]),
        (8, {"flash_attn.cute"}, "bfloat16", ["fa4: needs another GPU", "fa3: needs another GPU", "fused: needs a Ho"]),
        (9, set(), "float32", ["fa4: needs CUDA and bf", "fa3: needs", "fa2: needs", "fused: needs training.compute"]),
    ],
)
def test_each_faster_kernel_is_named_with_what_it_lacks(
    generation: int, packages: set[str], dtype: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from azneobert.model.backend import choose_backend

    find_spec = importlib.util.find_spec
    known = {"quack", "flash_attn.cute", "flash_attn_interface"}

    def found_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return (ModuleSpec(name, None) if name in packages else None) if name in known else find_spec(name, package)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(importlib.util, "find_spec", found_spec)
    recipe = toy_recipe({"model": {"hidden_size": 64, "num_attention_heads": 2}})
    device, kind = torch.device("cuda"), getattr(torch, dtype)
    chosen = choose_backend(recipe.runtime, recipe.model, device, kind)
    found = gpu.faster(recipe, chosen.attention_name, chosen.fused, device, kind)
    assert len(found) == len(expected)
    assert all(said.startswith(start) for said, start in zip(found, expected, strict=True)), found


def test_a_phase_that_is_predicted_to_take_more_than_the_gpu_has_is_named() -> None:
    h200 = load_recipe(ROOT / "recipes" / "h200.yaml")
    assert list(gpu.look_at_memory(h200, "fa4", 140 << 30, fused=True)) == []
    [found] = gpu.look_at_memory(h200, "fa4", 79 << 30, fused=True)
    assert found.status == "warning"
    assert found.found == (
        "phase2 is predicted to take 78.8 GiB with micro-batches of 32 rows, and the GPU has 79.0, "
        "of which 5% have to stay free"
    )
    assert found.remedy == "set runtime.max_micro_batch: auto, or less"
    auto = h200.model_copy(update={"runtime": h200.runtime.model_copy(update={"max_micro_batch": "auto"})})
    assert list(gpu.look_at_memory(auto, "fa4", 24 << 30, fused=True)) == []
    tight = [finding.remedy for finding in gpu.look_at_memory(auto, "fa2", 4 << 30, fused=False)]
    assert tight == ["use shorter rows, a smaller model or a larger GPU"] * 2


def test_a_gpu_runs_what_was_compiled_for_its_generation_and_what_can_still_be() -> None:
    assert gpu._runs("sm_90", 9, 0)
    assert gpu._runs("sm_80", 8, 6)
    assert gpu._runs("sm_90a", 9, 0)
    assert gpu._runs("compute_80", 12, 0)
    assert not gpu._runs("sm_90", 10, 0)
    assert not gpu._runs("sm_86", 8, 0)
    assert not gpu._runs("compute_90", 8, 0)


def test_an_engine_that_cannot_be_imported_is_a_problem_where_the_recipe_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "azneobert.engine.zero2", None)
    assert statuses(look(gpu.look_at_deepspeed, toy_recipe())) == ["warning"]
    assert statuses(look(gpu.look_at_deepspeed, toy_recipe({"runtime": {"engine": "zero2"}}))) == ["problem"]


# SLURM: what its commands print was taken from SLURM 22.05.8

PARTITIONS = """main|up|infinite|OFF|2|(null)
gpu|up|1-00:00:00|REQUEUE|4|gpu:h200:8
gpu|up|1-00:00:00|REQUEUE|1|gpu:a100:4
short|inact|30:00|OFF|0|"""
SETTINGS = """Configuration data as of 2026-01-01T00:00:00
JobRequeue              = {requeue}
KillOnBadExit           = 0
KillWait                = {wait} sec
PreemptMode             = {preempt}
PreemptType             = preempt/none"""
JOB = "JobId=7 JobName=wrap UserId=me(1) Requeue=0 Restarts=0 EndTime=2027-01-01T00:00:00 NumNodes=2-2 NumCPUs=2"


def settings(requeue: int = 1, wait: int = 60, preempt: str = "OFF") -> tuple[str, int]:
    return SETTINGS.format(requeue=requeue, wait=wait, preempt=preempt), 0


@pytest.fixture
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.mark.usefixtures("no_job")
def test_without_slurm_nothing_is_wrong(commands: Callable[..., Path]) -> None:
    commands()
    assert look(slurm.look_at_slurm) == [Finding("ok", "no SLURM here", None, "area")]


@pytest.mark.usefixtures("no_job")
def test_partitions_requeue_and_signals_are_told(commands: Callable[..., Path]) -> None:
    commands(sinfo=(PARTITIONS, 0), scontrol=settings())
    found = look(slurm.look_at_slurm)
    assert [finding.found for finding in found] == [
        "partition main: 2 nodes, time limit infinite, preemption off",
        "partition gpu: 5 nodes, gpu:a100:4, gpu:h200:8, time limit 1-00:00:00, preemption requeue",
        "partition short: 0 nodes, time limit 30:00, preemption off: down",
        "jobs are requeued after a node fails (JobRequeue=1)",
        "a cancelled job has 60 s from SIGTERM to SIGKILL (KillWait)",
        "PreemptMode=OFF",
    ]
    assert statuses(found) == ["ok", "ok", "warning", "ok", "ok", "ok"]


@pytest.mark.usefixtures("no_job")
def test_settings_that_lose_a_job_are_warnings_with_the_option_that_helps(commands: Callable[..., Path]) -> None:
    commands(sinfo=("main|up|infinite|OFF|2|(null)", 0), scontrol=settings(0, 5, "CANCEL"))
    found = look(slurm.look_at_slurm)[1:]
    assert statuses(found) == ["warning"] * 3
    assert found[0].remedy == "sbatch --requeue"
    assert "scancel --signal=USR1 JOB" in str(found[1].remedy)
    assert "PreemptMode=CANCEL" in found[2].found


def test_a_cluster_that_does_not_answer_is_a_problem_within_a_job_alone(
    commands: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    commands(sinfo=("sinfo: error: x\nsinfo: fatal: Could not establish a configuration source", 1))
    found = one(look(slurm.look_at_slurm), "warning")
    assert found.found.endswith("no cluster: sinfo: Could not establish a configuration source")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert statuses(look(slurm.look_at_slurm)) == ["problem"]


def test_within_a_job_the_job_and_its_nodes_clocks_are_looked_at(
    commands: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    place = commands(sinfo=("main|up|infinite|OFF|2|(null)", 0), scontrol=settings())
    (place / "scontrol").write_text(
        f"#!/bin/sh\n[ \"$2\" = config ] && printf '%s\\n' '{settings()[0]}' || echo '{JOB}'\n"
    )
    assert look(slurm.look_at_slurm)[-1].found.startswith("job 7: 2-2 nodes until 2027-01-01T00:00:00, which is not")
    commands(srun=(f"n0 {time.time() + 1}\nn1 {time.time() - 400}", 0))
    found = one(look(host.look_at_clock), "problem")
    assert found.found.startswith("node n1 is 400 s behind this host") or "node n1 is 399 s" in found.found
    commands(srun=("srun: error: Unable to create step", 1))
    assert "Unable to create step" in one(look(host.look_at_clock), "warning").found


# MLflow and DVC


def test_an_mlflow_that_does_not_answer_is_a_problem_in_seconds(
    folder: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    recipe = toy_recipe({"tracking": {"mlflow_uri": silent_server}})
    began = time.monotonic()
    found = one(look(tracking.look_at_mlflow, recipe), "problem")
    assert time.monotonic() - began < 8
    assert found.found == f"MLflow at {silent_server}: no answer in 1 s"
    assert "MLFLOW_TRACKING_URI" in str(found.remedy)


def test_an_mlflow_that_is_not_there_is_a_problem_of_one_short_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    assert (
        one(look(tracking.look_at_mlflow, toy_recipe()), "problem").found == "http://me:***@127.0.0.1:9: no connection"
    )


def test_a_database_is_tried_and_not_changed_nor_made(mlflow_uri: str, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    before = database.read_bytes()
    recipe = toy_recipe({"tracking": {"mlflow_uri": mlflow_uri}})
    assert "answers and can be written" in one(look(tracking.look_at_mlflow, recipe), "ok").found
    assert database.read_bytes() == before
    database.unlink()
    assert "not there yet" in one(look(tracking.look_at_mlflow, recipe), "ok").found
    assert not database.exists()
    database.write_bytes(b"something else entirely" * 100)
    assert "not a database" in one(look(tracking.look_at_mlflow, recipe), "problem").found


def test_a_database_that_cannot_be_written_is_a_problem(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy_recipe({"tracking": {"mlflow_uri": mlflow_uri}})
    connect = sqlite3.connect

    def read_only(database: str, *rest: Any, **options: Any) -> sqlite3.Connection:
        return connect(database.replace("mode=rw", "mode=ro"), *rest, **options)

    monkeypatch.setattr("sqlite3.connect", read_only)
    assert "readonly" in one(look(tracking.look_at_mlflow, recipe), "problem").found


def test_a_server_whose_artifacts_go_to_a_folder_that_is_not_here_is_a_problem(tmp_path: Path) -> None:
    def at(uri: str, location: Path) -> Finding:
        return tracking._look_at_artifacts(cast(Any, None), uri, str(location))

    assert at("http://host:5000", tmp_path / "none").status == "problem"
    assert at("http://host:5000", tmp_path).status == "warning"
    assert at("http://localhost:5000", tmp_path / "none").status == "warning"
    assert "--serve-artifacts" in str(at("http://host:5000", tmp_path).remedy)


def test_an_artifact_is_written_and_removed_where_the_server_keeps_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.artifact import artifact_repository_registry
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    store = LocalArtifactRepository(str(folder))
    monkeypatch.setattr(artifact_repository_registry, "get_artifact_repository", lambda *_: store)
    kept = []
    delete = store.delete_artifacts
    monkeypatch.setattr(store, "delete_artifacts", lambda name: (kept.extend(os.scandir(folder)), delete(name)))
    for location, how in (("mlflow-artifacts:/0", "proxied by the server"), ("s3://bucket/0", "sent by each client")):
        found = tracking._look_at_artifacts(cast(Any, None), "http://host", location)
        assert (found.status, how in found.found) == ("ok", True)
    assert len(kept) == 2
    assert not list(folder.iterdir())
    monkeypatch.setattr(store, "log_artifact", refusing(errno.ENOSPC))
    found = tracking._look_at_artifacts(cast(Any, None), "http://host", "s3://bucket/0")
    assert found.status == "problem"
    assert "cannot be written: [Errno 28] No space left on device" in found.found


def test_a_server_that_refuses_to_write_is_told_from_one_that_has_the_name() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_ALREADY_EXISTS

    class Client:
        def __init__(self, code: int):
            self.code = code

        def create_experiment(self, name: str) -> None:
            raise MlflowException("Permission denied\nand more", self.code)

    known = cast(Any, SimpleNamespace(name="Default"))
    assert tracking._refusal_to_write(cast(Any, Client(RESOURCE_ALREADY_EXISTS)), known) is None
    assert tracking._refusal_to_write(cast(Any, Client(PERMISSION_DENIED)), known) == "Permission denied"


def test_a_cache_that_outputs_cannot_be_linked_to_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "cache_folder", lambda: folder / "cache")
    assert one(look(disk.look_at_dvc_cache), "ok").found == f"cache {folder}/cache: outputs are hard links to it"
    monkeypatch.setattr("os.link", refusing(errno.EXDEV))
    assert "Invalid cross-device link" in one(look(disk.look_at_dvc_cache), "warning").found
    monkeypatch.setattr(disk, "mount_of", lambda path: Mount("/", "nfs4", frozenset({"ro"})))
    assert "not writable" in one(look(disk.look_at_dvc_cache), "problem").found
    assert not list(folder.iterdir())


def test_a_remote_that_is_missing_or_not_made_yet_is_a_warning(folder: Path) -> None:
    from dvc.repo import Repo

    Repo.init(no_scm=True).close()
    assert one(look(command.look_at_remote), "warning").remedy == "azneobert remote set URL"
    config = folder / ".dvc" / "config"
    remote = "[core]\n    no_scm = true\n    remote = storage\n['remote \"storage\"']\n    url = {}\n"
    config.write_text(remote.format(folder / "remote"))
    assert "is not there yet" in one(look(command.look_at_remote), "warning").found
    (folder / "remote" / "files" / "md5").mkdir(parents=True)
    assert one(look(command.look_at_remote), "ok").found.endswith("/remote): answers")
    config.write_text(remote.format("s3://bucket\n    endpointurl = http://127.0.0.1:9"))
    assert statuses(look(command.look_at_remote)) == ["problem"]


# The host


def test_without_git_no_run_knows_its_commit(commands: Callable[..., Path]) -> None:
    commands()
    found = one(look(host.look_at_git), "warning")
    assert found.found == "git is not installed: no run will know its commit"


@pytest.fixture
def commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commit of a repository in this folder."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *words], check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def test_a_commit_is_known_or_said_to_be_missing(commit: str, folder: Path) -> None:
    assert one(look(host.look_at_git), "ok").found == f"commit {commit[:12]}"
    shutil.rmtree(folder / ".git")
    assert "no commit of git" in one(look(host.look_at_git), "warning").found


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_repository_of_another_user_is_named_with_what_git_asks_for(commit: str, folder: Path) -> None:
    for place in (folder, folder / ".git"):
        os.chown(place, 12345, 12345)
    found = one(look(host.look_at_git), "warning")
    assert "dubious ownership" in found.found
    assert found.remedy == f"git config --global --add safe.directory {folder}"


def limited(number: int, limit: int) -> Look:
    def at(subject: Subject) -> Findings:  # in the process of the check alone
        resource.setrlimit(number, (limit, resource.getrlimit(number)[1]))
        yield from host.look_at_limits(subject)

    return at


@pytest.mark.parametrize(
    ("number", "limit", "status", "named"),
    [
        (resource.RLIMIT_NOFILE, 256, "warning", "open files: 256, expected 4,096"),
        (resource.RLIMIT_CPU, 3600, "warning", "seconds of CPU of a process: 3,600"),
        (resource.RLIMIT_FSIZE, 1000, "problem", "file size: 1.0 kB, a checkpoint takes"),
    ],
)
def test_a_limit_that_is_in_the_way_is_named(number: int, limit: int, status: str, named: str) -> None:
    found = [finding for finding in look(limited(number, limit), toy_recipe()) if finding.status == status]
    assert [finding.found for finding in found if finding.found.startswith(named)]
    assert all(finding.remedy for finding in found)


@pytest.mark.parametrize(("seconds", "status"), [(0, "ok"), (100, "warning"), (-400, "problem")])
def test_a_clock_that_goes_wrong_is_noticed(
    seconds: float, status: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    finding = look(host.look_at_clock)[0]
    assert finding.status == status
    assert ("behind" in finding.found, "ahead of" in finding.found) == (seconds > 0, seconds < 0)


def test_where_nothing_can_be_written_the_clock_is_not_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.tempfile, "TemporaryFile", refusing(errno.EROFS))
    assert "Read-only file system" in one(look(host.look_at_clock), "warning").found


def test_a_clock_is_wrong_only_by_what_lies_beyond_the_two_readings() -> None:
    assert host.beyond(10.0, 9.0, 11.0) == 0
    assert host.beyond(14.0, 9.0, 11.0) == 3
    assert host.beyond(4.0, 9.0, 11.0) == -5


def test_apptainer_is_told_of_and_in_a_container_what_leaks_into_it(
    commands: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "PYTHONNOUSERSITE"):
        monkeypatch.delenv(name, raising=False)
    commands()
    assert "not installed" in one(look(host.look_at_apptainer), "ok").found
    commands(apptainer=("apptainer version 1.4.5", 0))
    assert look(host.look_at_apptainer)[0].found.startswith("apptainer version 1.4.5")
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/azneobert.sif")
    assert one(look(host.look_at_apptainer), "warning").remedy == "set PYTHONNOUSERSITE=1"
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    assert statuses(look(host.look_at_apptainer)) == ["ok"]


def test_sizes_are_said_as_people_read_them() -> None:
    assert [size_of(count) for count in (0, 999, 1000, 12_345_678, 3.4e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 MB",
        "3.4 TB",
    ]
