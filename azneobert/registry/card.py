"""The model card of a registered version: what it is, what it was made from, how good it is, how to use it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from azneobert.checkpoint.manifest import Manifest
from azneobert.data.languages import find_language
from azneobert.language import Language, name_or_block
from azneobert.model.size import count_parameters
from azneobert.recipe import Recipe
from azneobert.registry.corpus import Counts, corpus_table
from azneobert.registry.results import results_tables

CARD = "card.json"  # of a version: the facts from which its cards are written
_CARD = """# {title}

A masked language model for {language}: NeoBERT's architecture, {parameters:,} parameters,
{layers} layers of {hidden}, a vocabulary of {vocabulary:,}, rows of {length:,} tokens.

| | |
|---|---|
| optimizer steps | {steps:,} |
| tokens seen in this phase | {tokens:,} |
| held-out loss | {loss} |
| held-out masked accuracy | {accuracy} |
| licence | {license} |

{pictures}

## Data

{corpus}

## Held-out results

{results}

## Use

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForMaskedLM.from_pretrained(folder)  # no remote code
```

The tokenizer repairs a text as the documents of the training were repaired (`data.cleaning.language: {language_name}`):
{repairs}.
{limits}
`tokenizer.json` is derived from the one of the training (sha256 `{tokenizer_sha256}`): a text that is repaired
already has the same tokens under both. `golden.json` holds what both the tokenizer and the model made of some
sentences when this version was registered: `azneobert registry verify FOLDER`.

The universal checkpoint, to train on from, lies aside: `azneobert registry pull --checkpoint URI FOLDER`.

## Lineage

```json
{lineage}
```
"""


_LANGUAGES = {"azeri_latin": "Azerbaijani (Latin script)", "turkish": "Turkish", "any": "texts of any language"}


def card_facts(recipe: Recipe, manifest: Manifest, figures: dict[str, Any], counts: Counts) -> dict[str, Any]:
    """Everything that a version says of itself, for its card.json, from which both cards are written.

    The recipe is that of the training, from the checkpoint, with the language by which the version's tokenizer repairs
    texts, and the licence that is stated now. `figures` is the report of the phase's evaluation.
    """
    trained = manifest.recipe if "data" in manifest.recipe else recipe.model_dump(mode="json")
    cleaning = {**trained["data"]["cleaning"], "language": recipe.data.cleaning.model_dump(mode="json")["language"]}
    registry = {**trained["registry"], "license": recipe.registry.license}
    return {
        "phase": manifest.phase,
        "recipe_name": manifest.recipe_name,
        "recipe": {**trained, "data": {**trained["data"], "cleaning": cleaning}, "registry": registry},
        "figures": figures,
        "collections": counts,
        "lineage": manifest.lineage,
        "segments": [asdict(segment) for segment in manifest.segments],
        "step": manifest.step,
        "tokens": manifest.tokens,
        "parameters": count_parameters(recipe.model),
        "identity": manifest.identity,
    }


def model_card(facts: dict[str, Any], pictures: list[str]) -> str:
    """The card in Markdown, from what `card_facts` gives."""
    figures = facts["figures"]
    return _CARD.format(
        **common_fields(facts, pictures),
        language_name=language_name(facts),
        limits=limits(language_of(facts)),
        tokenizer_sha256=facts["identity"]["tokenizer"],
        loss=f"{figures['eval/loss']:.4f}" if "eval/loss" in figures else "not evaluated",
        accuracy=f"{figures['eval/accuracy']:.2%}" if "eval/accuracy" in figures else "not evaluated",
        license=facts["recipe"]["registry"]["license"] or "not stated",
        lineage=json.dumps({**facts["lineage"], "segments": facts["segments"]}, indent=1, ensure_ascii=False),
    )


def common_fields(facts: dict[str, Any], pictures: list[str]) -> dict[str, Any]:
    """The facts that both cards state, by the names of the fields in their texts."""
    model = facts["identity"]["model"]
    return {
        "title": f"AzNeoBERT, {facts['phase']} of recipe `{facts['recipe_name']}`",
        "phase": facts["phase"],
        "language": _LANGUAGES.get(language_name(facts), language_name(facts)),
        "repairs": repairs(language_of(facts)),
        "parameters": facts["parameters"],
        "layers": model["num_hidden_layers"],
        "hidden": model["hidden_size"],
        "vocabulary": model["vocab_size"],
        "length": facts["identity"]["phase"]["sequence_length"],
        "steps": facts["step"],
        "tokens": facts["tokens"],
        "corpus": corpus_table(facts),
        "results": results_tables(facts["figures"]),
        "pictures": "\n".join(f"![loss curve]({name})" for name in pictures),
    }


def language_name(facts: dict[str, Any]) -> str:
    """The recipe's name for the language of the texts."""
    setting = facts["recipe"]["data"]["cleaning"]["language"]
    return str(setting if isinstance(setting, str) else setting["name"])


def language_of(facts: dict[str, Any]) -> Language | None:
    """The language by which the tokenizer repairs texts; None for `any`."""
    return find_language(name_or_block(facts["recipe"]["data"]["cleaning"]["language"]))


def repairs(language: Language | None) -> str:
    """What the tokenizer does to a text first, in one phrase."""
    done = ["NFC", "soft hyphens, control and zero-width characters dropped", "spaces and line ends made plain"]
    if language:
        done += [f"{found} becomes {meant}" for found, meant in language.replace.items()]
        done += ["i with a combining dot becomes i"] if language.dotted_i else []
    return "; ".join(done)


def limits(language: Language | None) -> str:
    """What the tokenizer leaves to its user, as sentences that each start a line."""
    left = [
        "It does not take white space from the two ends of a text, and does not cut more than 30 accents on a letter."
    ]
    if language and language.lookalikes:
        found, meant = next(iter(language.lookalikes.items()))
        left.append(
            f"Nor does it repair look-alikes inside words (U+{ord(found):04X} for {meant}), which depend on the word:\n"
            "`azneobert.data.repair.normalise` does all of it."
        )
    return "\n".join(left)
