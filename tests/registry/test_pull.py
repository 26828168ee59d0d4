"""What is pushed comes back byte for byte under its alias; what was changed on the way is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from pushed import artifacts_of, digests, push_newest
from refusals import refused
from toy import Toy
from transformers import AutoModelForMaskedLM, AutoTokenizer

from azneobert.checkpoint.manifest import verify_checkpoint
from azneobert.checkpoint.universal import all_weights, read_checkpoint
from azneobert.errors import RegistryError
from azneobert.model.export import to_eurobert
from azneobert.registry.pull import pull, pull_checkpoint


def test_a_pulled_version_is_what_was_pushed_and_what_mlflow_hands_out(toy: Toy, tmp_path: Path) -> None:
    version = push_newest(toy, ["phase1"])
    by_alias = pull("models:/toybert@phase1", tmp_path / "by alias", toy.recipe.tracking)
    by_number = pull("models:/toybert/1", tmp_path / "deep" / "er", toy.recipe.tracking)
    assert by_alias == tmp_path / "by alias"
    from mlflow.artifacts import download_artifacts

    theirs = Path(download_artifacts("models:/toybert@phase1", dst_path=str(tmp_path / "theirs")))
    (theirs / "registered_model_meta").unlink()  # MLflow's own: of which version it is
    assert digests(by_alias) == digests(by_number) == digests(theirs) == digests(artifacts_of(toy, version))
    assert "model.safetensors" in digests(by_alias)
    assert not [file for file in digests(by_alias) if "exp_avg" in file]
    assert not list(tmp_path.glob(".*")), "what was on its way must not lie about"


def test_its_checkpoint_is_the_one_that_was_pushed_and_goes_without_moments(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    whole = pull_checkpoint("models:/toybert@phase1", tmp_path / "whole", toy.recipe.tracking)
    assert digests(whole) == digests(toy.checkpoints().steps()[-1])
    light = pull_checkpoint("models:/toybert@phase1", tmp_path / "light", toy.recipe.tracking, moments=False)
    assert digests(light).items() - digests(whole).items() == {("manifest.json", digests(light)["manifest.json"])}
    assert not list(light.glob("exp_avg*"))
    assert not verify_checkpoint(light).moments
    state, _ = read_checkpoint(light, moments=False)
    assert all(torch.equal(state.weights[name], tensor) for name, tensor in toy.result()[0].weights.items())


@torch.no_grad()
def test_a_pulled_version_loads_with_transformers(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    folder = pull("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking)
    model = AutoModelForMaskedLM.from_pretrained(folder)
    expected = to_eurobert(all_weights(toy.result()[0]))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())
    assert model(**AutoTokenizer.from_pretrained(folder)("bakı [MASK]", return_tensors="pt")).logits.isfinite().all()


def refuse_pull(toy: Toy, uri: str, *parts: str) -> None:
    target = toy.folder.parent / "refused"
    with refused(RegistryError, uri, *parts):
        pull(uri, target, toy.recipe.tracking)
    assert not target.exists(), "nothing that was refused may be left under the name that was asked for"
    assert not list(target.parent.glob(".*.pull-*"))


@pytest.mark.parametrize("name", ["model.safetensors", "components/tokenizer/tokenizer.json", "README.md"])
def test_a_file_that_was_changed_in_the_store_is_refused_by_name(name: str, toy: Toy) -> None:
    version = push_newest(toy, ["phase1"])
    file = artifacts_of(toy, version) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refuse_pull(toy, "models:/toybert@phase1", name, "changed")


def test_a_file_that_is_gone_from_the_store_is_refused_by_name(toy: Toy) -> None:
    version = push_newest(toy, ["phase1"])
    (artifacts_of(toy, version) / "config.json").unlink()
    refuse_pull(toy, "models:/toybert/1", "config.json", "is missing")


def test_a_file_that_no_manifest_vouches_for_is_refused_by_name(toy: Toy) -> None:
    version = push_newest(toy, ["phase1"])
    (artifacts_of(toy, version) / "modeling_neobert.py").write_text("raise SystemExit\n")
    refuse_pull(toy, "models:/toybert/1", "modeling_neobert.py")


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/hostname", "components/../../outside.txt"])
def test_a_manifest_that_names_a_path_outside_the_folder_is_refused(path: str, toy: Toy) -> None:
    version = push_newest(toy, ["phase1"])
    edit_manifest(artifacts_of(toy, version), {path: {"sha256": "0" * 64, "size": 1}})
    refuse_pull(toy, "models:/toybert@phase1")


def test_a_file_that_was_changed_together_with_the_manifest_is_refused(toy: Toy) -> None:
    version = push_newest(toy, ["phase1"])
    folder = artifacts_of(toy, version)
    (folder / "README.md").write_text("a card of somebody else's\n")
    digest = hashlib.sha256((folder / "README.md").read_bytes()).hexdigest()
    edit_manifest(folder, {"README.md": {"sha256": digest, "size": (folder / "README.md").stat().st_size}})
    refuse_pull(toy, "models:/toybert@phase1", "manifest.json")


def edit_manifest(folder: Path, entries: dict[str, object]) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["files"] |= entries
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"files": []}', '{"files": {"README.md": {}}}'])
def test_a_version_without_a_readable_manifest_is_refused(content: str | None, toy: Toy) -> None:
    version = push_newest(toy, ["phase1"])
    file = artifacts_of(toy, version) / "manifest.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    refuse_pull(toy, "models:/toybert@phase1", "manifest.json")


@pytest.mark.parametrize(
    "uri", ["toybert", "models:/toybert", "runs:/abc/model", "models:/toybert@", "models:/toybert/latest", "../toybert"]
)
def test_a_uri_of_another_form_is_refused_with_one_that_would_do(uri: str, toy: Toy) -> None:
    refuse_pull(toy, uri, "not a registry URI", "expected one as")


def test_an_alias_or_number_that_is_not_there_is_refused_with_those_that_are(toy: Toy) -> None:
    push_newest(toy, ["phase1"])
    for uri in ("models:/toybert@phase2", "models:/toybert/7"):
        refuse_pull(toy, uri, "toybert has @phase1, /1")


@pytest.mark.parametrize("uri", ["models:/nobody@phase1", "models:/no'body@phase1"])
def test_a_model_that_is_not_registered_is_refused(uri: str, toy: Toy) -> None:
    with refused(RegistryError):
        pull(uri, toy.folder.parent / "refused", toy.recipe.tracking)


def test_a_folder_with_something_in_it_is_left_alone(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for target in (tmp_path / "mine", tmp_path / "file"):
        with refused(RegistryError, str(target), "name a new one"):
            pull("models:/toybert@phase1", target, toy.recipe.tracking)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "a file"


def test_an_empty_folder_is_filled(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    (tmp_path / "empty").mkdir()
    pull("models:/toybert@phase1", tmp_path / "empty", toy.recipe.tracking)
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_a_registry_that_does_not_answer_is_one_line_that_names_it(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with refused(RegistryError, "MLflow at http://127.0.0.1:9"):
        pull("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking)
    with refused(RegistryError, "MLflow at http://127.0.0.1:9"):
        push_newest(toy, ["phase1"])


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_version_without_its_files_is_said_to_be_so_with_what_would_do(how: str, toy: Toy) -> None:
    place = artifacts_of(toy, push_newest(toy, ["phase1"]))
    shutil.rmtree(place)
    if how == "empty":
        place.mkdir()
    refuse_pull(toy, "models:/toybert/1", f"its artifacts are not at {place}", "registry relocate", "registry restore")


def test_a_folder_of_something_else_was_not_made_by_this_project(toy: Toy) -> None:
    place = artifacts_of(toy, push_newest(toy, ["phase1"]))
    shutil.rmtree(place)
    place.mkdir()
    (place / "MLmodel").write_text("flavors: {}\n")
    refuse_pull(toy, "models:/toybert/1", "use a version that `azneobert` made")


@pytest.mark.parametrize(
    ("name", "target"),
    [("tokenizer.json", "/etc/passwd"), ("added.json", "/dev/zero"), ("components/added", "/etc"), ("README.md", None)],
)
def test_what_is_no_file_in_the_store_is_neither_copied_nor_waited_for(name: str, target: str | None, toy: Toy) -> None:
    version = push_newest(toy, ["phase1"])
    file = artifacts_of(toy, version) / name
    file.unlink(missing_ok=True)
    file.symlink_to(target) if target else os.mkfifo(file)
    refuse_pull(toy, "models:/toybert/1", name, "is not a regular file")
