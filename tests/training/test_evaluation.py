"""Held-out figures: each part's is the mean over its own masked tokens, wherever they stand in a row."""

from __future__ import annotations

import csv
import importlib
import json
from collections import defaultdict
from collections.abc import Sequence
from math import exp, inf
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from stores import write_store
from torch.nn import functional as F  # noqa: N812
from toy import lively, run_ranks, toy_recipe

from azneobert.data.rows import plan_rows
from azneobert.data.store import TokenStore
from azneobert.data.stream import Stream
from azneobert.data.tokenizer import SPECIAL_TOKENS
from azneobert.engine.interface import World
from azneobert.engine.micro_batches import logits_of
from azneobert.layout import Layout
from azneobert.model.encoder import MaskedLM
from azneobert.training.evaluation import LENGTHS, evaluate, masked_perplexity

ROOT = Path(__file__).parents[2]
ALONE = World(0, 1, torch.device("cpu"))
LENGTH = 1536  # of a row: three hundred tokens beyond 1,024 in a document as long as it
SIZES = {"books": (1534, 1100, 400, 1534), "news": (90, 100, 110, 600) * 5}

Scores = list[tuple[int, float, bool]]  # of each masked token: its position, its loss, whether it was found


def model() -> MaskedLM:
    config = toy_recipe().model
    return lively(config.model_copy(update={"num_hidden_layers": 1, "max_position_embeddings": 2048})).eval()


def make_stream(folder: Path, sizes: Sequence[int], sequence_length: int = LENGTH) -> Stream:
    """Documents of these sizes, of random tokens; rows in a fixed order."""
    numbers = np.random.default_rng(3)
    documents = [numbers.integers(len(SPECIAL_TOKENS), 300, size) for size in sizes]
    write_store(folder, documents, vocab_size=300)
    stores = {"only": TokenStore.open(folder)}
    special_ids = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    plan = plan_rows(stores, sequence_length, 7)
    return Stream(plan, stores, special_ids, seed=7, masking_rate=0.2, shuffle=False)


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stream]:
    folder = tmp_path_factory.mktemp("tokens")
    return {name: make_stream(folder / name, sizes) for name, sizes in SIZES.items()}


@pytest.fixture(scope="module")
def figures(streams: dict[str, Stream]) -> dict[str, float]:
    return evaluate(model(), streams, 2, 100, ALONE)


@torch.no_grad()
def scores_of(stream: Stream, row: int) -> Scores:
    """Token by token; the position is counted from the last [CLS] before the token."""
    batch = stream.batch(row, 1)
    found: dict[int, tuple[int, float, bool]] = {}  # a row with padding repeats its masks
    for logits, place, target in zip(logits_of(model(), batch), batch.masked_indices, batch.targets, strict=True):
        position = min(int(place) - start for start in batch.cu_seqlens.tolist() if start <= place)
        loss = F.cross_entropy(logits[None], target[None])
        found[int(place)] = (position, float(loss), bool(logits.argmax() == target))
    return list(found.values())


@pytest.fixture(scope="module")
def scores(streams: dict[str, Stream]) -> dict[str, list[Scores]]:
    """Of each collection, of each row."""
    return {name: [scores_of(stream, row) for row in range(len(stream))] for name, stream in streams.items()}


def test_a_length_has_the_tokens_of_all_collections_that_stand_so_far_into_their_own_document(
    figures: dict[str, float], scores: dict[str, list[Scores]]
) -> None:
    expected = defaultdict(list)
    for position, loss, hit in (token for rows in scores.values() for row in rows for token in row):
        (length,) = [n for n in LENGTHS if int(n[:4]) <= position <= (int(n[5:]) if n[5:].isdigit() else inf)]
        expected[length].append((loss, hit))
    assert sorted(expected) == ["0000-0127", "0128-0511", "0512-1023", "1024-2047"]
    for length, tokens in expected.items():
        losses, hits = zip(*tokens, strict=True)
        assert figures[f"eval/loss_by_length/{length}"] == pytest.approx(fmean(losses), rel=1e-5)
        assert figures[f"eval/accuracy_by_length/{length}"] == pytest.approx(fmean(hits), abs=1e-9)
    assert {key.rpartition("/")[2] for key in figures if "_by_length/" in key} == set(expected)
    weighted = sum(figures[f"eval/loss_by_length/{length}"] * len(tokens) for length, tokens in expected.items())
    assert weighted / sum(map(len, expected.values())) == pytest.approx(figures["eval/loss"], rel=1e-6)


