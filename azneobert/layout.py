"""Where a recipe's outputs lie, and what a finished phase left there. Imports no torch: a login node can ask it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azneobert.checkpoint.manifest import MANIFEST, Manifest, verify_checkpoint
from azneobert.errors import CheckpointError, DataError
from azneobert.files import read_json
from azneobert.tracking.points import POINTS
from azneobert.tracking.record import RECORD

CHECKPOINT = "checkpoint"
# What an evaluation's report says beside its figures: the sha256 of the weights, and of the rows that it looked at.
WEIGHTS_FIGURE, HELD_OUT_FIGURE = "weights_sha256", "held_out_sha256"


@dataclass(frozen=True)
class RunFolder:
    """A phase in progress. DVC does not know this folder, so it neither deletes it nor links anything in it."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The checkpoints, one folder each."""
        return self.path / "checkpoints"

    @property
    def tracking(self) -> Path:
        """The points on their way to MLflow, and which run it is."""
        return self.path / "tracking"

    @property
    def stop_file(self) -> Path:
        """The file whose appearance asks the run to save a checkpoint and stop."""
        return self.path / "stop"

    @property
    def outcome_file(self) -> Path:
        """How the run ended, as the run says."""
        return self.path / "outcome.json"

    @property
    def micro_batch_file(self) -> Path:
        """The micro-batch that was found for `runtime.max_micro_batch: auto`, and what it depends on."""
        return self.path / "micro_batch.json"

    @property
    def lock_file(self) -> Path:
        """Held by the process that trains here; beside the folder, which may be moved aside meanwhile."""
        return self.path.with_name(f".{self.path.name}.lock")


@dataclass(frozen=True)
class JobFolder:
    """What the cluster jobs that train a phase share. It is no part of a run, which another run may replace."""

    path: Path

    @property
    def record(self) -> Path:
        """Which job it is, and what it trains."""
        return self.path / "job.json"

    @property
    def recipe(self) -> Path:
        """The recipe as it was when the job was submitted."""
        return self.path / "recipe.yaml"

    @property
    def script(self) -> Path:
        """The script that was handed to the cluster."""
        return self.path / "job.sh"

    @property
    def log(self) -> Path:
        """The output of the job, over all its starts."""
        return self.path / "log.txt"

    @property
    def starts(self) -> Path:
        """A line for each start: the job, how often it was requeued, the newest checkpoint then, the nodes."""
        return self.path / "starts"

    @property
    def shown(self) -> Path:
        """How many bytes of the log a person has seen through `dvc repro`."""
        return self.path / "shown"

    @property
    def lock_file(self) -> Path:
        """Held by the process that looks for a job and submits one if there is none."""
        return self.path / "submit.lock"


class Layout:
    """The places of one recipe's outputs, as dvc.yaml names them."""

    def __init__(self, recipe: str, outputs: Path = Path("outputs")):
        self.root = outputs / recipe
        self.tokens = self.root / "tokens"
        self.tokenizer = self.root / "tokenizer" / "tokenizer.json"
        self.registered = self.root / "registered.json"
        self.plots = self.root / "plots"

    def documents(self, collection: str) -> Path:
        """The cleaned documents of one collection."""
        return self.root / "documents" / collection

    def partial(self, stage: str) -> Path:
        """What an interrupted stage has done so far. DVC does not know it, and so does not delete it."""
        return self.root / "partial" / stage

    def duplicates(self, collection: str) -> Path:
        """Which documents of a collection repeat an earlier one, in it or in a collection before it."""
        return self.root / "duplicates" / f"{collection}.npy"

    def rows(self, phase: str) -> Path:
        """The row plans of one phase: train, and validation by collection."""
        return self.root / "rows" / phase

    def running(self, phase: str) -> RunFolder:
        """The folder of a phase while it is trained, and afterwards: a killed run goes on from it."""
        return RunFolder(self.root / "running" / phase)

    def job(self, phase: str) -> JobFolder:
        """What a cluster's jobs for one phase leave."""
        return JobFolder(self.root / "jobs" / phase)

    def tracking_folders(self) -> list[Path]:
        """The folders in which runs have recorded points, also those set aside: MLflow is to have every point."""
        found = self.root.glob("running/*/tracking*")
        return sorted(folder for folder in found if (folder / POINTS).is_file() or (folder / RECORD).is_file())

    def start(self, phase: str) -> Path:
        """The `checkpoint/` of the registered version that a phase starts from, brought here once."""
        return self.root / "start" / phase

    def finished(self, phase: str) -> Path:
        """What a finished phase leaves for the stages after it: `checkpoint/`, `points.jsonl` and `run.json`."""
        return self.root / phase

    def finetuned(self, task: str) -> Path:
        """What fine-tuning on a task leaves: `model/`, pictures, and the run's `points.jsonl` and `run.json`."""
        return self.root / "finetune" / task

    def published(self) -> list[Path]:
        """The folders in which finished phases and fine-tunings have left the record of their runs."""
        records = (found for place in ("*", "finetune/*") for found in self.root.glob(f"{place}/{RECORD}"))
        return sorted(record.parent for record in records)

    def golden(self, phase: str) -> Path:
        """The golden ids and logits of the version that a phase has become."""
        return self.root / "golden" / f"{phase}.json"

    def metrics(self, stage: str) -> Path:
        """The few numbers of a stage that people compare: DVC's metrics."""
        return self.root / "metrics" / f"{stage}.json"

    def report(self, stage: str) -> Path:
        """All that a stage has counted and measured of its work."""
        return self.root / "reports" / f"{stage}.json"


def read_report(file: Path) -> dict[str, Any]:
    """The content of a file of numbers that a stage has written.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        content = read_json(file)
        if not isinstance(content, dict):
            raise ValueError("holds no numbers by name")
        return content
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; `dvc repro` makes it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: damaged ({error}); `dvc checkout {file}` brings it back") from None


def finished_checkpoint(folder: Path) -> tuple[Path, Manifest]:
    """The checkpoint that a finished phase left in its folder, every byte of it verified.

    Raises:
        CheckpointError: the phase is not finished, or its checkpoint is damaged.
    """
    checkpoint = folder / CHECKPOINT
    if not (checkpoint / MANIFEST).exists():
        raise CheckpointError(f"{checkpoint}: no finished checkpoint there; run `dvc repro {folder.name}`")
    try:
        return checkpoint, verify_checkpoint(checkpoint)
    except CheckpointError as error:
        # The run that left it has a copy of its own.
        raise CheckpointError(
            f"{error}; or `azneobert cache check`, then `dvc repro {folder.name}` puts it there"
        ) from None
