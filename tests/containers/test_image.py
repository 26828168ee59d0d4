"""The image is what its record says, its packages lie where they must, and nothing of the host's Python gets in."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from project import ROOT, environment

from azneobert.launching.container import find_image, within


def inside(image: Path, *command: str, **changed: str) -> str:
    """What a command prints in the image."""
    done = subprocess.run(
        ["apptainer", "exec", str(image), *command],
        cwd="/",  # and not where the package's sources are
        env=environment() | changed,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_the_record_beside_the_image_says_what_went_in(image: Path) -> None:
    record = json.loads(Path(f"{image}.json").read_text())
    with image.open("rb") as file:
        assert record["sha256"] == f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    assert find_image(image).digest == record["sha256"]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert record["kind"] == "cpu"
    assert record["base"].startswith("sha256:")
    assert not {
        name: version
        for name, version in record["packages"].items()
        if name.lower() in pinned and version.split("+")[0] != pinned[name.lower()]
    }
    assert record["packages"]["torch"].startswith("2.13.0")
    assert record["python"] == inside(image, "python", "-c", "import platform; print(platform.python_version())")


def test_nothing_of_pip_s_settings_is_in_the_image(image: Path) -> None:
    found = inside(image, "sh", "-c", "ls -A /build/* /opt/azneobert/pip.conf /etc/pip.conf 2>/dev/null; true")
    assert [line for line in found.splitlines() if line and not line.endswith(":")] == []
    definition = inside(image, "cat", "/.singularity.d/Singularity")
    assert "file://" not in definition
    assert "://" not in definition


def test_packages_lie_in_a_folder_called_site_packages(image: Path) -> None:
    program = "import sysconfig, azneobert; print(sysconfig.get_path('purelib')); print(azneobert.__file__)"
    place, package = inside(image, "python", "-c", program).splitlines()
    assert place.endswith("/site-packages")
    assert package.startswith(place)


def test_the_host_s_python_stays_outside(image: Path, tmp_path: Path) -> None:
    (tmp_path / "azneobert").mkdir()
    (tmp_path / "azneobert/__init__.py").write_text("raise SystemExit('of the host')")
    program = "import sys, azneobert; print(sys.flags.no_user_site)"
    assert inside(image, "python", "-c", program, PYTHONPATH=str(tmp_path)) == "1"


def test_its_runscript_is_the_command(image: Path) -> None:
    command = ["apptainer", "run", str(image), "recipe", "--help"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "azneobert recipe" in done.stdout


def test_its_test_passes(image: Path) -> None:
    command = ["apptainer", "test", str(image)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one training step on cpu, torch 2.13.0" in done.stdout


def test_a_project_stands_in_it_at_its_own_path(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "scratch" / "outputs"
    elsewhere.mkdir(parents=True)
    project = tmp_path / "project"
    project.mkdir()
    (project / "outputs").symlink_to(elsewhere)
    monkeypatch.chdir(project)
    command = within(find_image(image), gpus=False)
    assert f"--bind {elsewhere}" in " ".join(command)
    assert "--nv" in within(find_image(image), gpus=True)
    made = [*command, "sh", "-c", "pwd; echo written >outputs/file; echo $PYTHONPATH"]
    done = subprocess.run(made, env=os.environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == [str(project), str(project)], done.stderr
    assert (elsewhere / "file").read_text() == "written\n"


def test_a_path_that_is_not_in_the_image_is_made(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = [*within(find_image(image), gpus=False), "python", "-c", "import azneobert; print(azneobert.__file__)"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == str(ROOT / "azneobert/__init__.py"), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a folder of another owner")
def test_git_answers_in_a_project_of_another_owner(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    (project / "file").touch()
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-c", "commit.gpgsign=false", *arguments], env=environment(), check=True, timeout=60)
    head = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    command = within(find_image(image), gpus=False)
    subprocess.run(["chown", "-R", "12345", str(project)], check=True, timeout=60)
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from azneobert.provenance import git_state; print(git_state())"
    )
    bound = [*command[:-1], "--bind", str(ROOT), command[-1]]
    asked = [
        subprocess.run([*bound, *words], env=os.environ, capture_output=True, text=True, timeout=120, check=False)
        for words in (head, ["python", "-c", program])
    ]
    assert "dubious ownership" in asked[0].stderr
    assert asked[1].stdout.strip() == f"({commit!r}, False)", asked[1].stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base=nowhere.sif"], "--base nowhere.sif: no such file; expected an image"),
        (["--fa3=nowhere"], "--fa3 nowhere: no such file or folder; expected a wheel"),
    ],
)
def test_what_cannot_be_built_is_one_line(arguments: list[str], said: str) -> None:
    command = [str(ROOT / "containers/build"), *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {said}")
