"""A version as others load it: MLflow's own loaders, its Models tab, transformers; and its golden ids and logits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from pushed import FIGURES, artifacts_of, push_newest
from refusals import refused
from toy import Toy

from azneobert.errors import RegistryError
from azneobert.files import write_json
from azneobert.registry.contents import verify_version
from azneobert.registry.golden import TOLERANCE, check_ids, largest_difference
from azneobert.registry.pull import pull
from azneobert.registry.sentences import SENTENCES

TEXT = "Bakı Xəzərin [MASK] sahilindədir."


@pytest.fixture
def as_mlflow_s_own(toy: Toy) -> Iterator[Toy]:
    """The store as a notebook sets it."""
    mlflow.set_tracking_uri(toy.recipe.tracking.mlflow_uri)
    yield toy
    mlflow.set_tracking_uri(None)


def test_mlflow_s_loaders_load_a_version_by_its_alias(as_mlflow_s_own: Toy) -> None:
    push_newest(as_mlflow_s_own, ["phase2"])
    pipeline = mlflow.transformers.load_model("models:/toybert@phase2")
    best = pipeline(TEXT)[0]
    assert best["sequence"]
    loaded = mlflow.pyfunc.load_model("models:/toybert@phase2")
    assert loaded.predict([TEXT]) == [best["token_str"].strip()]
    assert "[MASK]" in str(loaded.input_example)
    assert [str(column.type) for column in loaded.metadata.signature.inputs] == ["DataType.string"]


def test_a_version_is_a_model_of_its_run_with_its_figures(toy: Toy) -> None:
    version = push_newest(toy, ["phase1"])
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    assert version.model_id
    model = client.get_logged_model(version.model_id)
    assert model.source_run_id == version.run_id
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "toybert", "version": "1"}]
    assert {metric.key: metric.value for metric in model.metrics} == {
        "version/loss": FIGURES["eval/loss"],
        "version/accuracy": FIGURES["eval/accuracy"],
    }
    assert model.params["hidden_size"] == str(toy.recipe.model.hidden_size)
    outputs = client.get_run(version.run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [version.model_id]
    described = client.get_model_version("toybert", "1").description
    assert described.startswith("# AzNeoBERT, phase1")
    assert f"runs/{version.run_id}/model-metrics" in described
    assert all(len(value) <= 80 and "\n" not in value for value in version.tags.values()), "tags are short"


def test_the_digest_of_a_version_has_no_time_in_it(toy: Toy, tmp_path: Path) -> None:
    first = push_newest(toy, [])
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    client.delete_model_version("toybert", "1")
    assert push_newest(toy, []).tags == first.tags


def test_golden_ids_are_of_every_sentence_and_hold_here(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    folder = pull("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking)
    assert 100 <= len(SENTENCES) == len(set(SENTENCES)) == check_ids("uri", folder)
    assert largest_difference("uri", folder) < TOLERANCE / 10
    verify_version("uri", folder)


def test_other_ids_are_refused_by_the_sentence_also_where_every_hash_is_right(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    folder = pull("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking)
    content = json.loads((folder / "golden.json").read_text())
    content["sentences"][3]["ids"][2] += 1
    write_json(folder / "golden.json", content)
    with refused(RegistryError, "uri", SENTENCES[3][:20], "id 2 is", "requirements.txt"):
        check_ids("uri", folder)
    content["sentences"][3]["ids"].append(1)
    content["sentences"][3]["ids"][2] -= 1
    write_json(folder / "golden.json", content)
    with refused(RegistryError, "ids found", "expected"):
        check_ids("uri", folder)


def test_other_weights_give_other_golden_logits(toy: Toy, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    push_newest(toy, ["phase1"])
    folder = pull("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 1.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert largest_difference("uri", folder) > TOLERANCE


@pytest.mark.parametrize("content", ["", "[]", '{"sentences": [{"text": "a", "ids": [1], "masked": 4, "top": []}]}'])
def test_golden_ids_that_cannot_be_read_are_one_line(content: str, tmp_path: Path) -> None:
    with refused(RegistryError, "uri", "golden.json"):
        check_ids("uri", tmp_path)
    (tmp_path / "golden.json").write_text(content)
    with refused(RegistryError, "uri", "golden.json", "cannot be read"):
        check_ids("uri", tmp_path)


def test_a_marker_of_mlflow_s_own_is_no_stranger(toy: Toy, tmp_path: Path) -> None:
    version = push_newest(toy, ["phase1"])
    (artifacts_of(toy, version) / "registered_model_meta").write_text("model_name: toybert\n")
    pull("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking)
