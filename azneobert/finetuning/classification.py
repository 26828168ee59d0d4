"""Fine-tune a registered encoder on a text classification task, beside the same network from random weights."""

from __future__ import annotations

import tempfile
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

from azneobert.errors import TrainingError
from azneobert.finetuning.tasks import Task
from azneobert.pretrained import load_config, load_model, load_tokenizer
from azneobert.recipe import Finetuning


def fine_tune(encoder: Path, task: Task, settings: Finetuning, seed: int, *, pretrained: bool) -> dict[str, float]:
    """Train on the task's training split and score the others once, at the end.

    `encoder` is a pulled version; without `pretrained` only its configuration and tokenizer are used, the weights are
    random. Returns `accuracy` and `macro_f1` of the test split, and `validation_accuracy`.
    """
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        PrinterCallback,
        Trainer,
        set_seed,
    )

    set_seed(seed)
    tokenizer = load_tokenizer(encoder)
    labels = dict(enumerate(task.labels))
    config = load_config(encoder, id2label=labels, label2id={name: n for n, name in labels.items()})
    if pretrained:
        model = load_model(encoder, AutoModelForSequenceClassification, config=config)
    else:
        model = AutoModelForSequenceClassification.from_config(config)
    splits = {split: _encode(tokenizer, examples, settings.max_length) for split, examples in task.splits.items()}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=_arguments(settings, seed, scratch),
            train_dataset=splits["train"],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=_scores,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        validation = trainer.evaluate(splits["validation"], metric_key_prefix="validation")
        test = trainer.evaluate(splits["test"], metric_key_prefix="test")
    # Of weights that are no numbers a label comes out all the same: the first one.
    if not isfinite(validation["validation_loss"] + test["test_loss"]):
        raise TrainingError(f"seed {seed}: the held-out loss is not finite; use a lower finetuning.learning_rate")
    return {
        "accuracy": test["test_accuracy"],
        "macro_f1": test["test_macro_f1"],
        "validation_accuracy": validation["validation_accuracy"],
    }


def _arguments(settings: Finetuning, seed: int, folder: str) -> Any:
    """How `Trainer` trains: on one device, so that a batch is the recipe's on any machine."""
    from transformers import TrainingArguments

    class OneDevice(TrainingArguments):
        """`Trainer` would put the model on every GPU it sees, each with a batch of the recipe's size."""

        @property
        def n_gpu(self) -> int:
            return min(int(super().n_gpu), 1)

    return OneDevice(
        output_dir=folder,
        seed=seed,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _encode(tokenizer: Any, examples: list[tuple[str, int]], max_length: int) -> list[dict[str, Any]]:
    encoded = tokenizer([text for text, _ in examples], truncation=True, max_length=max_length)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, (_, label) in zip(encoded["input_ids"], encoded["attention_mask"], examples, strict=True)
    ]


def _scores(prediction: Any) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    guesses = np.asarray(prediction.predictions).argmax(-1)
    truth = prediction.label_ids
    return {
        "accuracy": float(accuracy_score(truth, guesses)),
        "macro_f1": float(f1_score(truth, guesses, average="macro")),
    }
