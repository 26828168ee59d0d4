"""`azneobert bench masked` on a toy project: counts and models at the positions of the held-out evaluation."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from stores import write_store
from toy import Toy, run_command, write_corpus

from azneobert.bench.masked import bench_masked, framed, load, open_model, places_of
from azneobert.bench.masked_examples import bench_examples, find_examples, guess
from azneobert.bench.neighbours import HIDDEN, Neighbours
from azneobert.bench.report import Row, as_markdown
from azneobert.data.rows import plan_rows
from azneobert.data.store import TokenStore
from azneobert.data.stream import Stream
from azneobert.data.tokenizer import MASK, SPECIAL_TOKENS, load_tokenizer
from azneobert.errors import CheckpointError, DataError
from azneobert.model.export import export_transformers
from azneobert.registry.push import push
from azneobert.training.inputs import Inputs, open_streams
from azneobert.yaml_files import write_yaml

pytestmark = pytest.mark.long  # whole commands, or a model that is trained for them

IDS = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
MOST = 10**6


@pytest.fixture(scope="module")
def trained(make_toy: Callable[..., Toy]) -> Toy:
    toy = make_toy()
    assert toy.train()
    return toy


@pytest.fixture(scope="module")
def inputs(trained: Toy) -> Inputs:
    return trained.inputs()


@pytest.fixture(scope="module")
def rows(trained: Toy, inputs: Inputs) -> list[Row]:
    last = trained.checkpoints().steps()[-1]
    return list(bench_masked(inputs, [str(trained.folder / "phase1"), str(last)], MOST))


def nats(row: Row) -> float:
    return float(row.figure.removesuffix(" nats"))


def held_out_targets(inputs: Inputs) -> dict[str, list[int]]:
    """The tokens that the evaluation asks for, by collection."""
    limit = inputs.recipe.evaluation.max_rows_per_collection
    _, streams = open_streams(inputs)
    return {name: stream.batch(0, min(len(stream), limit)).targets.tolist() for name, stream in streams.items()}


def test_the_unigram_is_counted_token_by_token(inputs: Inputs, rows: list[Row]) -> None:
    stores = [TokenStore.open(inputs.tokens / name / "train") for name in inputs.recipe.data.sources]
    counts = Counter(int(token) for store in stores for token in store.tokens)
    total = counts.total() + inputs.recipe.model.vocab_size
    targets = [token for tokens in held_out_targets(inputs).values() for token in tokens]
    losses = [-math.log((counts[token] + 1) / total) for token in targets]
    best = max(sorted(counts), key=lambda token: counts[token])
    row = rows[0]
    assert row.what == "unigram"
    assert nats(row) == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert f"top-1 accuracy {targets.count(best) / len(targets):.2%}" in row.note
    assert f"{counts.total():,} tokens of training text" in row.note


def test_the_n_gram_knows_more_than_the_unigram_and_says_how_much_it_counted(inputs: Inputs, rows: list[Row]) -> None:
    unigram, ngram, *_ = rows
    assert nats(ngram) < nats(unigram)
    assert unigram.bar == ngram.bar == ""
    (few,) = [row for row in bench_masked(inputs, [], 300) if row.what == ngram.what]

    def counted(row: Row) -> int:
        (part,) = [part for part in row.note.split("; ") if part.endswith("tokens of training text")]
        return int(part.split()[0].replace(",", ""))

    assert counted(few) <= 600 < counted(ngram) < counted(unigram)
    assert nats(few) != nats(ngram)


def test_a_model_s_row_is_what_the_training_found_at_its_end(trained: Toy, rows: list[Row]) -> None:
    phase, checkpoint = rows[2:]
    losses, hits = (trained.losses(key=f"eval/{key}") for key in ("loss", "accuracy"))
    assert nats(phase) == pytest.approx(losses[max(losses)], abs=2e-4)
    assert f"masked perplexity {math.exp(losses[max(losses)]):,.1f}, top-1 accuracy {hits[max(hits)]:.2%}" in phase.note
    for name in ("wikipedia", "news", "folklor"):
        found = trained.losses(key=f"eval/loss/{name}")
        assert f"{name} {found[max(found)]:.3f} " in phase.note
    assert (phase.figure, phase.note) == (checkpoint.figure, checkpoint.note)
    assert phase.what == str(trained.folder / "phase1")
    assert phase.bar == f"< {nats(rows[1]):.4f}, the n-gram's"
    assert phase.met == (nats(phase) < nats(rows[1]))


def test_a_registered_version_is_pulled_and_called_by_its_number(
    trained: Toy, inputs: Inputs, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(trained.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)
    figures = {"eval/loss": 5.25, "eval/accuracy": 0.125}
    version = push(trained.checkpoints().steps()[-1], trained.recipe, figures, [], ["phase1"])
    with open_model(inputs, f"models:/{version.name}@phase1") as model:
        assert model.name == version.uri
    with open_model(inputs, str(trained.folder / "phase1")) as other:
        for one, two in zip(model.network.parameters(), other.network.parameters(), strict=True):
            assert torch.equal(one, two)
    mlflow.set_tracking_uri(None)


def make_stream(folder: Path, documents: list[np.ndarray]) -> Stream:
    write_store(folder, documents, vocab_size=300)
    stores = {"only": TokenStore.open(folder)}
    return Stream(plan_rows(stores, 64, 7), stores, IDS, seed=7, masking_rate=0.4, shuffle=False)


def test_a_masked_neighbour_is_not_looked_at(tmp_path: Path) -> None:
    document = np.random.default_rng(3).integers(len(IDS), 300, 62)
    places = places_of(make_stream(tmp_path / "one", [document]), 1, IDS[MASK])
    batch = make_stream(tmp_path / "again", [document]).batch(0, 1)
    masked = batch.masked_indices.tolist()
    row = [IDS["[CLS]"], *document.tolist(), IDS["[SEP]"]]
    for number, at in enumerate(masked):
        assert places.tokens[number] == row[at]
        assert places.left[number] == (HIDDEN if at - 1 in masked else row[at - 1])
        assert places.right[number] == (HIDDEN if at + 1 in masked else row[at + 1])
    pairs = [number for number, at in enumerate(masked) if at + 1 in masked]
    assert pairs
    assert (places.left != HIDDEN).any()

    # Another token at the second of two masks changes nothing of the first.
    text = framed([document], 62, IDS["[CLS]"], IDS["[SEP]"])
    model = Neighbours(text, 300)
    losses, hits = model.score(places)
    changed = document.copy()
    changed[masked[pairs[0]]] = 299 - changed[masked[pairs[0]]] % 200  # `masked` counts [CLS]: this is the next one
    other = places_of(make_stream(tmp_path / "changed", [changed]), 1, IDS[MASK])
    assert other.tokens[pairs[0] + 1] != places.tokens[pairs[0] + 1]
    other_losses, other_hits = model.score(other)
    assert (other_losses[pairs[0]], other_hits[pairs[0]]) == (losses[pairs[0]], hits[pairs[0]])
    assert other_losses[pairs[0] + 1] != losses[pairs[0] + 1]


def test_a_model_of_another_tokenizer_is_refused(trained: Toy, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", trained.recipe, seed=8)
    other = trained.with_(corpus=tmp_path / "corpus").inputs()
    with refused(CheckpointError, str(trained.folder / "phase1"), "made with another tokenizer than"):
        list(bench_masked(other, [str(trained.folder / "phase1")], MOST))


def test_a_model_that_reads_less_than_a_row_is_refused(trained: Toy) -> None:
    longer = trained.with_({"model": {"max_position_embeddings": 128}, "phase1": {"sequence_length": 128}}).inputs()
    with refused(CheckpointError, "reads 64 tokens, the rows of phase1 have 128"):
        load(longer, trained.checkpoints().steps()[-1], "phase1")


def test_a_folder_without_a_checkpoint_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    with refused(CheckpointError, str(tmp_path)), open_model(inputs, str(tmp_path)):
        pass


def test_examples_are_the_same_each_time_and_one_token_is_masked(inputs: Inputs) -> None:
    tokenizer = load_tokenizer(inputs.tokenizer)
    examples = find_examples(inputs, tokenizer, 2)
    assert examples == find_examples(inputs, tokenizer, 2)
    assert len({example.text for example in examples}) == 2
    assert find_examples(inputs, tokenizer, 1) == examples[:1]
    special = {IDS[token] for token in ("[CLS]", "[SEP]")}
    for example in examples:
        assert example.ids.count(IDS[MASK]) == 1
        assert example.ids[example.place] == IDS[MASK]
        filled = [*example.ids[: example.place], example.token, *example.ids[example.place + 1 :]]
        text = tokenizer.decode([token for token in filled if token not in special]).strip()
        assert text == example.text.replace(MASK, example.word)
        assert tokenizer.decode([example.token]).strip() == example.word
        assert len(example.word) >= 3


def test_guesses_are_those_of_the_exported_model(trained: Toy, inputs: Inputs, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    from azneobert.pretrained import load_model

    examples = find_examples(inputs, load_tokenizer(inputs.tokenizer), 2)
    with open_model(inputs, str(trained.folder / "phase1")) as model:
        found = guess(model, examples)
        weights = {name: p.detach() for name, p in model.network.named_parameters(remove_duplicate=False)}
        export_transformers(weights, model.recipe.model, inputs.tokenizer, tmp_path / "export")
    network = load_model(tmp_path / "export", AutoModelForMaskedLM).eval()
    for example, top in zip(examples, found, strict=True):
        with torch.no_grad():
            expected = network(torch.tensor([example.ids])).logits[0, example.place].softmax(-1).topk(3)
        assert [token for token, _ in top] == expected.indices.tolist()
        assert [share for _, share in top] == pytest.approx(expected.values.tolist(), rel=1e-3)


def test_each_kept_checkpoint_guesses_each_example(trained: Toy, inputs: Inputs) -> None:
    names = [folder.name for folder in trained.checkpoints().steps()]
    assert len(names) == 2
    examples = find_examples(inputs, load_tokenizer(inputs.tokenizer), 2)
    found = list(bench_examples(inputs, [], 2))
    assert [row.what for row in found] == [f"{example.text} ({name})" for example in examples for name in names]
    assert [row.bar for row in found] == [example.word for example in examples for _ in names]
    for row in found:
        assert len(row.figure.split("%, ")) == 3
    given = list(bench_examples(inputs, [str(trained.folder / "phase1")], 2))
    assert [row.figure for row in given] == [row.figure for row in found[1::2]]


def test_a_phase_without_checkpoints_and_a_text_without_words_are_refused(
    make_toy: Callable[..., Toy], tmp_path: Path
) -> None:
    toy = make_toy()
    with refused(CheckpointError, "no checkpoint there; run `dvc repro phase1`, or name models"):
        list(bench_examples(toy.inputs(), [], 1))
    shutil.copytree(toy.corpus, tmp_path / "corpus")
    empty = toy.with_(corpus=tmp_path / "corpus").inputs()
    for name in toy.recipe.data.sources:
        shutil.rmtree(empty.tokens / name / "validation")
        write_store(empty.tokens / name / "validation", [], vocab_size=300)
    with refused(DataError, "no held-out sentence of 5 to 25 words"):
        find_examples(empty, load_tokenizer(empty.tokenizer), 1)


@pytest.fixture(scope="module")
def folder(trained: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder, its outputs as the stages leave them."""
    project = tmp_path_factory.mktemp("project")
    recipe: dict[str, Any] = trained.recipe.model_dump(mode="json")
    write_yaml(project / "params.yaml", recipe)
    root = project / "outputs" / "toy"
    shutil.copytree(trained.corpus / "tokens", root / "tokens")
    shutil.copytree(trained.corpus / "rows" / "32", root / "rows" / "phase1")
    (root / "tokenizer").mkdir()
    shutil.copy(trained.corpus / "tokenizer.json", root / "tokenizer")
    shutil.copytree(trained.folder / "phase1", root / "phase1")
    shutil.copytree(trained.run().path, root / "running" / "phase1")
    return project


def test_the_command_prints_and_writes_the_table(folder: Path, rows: list[Row]) -> None:
    code, out, errors = run_command(["bench", "masked", "outputs/toy/phase1", "--output", "masked.md"], folder)
    assert (code, errors) == (0, "")
    written = (folder / "masked.md").read_text(encoding="utf-8")
    for row, what in zip(rows[:3], ("unigram", "n-gram of both neighbours", "outputs/toy/phase1"), strict=True):
        assert f"{what}: {row.figure} ({row.note})" in out
        assert f"| {what} | {row.figure} | {row.bar} | " in written


def test_the_command_shows_examples(folder: Path) -> None:
    code, out, errors = run_command(["bench", "masked", "--examples", "2", "--output", "examples.md"], folder)
    assert (code, errors) == (0, "")
    lines = [line for line in (folder / "examples.md").read_text().splitlines() if MASK in line]
    assert len(lines) == 4
    assert all("(step-000000" in line for line in lines)
    assert out.count(MASK) >= 4


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    (line,) = [line for line in as_markdown("t", [Row("a|b", "1")]).splitlines() if "a" in line and "1 |" in line]
    assert line == r"| a\|b | 1 |  |  |  |"