def test_over_all_and_by_collection_every_masked_token_counts_once(
    figures: dict[str, float], scores: dict[str, list[Scores]]
) -> None:
    every = []
    for name, rows in scores.items():
        tokens = [token for row in rows for token in row]
        assert figures[f"eval/loss/{name}"] == pytest.approx(fmean(loss for _, loss, _ in tokens), rel=1e-5)
        assert figures[f"eval/accuracy/{name}"] == pytest.approx(fmean(hit for _, _, hit in tokens), abs=1e-7)
        every += tokens
    assert len({len(row) for row in scores["books"]}) > 1  # one has padding
    assert figures["eval/loss"] == pytest.approx(fmean(loss for _, loss, _ in every), rel=1e-5)


def test_the_place_in_the_row_is_none_in_the_document(tmp_path: Path) -> None:
    """Rows of 1,536 tokens, in which no document is longer than 100."""
    found = evaluate(model(), {"short": make_stream(tmp_path / "short", [100] * 40)}, 2, 100, ALONE)
    assert [key for key in found if "_by_length/" in key] == [
        "eval/loss_by_length/0000-0127",
        "eval/accuracy_by_length/0000-0127",
    ]
    assert found["eval/loss_by_length/0000-0127"] == pytest.approx(found["eval/loss"], rel=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_beyond_the_limit_are_left_out_of_every_figure(rows: int, streams: dict[str, Stream]) -> None:
    one, many = (evaluate(model(), {"books": streams["books"]}, batch, rows, ALONE) for batch in (1, 2))
    assert one == pytest.approx(many, rel=1e-5)


def evaluate_as_a_rank(folder: Path) -> dict[str, float]:
    torch.distributed.init_process_group("gloo")
    try:
        world = World(torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.device("cpu"))
        streams = {name: make_stream(folder / f"{name}{world.rank}", sizes) for name, sizes in SIZES.items()}
        return evaluate(model(), streams, 1, 100, world)
    finally:
        torch.distributed.destroy_process_group()


def test_ranks_have_the_figures_of_one_process(figures: dict[str, float], tmp_path: Path) -> None:
    one, other = run_ranks(evaluate_as_a_rank, tmp_path, processes=2, folder=tmp_path)
    assert one == other
    assert one == pytest.approx(figures, rel=1e-5)


def test_masked_perplexity_is_the_exponential_and_never_an_error() -> None:
    assert masked_perplexity(2.5) == pytest.approx(exp(2.5))
    assert masked_perplexity(800.0) == inf


def test_the_stage_s_tables_and_metrics_hold_what_was_evaluated(
    figures: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "pipelines")
    stage = importlib.import_module("evaluate")
    layout = Layout("toy", tmp_path)
    all_figures = figures | stage.masked_perplexities(figures)
    stage.write_tables(layout, "phase2", list(SIZES), all_figures)
    tables = {}
    for name in ("collections", "lengths"):
        with (layout.plots / f"phase2_{name}.csv").open() as file:
            tables[name] = list(csv.DictReader(file))
    assert [row["collection"] for row in tables["collections"]] == list(SIZES)
    assert [row["positions"] for row in tables["lengths"]] == list(LENGTHS[:4])
    beyond = tables["lengths"][-1]
    assert float(beyond["loss"]) == figures["eval/loss_by_length/1024-2047"]
    assert float(beyond["masked_perplexity"]) == pytest.approx(exp(float(beyond["loss"])))
    [(phase, metrics)] = json.loads(layout.metrics("evaluate/phase2").read_text()).items()
    assert phase == "phase2"
    assert metrics == {
        "accuracy": figures["eval/accuracy"],
        "masked_perplexity": pytest.approx(exp(figures["eval/loss"])),
        "loss_by_length": {length: figures[f"eval/loss_by_length/{length}"] for length in LENGTHS[:4]},
    }
