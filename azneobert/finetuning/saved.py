"""A fine-tuned model in a folder: what transformers loads, and task.json, by which `azneobert predict` uses it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from azneobert.errors import DataError
from azneobert.files import read_json, write_json
from azneobert.finetuning.task import Task
from azneobert.finetuning.training import Trained, longest_text
from azneobert.pretrained import load_config
from azneobert.task_settings import TaskSettings, TuningSettings

TASK = "task.json"
_SETTINGS = ("kind", "text_field", "pair_field", "choices_field", "label_field", "labels", "first_label")


@dataclass(frozen=True)
class Purpose:
    """What a fine-tuned model is for: the task as it was read, its labels by index, and the longest input."""

    settings: TaskSettings
    labels: list[str]
    max_length: int

    @property
    def task(self) -> Task:
        """A task of these labels without examples."""
        return Task("", self.settings.kind, self.labels, {})


def save_model(
    trained: Trained, task: Task, task_settings: TaskSettings, settings: TuningSettings, folder: Path
) -> None:
    """Write the folder of a model. An existing folder is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = {
        "name": task.name,
        "labels": task.labels,
        "max_length": settings.max_length,
        "settings": task_settings.model_dump(mode="json", include=set(_SETTINGS)),
    }
    write_json(folder / TASK, content)  # first, so that a folder that a kill leaves half written can be recognised
    trained.model.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)


def read_purpose(folder: Path) -> Purpose:
    """What the model in a folder is for. For a model that was not made here, its configuration says it.

    Raises:
        DataError: it is no fine-tuned model, or its task.json is damaged.
        AzNeoBertError: transformers cannot read its configuration.
    """
    if (folder / TASK).is_file():
        try:
            content = read_json(folder / TASK)
            settings = TaskSettings.model_validate_json(json.dumps(content["settings"]))
            return Purpose(settings, [str(label) for label in content["labels"]], int(content["max_length"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / TASK}: damaged ({' '.join(str(error).split())[:200]}); pull it again") from None
    return _stated(folder)


def _stated(folder: Path) -> Purpose:
    config = load_config(folder)
    made = next(iter(config.architectures or []), "")
    longest = min(longest_text(folder), 512)
    labels = [str(config.id2label[number]) for number in range(config.num_labels)]
    if made.endswith("ForTokenClassification"):
        return Purpose(TaskSettings(kind="tokens"), labels, longest)
    if made.endswith("ForSequenceClassification"):
        is_number = config.problem_type == "regression" or config.num_labels == 1
        return Purpose(TaskSettings(kind="regression" if is_number else "classification"), labels, longest)
    raise DataError(f"{folder}: is {made or 'of no known kind'}, no fine-tuned classifier; fine-tune it first")
