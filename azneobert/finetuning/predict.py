"""A fine-tuned model on new examples, in batches of like length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from azneobert.errors import DataError
from azneobert.finetuning.examples import unlabelled
from azneobert.finetuning.kinds.interface import Predictions
from azneobert.finetuning.kinds.known import kind_of
from azneobert.finetuning.reading import check_pairs
from azneobert.finetuning.saved import Purpose
from azneobert.finetuning.tables import rows
from azneobert.finetuning.task import UNSEEN, Example, Label
from azneobert.pretrained import load_model, load_tokenizer


@torch.inference_mode()
def predict(folder: Path, purpose: Purpose, examples: Sequence[Example], batch_size: int) -> tuple[Predictions, int]:
    """The model's predictions for examples, and how many of those were cut at its longest input.

    Raises:
        AzNeoBertError: transformers cannot load the model.
    """
    kind, task = kind_of(purpose.settings.kind), purpose.task
    tokenizer = load_tokenizer(folder, split_words=purpose.settings.kind == "tokens")
    encoded = kind.encode(tokenizer, task, examples, purpose.max_length)
    rows = sorted(encoded.rows, key=lambda row: len(row.inputs["input_ids"]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exact = purpose.settings.kind == "regression"  # in bf16 a number would keep two digits
    dtype = torch.bfloat16 if device.type == "cuda" and not exact else torch.float32
    model = load_model(folder, kind.auto_class(), dtype=dtype).to(device).eval()
    collate = kind.collator(tokenizer)
    outputs = []
    for start in range(0, len(rows), batch_size):
        batch = collate([row.inputs for row in rows[start : start + batch_size]]).to(device)
        batch.pop("labels", None)
        outputs += list(kind.reduce(model(**batch).logits).cpu().numpy())
    if purpose.settings.kind == "tokens":
        longest = max((len(output) for output in outputs), default=0)
        outputs = [np.pad(output, ((0, longest - len(output)), (0, 0))) for output in outputs]
        return kind.decode(np.array(outputs).reshape(len(rows), longest, 2), rows, task, examples), encoded.truncated
    return kind.decode(np.array(outputs), rows, task, examples), encoded.truncated


def predict_file(folder: Path, purpose: Purpose, file: Path, batch_size: int) -> tuple[list[str], int]:
    """Each record of a file with its `prediction` and `confidence`, as a line of JSON; and how many texts were cut.

    A regression's line has no confidence. An unseen word's prediction is null.

    Raises:
        DataError: the file or a record of it cannot be read.
        AzNeoBertError: transformers cannot load the model.
    """
    records, examples = [], []
    for where, record in rows(file, purpose.settings):
        records.append(record)
        examples.append(unlabelled(where, record, purpose.settings))
    if not examples:
        raise DataError(f"{file}: is empty; expected an example or more")
    if purpose.settings.kind == "regression":
        check_pairs(examples, purpose.settings)
    found, truncated = predict(folder, purpose, examples, batch_size)
    lines = []
    for record, label, confidence in zip(records, found.labels, found.confidences, strict=True):
        said: dict[str, Any] = {"prediction": _named(label, purpose)}
        if purpose.settings.kind != "regression":
            said["confidence"] = round(confidence, 4)
        lines.append(_as_json(record | said))
    return lines, truncated


def _as_json(record: dict[str, Any]) -> str:
    line = json.dumps(record, ensure_ascii=False, default=str)
    if line.encode(errors="ignore").decode() == line:
        return line
    return json.dumps(record, default=str)  # escaped: half of a surrogate pair has no UTF-8


def _named(label: Label, purpose: Purpose) -> Any:
    """A label as the data have it."""
    if isinstance(label, tuple):
        return [None if number == UNSEEN else purpose.labels[number] for number in label]
    if isinstance(label, float):
        return round(label, 4)
    return label + purpose.settings.first_label if purpose.settings.kind == "choice" else purpose.labels[label]
