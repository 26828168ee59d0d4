"""The model card of a registered version: what it is, what it was made from, how good it is, how to use it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from azneobert.checkpoint.manifest import Manifest
from azneobert.data.languages import find_language
from azneobert.language import Language
from azneobert.model.size import count_parameters
from azneobert.recipe import Recipe

_CARD = """# AzNeoBERT, {phase} of recipe `{recipe_name}`

A masked language model for {language}: NeoBERT's architecture, {parameters:,} parameters,
{layers} layers of {hidden}, a vocabulary of {vocabulary:,}, rows of {length:,} tokens.

| | |
|---|---|
| optimizer steps | {steps:,} |
| tokens seen in this phase | {tokens:,} |
| held-out loss | {loss:.4f} |
| held-out masked accuracy | {accuracy:.2%} |

{pictures}

## Held-out results by collection

| collection | loss | masked accuracy |
|---|---|---|
{collections}

## Use

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForMaskedLM.from_pretrained(folder)  # no remote code
```

The tokenizer repairs a text as the documents of the training were repaired (`data.cleaning.language: {language_name}`):
{repairs}.
{limits}
`tokenizer.json` is derived from the one of the training, `checkpoint/tokenizer.json`
(sha256 `{tokenizer_sha256}`): a text that is repaired already has the same tokens under both.

`checkpoint/` holds the universal training checkpoint: `azneobert checkpoint inspect {{folder}}/checkpoint`.

## Lineage

```json
{lineage}
```
"""


_LANGUAGES = {"azeri_latin": "Azerbaijani (Latin script)", "turkish": "Turkish", "any": "texts of any language"}


def model_card(recipe: Recipe, manifest: Manifest, figures: dict[str, Any], pictures: list[str]) -> str:
    """The card in Markdown. `figures` are the metrics of `training.evaluation.evaluate`."""
    names = [key.removeprefix("eval/loss/") for key in figures if key.startswith("eval/loss/")]
    rows = [f"| {n} | {figures[f'eval/loss/{n}']:.4f} | {figures[f'eval/accuracy/{n}']:.2%} |" for n in names]
    made_of = {**manifest.lineage, "segments": [asdict(segment) for segment in manifest.segments]}
    language = recipe.data.cleaning.language
    name = language if isinstance(language, str) else language.name
    return _CARD.format(
        language=_LANGUAGES.get(name, name),
        language_name=name,
        repairs=_repairs(find_language(language)),
        limits=_limits(find_language(language)),
        tokenizer_sha256=manifest.identity["tokenizer"],
        phase=manifest.phase,
        recipe_name=manifest.recipe_name,
        parameters=count_parameters(recipe.model),
        layers=recipe.model.num_hidden_layers,
        hidden=recipe.model.hidden_size,
        vocabulary=recipe.model.vocab_size,
        length=manifest.identity["phase"]["sequence_length"],
        steps=manifest.step,
        tokens=manifest.tokens,
        loss=figures["eval/loss"],
        accuracy=figures["eval/accuracy"],
        pictures="\n".join(f"![loss curve]({name})" for name in pictures),
        collections="\n".join(rows),
        lineage=json.dumps(made_of, indent=1, ensure_ascii=False),
    )


def _repairs(language: Language | None) -> str:
    done = ["NFC", "soft hyphens, control and zero-width characters dropped", "spaces and line ends made plain"]
    if language:
        done += [f"{found} becomes {meant}" for found, meant in language.replace.items()]
        done += ["i with a combining dot becomes i"] if language.dotted_i else []
    return "; ".join(done)


def _limits(language: Language | None) -> str:
    """What the tokenizer leaves to who uses it, in sentences that start a line each."""
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
