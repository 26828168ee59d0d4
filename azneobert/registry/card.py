"""The model card of a registered version: what it is, what it was made from, how good it is, how to use it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from azneobert.checkpoint.manifest import Manifest
from azneobert.model.size import count_parameters
from azneobert.recipe import Recipe

_CARD = """# AzNeoBERT, {phase} of recipe `{recipe_name}`

A masked language model for Azerbaijani (Latin script): NeoBERT's architecture, {parameters:,} parameters,
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

`checkpoint/` holds the universal training checkpoint: `azneobert checkpoint inspect {{folder}}/checkpoint`.

## Lineage

```json
{lineage}
```
"""


def model_card(recipe: Recipe, manifest: Manifest, figures: dict[str, Any], pictures: list[str]) -> str:
    """The card in Markdown. `figures` are the metrics of `training.evaluation.evaluate`."""
    names = [key.removeprefix("eval/loss/") for key in figures if key.startswith("eval/loss/")]
    rows = [f"| {n} | {figures[f'eval/loss/{n}']:.4f} | {figures[f'eval/accuracy/{n}']:.2%} |" for n in names]
    made_of = {**manifest.lineage, "segments": [asdict(segment) for segment in manifest.segments]}
    return _CARD.format(
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
