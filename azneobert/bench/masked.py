"""`azneobert bench masked`: the masked tokens of held-out rows, guessed by counts and by models."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from azneobert.bench.neighbours import HIDDEN, Neighbours, Places
from azneobert.bench.prose import token_counts, unigram_shares
from azneobert.bench.report import Row
from azneobert.checkpoint.universal import all_weights, read_checkpoint
from azneobert.data.rows import FRAME
from azneobert.data.store import TokenStore
from azneobert.data.stream import Stream
from azneobert.data.tokenizer import CLS, MASK, SEP, load_tokenizer, special_ids, tokenizer_sha256
from azneobert.engine.gpu import prepare_gpu
from azneobert.engine.interface import World
from azneobert.errors import CheckpointError, DataError
from azneobert.layout import CHECKPOINT, finished_checkpoint
from azneobert.model.backend import Backend, choose_backend
from azneobert.model.encoder import MaskedLM, build_model
from azneobert.recipe import Model, Recipe
from azneobert.registry.pull import pull_checkpoint
from azneobert.registry.versions import find_version
from azneobert.training.device_memory import rows_by_prediction
from azneobert.training.evaluation import evaluate, masked_perplexity
from azneobert.training.inputs import Inputs, open_streams, verify_data
from azneobert.training.position import with_defaults

_REGISTERED = "models:/"
_FITTED = 20  # one document in 20 is left out of the counts; the weights are fitted to these documents

Scores = dict[str, tuple[np.ndarray, np.ndarray]]  # of each collection: losses and hits of its masked tokens


@dataclass(frozen=True)
class Loaded:
    """A model on the device with the recipe's kernels. `recipe` is the one that runs, with the sizes of this model."""

    name: str
    network: MaskedLM
    backend: Backend
    recipe: Recipe
    world: World


def bench_masked(inputs: Inputs, models: Iterable[str], most_tokens: int) -> Iterator[Row]:
    """Unigram, n-gram and each model, at the positions that the held-out evaluation of a phase masks.

    The n-gram counts whole documents, spread evenly over the training text, of about `most_tokens` tokens in all.
    `models` are `models:/` URIs, folders of finished phases, or checkpoints.

    Raises:
        DataError: the prepared data are missing or damaged, or no row is held out.
        CheckpointError, RegistryError: a model cannot be read, or has another tokenizer.
    """
    recipe = inputs.recipe
    held_out = open_streams(inputs)[1]
    if not held_out:
        raise DataError(f"{inputs.rows}: no row is held out; use a larger data.cleaning.validation_fraction")
    verification = verify_data(inputs)
    stores = {name: TokenStore.open(inputs.tokens / name / "train") for name in recipe.data.sources}
    ids = special_ids(load_tokenizer(inputs.tokenizer))
    limit = recipe.evaluation.max_rows_per_collection
    places = {name: places_of(stream, min(len(stream), limit), ids[MASK]) for name, stream in held_out.items()}
    verification.require()
    counts = token_counts(stores, recipe.model.vocab_size)
    counted = f"{counts.sum():,} tokens of training text"
    yield _row("unigram", figures_of(unigram_scores(counts, places)), counted)
    ngram, used = train_neighbours(stores, recipe, inputs.recipe.phase(inputs.phase).sequence_length, ids, most_tokens)
    figures = figures_of({name: ngram.score(each) for name, each in places.items()})
    yield _row("n-gram of both neighbours", figures, f"{used:,} tokens of training text")
    for name in models:
        with open_model(inputs, name) as model:
            yield _row(model.name, evaluated(model, inputs, held_out), "", figures["eval/loss"])


def places_of(stream: Stream, rows: int, mask: int) -> Places:
    """The masked tokens of the first rows of a validation stream, with neighbours that are not masked."""
    batch = stream.batch(0, rows)
    ids, repeated = batch.input_ids.numpy(), batch.masked_indices.numpy()
    at, first = np.unique(repeated, return_index=True)  # a row with padding repeats its masks
    # A window is framed: its first and last token, which are never masked, are in the same row.
    left, right = (np.where(side == mask, HIDDEN, side) for side in (ids[at - 1], ids[at + 1]))
    return Places(left, batch.targets.numpy()[first], right)


def unigram_scores(counts: np.ndarray, places: dict[str, Places]) -> Scores:
    """Losses and hits if each token's probability follows from its count (V,) plus one."""
    losses, likeliest = -np.log(unigram_shares(counts)), counts.argmax()
    return {name: (losses[each.tokens], each.tokens == likeliest) for name, each in places.items()}


