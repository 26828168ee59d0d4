"""Suites: files that name the tasks on which encoders are compared, and how they are trained there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from azneobert.errors import DataError
from azneobert.settings import Block, Name, first_error
from azneobert.task_settings import AnyTask, TaskFiles, TaskOfHub, TuningSettings
from azneobert.yaml_files import read_yaml

_PACKAGED = Path(__file__).parents[1] / "suites"


@dataclass(frozen=True)
class Suite:
    """Tasks by their names, in the order of the file, and how an encoder is trained on each of them."""

    name: str
    tuning: TuningSettings
    tasks: dict[str, AnyTask]


class _Stated(Block):
    """A suite as its file has it."""

    tuning: TuningSettings
    tasks: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]


def load_suite(name: str) -> Suite:
    """A suite that comes with this package, by its name, or the one in a YAML file.

    The `path` of a task is relative to the folder of the suite's file. In a suite that comes with the package it is
    relative to the project's folder.

    Raises:
        DataError: there is no such suite, or it is not whole; the message holds the path of the key.
    """
    file = _find(name)
    try:
        stated = _Stated.model_validate(read_yaml(file))
    except ValidationError as error:
        raise DataError(f"{file}: {first_error(error)}") from None
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None
    folder = Path() if file.parent == _PACKAGED else file.parent
    return Suite(
        file.stem, stated.tuning, {task: _task(file, task, keys, folder) for task, keys in stated.tasks.items()}
    )


def _find(name: str) -> Path:
    packaged = _PACKAGED / f"{name}.yaml"
    if packaged.is_file():
        return packaged
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return Path(name)
    known = ", ".join(sorted(file.stem for file in _PACKAGED.glob("*.yaml")))
    raise DataError(f"{name}: no such suite; expected {known}, or the path of a .yaml file")


def _task(file: Path, name: str, keys: dict[str, Any], folder: Path) -> AnyTask:
    if "path" not in keys and "dataset" not in keys:
        raise DataError(f"{file}: tasks.{name}: expected `path`, a folder or file, or `dataset`, a name of the hub")
    try:
        if "dataset" in keys:
            return TaskOfHub.model_validate(keys)
        task = TaskFiles.model_validate(keys)
    except ValidationError as error:
        raise DataError(f"{file}: tasks.{name}: {first_error(error)}") from None
    return task.model_copy(update={"path": str(folder / task.path)})
