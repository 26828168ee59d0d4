"""An alias moves to what is better, and only where better means something."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from pushed import FIGURES, artifacts_of, checkpoint_of, push_newest
from refusals import refused
from toy import Toy

from azneobert.errors import RegistryError
from azneobert.layout import HELD_OUT_FIGURE, WEIGHTS_FIGURE
from azneobert.registry.champion import promote
from azneobert.registry.delete import delete
from azneobert.registry.pull import pull_checkpoint
from azneobert.registry.versions import TOKENIZER_TAG, find_version, list_versions

EVALUATED = FIGURES | {HELD_OUT_FIGURE: "a" * 64}


def test_champion_moves_to_a_lower_loss_alone_and_both_numbers_are_said(toy: Toy) -> None:
    first = push_newest(toy, [], EVALUATED)
    better = push_newest(toy, [], EVALUATED | {"eval/loss": 5.0})
    worse = push_newest(toy, [], EVALUATED | {"eval/loss": 5.5})
    tracking = toy.recipe.tracking
    assert promote(first.uri, tracking).why == "there was no @champion"
    done = promote(better.uri, tracking)
    assert (done.version.number, done.former and done.former.number) == (better.number, first.number)
    assert done.why == f"held-out loss 5.0000 against 5.2500 of {first.uri}"
    with refused(RegistryError, worse.uri, "not better", "5.5000 against 5.0000", "--force"):
        promote(worse.uri, tracking)
    assert find_version("models:/toybert@champion", tracking).number == better.number
    assert promote(better.uri, tracking).why == "it is @champion already"
    assert "which is not better" in promote(worse.uri, tracking, force=True).why
    assert find_version("models:/toybert@champion", tracking).number == worse.number


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (FIGURES, "does not say which held-out data"),
        (EVALUATED | {HELD_OUT_FIGURE: "b" * 64}, "do not have the same held-out data"),
    ],
)
def test_figures_of_other_texts_are_not_compared(figures: dict[str, object], said: str, toy: Toy) -> None:
    promote(push_newest(toy, [], EVALUATED).uri, toy.recipe.tracking)
    other = push_newest(toy, [], figures | {"eval/loss": 1.0})
    with refused(RegistryError, other.uri, said, "--force"):
        promote(other.uri, toy.recipe.tracking)
    assert "not compared" in promote(other.uri, toy.recipe.tracking, force=True).why


def test_figures_of_another_tokenizer_are_not_compared(toy: Toy) -> None:
    promote(push_newest(toy, [], EVALUATED).uri, toy.recipe.tracking)
    other = push_newest(toy, [], EVALUATED | {"eval/loss": 1.0})
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    client.set_model_version_tag("toybert", str(other.number), TOKENIZER_TAG, "c" * 64)
    with refused(RegistryError, "do not have the same tokenizer", "--force"):
        promote(other.uri, toy.recipe.tracking)


def test_figures_of_other_weights_are_not_registered(toy: Toy) -> None:
    with refused(RegistryError, "are not those that were evaluated", "`dvc repro evaluate`"):
        push_newest(toy, [], FIGURES | {WEIGHTS_FIGURE: "d" * 64})
    assert list_versions(toy.recipe.tracking, "toybert") == []


def test_a_version_that_is_deleted_leaves_its_checkpoint_and_the_others(toy: Toy, tmp_path: Path) -> None:
    first = push_newest(toy, ["champion"], EVALUATED)
    second = push_newest(toy, [], EVALUATED | {"eval/loss": 5.0})
    with refused(RegistryError, first.uri, "@champion", "--force"):
        delete(first.uri, toy.recipe.tracking)
    encoder, checkpoint = artifacts_of(toy, first), checkpoint_of(toy, first)
    assert any(encoder.iterdir())
    delete(first.uri, toy.recipe.tracking, force=True)
    assert [version.number for version in list_versions(toy.recipe.tracking, "toybert")] == [second.number]
    assert not encoder.exists() or not any(encoder.iterdir())
    assert (checkpoint / "weights.safetensors").is_file()
    pull_checkpoint(second.uri, tmp_path / "pulled", toy.recipe.tracking)
    assert push_newest(toy, [], EVALUATED).number == second.number + 1, "its content can be registered again"
