"""Somebody's version is where a phase starts from: brought once, named in the run's identity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pushed import FIGURES, push_newest
from refusals import refused
from toy import Toy, merged, toy_recipe

from azneobert.errors import RecipeError, RegistryError
from azneobert.files import read_json
from azneobert.layout import Layout
from azneobert.recipe import load_recipe
from azneobert.registry.start import bring_start
from azneobert.yaml_files import yaml_text

URI = "models:/toybert@phase1"


def starting(toy: Toy, make_toy: Callable[..., Toy], *, moments: bool = True, phase: str = "phase1") -> Toy:
    """Another run, in the same store, of which a phase starts from the version."""
    carry = {"moments": moments, "schedule": False, "position": False}
    changes = {
        "tracking": {"mlflow_uri": toy.recipe.tracking.mlflow_uri},
        "tokenizer": {"trained": {}, "imported": {"theirs": {"path": "tokenizer.json"}}},
        phase: {"start_from": URI, "carry": carry},
    }
    other = make_toy()
    recipe = other.recipe.model_dump()
    recipe["tokenizer"] = recipe["tokenizer"] | changes.pop("tokenizer")
    return Toy(other.corpus, other.folder, type(other.recipe).model_validate(merged(recipe, changes)))


def layout_of(toy: Toy) -> Layout:
    return Layout(toy.folder.name, toy.folder.parent)


@pytest.mark.parametrize("moments", [True, False])
def test_phase_1_goes_on_from_a_version(moments: bool, toy: Toy, make_toy: Callable[..., Toy]) -> None:
    version = push_newest(toy, ["phase1"])
    other = starting(toy, make_toy, moments=moments)
    said = bring_start(other.recipe, layout_of(other), "phase1")
    assert said is not None
    assert f"starts from {version.uri} ({URI})" in said
    assert other.train()
    manifest, weights = other.result()[1], toy.result()[1].files["weights.safetensors"]["sha256"]
    assert manifest.identity["start"] == weights
    assert manifest.lineage["started_from"]["weights"] == weights
    assert manifest.lineage["started_from"]["carry"]["moments"] == moments
    assert other.losses()[1] < toy.losses()[1] - 0.3, "it does not begin with random weights"


def test_an_alias_is_resolved_once(toy: Toy, make_toy: Callable[..., Toy]) -> None:
    first = push_newest(toy, ["phase1"])
    other = starting(toy, make_toy)
    said = bring_start(other.recipe, layout_of(other), "phase1")
    second = push_newest(toy, ["phase1"], FIGURES | {"eval/loss": 5.0})
    assert second.number != first.number
    assert bring_start(other.recipe, layout_of(other), "phase1") == said
    kept = layout_of(other).start("phase1") / "version.json"
    assert read_json(kept)["version"] == first.uri
    kept.unlink()
    assert second.uri in str(bring_start(other.recipe, layout_of(other), "phase1"))


def test_moments_that_were_left_are_fetched_when_they_are_asked_for(toy: Toy, make_toy: Callable[..., Toy]) -> None:
    push_newest(toy, ["phase1"])
    other = starting(toy, make_toy, moments=False)
    bring_start(other.recipe, layout_of(other), "phase1")
    checkpoint = layout_of(other).start("phase1") / "checkpoint"
    assert not list(checkpoint.glob("exp_avg*"))
    wanted = other.with_({"phase1": {"carry": {"moments": True, "schedule": False, "position": False}}})
    bring_start(wanted.recipe, layout_of(other), "phase1")
    assert len(list(checkpoint.glob("exp_avg*"))) == 2


def test_a_version_of_another_model_is_refused_before_the_work(toy: Toy, make_toy: Callable[..., Toy]) -> None:
    push_newest(toy, ["phase1"])
    other = starting(toy, make_toy).with_({"model": {"num_hidden_layers": 1}})
    with refused(RegistryError, "phase1.start_from", "models:/toybert/1", "model.num_hidden_layers", "this recipe 1"):
        bring_start(other.recipe, layout_of(other), "phase1")


def test_a_phase_without_a_version_brings_nothing(toy: Toy, tmp_path: Path) -> None:
    for phase in ("phase1", "phase2"):
        assert bring_start(toy.recipe, Layout("none", tmp_path), phase) is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("phase1", ("phase1.start_from", "random weights", "models:/NAME@ALIAS")),
        ("phase3", ("phase1.start_from",)),
        ("models:/a", ("phase1.start_from",)),
        ("models:/a@b/../c", ("phase1.start_from",)),
        ("models:/a@b", ("phase1.start_from", "tokenizer.imported", "registry pull --checkpoint")),
    ],
)
def test_what_no_phase_1_can_start_from(start: str, said: tuple[str, ...], tmp_path: Path) -> None:
    recipe = toy_recipe().model_dump(mode="json")
    recipe["phase1"] |= {"start_from": start, "carry": {"moments": True, "schedule": False, "position": False}}
    (tmp_path / "recipe.yaml").write_text(yaml_text(recipe))
    with refused(RecipeError, *said):
        load_recipe(tmp_path / "recipe.yaml")
