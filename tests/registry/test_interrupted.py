"""A pull or a push that a kill, a full disk or a person ended: what comes next goes on, and nothing lies about."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pushed import FIGURES, artifacts_of, digests, push_newest
from refusals import refused
from toy import Toy

from azneobert.errors import RegistryError
from azneobert.locks import FileLock
from azneobert.registry import pull as pull_module
from azneobert.registry.pull import pull
from azneobert.registry.push import push
from azneobert.registry.stored import Stored
from azneobert.registry.versions import list_versions

pytestmark = pytest.mark.long  # whole commands, or a model that is trained for them

URI = "models:/toybert@phase1"


def on_its_way(target: Path) -> list[Path]:
    return sorted(target.parent.glob(f".{target.name}.pull-*"))


def failing_at(name: str, error: BaseException) -> Callable[..., str]:
    fetch = Stored.fetch

    def failing(self: Stored, wanted: str, target: Path, *more: object) -> str:
        if wanted == name:
            raise error
        return fetch(self, wanted, target, *more)  # type: ignore[arg-type]

    return failing


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RegistryError("MLflow at x: no answer"), OSError(errno.ENOSPC, "No space", "/x/y")]
)
def test_a_pull_that_was_ended_goes_on_from_what_is_whole(
    error: BaseException, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = push_newest(toy, ["phase1"])
    target = tmp_path / "pulled"
    with monkeypatch.context() as patch:
        patch.setattr(Stored, "fetch", failing_at("tokenizer.json", error))
        with pytest.raises((KeyboardInterrupt, RegistryError)):
            pull(URI, target, toy.recipe.tracking)
    [partial] = on_its_way(target)
    assert not target.exists()
    assert (partial / "model.safetensors").is_file()
    fetched: list[str] = []
    fetch = Stored.fetch
    monkeypatch.setattr(
        Stored,
        "fetch",
        lambda self, name, *more: fetched.append(name) or fetch(self, name, *more),  # type: ignore[func-returns-value]
    )
    pull(URI, target, toy.recipe.tracking)
    assert "model.safetensors" not in fetched
    assert "tokenizer.json" in fetched
    assert on_its_way(target) == []
    assert digests(target) == digests(artifacts_of(toy, version))


def test_what_was_damaged_on_its_way_is_fetched_again(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = push_newest(toy, ["phase1"])
    target = tmp_path / "pulled"
    with monkeypatch.context() as patch:
        patch.setattr(Stored, "fetch", failing_at("tokenizer.json", KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            pull(URI, target, toy.recipe.tracking)
    file = on_its_way(target)[0] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    pull(URI, target, toy.recipe.tracking)
    assert digests(target) == digests(artifacts_of(toy, version))


def test_a_disk_without_room_is_one_line_before_anything_is_fetched(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_newest(toy, ["phase1"])
    monkeypatch.setattr(pull_module, "_ROOM", 1 << 60)
    with refused(RegistryError, str(tmp_path), "MB needed", "MB free", "free room", "goes on"):
        pull(URI, tmp_path / "pulled", toy.recipe.tracking)
    assert not (tmp_path / "pulled").exists()


def test_two_pulls_into_one_folder_do_not_mix(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    target = tmp_path / "pulled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stored, "fetch", failing_at("tokenizer.json", KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            pull(URI, target, toy.recipe.tracking)
    [partial] = on_its_way(target)
    other = FileLock(partial.with_name(f"{partial.name}.lock"))
    assert other.acquire()
    with refused(RegistryError, str(target), "another process"):
        pull(URI, target, toy.recipe.tracking)
    other.release()
    pull(URI, target, toy.recipe.tracking)


PUSH = """
import os, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from azneobert.recipe import load_recipe
from azneobert.registry import push as module
from mlflow import MlflowClient

{kill}
module.push(Path({checkpoint!r}), load_recipe({recipe!r}), {figures!r}, [], ["phase1"])
"""
AT = {
    "before anything is stored": "module.assemble = lambda *_: os.kill(os.getpid(), 9)",
    "when the checkpoint is stored": "MlflowClient.log_model_artifacts = lambda *_: os.kill(os.getpid(), 9)",
    "when the model is stored": "MlflowClient.create_model_version = lambda *_, **__: os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("kill", AT.values(), ids=AT.keys())
def test_a_push_that_was_killed_leaves_nothing_after_the_next_one(kill: str, toy: Toy, tmp_path: Path) -> None:
    from azneobert.yaml_files import yaml_text

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml_text(toy.recipe.model_dump(mode="json")))
    checkpoint = str(toy.checkpoints().steps()[-1])
    program = PUSH.format(paths=sys.path, kill=kill, checkpoint=checkpoint, recipe=str(recipe), figures=FIGURES)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment = os.environ | {"TMPDIR": str(scratch)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert list_versions(toy.recipe.tracking, "toybert") == []
    assert list(scratch.glob("azneobert-push-*"))
    tempfile.tempdir, former = str(scratch), tempfile.tempdir
    try:
        push(Path(checkpoint), toy.recipe, FIGURES, [], ["phase1"])
    finally:
        tempfile.tempdir = former
    assert not list(scratch.glob("azneobert-push-*"))
    [version] = list_versions(toy.recipe.tracking, "toybert")
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    experiment = client.get_experiment_by_name("toy").experiment_id
    [model] = client.search_logged_models([experiment])
    assert (model.model_id, str(model.status)) == (version.model_id, "READY")
    pull(version.uri, tmp_path / "pulled", toy.recipe.tracking)
