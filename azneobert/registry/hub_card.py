"""The README.md of a published model: a header that the hub reads, and answers to what people ask about a model.

It names the collections, and says where the public ones are published. Paths, run ids and the address of the store,
which card.json holds too, are private and left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from azneobert.registry.card import common_fields, language_name, language_of, limits
from azneobert.registry.corpus import dataset_of, sources_of
from azneobert.registry.results import collections_of

_CODES = {"azeri_latin": "az", "turkish": "tr", "any": "multilingual"}  # as the hub names languages
_TRAINED_BY = ("training", "guards")  # the blocks of a recipe that both phases share

_CARD = """
# {title}

A masked language model for {language}: NeoBERT's architecture (Le Breton et al., arXiv 2502.19587), {parameters:,}
parameters, {layers} layers of {hidden}, {heads} heads, a vocabulary of {vocabulary:,}.
It loads as transformers' EuroBERT class, which computes the same function, and needs no remote code.

## Intended use

To guess the token behind `[MASK]`, and above all to be fine-tuned: classification of texts or of words, retrieval, and
other tasks that read a text whole. It writes no texts and answers no questions by itself.

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForMaskedLM.from_pretrained(folder)  # `folder`: this one, or the name of its repository
```

The tokenizer repairs a text as the documents of the training were repaired: {repairs}.

## Data

{corpus}

A text that stands in several collections is in the first of them alone. {left_out} were left out,
and {held_out:.2%} of the documents were held out.

## Recipe

{steps:,} optimizer steps in {phase}, over {tokens:,} tokens. {masked:.0%} of the tokens are masked.

```json
{recipe}
```

## Results

On held-out documents of the same collections, masked as in training, of the fp32 weights in {compute_dtype}:

{results}

{pictures}

## Limits

- It knows the language of the collections above, with their subjects, their errors and their biases. What it takes for
  likely is what stood there, and no statement of fact. Nobody has measured its biases here.
- The results are losses on texts of the same kind. They say nothing about a task: measure it on yours.
- It was trained on rows of up to {length:,} tokens. It takes up to {positions:,}.
{tokenizer_limits}

## How it was made

By AzNeoBERT's training program, in one run of {runs}{started}.
Of the hardware the number of processes is recorded, one a device; `code` is the hash of the files that decide the
numbers.

| from step | commit | code | engine | processes | container | versions |
|---|---|---|---|---|---|---|
{segments}

## Checksums

{weights}
`sha256sum -c SHA256SUMS` checks every file of this folder.

| | sha256 |
|---|---|
{checksums}
"""


@dataclass(frozen=True)
class Published:
    """Facts of the published files: the type of numbers, licence, pictures, and hashes by what they belong to."""

    dtype: str
    license: str
    pictures: list[str]
    sha256: dict[str, str]


def hub_card(facts: dict[str, Any], published: Published) -> str:
    """The card in Markdown, header included, from what `card_facts` gave."""
    model, recipe, segments = facts["identity"]["model"], facts["recipe"], facts["segments"]
    card = _CARD.format(
        **common_fields(facts, published.pictures),
        left_out=_left_out(facts),
        compute_dtype=recipe["training"]["compute_dtype"],
        positions=model["max_position_embeddings"],
        heads=model["num_attention_heads"],
        held_out=recipe["data"]["cleaning"]["validation_fraction"],
        masked=recipe["training"]["masking_rate"],
        recipe=json.dumps(_recipe(facts), indent=1, ensure_ascii=False),
        tokenizer_limits=_tokenizer_limits(facts),
        runs=f"{len(segments)} segment{'s' if len(segments) != 1 else ''}",
        started=_started(facts),
        segments="\n".join(map(_segment_row, segments)),
        weights=_weights(published),
        checksums="\n".join(f"| {what} | `{digest}` |" for what, digest in published.sha256.items()),
    )
    return f"---\n{_header(facts, published)}---\n{card}"


def _header(facts: dict[str, Any], published: Published) -> str:
    """What the hub reads, in YAML."""
    from huggingface_hub import ModelCardData

    name = language_name(facts)
    header = ModelCardData(
        language=_CODES.get(name),
        license=published.license,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["neobert", "eurobert", "masked-lm", *([] if name in _CODES else [name])],
        datasets=[dataset_of(*source) for source in sources_of(facts)],
        metrics=["accuracy", "loss"],
        model_name=f"{facts['recipe_name']}-{facts['phase']}",
        eval_results=_results(facts["figures"]),
    )
    return f"{header.to_yaml()}\n"


def _results(figures: dict[str, Any]) -> list[Any]:
    """The held-out figures, overall and by collection, in the form of a model index."""
    from huggingface_hub import EvalResult

    places = {"all collections": "", **{name: f"/{name}" for name in collections_of(figures)}}
    return [
        EvalResult(
            task_type="fill-mask",
            dataset_type=place.removeprefix("/") or "held-out",
            dataset_name=f"held-out documents, {name}",
            metric_type=metric,
            metric_name=f"held-out {'masked accuracy' if metric == 'accuracy' else metric}",
            metric_value=figures[f"eval/{metric}{place}"],
        )
        for name, place in places.items()
        for metric in ("loss", "accuracy")
    ]


def _left_out(facts: dict[str, Any]) -> str:
    cleaning = facts["recipe"]["data"]["cleaning"]
    short = f"Texts of fewer than {cleaning['min_words']} words"
    return short if language_of(facts) is None else f"{short} and texts that are not `{language_name(facts)}`"


def _tokenizer_limits(facts: dict[str, Any]) -> str:
    """What the tokenizer leaves to its user, as items of a list."""
    lines = limits(language_of(facts)).replace(":\n", ": ").splitlines()
    return "\n".join(f"- {line.replace('It does not', 'Its tokenizer does not', 1)}" for line in lines)


def _recipe(facts: dict[str, Any]) -> dict[str, Any]:
    """The blocks of the recipe that decide the numbers, without paths."""
    recipe = facts["recipe"]
    phases = ("phase1", "phase2")
    tokenizer = {key: recipe["tokenizer"][key] for key in ("vocab_size", "trained")}
    imported = {"imported": sorted(recipe["tokenizer"]["imported"])} if recipe["tokenizer"]["imported"] else {}
    return {
        "seed": recipe["seed"],
        "cleaning": recipe["data"]["cleaning"],
        "tokenizer": {**tokenizer, **imported},
        "model": facts["identity"]["model"],
        **{block: recipe[block] for block in _TRAINED_BY if block in recipe},
        **{phase: recipe[phase] for phase in phases[: phases.index(facts["phase"]) + 1]},
    }


def _started(facts: dict[str, Any]) -> str:
    before = facts["lineage"].get("started_from")
    if not before:
        return ", from random weights"
    return f", from the weights of {before['phase']} at step {before['step']:,} (sha256 `{before['weights']}`)"


def _segment_row(segment: dict[str, Any]) -> str:
    changed = {True: ", changed", False: "", None: ", changed or not is unknown"}[segment["git_dirty"]]
    versions = ", ".join(f"{package} {version}" for package, version in segment["versions"].items())
    cells = (
        f"{segment['from_step']:,}",
        f"{segment['git_commit']}{changed}",
        segment["code_sha256"][:12],
        segment["engine"],
        str(segment["world_size"] or "unknown"),
        segment["image"] or "none",
        versions or "unknown",
    )
    return f"| {' | '.join(cells)} |"


def _weights(published: Published) -> str:
    if published.dtype == "fp32":
        return "The weights are those of the training, in fp32, bit for bit."
    return (
        "The weights are in bf16: each number of the training's fp32 weights is rounded to the nearest one, halves to "
        "even.\nThe fp32 weights have the sha256 below."
    )
