"""Which image a job runs in, by its record or by its bytes, and what of the host is mounted in it."""

from __future__ import annotations

import hashlib
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from azneobert.environment import IMAGE, container_image
from azneobert.errors import RecipeError
from azneobert.launching.container import find_image, within

DIGEST = f"sha256:{hashlib.sha256(b'image').hexdigest()}"


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image beside a project, in whose folder the test runs."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    file = tmp_path / "image.sif"
    file.write_bytes(b"image")
    os.utime(file, (1000, 1000))
    return file


def test_the_digest_is_that_of_the_bytes(image: Path) -> None:
    found = find_image(Path("../image.sif"))
    assert (found.digest, found.stat) == (DIGEST, "5 1000")
    assert found.path.is_absolute()


@pytest.mark.parametrize(
    ("record", "taken"),
    [
        ({"sha256": "sha256:recorded", "stat": "5 1000"}, True),
        ({"sha256": "sha256:recorded", "stat": "5 1001"}, False),
        ({"sha256": "sha256:recorded"}, False),
        ([], False),
    ],
)
def test_a_record_counts_while_it_is_of_the_file_that_is_there(record: object, taken: bool, image: Path) -> None:
    image.with_name("image.sif.json").write_text(json.dumps(record))
    assert find_image(image).digest == ("sha256:recorded" if taken else DIGEST)


def test_a_damaged_record_does_not_count(image: Path) -> None:
    image.with_name("image.sif.json").write_text("{")
    assert find_image(image).digest == DIGEST


def test_a_missing_image_is_one_line(image: Path) -> None:
    for name in ("nowhere.sif", str(image.parent)):
        with pytest.raises(RecipeError, match=r"launch.yaml: container: .*: no such image; build it with containers"):
            find_image(Path(name))


def test_the_project_and_what_of_it_lies_elsewhere_are_mounted_at_their_own_paths(image: Path) -> None:
    scratch = image.parent / "scratch"
    scratch.mkdir()
    Path("outputs").symlink_to(scratch)
    Path("data").mkdir()
    command = within(find_image(image), gpus=True)
    assert command[:4] == ["apptainer", "--quiet", "exec", "--nv"]
    assert command[-1] == str(image)
    mounted = [value for option, value in pairwise(command) if option == "--bind"]
    assert mounted == [str(Path.cwd()), str(scratch)]
    assert f"PYTHONPATH={Path.cwd()}" in command
    assert "PYTHONNOUSERSITE=1" in command
    assert "--nv" not in within(find_image(image), gpus=False)


def test_a_path_that_cannot_be_mounted_is_one_line(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a,b").mkdir()
    monkeypatch.chdir("a,b")
    with pytest.raises(RecipeError, match="no path with a comma or a colon"):
        within(find_image(image), gpus=False)


def test_what_a_process_knows_of_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(IMAGE, DIGEST)
    assert container_image() is None
    monkeypatch.setenv("APPTAINER_CONTAINER", "/image.sif")
    assert container_image() == DIGEST
    monkeypatch.delenv(IMAGE)
    assert container_image() == "unknown"
