"""What the tests of fine-tuning share: experiments on a tiny encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import learnable
import pytest
import torch

from azneobert.finetuning.experiment import Result, make_room, run_experiment
from azneobert.finetuning.kinds.interface import Predictions
from azneobert.finetuning.kinds.known import kind_of
from azneobert.finetuning.saved import save_model
from azneobert.finetuning.task import Task
from azneobert.finetuning.training import Epoch, Trained
from azneobert.pretrained import load_model, load_tokenizer
from azneobert.task_settings import TaskSettings, TuningSettings


@dataclass(frozen=True)
class Experiment:
    """A task, what an experiment of two seeds on it has written and reported, and its results."""

    task: Task
    settings: TuningSettings
    folder: Path
    report: dict[str, Any]
    results: list[Result]


@pytest.fixture(scope="session")
def experiment(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    task = learnable.classification({"train": 64, "validation": 32, "test": 48}, noise=0.4)
    task.notes.append("a note")
    settings = learnable.LEARNING.model_copy(update={"epochs": 3, "seeds": (3, 4)})
    folder, results = tmp_path_factory.mktemp("experiment") / "folder", list[Result]()
    make_room(folder)
    about = {"encoder": "models:/toybert@phase2", "encoder_sha256": "a" * 64}
    report = run_experiment(encoder, task, TaskSettings(), settings, folder, results.append, about)
    return Experiment(task, settings, folder, report, results)


MakeModel = Callable[[TaskSettings, list[str]], Path]


@pytest.fixture(scope="session")
def make_model(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Makes the folder of a model for a task as fine-tuning leaves it, with a head of random weights."""

    def make(settings: TaskSettings, labels: list[str]) -> Path:
        folder = tmp_path_factory.mktemp("model") / settings.kind
        task, kind = Task("toy_task", settings.kind, labels, {}), kind_of(settings.kind)
        torch.manual_seed(1)
        model = load_model(encoder, kind.auto_class(), **kind.head(task))
        tokenizer = load_tokenizer(encoder, split_words=settings.kind == "tokens")
        epoch = Epoch(1, 0.5, {})
        trained = Trained(model, tokenizer, [epoch], epoch, Predictions([], []), {}, {}, {})
        save_model(trained, task, settings, learnable.LEARNING, folder)
        return folder

    return make
