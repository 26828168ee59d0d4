"""`azneobert cache check`: a damaged object is set aside with the output that is a link to it, and can be made anew."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import md5
from pathlib import Path

import pytest
from refusals import refused
from toy import toy_recipe
from typer.testing import CliRunner, Result

from azneobert.cli import app
from azneobert.dvc_files import Output, cached_object, locked_outputs, object_path, objects_of, outputs_of
from azneobert.errors import DataError
from azneobert.recipe import PARAMS
from azneobert.yaml_files import write_yaml

pytestmark = pytest.mark.long  # whole commands, or a model that is trained for them

STAGES = {
    "stages": {
        "tokens": {
            "cmd": "mkdir -p outputs/toy/tokens && echo one > outputs/toy/tokens/a && echo two > outputs/toy/tokens/b",
            "outs": ["outputs/toy/tokens"],
        },
        "plot": {"cmd": "mkdir -p outputs/toy && echo three > outputs/toy/plot", "outs": ["outputs/toy/plot"]},
    }
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two stages, made, with outputs that are hard links to its cache; the cache."""
    monkeypatch.chdir(tmp_path)
    write_yaml(PARAMS, toy_recipe().model_dump(mode="json"))
    write_yaml(Path("dvc.yaml"), STAGES)
    dvc("init", "--no-scm")
    dvc("config", "cache.type", "hardlink,copy")
    dvc("repro")
    return tmp_path / ".dvc/cache"


def dvc(*command: str) -> str:
    return subprocess.run([sys.executable, "-m", "dvc", *command], check=True, capture_output=True, text=True).stdout


def check() -> Result:
    return CliRunner().invoke(app, ["cache", "check"])


def object_of(cache: Path, content: str) -> Path:
    return object_path(cache, md5(content.encode()).hexdigest())


def flip(file: Path) -> None:
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    with file.open("r+b") as opened:  # through the link, as a careless program does
        opened.write(content)


def test_a_whole_cache_is_said_to_be_whole(cache: Path) -> None:
    result = check()
    assert result.exit_code == 0
    assert "whole, 4 objects" in result.output


def test_a_damaged_file_is_set_aside_and_made_anew_in_the_cache_too(cache: Path) -> None:
    output = Path("outputs/toy/tokens/b")
    assert output.samefile(object_of(cache, "two\n"))
    flip(output)
    result = check()
    assert isinstance(result.exception, DataError)
    assert "1 of 4 objects were damaged" in str(result.exception)
    assert "outputs/toy/tokens: damaged" in result.output
    assert "`azneobert remote pull outputs/toy/tokens`" in result.output
    assert "`dvc repro tokens`" in result.output
    assert not output.exists(), "a link to the damaged bytes"
    assert [file.read_text() for file in (cache / "damaged").iterdir()] == ["uwo\n"], "nothing is thrown away"
    assert "Running stage 'tokens'" in dvc("repro")
    assert output.read_text() == object_of(cache, "two\n").read_text() == "two\n"
    assert check().exit_code == 0


def test_a_damaged_list_of_a_folder_is_set_aside_too(cache: Path) -> None:
    (output,) = (out for out in outputs_of("toy") if out.path.endswith("tokens"))
    flip(object_path(cache, output.md5))
    assert isinstance(check().exception, DataError)
    assert cached_object(cache, output.md5) is None
    dvc("repro")
    assert check().exit_code == 0


def test_what_was_changed_in_the_workspace_alone_stays(cache: Path) -> None:
    output = Path("outputs/toy/plot")
    output.unlink()
    output.write_text("mine\n")
    assert check().exit_code == 0
    assert output.read_text() == "mine\n"


def test_a_lock_of_another_recipe_or_none_is_one_line(cache: Path) -> None:
    with refused(DataError, "dvc.lock", "no output of recipe other", "but of toy", "`azneobert recipe use NAME`"):
        outputs_of("other")
    Path("dvc.lock").write_text("stages: [1")
    with refused(DataError, "dvc.lock", "damaged", "`git checkout dvc.lock`"):
        locked_outputs()
    Path("dvc.lock").unlink()
    with refused(DataError, "dvc.lock", "no such file", "`git checkout dvc.lock`"):
        locked_outputs()


@pytest.mark.parametrize("content", ["{}1", "[1]", json.dumps([{"md5": "a"}]), "[" * 100_000])
def test_a_list_that_is_none_is_one_line(content: str) -> None:
    with refused(DataError, "outputs/toy/tokens", "files/md5/ab/c.dir", "no list", "`azneobert remote pull`"):
        objects_of(Output("tokens", "outputs/toy/tokens", "abc.dir"), content.encode())


def test_the_remote_that_is_not_there_is_one_line(cache: Path) -> None:
    for command in ("check", "pull"):
        result = CliRunner().invoke(app, ["remote", command])
        assert (
            str(result.exception)
            == "dvc: no remote is set; use `azneobert remote set URL`, with a folder, ssh://... or s3://..."
        )


def test_a_folder_as_the_remote_from_end_to_end(cache: Path, tmp_path: Path) -> None:
    CliRunner().invoke(app, ["remote", "set", str(tmp_path / "remote")], catch_exceptions=False)
    result = CliRunner().invoke(app, ["remote", "check"])
    assert "lacks objects of 2 of 2 outputs" in str(result.exception)
    assert result.output.count("`dvc push` from where it was made, or `dvc repro ") == 2
    dvc("push")
    assert "has all 2 outputs" in CliRunner().invoke(app, ["remote", "check"]).output
    flip(Path("outputs/toy/tokens/b"))
    held = CliRunner().invoke(app, ["remote", "pull"])
    assert "outputs/toy/tokens/b: is not what DVC left there; delete it" in str(held.exception)
    Path("outputs/toy/tokens/b").unlink()
    assert "there" in CliRunner().invoke(app, ["remote", "pull", "outputs/toy/tokens"]).output
    assert check().exit_code == 0
