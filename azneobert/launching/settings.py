"""launch.yaml: where and how the phases run here. No stage depends on it, and no part of it is a run's identity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from azneobert.environment import GRACE_SECONDS
from azneobert.errors import RecipeError
from azneobert.settings import Block, as_tuple, first_error, shown
from azneobert.yaml_files import read_yaml

FILE = Path("launch.yaml")
TEMPLATE = Path("slurm/launch.yaml")


def _word(text: str) -> str:
    if not text or any(letter.isspace() or letter in "\"'`$\\#;" for letter in text):
        raise ValueError(f"{shown(text)} cannot stand in an #SBATCH line; expected one word without quotes")
    return text


def _option(text: str) -> str:
    if not text.startswith("--") or not text.isprintable():
        raise ValueError(f"{shown(text)} is no option of sbatch; expected one line as --exclusive or --constraint=h200")
    return text


def _image(text: str) -> str:
    if not text.endswith(".sif") or "://" in text or not text.isprintable():
        raise ValueError(f"{shown(text)} is no image; expected a file as containers/azneobert.sif, or null for none")
    return text


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Word = Annotated[str, AfterValidator(_word)]
Seconds = Annotated[int, Field(ge=1, le=10**6)]
# The forms of sbatch: minutes, minutes:seconds, hours:minutes:seconds, days-hours, ...
TimeLimit = Annotated[str, BeforeValidator(_text), Field(pattern=r"^(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})$")]


class LaunchSettings(Block):
    """How the ranks of a phase are started. Settings of SLURM apply only with `launcher: slurm`."""

    launcher: Literal["local", "slurm"] = "local"
    grace_seconds: Seconds = int(GRACE_SECONDS)  # from a request to stop to the forced exit of a rank
    account: Word | None = None
    partition: Word | None = None
    qos: Word | None = None
    time: TimeLimit = "24:00:00"
    nodes: Annotated[str, BeforeValidator(_text), Field(pattern=r"^[1-9]\d{0,4}(-[1-9]\d{0,4})?$")] = "1"
    gpus: Annotated[int, Field(ge=0, le=64)] = 8  # per node, with a rank for each
    ranks: Annotated[int, Field(ge=1, le=1024)] = 1  # per node, if `gpus` is 0
    cpus: Annotated[int, Field(ge=1, le=1024)] = 8  # per rank
    memory: Word | None = None  # per node
    options: Annotated[tuple[Annotated[str, AfterValidator(_option)], ...], BeforeValidator(as_tuple)] = ()
    setup: str = ""  # lines of shell before the ranks start
    warning_seconds: Seconds = 300
    requeue: bool = True
    max_requeues: Annotated[int, Field(ge=0, le=10_000)] = 50
    poll_seconds: Annotated[float, Field(ge=0.1, le=3600)] = 10.0
    cache: Annotated[str, Field(pattern=r"^[^'\n]+$")] | None = None  # a folder of the node
    container: Annotated[str, AfterValidator(_image)] | None = None  # the .sif that the ranks run in

    @model_validator(mode="after")
    def _fit(self) -> LaunchSettings:
        low, high = self.node_range
        if low > high:
            raise ValueError(f"nodes: {self.nodes}: the first number is the larger one; use {high}-{low}")
        if (seconds := seconds_of(self.time)) <= self.warning_seconds:
            raise ValueError(
                f"warning_seconds {self.warning_seconds} leave nothing of {seconds} s of time; use fewer, or more time"
            )
        if self.container is not None and self.launcher == "local":
            raise ValueError("container: local ranks run without one; use launcher: slurm, or null")
        for name in ("cache", "container"):
            if self.container is not None and set(getattr(self, name) or "") & set(",:"):
                raise ValueError(f"{name}: Apptainer mounts no path with a comma or a colon; use another")
        return self

    @property
    def node_range(self) -> tuple[int, int]:
        """The smallest and the largest number of nodes."""
        low, _, high = self.nodes.partition("-")
        return int(low), int(high or low)

    @property
    def ranks_per_node(self) -> int:
        """How many ranks a node is asked for: one for each GPU."""
        return self.gpus or self.ranks


def seconds_of(limit: str) -> int:
    """The seconds of a time limit as sbatch takes it: `90` and `90:00` are minutes, `1-12` is a day and a half."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts.insert(0, 0)
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return (int(days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds


def load_launch(folder: Path | None = None) -> LaunchSettings:
    """The settings in launch.yaml, by default of the project's folder. Without the file, everything runs here.

    Raises:
        RecipeError: it holds an unknown key, a wrong type, or values that do not fit together.
    """
    # `dvc exp run --temp` runs in a copy of what git tracks, and git does not track launch.yaml.
    places = [folder] if folder else [Path(), Path(os.environ.get("DVC_ROOT", "."))]
    for file in (place / FILE for place in places):
        try:
            return LaunchSettings.model_validate(read_yaml(file))
        except FileNotFoundError:
            continue
        except ValidationError as error:
            raise RecipeError(f"{FILE}: {first_error(error)}") from None
        except ValueError as error:
            raise RecipeError(f"{FILE}: {error}") from None
    return LaunchSettings()
