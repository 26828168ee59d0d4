"""One training on a task, by `transformers.Trainer`: the best epoch on the validation split, tested once."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler

from azneobert.errors import TrainingError
from azneobert.finetuning.kinds.interface import Encoded, Predictions
from azneobert.finetuning.kinds.known import kind_of
from azneobert.finetuning.scores import main_score, score
from azneobert.finetuning.task import Task
from azneobert.pretrained import load_config, load_model, load_tokenizer
from azneobert.task_settings import SPLITS, Split, TuningSettings

# As BERT's authors fine-tuned, and most who came after them.
_WARMUP = 0.1  # of all steps
_WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Epoch:
    """One pass over the training split: the mean loss of its steps, and the validation split's scores after it."""

    number: int
    loss: float
    validation: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """A model after its training, with the weights of the best epoch, and its predictions on the test split."""

    model: Any
    tokenizer: Any
    epochs: list[Epoch]
    best: Epoch
    test: Predictions
    scores: dict[str, float]  # of the test split
    truncated: dict[Split, int]  # examples that were cut at `max_length`
    unseen: dict[Split, int]  # words without a token


def prepare(encoder: Path, task: Task, max_length: int) -> tuple[Any, dict[Split, Encoded]]:
    """The tokenizer of an encoder, and a task's splits as the model's inputs; held-out rows sorted by length.

    Raises:
        AzNeoBertError: transformers cannot read the folder.
        TrainingError: the model takes no texts of that length.
    """
    tokenizer = check_length(encoder, task, max_length)
    kind = kind_of(task.kind)
    splits = {split: kind.encode(tokenizer, task, task.splits[split], max_length) for split in SPLITS}
    for split in ("validation", "test"):  # equal lengths in a batch need no padding; any order is allowed
        splits[split].rows.sort(key=lambda row: len(row.inputs["input_ids"]))
    return tokenizer, splits


def check_length(encoder: Path, task: Task, max_length: int) -> Any:
    """The tokenizer of an encoder for a task, if the encoder takes texts of that length.

    Raises:
        AzNeoBertError: transformers cannot read the folder.
        TrainingError: it does not.
    """
    tokenizer = load_tokenizer(encoder, split_words=task.kind == "tokens")
    longest = longest_text(encoder)
    if max_length > longest:
        raise TrainingError(
            f"max_length: found {max_length:,}, and this model reads {longest:,} tokens; use at most that"
        )
    return tokenizer


def longest_text(encoder: Path) -> int:
    """How many tokens a model takes. RoBERTa's positions begin after the padding's; its tokenizer knows the limit.

    Raises:
        AzNeoBertError: transformers cannot read the folder.
    """
    positions = getattr(load_config(encoder), "max_position_embeddings", None) or 1 << 20
    return min(int(positions), int(load_tokenizer(encoder).model_max_length))


def train(
    encoder: Path,
    task: Task,
    splits: dict[Split, Encoded],
    tokenizer: Any,
    settings: TuningSettings,
    seed: int,
    *,
    pretrained: bool,
) -> Trained:
    """Train a model on what `prepare` has made, on one device.

    Without `pretrained` only the encoder's configuration is used, and the weights are random: a baseline that shows the
    gain from pretraining.

    Raises:
        TrainingError: the held-out loss is not finite.
    """
    from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, set_seed

    class InOrder(Trainer):
        """Evaluates in the given order. `Trainer` would group by length, and return outputs in that order."""

        def _get_eval_sampler(self, eval_dataset: Any) -> Any:
            return SequentialSampler(eval_dataset)

    set_seed(seed)
    kind = kind_of(task.kind)
    model = _model(encoder, task, pretrained=pretrained)
    rows = {split: [row.inputs for row in encoded.rows] for split, encoded in splits.items()}
    main = main_score(task)

    def predicted(outputs: Any, split: Split) -> Predictions:
        return kind.decode(np.asarray(outputs), splits[split].rows, task, task.splits[split])

    def validated(evaluation: Any) -> dict[str, float]:
        gold = [one.label for one in task.splits["validation"]]
        return score(task, gold, predicted(evaluation.predictions, "validation").labels)

    with tempfile.TemporaryDirectory() as scratch:
        trainer = InOrder(
            model=model,
            args=arguments(settings, seed, scratch, main),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            data_collator=kind.collator(tokenizer),
            compute_metrics=validated,
            preprocess_logits_for_metrics=lambda logits, labels: kind.reduce(logits),
            callbacks=[EarlyStoppingCallback(settings.patience)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.compute_metrics = None  # it uses the validation split
        test = trainer.predict(rows["test"])
    epochs = _epochs(trainer.state.log_history)
    # With NaN weights a label still comes out: the first one.
    if not isfinite(test.metrics["test_loss"]) or not all(isfinite(epoch.loss) for epoch in epochs):
        raise TrainingError(f"seed {seed}: the loss is not finite; use a lower learning_rate")
    found = predicted(test.predictions, "test")
    return Trained(
        model=trainer.model,
        tokenizer=tokenizer,
        epochs=epochs,
        best=max(epochs, key=lambda epoch: (epoch.validation[main], -epoch.number)),
        test=found,
        scores=score(task, [one.label for one in task.splits["test"]], found.labels),
        truncated={split: encoded.truncated for split, encoded in splits.items()},
        unseen={split: encoded.unseen for split, encoded in splits.items()},
    )


def _model(encoder: Path, task: Task, *, pretrained: bool) -> Any:
    kind = kind_of(task.kind)
    config = load_config(encoder, **kind.head(task))
    if pretrained:
        return load_model(encoder, kind.auto_class(), config=config, dtype=torch.float32, ignore_mismatched_sizes=True)
    return kind.auto_class().from_config(config, dtype=torch.float32)


def arguments(settings: TuningSettings, seed: int, folder: str, main: str) -> Any:
    """How `Trainer` trains: on one device, so that a batch has `batch_size` rows on any machine; in bf16 on a GPU."""
    from transformers import TrainingArguments

    gpu = torch.cuda.is_available()
    chosen = TrainingArguments(
        output_dir=folder,
        seed=seed,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        train_sampling_strategy="group_by_length",
        learning_rate=settings.learning_rate,
        warmup_steps=_WARMUP,
        weight_decay=_WEIGHT_DECAY,
        bf16=gpu and torch.cuda.is_bf16_supported(),
        eval_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # it hides a NaN loss, and waits for the GPU at each step
        save_strategy="epoch",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model=main,
        greater_is_better=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
    )
    chosen._n_gpu = min(chosen.n_gpu, 1)  # `Trainer` would use every GPU, each with a batch of that size
    return chosen


def _epochs(history: list[dict[str, Any]]) -> list[Epoch]:
    """The epochs that `Trainer` has logged: a line with the loss, then one with the validation's scores."""
    epochs, loss = [], float("nan")
    for line in history:
        if "loss" in line:
            loss = float(line["loss"])
        elif "eval_loss" in line:
            scores = {
                name.removeprefix("eval_"): float(value)
                for name, value in line.items()
                if name.startswith("eval_") and name not in _TIMINGS
            }
            epochs.append(Epoch(round(line["epoch"]), loss, scores))
    return epochs


_TIMINGS = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
