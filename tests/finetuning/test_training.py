"""A training learns what can be learnt, keeps its best epoch, and gives each example its own prediction."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import learnable
import pytest
import torch
from refusals import refused
from transformers import Trainer, TrainingArguments
from transformers.training_args import ParallelMode

from azneobert.errors import TrainingError
from azneobert.finetuning.predict import predict
from azneobert.finetuning.saved import read_purpose, save_model
from azneobert.finetuning.scores import main_score, score
from azneobert.finetuning.task import Example, Task
from azneobert.finetuning.training import Trained, arguments, prepare, train
from azneobert.task_settings import TaskSettings, TuningSettings

SETTINGS = learnable.LEARNING
FEW = {"train": 64, "validation": 32, "test": 32}


def trained_on(
    encoder: Path, task: Task, settings: TuningSettings, seed: int = 1, *, pretrained: bool = True
) -> Trained:
    tokenizer, splits = prepare(encoder, task, settings.max_length)
    return train(encoder, task, splits, tokenizer, settings, seed, pretrained=pretrained)


def changed(**changes: Any) -> TuningSettings:
    return SETTINGS.model_copy(update=changes)


@pytest.mark.parametrize("make", [learnable.classification, learnable.tokens, learnable.regression, learnable.choice])
def test_what_a_word_decides_is_learnt_from_random_weights(encoder, make):
    task = make()
    found = trained_on(encoder, task, SETTINGS, pretrained=False)
    assert found.scores[main_score(task)] > 0.95
    assert found.epochs[0].loss > 2 * found.epochs[-1].loss
    assert [epoch.number for epoch in found.epochs] == list(range(1, len(found.epochs) + 1))


@dataclass(frozen=True)
class Kept:
    """A training whose last epoch is not its best, and its model in a folder."""

    task: Task
    trained: Trained
    folder: Path

    def predicted(self, split: Any) -> Any:
        return predict(self.folder, read_purpose(self.folder), self.task.splits[split], 8)[0]


@pytest.fixture(scope="module", params=[learnable.classification, learnable.tokens])
def kept(request, encoder, tmp_path_factory) -> Kept:
    options = {"noise": 0.5} if request.param is learnable.classification else {}
    task = request.param(FEW | {"validation": 24}, **options)
    settings = changed(epochs=8, patience=3, learning_rate=8e-3)
    found = trained_on(encoder, task, settings)
    folder = tmp_path_factory.mktemp("kept") / "model"
    save_model(found, task, TaskSettings(kind=task.kind), settings, folder)
    return Kept(task, found, folder)


def test_predictions_belong_to_their_examples(kept: Kept):
    """Regression: Trainer evaluates in the order of lengths where it trains in that, and says nothing of it."""
    texts = [one.text for one in kept.task.splits["test"]]
    assert sorted(texts, key=len) != texts
    assert len(set(kept.trained.test.labels)) > 1
    assert list(kept.predicted("test").labels) == list(kept.trained.test.labels)


def test_the_best_epoch_is_kept_and_its_scores_are_those_of_its_model(kept: Kept):
    main = main_score(kept.task)
    validation = [epoch.validation[main] for epoch in kept.trained.epochs]
    best = kept.trained.best
    assert best.number == 1 + validation.index(max(validation)), "of equal ones the first"
    again = score(kept.task, [one.label for one in kept.task.splits["validation"]], kept.predicted("validation").labels)
    assert {name: best.validation[name] for name in again} == pytest.approx(again)
    test = score(kept.task, [one.label for one in kept.task.splits["test"]], kept.predicted("test").labels)
    assert kept.trained.scores == pytest.approx(test)


def test_training_stops_when_no_epoch_is_better_for_long_enough(encoder):
    task = learnable.classification(FEW)
    settings = changed(epochs=30, patience=2, batch_size=8)
    found = trained_on(encoder, task, settings)
    assert len(found.epochs) == found.best.number + 2 < 30
    last = [epoch.validation["macro_f1"] for epoch in found.epochs[-2:]]
    assert max(last) <= found.best.validation["macro_f1"]


def test_a_seed_decides_everything_to_the_last_bit(encoder):
    task, settings = learnable.classification(FEW, noise=0.5), changed(epochs=2)
    one, again, other = (trained_on(encoder, task, settings, seed) for seed in (1, 1, 2))
    assert (one.epochs, one.scores, one.test) == (again.epochs, again.scores, again.test)
    states = [found.model.state_dict() for found in (one, again, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(*(state["model.embed_tokens.weight"] for state in (states[0], states[2])))


@pytest.mark.parametrize("make", [learnable.classification, learnable.regression])
def test_a_loss_that_is_no_number_is_one_line(encoder, make):
    with refused(TrainingError, "seed 1", "loss is not finite", "use a lower learning_rate"):
        trained_on(encoder, make(FEW), changed(epochs=1, learning_rate=1e30))


def test_a_length_that_the_model_does_not_take_is_refused(encoder):
    with refused(TrainingError, "max_length: found 65", "reads 64 tokens", "use at most that"):
        prepare(encoder, learnable.classification(FEW), 65)


def test_examples_that_were_cut_are_counted_by_split(encoder):
    task = learnable.classification(FEW)
    task.splits["test"][3:5] = [Example("here", "bakı " * 40, 0)] * 2
    _, splits = prepare(encoder, task, 32)
    assert {split: encoded.truncated for split, encoded in splits.items()} == {"train": 0, "validation": 0, "test": 2}


def test_held_out_rows_are_in_the_order_of_their_lengths(encoder):
    _, splits = prepare(encoder, learnable.classification(FEW), 32)
    for split in ("validation", "test"):
        lengths = [len(row.inputs["input_ids"]) for row in splits[split].rows]
        assert lengths == sorted(lengths)
        assert sorted(row.owner for row in splits[split].rows) == list(range(32))


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_a_batch_is_the_setting_s_however_many_gpus_the_machine_has(monkeypatch, tmp_path, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert TrainingArguments(output_dir=str(tmp_path)).n_gpu == gpus  # what it would be without our doing
    chosen = arguments(SETTINGS, 1, str(tmp_path), "accuracy")
    assert chosen.n_gpu == min(gpus, 1)
    assert chosen.parallel_mode == ParallelMode.NOT_PARALLEL
    assert chosen.train_batch_size == SETTINGS.batch_size
    rows = [{"input_ids": [0]}] * 64
    trainer = Trainer(model=torch.nn.Linear(2, 2), args=chosen, train_dataset=rows, eval_dataset=rows)
    assert len(trainer.get_train_dataloader()) == 64 // SETTINGS.batch_size
    assert trainer.args.n_gpu <= 1


def test_nothing_is_left_on_the_disk_and_nothing_is_printed(encoder, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    trained_on(encoder, learnable.classification(FEW), changed(epochs=2))
    assert list(tmp_path.iterdir()) == []
    printed = capfd.readouterr()
    assert not re.search(r"loss|\d+%", printed.out + printed.err)
