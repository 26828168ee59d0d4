"""`azneobert bench finetune`: what fine-tuning through this project costs, over the `Trainer` that it is made of.

Both ways train the same encoder on the same examples for the same number of steps, score and save each epoch, and test.
One calls what `azneobert finetune` calls, the other follows transformers' documentation. They take turns, ours first
and last in a round of four, so that a machine that warms up or slows down favours neither.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from azneobert.bench.models import middling_model
from azneobert.bench.report import Row
from azneobert.data.tokenizer import train_tokenizer
from azneobert.finetuning.reading import read_task
from azneobert.finetuning.task import Task
from azneobert.finetuning.training import prepare, train
from azneobert.model.encoder import build_model
from azneobert.model.export import export_transformers
from azneobert.task_settings import SPLITS, TaskFiles, TuningSettings

_BAR = 1.10
_SEED = 1


@dataclass(frozen=True)
class Turns:
    """The number of rounds of four trainings, the epochs of a training, and the most examples of each split."""

    rounds: int = 3
    epochs: int = 2
    examples: int = 400


def bench_finetune(turns: Turns, folder: Path) -> Iterator[Row]:
    """Every row of the table; `folder` holds a task of classification, in which a training ends on its own epochs."""
    task = _shortened(read_task("task", TaskFiles(path=str(folder))), turns.examples)
    settings = TuningSettings(
        epochs=turns.epochs,
        patience=turns.epochs,  # so that both train all epochs
        batch_size=16,
        learning_rate=1e-4,
        max_length=128,
        seeds=(_SEED,),
    )
    with tempfile.TemporaryDirectory(prefix="azneobert-bench-") as scratch:
        encoder = _encoder(Path(scratch) / "encoder", task)
        once = settings.model_copy(update={"epochs": 1})  # a warm-up, which pays for imports and compilation
        _ours(encoder, _shortened(task, 32), once)
        _plain(encoder, _shortened(task, 32), once)
        rounds = [_round(encoder, task, settings) for _ in range(turns.rounds)]
    ours, plain = (sum(seconds) for seconds in zip(*rounds, strict=True))
    ratios = [mine / theirs for mine, theirs in rounds]
    count = 2 * turns.rounds
    steps = settings.epochs * -(-len(task.splits["train"]) // settings.batch_size)
    yield Row("a training by `Trainer` alone, tested", f"{plain / count:.1f} s", note=f"mean of {count}, {steps} steps")
    yield Row("the same through this project", f"{ours / count:.1f} s", note=f"mean of {count}, {steps} steps")
    yield Row(
        "through this project, over `Trainer` alone",
        f"{ours / plain:.3f}",
        f"<= {_BAR:.2f}",
        ours <= _BAR * plain,
        f"{min(ratios):.3f} to {max(ratios):.3f} in {turns.rounds} rounds of four in turns",
    )


def _round(encoder: Path, task: Task, settings: TuningSettings) -> tuple[float, float]:
    """The seconds of two trainings of ours, and of two plain ones between them."""
    began = time.perf_counter()
    _ours(encoder, task, settings)
    middle = time.perf_counter()
    _plain(encoder, task, settings)
    _plain(encoder, task, settings)
    late = time.perf_counter()
    _ours(encoder, task, settings)
    return middle - began + time.perf_counter() - late, late - middle


def _ours(encoder: Path, task: Task, settings: TuningSettings) -> None:
    tokenizer, splits = prepare(encoder, task, settings.max_length)
    train(encoder, task, splits, tokenizer, settings, _SEED, pretrained=True)


def _plain(encoder: Path, task: Task, settings: TuningSettings) -> None:
    """Train as the documentation of transformers does. `Trainer` draws and pads the batches in its default way."""
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        PrinterCallback,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(task.labels))

    def encoded(split: Any) -> list[dict[str, Any]]:
        examples = task.splits[split]
        rows = tokenizer([one.text for one in examples], truncation=True, max_length=settings.max_length)
        return [
            {name: values[number] for name, values in rows.items()} | {"labels": one.label}
            for number, one in enumerate(examples)
        ]

    def scores(evaluation: Any) -> dict[str, float]:
        guesses, gold = evaluation.predictions.argmax(-1), evaluation.label_ids
        return {"accuracy": accuracy_score(gold, guesses), "macro_f1": f1_score(gold, guesses, average="macro")}

    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                seed=_SEED,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size,
                per_device_eval_batch_size=2 * settings.batch_size,
                learning_rate=settings.learning_rate,
                bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
                eval_strategy="epoch",
                save_strategy="epoch",
                save_total_limit=1,
                save_only_model=True,
                load_best_model_at_end=True,
                metric_for_best_model="macro_f1",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=encoded("train"),
            eval_dataset=encoded("validation"),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=scores,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.predict(encoded("test"))


def _encoder(folder: Path, task: Task) -> Path:
    """An encoder of random weights: what they are does not matter to the time."""
    tokenizer = train_tokenizer(iter([[str(one.text) for one in task.splits["train"]]]), "wordpiece", 1024, False)
    folder.parent.mkdir(exist_ok=True)
    tokenizer.save(str(folder.parent / "tokenizer.json"))
    config = middling_model(tokenizer.get_vocab_size())
    model = build_model(config, _SEED)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    export_transformers(weights, config, folder.parent / "tokenizer.json", folder)
    return folder


def _shortened(task: Task, most: int) -> Task:
    return replace(task, splits={split: task.splits[split][:most] for split in SPLITS})
