"""What a model costs: how fast it reads, and into how many tokens its tokenizer cuts a word."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from azneobert.data.fertility import fertility
from azneobert.finetuning.kinds.known import kind_of
from azneobert.finetuning.task import Example, Task
from azneobert.finetuning.training import Trained
from azneobert.pretrained import load_tokenizer
from azneobert.task_settings import SPLITS, TuningSettings

_TEXTS_AT_ONCE = 1000


@dataclass(frozen=True)
class Speed:
    """How many tokens, without padding, a model has read in how many seconds, and on which device."""

    tokens: int
    seconds: float
    device: str


@torch.inference_mode()
def measure_speed(trained: Trained, task: Task, tuning: TuningSettings) -> Speed:
    """Read the test split once: forward passes alone, in batches of similar length, in the dtype of the training.

    The first batch is read once before the clock starts, which pays for what is set up at the first use.
    """
    model, kind = trained.model.eval(), kind_of(task.kind)
    encoded = kind.encode(trained.tokenizer, task, task.splits["test"], tuning.max_length)
    rows = sorted((row.inputs for row in encoded.rows), key=lambda inputs: len(inputs["input_ids"]))
    size, collate = 2 * tuning.batch_size, kind.collator(trained.tokenizer)
    batches = [collate(rows[start : start + size]).to(model.device) for start in range(0, len(rows), size)]
    on_gpu = model.device.type == "cuda"
    with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu and torch.cuda.is_bf16_supported()):
        model(**batches[0])
        _wait(model)
        began = time.perf_counter()
        for batch in batches:
            model(**batch)
        _wait(model)
    seconds = time.perf_counter() - began
    return Speed(sum(int(batch["attention_mask"].sum()) for batch in batches), seconds, device_name())


def device_name() -> str:
    """What the models are trained and measured on here."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def tokens_a_word(encoder: Path, tasks: Iterable[Task]) -> float:
    """The mean number of tokens, without special ones, of a word between white space in the encoder's tokenizer.

    The texts are those of all splits of the tasks.

    Raises:
        AzNeoBertError: transformers cannot read the encoder.
    """
    tokenizer = load_tokenizer(encoder)

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    return fertility({"tokens": count}, _texts(tasks))["tokens"]


def _texts(tasks: Iterable[Task]) -> Iterator[list[str]]:
    for task in tasks:
        for split in SPLITS:
            examples = task.splits[split]
            for start in range(0, len(examples), _TEXTS_AT_ONCE):
                yield [text for one in examples[start : start + _TEXTS_AT_ONCE] for text in _texts_of(one)]


def _texts_of(example: Example) -> list[str]:
    text = example.text if isinstance(example.text, str) else " ".join(example.text)
    return [text, *([example.pair] if example.pair is not None else []), *example.choices]


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
