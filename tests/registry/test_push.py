"""A checkpoint that is pushed is one version, with its lineage, its card and its aliases."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from pushed import FIGURES, artifacts_of, checkpoint_of, digests, push_newest
from refusals import refused
from toy import Toy

from azneobert.checkpoint.manifest import verify_checkpoint
from azneobert.checkpoint.universal import read_checkpoint
from azneobert.data.tokenizer import read_tokenizer, tokenizer_sha256
from azneobert.errors import CheckpointError, RegistryError
from azneobert.registry.pull import pull, pull_checkpoint
from azneobert.registry.push import push
from azneobert.registry.versions import find_version, list_versions


def test_a_pushed_checkpoint_is_a_version_with_alias_lineage_and_run(toy: Toy) -> None:
    version = push_newest(toy, ["phase1", "champion"])
    manifest = toy.result()[1]
    assert (version.name, version.number, set(version.aliases)) == ("toybert", 1, {"phase1", "champion"})
    assert version.run_id == manifest.lineage["mlflow_run_id"]
    assert version.tags["azneobert.step"] == str(manifest.step)
    assert version.tags["azneobert.tokenizer_sha256"] == manifest.identity["tokenizer"]
    assert version.tags["azneobert.phase"] == "phase1"
    assert list_versions(toy.recipe.tracking, "toybert") == [version]
    assert find_version("models:/toybert@champion", toy.recipe.tracking) == version
    assert find_version("models:/toybert/1", toy.recipe.tracking) == version


def test_pushing_the_same_again_finds_the_same_version_and_moves_the_alias(toy: Toy) -> None:
    first = push_newest(toy, ["phase1"])
    again = push_newest(toy, ["champion"])
    assert again.number == first.number
    assert set(again.aliases) == {"phase1", "champion"}
    other = push_newest(toy, ["champion"], FIGURES | {"eval/loss": 5.0})
    assert other.number == first.number + 1
    assert find_version("models:/toybert@champion", toy.recipe.tracking).number == other.number
    assert find_version("models:/toybert@phase1", toy.recipe.tracking).number == first.number
    assert [v.number for v in list_versions(toy.recipe.tracking, "toybert")] == [1, 2]


def test_the_model_card_has_the_results_the_curve_and_the_lineage(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    folder = pull("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking)
    card = (folder / "README.md").read_text()
    assert (folder / "phase1.png").read_bytes() == b"\x89PNG a picture"
    for part in (
        "5.2500",
        "12.50%",
        "| news | 5.5000 | 6.25% |",
        "](phase1.png)",
        toy.result()[1].lineage["mlflow_run_id"],
    ):
        assert part in card
    assert "{" not in card.split("```json")[0].replace("{folder}", ""), "a placeholder was left in the card"


def test_a_version_has_the_tokenizer_of_its_language_and_its_checkpoint_that_of_training(
    toy: Toy, tmp_path: Path
) -> None:
    data = {"cleaning": toy.recipe.data.cleaning.model_copy(update={"language": "turkish"}).model_dump(mode="json")}
    push_newest(toy.with_({"data": data}), ["phase1"])
    folder = pull("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking)
    of_training = toy.result()[1].identity["tokenizer"]
    checkpoint = pull_checkpoint("models:/toybert@phase1", tmp_path / "checkpoint", toy.recipe.tracking)
    assert tokenizer_sha256(checkpoint / "tokenizer.json") == of_training
    assert json.loads((folder / "tokenizer_config.json").read_text())["training_tokenizer_sha256"] == of_training
    card = (folder / "README.md").read_text()
    for part in ("model for Turkish:", "`data.cleaning.language: turkish`", of_training, "look-alikes", "two ends"):
        assert part in card
    exported = read_tokenizer(folder / "tokenizer.json")
    assert exported.normalizer.normalize_str("a\u00a0\u00adǝ") == "a ǝ"  # in Turkish, ǝ is no ə


def test_a_version_without_moments_holds_a_checkpoint_whose_weights_can_be_read(toy: Toy, tmp_path: Path) -> None:
    light = toy.with_({"registry": {"with_moments": False}})
    push_newest(light, ["phase1"])
    with refused(RegistryError, "without moments", "--no-moments"):
        pull_checkpoint("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking)
    folder = pull_checkpoint("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking, moments=False)
    assert not list(folder.rglob("exp_avg*"))
    assert not verify_checkpoint(folder).moments
    program = "from azneobert.cli import main; main()"
    for command in ("verify", "inspect"):
        done = subprocess.run(
            [sys.executable, "-c", program, "checkpoint", command, str(folder)], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
    state, _ = read_checkpoint(folder, moments=False)
    assert all(torch.equal(state.weights[name], tensor) for name, tensor in toy.result()[0].weights.items())


def test_a_damaged_checkpoint_is_not_registered(toy: Toy) -> None:
    (toy.checkpoints().steps()[-1] / "weights.safetensors").write_bytes(b"torn")
    with refused(CheckpointError, "weights.safetensors", "4 bytes found"):
        push_newest(toy, ["phase1"])
    assert list_versions(toy.recipe.tracking, "toybert") == []


def test_a_checkpoint_whose_run_the_store_does_not_know_gets_a_run_of_its_own(
    trained: Toy, mlflow_uri: str, tmp_path: Path
) -> None:
    elsewhere = trained.copy_to(tmp_path / "run").with_({"tracking": {"mlflow_uri": mlflow_uri}})
    version = push_newest(elsewhere, ["phase1"])
    assert version.run_id
    assert version.run_id != elsewhere.result()[1].lineage["mlflow_run_id"]
    pull(version.uri, tmp_path / "pulled", elsewhere.recipe.tracking)


# What is refused


def test_a_checkpoint_whose_run_was_made_anew_is_registered_under_that_one(toy: Toy) -> None:
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    trained = toy.result()[1].lineage["mlflow_run_id"]
    client.delete_run(trained)
    anew = client.create_run(client.get_experiment_by_name("toy").experiment_id).info.run_id
    version = push(toy.checkpoints().steps()[-1], toy.recipe, FIGURES, [], ["phase1"], anew)
    assert version.run_id == anew
    assert not [tag for tag in version.tags.values() if tag.startswith(("{", "["))], "a tag is a line"


@pytest.mark.parametrize("lost", ["everything", "manifest.json", "model.safetensors", "weights.safetensors"])
def test_a_version_whose_files_are_gone_gets_them_again(lost: str, toy: Toy, tmp_path: Path) -> None:
    first = push_newest(toy, ["phase1"])
    encoder, checkpoint = artifacts_of(toy, first), checkpoint_of(toy, first)
    expected = digests(encoder), digests(checkpoint)
    if lost == "everything":
        shutil.rmtree(encoder.parents[3])
    else:
        ((checkpoint if lost == "weights.safetensors" else encoder) / lost).unlink()
    assert push_newest(toy, ["phase1"]) == first
    pulled = pull("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking)
    training = pull_checkpoint("models:/toybert@phase1", tmp_path / "training", toy.recipe.tracking)
    assert (digests(pulled), digests(training)) == expected


def test_a_version_with_another_manifest_gets_its_own_again(toy: Toy, tmp_path: Path) -> None:
    first = push_newest(toy, ["phase1"])
    manifest = artifacts_of(toy, first) / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content.replace(b'"sha256": "', b'"sha256": "0', 1)[: len(content)])
    assert push_newest(toy, ["phase1"]) == first
    pull("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking)


def test_a_version_whose_run_is_deleted_stays_while_its_files_are_there(toy: Toy, tmp_path: Path) -> None:
    first = push_newest(toy, ["phase1"])
    MlflowClient(toy.recipe.tracking.mlflow_uri).delete_run(first.run_id)
    assert push_newest(toy, ["phase1"]).number == first.number
    shutil.rmtree(artifacts_of(toy, first))
    again = push_newest(toy, ["phase1"])
    assert again.number == first.number + 1, "its files can be put nowhere"
    assert push_newest(toy, ["phase1"]).number == again.number
    pull("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking)