def train_neighbours(
    stores: dict[str, TokenStore], recipe: Recipe, sequence_length: int, ids: dict[str, int], most_tokens: int
) -> tuple[Neighbours, int]:
    """The n-gram of a training text, cut into windows like the rows, and the number of tokens that it counts."""
    total = sum(store.meta.tokens for store in stores.values())
    documents = [(store, number) for store in stores.values() for number in range(len(store))]
    chosen = documents[:: max(1, -(-total // most_tokens))]
    fitted = chosen[::_FITTED]
    counted = [each for number, each in enumerate(chosen) if number % _FITTED]
    text, sample = (
        framed((store[number] for store, number in each), sequence_length - FRAME, ids[CLS], ids[SEP])
        for each in (counted, fitted)
    )
    model = Neighbours(text, recipe.model.vocab_size)
    model.fit(sample.hiding(recipe.training.masking_rate, np.random.default_rng(recipe.seed)))
    return model, len(text.tokens)


def framed(documents: Iterable[np.ndarray], capacity: int, cls: int, sep: int) -> Places:
    """Every token of documents, cut into windows of at most `capacity` between [CLS] and [SEP], with its neighbours."""
    pieces = [np.empty(0, dtype=np.int32)]
    for document in documents:
        for start in range(0, len(document), capacity):
            pieces += [np.asarray([cls], dtype=np.int32), document[start : start + capacity], np.asarray([sep])]
    text = np.concatenate(pieces).astype(np.int64)
    at = np.flatnonzero((text != cls) & (text != sep))
    return Places(text[at - 1], text[at], text[at + 1])


def figures_of(scores: Scores) -> dict[str, float]:
    """Loss and accuracy, overall and by collection, under the names that `evaluate` uses."""
    all_losses, all_hits = (np.concatenate(each) for each in zip(*scores.values(), strict=True))
    parts = {"": (all_losses, all_hits), **{f"/{name}": each for name, each in scores.items()}}
    figures: dict[str, float] = {}
    for part, (losses, hits) in parts.items():
        figures |= {f"eval/loss{part}": float(losses.mean()), f"eval/accuracy{part}": float(hits.mean())}
    return figures


def evaluated(model: Loaded, inputs: Inputs, held_out: dict[str, Stream]) -> dict[str, float]:
    """The figures of a model in the held-out evaluation of a phase."""
    recipe, phase = model.recipe, inputs.phase
    rows = min(rows_by_prediction(recipe, phase, model.backend, model.world), recipe.phase(phase).global_batch)
    return evaluate(model.network, held_out, rows, recipe.evaluation.max_rows_per_collection, model.world)


@contextmanager
def open_model(inputs: Inputs, name: str) -> Iterator[Loaded]:
    """A registered version, which is pulled, a finished phase's folder or a checkpoint, on the device.

    Raises:
        CheckpointError: it is damaged, does not say what model it is, or is of another tokenizer.
        RegistryError: the registry does not have the version.
    """
    with tempfile.TemporaryDirectory(prefix="azneobert-bench-") as scratch:
        folder = Path(name)
        if name.startswith(_REGISTERED):
            tracking = inputs.recipe.tracking
            name = find_version(name, tracking).uri
            folder = pull_checkpoint(name, Path(scratch, CHECKPOINT), tracking, moments=False)
        elif (folder / CHECKPOINT).is_dir():
            folder = finished_checkpoint(folder)[0]
        yield load(inputs, folder, name)


def load(inputs: Inputs, checkpoint: Path, name: str) -> Loaded:
    """The model of a checkpoint, whatever its sizes, on the device.

    Raises:
        CheckpointError: it is damaged, does not say what model it is, reads shorter rows, or is of another tokenizer.
    """
    state, manifest = read_checkpoint(checkpoint, moments=False)
    try:
        config = Model.model_validate(with_defaults(manifest.identity)["model"])
        tokenizer = manifest.identity["tokenizer"]
    except (KeyError, ValidationError):
        raise CheckpointError(
            f"{checkpoint}: does not say what model it is; use a checkpoint of a phase or a version"
        ) from None
    if tokenizer != tokenizer_sha256(inputs.tokenizer):
        raise CheckpointError(
            f"{name}: made with another tokenizer than {inputs.tokenizer}, so that its losses are of other tokens; "
            "use a model of this one"
        )
    if config.max_position_embeddings < inputs.recipe.phase(inputs.phase).sequence_length:
        raise CheckpointError(
            f"{name}: reads {config.max_position_embeddings} tokens, the rows of {inputs.phase} have "
            f"{inputs.recipe.phase(inputs.phase).sequence_length}; use another model, or the other --phase"
        )
    recipe = inputs.recipe.model_copy(update={"model": config})
    prepare_gpu()
    world = World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, recipe.training.compute_dtype)
    backend = choose_backend(recipe.runtime, config, world.device, dtype)
    network = build_model(config, recipe.seed, dtype, backend)
    network.load_state_dict(all_weights(state))
    return Loaded(name, network.to(world.device), backend, recipe, world)


def _row(what: str, figures: dict[str, float], note: str, ngram: float | None = None) -> Row:
    """The row of a model; the n-gram's loss is its bar."""
    loss = figures["eval/loss"]
    names = [key.removeprefix("eval/loss/") for key in figures if key.startswith("eval/loss/")]
    parts = [f"{name} {figures[f'eval/loss/{name}']:.3f} {figures[f'eval/accuracy/{name}']:.1%}" for name in names]
    over_all = f"masked perplexity {masked_perplexity(loss):,.1f}, top-1 accuracy {figures['eval/accuracy']:.2%}"
    return Row(
        what=what,
        figure=f"{loss:.4f} nats",
        bar="" if ngram is None else f"< {ngram:.4f}, the n-gram's",
        met=None if ngram is None else loss < ngram,
        note="; ".join([over_all, *([note] if note else []), f"by collection: {', '.join(parts)}"]),
    )
