"""What a phase is made from and where it leaves what it makes: checked, opened, locked."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.data.rows import RowPlan, open_plan
from azneobert.data.store import TokenStore
from azneobert.data.stream import Stream
from azneobert.data.tokenizer import load_tokenizer, special_ids, tokenizer_sha256
from azneobert.errors import DataError
from azneobert.recipe import PhaseName, Recipe


@dataclass(frozen=True)
class Inputs:
    """Where a phase finds what it needs and leaves what it makes.

    `folder` is for checkpoints, `tracking` for the points on their way to MLflow; `start` is the folder of the phase
    that this one starts from. `lineage` goes into every checkpoint as it is.
    """

    recipe_name: str
    recipe: Recipe
    phase: PhaseName
    tokens: Path
    rows: Path
    tokenizer: Path
    folder: Path
    tracking: Path
    start: Path | None
    lineage: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The checkpoints of this phase."""
        return CheckpointFolder(self.folder / "checkpoints", self.recipe.runtime.keep_checkpoints)


def open_streams(inputs: Inputs) -> tuple[Stream, dict[str, Stream]]:
    """The training stream of a phase, and the fixed validation stream of each collection that has held-out rows.

    Raises:
        DataError: stores, plan and tokenizer do not fit each other.
    """
    recipe = inputs.recipe
    tokenizer = load_tokenizer(inputs.tokenizer, recipe.model.vocab_size)
    sha256 = tokenizer_sha256(inputs.tokenizer)
    ids = special_ids(tokenizer)
    rate = recipe.training.masking_rate

    def stores(side: str) -> dict[str, TokenStore]:
        opened = {name: TokenStore.open(inputs.tokens / name / side) for name in recipe.data.sources}
        for store in opened.values():
            if store.meta.tokenizer_sha256 != sha256:
                raise DataError(
                    f"{store.path}: made with another tokenizer than {inputs.tokenizer}; `dvc repro tokens`"
                )
        return opened

    training = stores("train")
    plan = open_plan(inputs.rows / "train", training)
    _check_plan(inputs, plan)
    stream = Stream(plan, training, ids, seed=recipe.seed, masking_rate=rate)
    validation = {}
    for name, store in stores("validation").items():
        if len(store):
            held_out = open_plan(inputs.rows / "validation" / name, {name: store})
            validation[name] = Stream(held_out, {name: store}, ids, seed=recipe.seed, masking_rate=rate, shuffle=False)
    return stream, validation


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """One training at a time in a folder; a second one waits, so that a run that lost its launcher is not doubled."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process is training here; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def stop_file(folder: Path) -> Path:
    """The file whose appearance asks the run in `folder` to save a checkpoint and stop."""
    return folder.with_name(f"{folder.name}.stop")


def _check_plan(inputs: Inputs, plan: RowPlan) -> None:
    phase = inputs.recipe.phase(inputs.phase)
    planned = (plan.meta.sequence_length, tuple((pool.min_tokens, pool.share) for pool in plan.meta.pools))
    if planned != (phase.sequence_length, phase.pools):
        raise DataError(
            f"{inputs.rows}: rows of {planned[0]} tokens in the mixture {planned[1]}, the recipe asks for "
            f"{phase.sequence_length} in {phase.pools}; run `dvc repro rows`"
        )
