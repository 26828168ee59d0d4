"""`azneobert bench registry`: how fast a version comes out of the registry, against the disk's own copying."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from azneobert.bench.measure import forget
from azneobert.bench.report import Row
from azneobert.bench.synthetic import sentences
from azneobert.checkpoint.manifest import Manifest
from azneobert.checkpoint.universal import TrainState, write_checkpoint
from azneobert.data.tokenizer import tokenizer_sha256, train_tokenizer
from azneobert.files import read_json, write_json
from azneobert.mlflow_place import path_of
from azneobert.mlflow_store import mlflow_client
from azneobert.model.backend import choose_backend
from azneobert.model.encoder import build_model
from azneobert.recipe import Recipe, Tracking, load_recipe
from azneobert.registry.pull import pull, pull_checkpoint
from azneobert.registry.push import push
from azneobert.registry.versions import checkpoint_place, place_of

_CHUNK = 1 << 24
_TRAINED = 2000  # tokens; the rest of the vocabulary is filler, since its content does not matter here


def bench_registry(full: bool, corpus: Path, scratch: Path | None = None) -> Iterator[Row]:
    """Every row of the table, as it is measured: of the published recipe's model, or of the sample's."""
    recipe, turns = load_recipe(Path("recipes") / ("h200.yaml" if full else "sample.yaml")), 3 if full else 1
    with tempfile.TemporaryDirectory(prefix="azneobert-bench-", dir=scratch) as name:
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        tracking = Tracking(mlflow_uri=os.environ["MLFLOW_TRACKING_URI"], experiment="bench", wandb="off")
        recipe = recipe.model_copy(update={"tracking": tracking})
        began = time.perf_counter()
        version = push(_checkpoint(folder / "made", recipe, corpus), recipe, {}, [], ["bench"])
        yield Row(
            "making a checkpoint of random weights and registering it", f"{time.perf_counter() - began:.0f} s", ""
        )
        shutil.rmtree(folder / "made")
        client = mlflow_client(tracking)
        encoder = path_of(place_of(client, version))
        checkpoint = next(Path(client.get_run(version.run_id).info.artifact_uri).glob(f"{checkpoint_place('')}*"))
        assert encoder is not None
        yield from _pull_rows("the encoder", encoder, folder, turns, lambda to: pull(version.uri, to, tracking))
        yield from _pull_rows(
            "the checkpoint", checkpoint, folder, turns, lambda to: pull_checkpoint(version.uri, to, tracking)
        )


def _pull_rows(what: str, stored: Path, folder: Path, turns: int, bring: Callable[[Path], Path]) -> Iterator[Row]:
    """A pull against a plain copy of the same files, in turns, the page cache emptied before each reading."""
    files = [file for file in stored.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    bring(folder / "pulled")  # a warm-up: imports and first opening are not the disk's time
    copies, pulls = [], []
    for _ in range(turns):
        shutil.rmtree(folder / "pulled")
        copies.append(_timed(lambda: _copy(files, folder / "copied"), files))
        shutil.rmtree(folder / "copied")
        pulls.append(_timed(lambda: bring(folder / "pulled"), files))
    shutil.rmtree(folder / "pulled")
    ours, own = statistics.median(pulls), statistics.median(copies)
    rates = f"{size / ours / 1e9:.2f} GB/s against {size / own / 1e9:.2f} GB/s, {size / 1e9:.2f} GB"
    yield Row(
        f"pull and verify {what}, against the disk's own rate of a plain copy",
        f"{own / ours:.0%}",
        ">= 80%",
        own >= 0.8 * ours,
        f"{rates}, medians of {turns} in turns",
    )


def _timed(work: Callable[[], object], files: list[Path]) -> float:
    for file in files:
        forget(file)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _copy(files: list[Path], target: Path) -> None:
    target.mkdir()
    buffer = memoryview(bytearray(_CHUNK))
    for number, file in enumerate(files):
        with file.open("rb", buffering=0) as source, (target / str(number)).open("wb", buffering=0) as copy:
            while size := source.readinto(buffer):
                copy.write(buffer[:size])


def _checkpoint(folder: Path, recipe: Recipe, corpus: Path) -> Path:
    """A whole checkpoint of random weights, its moments as large."""
    folder.mkdir()
    tokenizer = _tokenizer(folder / "tokenizer.json", recipe.model.vocab_size, corpus)
    device = torch.device("cpu")
    backend = choose_backend(recipe.runtime, recipe.model, device, torch.float32)
    model = build_model(recipe.model, recipe.seed, torch.float32, backend)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state = TrainState(weights, weights, weights, 1, [{"names": list(weights)}])
    identity = {
        "model": recipe.model.model_dump(mode="json"),
        "phase": recipe.phase1.model_dump(mode="json"),
        "tokenizer": tokenizer_sha256(tokenizer),
    }
    manifest = Manifest("phase1", 1, 0, 0, recipe.name, recipe.model_dump(mode="json"), identity, {}, {}, {})
    (folder / "checkpoint").mkdir()
    write_checkpoint(folder / "checkpoint", state, manifest, tokenizer)
    return folder / "checkpoint"


def _tokenizer(file: Path, size: int, corpus: Path) -> Path:
    trained = train_tokenizer(iter([sentences(corpus)]), "wordpiece", min(size, _TRAINED), lowercase=False)
    trained.save(str(file))
    content = read_json(file, 1 << 26)
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"<{number}>": number for number in range(len(vocabulary), size)}
    write_json(file, content)
    return file
