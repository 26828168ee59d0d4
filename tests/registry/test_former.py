"""A version of the first format, one folder among its run's artifacts with the checkpoint inside, still comes back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pushed import artifacts_of, digests, push_newest
from refusals import refused
from toy import Toy

from azneobert.errors import RegistryError
from azneobert.files import sha256_file, write_json
from azneobert.registry.pull import pull, pull_checkpoint
from azneobert.registry.push import is_whole
from azneobert.registry.versions import DIGEST_TAG, Version, find_version

URI = "models:/former@phase1"
ENCODER = ("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def former(toy: Toy) -> Version:
    """What this project registered before a version was a model of MLflow's."""
    made, folder = artifacts_of(toy, push_newest(toy, [])), toy.folder / "former"
    folder.mkdir()
    for name in ENCODER:
        shutil.copyfile(made / name, folder / name)
    shutil.copytree(toy.checkpoints().steps()[-1], folder / "checkpoint")
    files = {
        file.relative_to(folder).as_posix(): {"sha256": sha256_file(file), "size": file.stat().st_size}
        for file in folder.rglob("*")
        if file.is_file()
    }
    write_json(folder / "manifest.json", {"format": "azneobert-version", "format_version": 1, "files": files})
    client, run = MlflowClient(toy.recipe.tracking.mlflow_uri), toy.result()[1].lineage["mlflow_run_id"]
    client.log_artifacts(run, str(folder), "version-former")
    client.create_registered_model("former")
    tags = {DIGEST_TAG: sha256_file(folder / "manifest.json")}
    client.create_model_version("former", source=f"runs:/{run}/version-former", run_id=run, tags=tags)
    client.set_registered_model_alias("former", "phase1", "1")
    return find_version(URI, toy.recipe.tracking)


def test_its_encoder_and_its_checkpoint_come_back(former: Version, toy: Toy, tmp_path: Path) -> None:
    assert former.model_id is None
    assert is_whole(former, toy.recipe.tracking)
    encoder = pull(URI, tmp_path / "encoder", toy.recipe.tracking)
    assert digests(encoder).keys() == {*ENCODER, "manifest.json"}
    checkpoint = pull_checkpoint(URI, tmp_path / "checkpoint", toy.recipe.tracking)
    assert digests(checkpoint) == digests(toy.checkpoints().steps()[-1])


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint/exp_avg.safetensors"])
def test_what_was_changed_in_it_is_refused(name: str, former: Version, toy: Toy, tmp_path: Path) -> None:
    run = MlflowClient(toy.recipe.tracking.mlflow_uri).get_run(former.run_id)
    file = Path(run.info.artifact_uri.removeprefix("file://")) / "version-former" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with refused(RegistryError, Path(name).name, "changed"):
        pull(URI, tmp_path / "encoder", toy.recipe.tracking)
        pull_checkpoint(URI, tmp_path / "checkpoint", toy.recipe.tracking)
