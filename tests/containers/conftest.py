"""The CPU image, built from containers/azneobert.def as a user builds it, once for all sessions that can use it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from project import ROOT, Project, environment
from scene import SIZE, Scene

from azneobert.environment import cache_of_user

HERE = Path(__file__).parent
STEPS = 60
PACKAGES = "python3,python3-venv,python3-dev,g++,git,ca-certificates"  # so that %post needs no archive of Debian
ROOM = 12 << 30  # bytes: the base's folder, the image's, and both as files
FOLDER = cache_of_user() / "containers"
FAST = "--mksquashfs-args=-comp lz4"  # twice the size in a quarter of the time
_CAP_SYS_RESOURCE = 1 << 24


def limited_root() -> bool:
    """Whether this is a root user without the privileges that Apptainer's set-up of a container needs."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return os.geteuid() == 0 and not int(status["CapEff"], 16) & _CAP_SYS_RESOURCE


if limited_root():
    os.environ["APPTAINER_USERNS"] = "1"


def reason_to_skip() -> str | None:
    """Why images cannot be built and run here."""
    for program in ("apptainer", "debootstrap"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not list(FOLDER.glob("*.sif")) and shutil.disk_usage(FOLDER).free < ROOM:
        return f"{FOLDER}: less than {ROOM >> 30} GiB free"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    reason = reason_to_skip() if mine else None
    for item in mine:
        item.add_marker(pytest.mark.container)
        item.add_marker(pytest.mark.timeout(1800))  # the first one builds the image
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif "scene" in getattr(item, "fixturenames", ()) and missing():
            item.add_marker(pytest.mark.skip(reason=f"SLURM is not installed: no {', '.join(missing())}"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian 12 with Python and a compiler, as an image."""
    image = FOLDER / f"base-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:12]}.sif"
    if not image.exists():
        rootfs = tmp_path_factory.mktemp("base") / "rootfs"
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(rootfs))
        for device in (rootfs / "dev").iterdir():
            shutil.rmtree(device) if device.is_dir() and not device.is_symlink() else device.unlink()
        partial = image.with_suffix(".partial")
        run("apptainer", "build", "--force", *fakeroot(), FAST, str(partial), str(rootfs))
        partial.rename(image)
        shutil.rmtree(rootfs)
    return image


@pytest.fixture(scope="session")
def image(base: Path) -> Path:
    """The CPU image. It is built again when a file that goes into it has changed."""
    digest = hashlib.sha256(base.name.encode())
    names = ["build", "azneobert.def", "step.py"]
    inside = [*(ROOT / "azneobert").rglob("*.py"), *(ROOT / "containers" / name for name in names)]
    inside += [ROOT / name for name in ("pyproject.toml", "constraints.txt", "recipes/sample.yaml")]
    for file in sorted(inside):
        digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    image = FOLDER / f"azneobert-cpu-{digest.hexdigest()[:12]}.sif"
    if not image.exists():
        for old in FOLDER.glob("azneobert-cpu-*"):
            old.unlink()
        run(str(ROOT / "containers/build"), "--test", f"--base={base}", f"--output={image}", "--", *fakeroot(), FAST)
    return image


def fakeroot() -> list[str]:
    return ["--fakeroot"] if limited_root() else []


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=1500, check=False)
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-6000:]}"
    (FOLDER / f"{Path(command[0]).name}.log").write_text(done.stdout + done.stderr)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The toy project with tokens and rows, and nothing trained."""
    project = Project.make(tmp_path_factory.mktemp("made") / "project")
    size = SIZE | {"phase1": {"steps": STEPS, "warmup_steps": 20}}
    project.change(size | {"runtime": SIZE["runtime"] | {"checkpoint_every": 20}, "evaluation": {"every": 30}})
    project.commit()
    project.run("dvc", "repro", "rows")
    return project


@pytest.fixture(scope="session")
def undisturbed(made: Project, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The same project trained in two ranks on this machine, without SLURM and without a container."""
    project = made.copy(tmp_path_factory.mktemp("undisturbed") / "project")
    project.run("dvc", "repro", "phase1")
    return Scene(project, Cluster())


@pytest.fixture
def scene(made: Project, image: Path, tmp_path: Path) -> Iterator[Scene]:
    """A copy of the toy project with a cluster of two nodes whose ranks run in the image."""
    with Cluster(nodes=2) as cluster:
        scene = Scene(made.copy(tmp_path / "project"), cluster)
        scene.launch(container=str(image))
        yield scene
        for started in scene.started:
            started.kill()
