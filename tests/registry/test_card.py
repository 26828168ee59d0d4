"""A version's card.json holds what both of its cards are written from, and nothing else is needed for them."""

from __future__ import annotations

import json
from pathlib import Path

from pushed import FIGURES
from refusals import refused
from toy import Toy

from azneobert.checkpoint.manifest import read_manifest
from azneobert.errors import DataError
from azneobert.files import write_json
from azneobert.layout import Layout
from azneobert.recipe import Recipe
from azneobert.registry.card import card_facts, model_card
from azneobert.registry.corpus import count_collections
from azneobert.registry.push import assemble


def test_the_facts_of_a_version_stand_in_its_card_json_and_are_enough_for_its_card(
    trained: Toy, tmp_path: Path
) -> None:
    checkpoint = trained.checkpoints().steps()[-1]
    picture = tmp_path / "phase1.png"
    picture.write_bytes(b"\x89PNG a picture")
    counts = {name: {"documents": 12, "tokens": 3456} for name in trained.recipe.data.order}
    assemble(checkpoint, trained.recipe, FIGURES, [picture], tmp_path / "version", counts=counts)
    facts = json.loads((tmp_path / "version" / "card.json").read_text())
    manifest = read_manifest(checkpoint)
    assert (facts["phase"], facts["recipe_name"], facts["step"]) == ("phase1", "toy", 10)
    assert facts["tokens"] == manifest.tokens == 10 * 8 * 32
    assert facts["parameters"] == sum(tensor.numel() for tensor in trained.result()[0].weights.values())
    assert facts["figures"] == FIGURES
    assert facts["collections"] == counts
    assert (facts["lineage"], facts["identity"]) == (manifest.lineage, manifest.identity)
    assert [segment["git_commit"] for segment in facts["segments"]] == ["toy"]
    assert Recipe.model_validate(facts["recipe"]) == trained.recipe
    assert (tmp_path / "version" / "README.md").read_text() == model_card(facts, ["phase1.png"])
    assert "card.json" in json.loads((tmp_path / "version" / "manifest.json").read_text())["files"]


def test_the_recipe_is_the_one_of_the_training_and_the_language_that_of_the_tokenizer(trained: Toy) -> None:
    manifest = read_manifest(trained.checkpoints().steps()[-1])
    cleaning = trained.recipe.data.cleaning.model_dump(mode="json")
    today = trained.with_(
        {"runtime": {"max_micro_batch": 4}, "data": {"cleaning": {**cleaning, "language": "turkish"}}}
    ).recipe
    facts = card_facts(today, manifest, FIGURES, {})
    assert facts["recipe"]["runtime"]["max_micro_batch"] == 8
    assert facts["recipe"]["data"]["cleaning"]["language"] == "turkish"
    assert "model for Turkish:" in model_card(facts, [])
    block = {"name": "kazakh_cyrillic", "letters": "А-Яа-яЁёӘә", "lookalikes": {"a": "а"}}
    described = trained.with_({"data": {"cleaning": {**cleaning, "language": block}}}).recipe
    card = model_card(json.loads(json.dumps(card_facts(described, manifest, FIGURES, {}))), [])
    assert "model for kazakh_cyrillic:" in card
    assert "U+0061 for а" in card


def test_the_card_shows_results_by_collection_and_by_length(trained: Toy) -> None:
    manifest = read_manifest(trained.checkpoints().steps()[-1])
    by_length = {
        "eval/loss_by_length/0000-0127": 5.0,
        "eval/accuracy_by_length/0000-0127": 0.25,
        "eval/masked_perplexity_by_length/0000-0127": 1234.567,
        "eval/loss_by_length/1024-2047": 4.5,
        "eval/accuracy_by_length/1024-2047": 0.5,
        "eval/masked_perplexity_by_length/1024-2047": 90.017,
    }
    perplexities = {"eval/masked_perplexity": 190.566, "eval/masked_perplexity/news": 244.692}
    card = model_card(card_facts(trained.recipe, manifest, FIGURES | perplexities | by_length, {}), [])
    for table in (
        """
| collection | loss | masked accuracy | masked perplexity |
| --- | --- | --- | --- |
| all | 5.2500 | 12.50% | 190.57 |
| news | 5.5000 | 6.25% | 244.69 |
""",
        """
| positions | loss | masked accuracy | masked perplexity |
| --- | --- | --- | --- |
| 0000-0127 | 5.0000 | 25.00% | 1,234.57 |
| 1024-2047 | 4.5000 | 50.00% | 90.02 |
""",
    ):
        assert table in card


def test_a_version_of_before_or_without_an_evaluation_has_a_card_all_the_same(trained: Toy) -> None:
    manifest = read_manifest(trained.checkpoints().steps()[-1])
    before = model_card(card_facts(trained.recipe, manifest, FIGURES, {}), [])
    assert "| news | 5.5000 | 6.25% |\n" in before
    assert "| positions |" not in before
    assert "| held-out loss | not evaluated |" in model_card(card_facts(trained.recipe, manifest, {}, {}), [])


def test_documents_tokens_and_licence_are_told_where_they_are_known(trained: Toy) -> None:
    manifest = read_manifest(trained.checkpoints().steps()[-1])
    counts = {"news": {"documents": 1_234, "tokens": 5_678_901}}
    card = model_card(card_facts(trained.recipe, manifest, FIGURES, counts), [])
    assert "| collection | from | documents | tokens |" in card
    assert "| news | local files | 1,234 | 5,678,901 |" in card
    assert "| wikipedia | local files |  |  |" in card
    assert "| licence | not stated |" in card
    # The licence is stated when a version is made, which may be long after the training.
    licensed = trained.with_({"registry": {"license": "apache-2.0"}}).recipe
    assert "| licence | apache-2.0 |" in model_card(card_facts(licensed, manifest, FIGURES, counts), [])


def test_the_counts_are_of_both_sides_of_each_collection(tmp_path: Path) -> None:
    layout = Layout("toy", tmp_path)
    sides = {"train": {"documents": 90, "tokens": 800}, "validation": {"documents": 10, "tokens": 70}}
    write_json(layout.report("tokens/news"), sides)
    assert count_collections(layout, ["news"]) == {"news": {"documents": 100, "tokens": 870}}
    with refused(DataError, "reports/tokens/books.json", "no such file", "`dvc repro`"):
        count_collections(layout, ["news", "books"])
