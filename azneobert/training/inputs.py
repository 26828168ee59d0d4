"""The inputs of a phase, and the folder that it writes to: checked, opened, locked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.data.integrity import Verification
from azneobert.data.rows import RowPlan, open_plan
from azneobert.data.store import TokenStore
from azneobert.data.stream import Stream
from azneobert.data.tokenizer import load_tokenizer, special_ids, tokenizer_sha256
from azneobert.errors import DataError
from azneobert.layout import Layout, RunFolder
from azneobert.locks import locked
from azneobert.recipe import PhaseName, Recipe


@dataclass(frozen=True)
class Inputs:
    """Where a phase finds its inputs and leaves its results.

    `run` is its folder in progress; `start` holds the checkpoint that it starts from, of a phase or of a version.
    `lineage` and `provenance` go into every checkpoint: what the data are, and what trains the steps from here on.
    """

    recipe: Recipe
    phase: PhaseName
    tokens: Path
    rows: Path
    tokenizer: Path
    run: RunFolder
    start: Path | None
    lineage: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe, layout: Layout, phase: PhaseName, **more: dict[str, Any]) -> Inputs:
        """The inputs of a phase of a recipe, where the stages before it have left them."""
        settings = recipe.phase(phase)
        start = layout.finished("phase1") if settings.start_from else None
        return cls(
            recipe=recipe,
            phase=phase,
            tokens=layout.tokens,
            rows=layout.rows(phase),
            tokenizer=layout.tokenizer,
            run=layout.running(phase),
            start=layout.start(phase) if settings.version else start,
            **more,
        )

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The checkpoints of this phase."""
        runtime = self.recipe.runtime
        return CheckpointFolder(self.run.checkpoints, runtime.keep_checkpoints, runtime.keep_every)


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
                    f"{store.path}: made with another tokenizer than {inputs.tokenizer}; run `dvc repro tokens`"
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


def verify_data(inputs: Inputs, sides: Sequence[str] = ("train", "validation")) -> Verification:
    """Begin to read every byte of the stores and plans that `open_streams` opens, of both sides or of one.

    Raises:
        DataError: a meta.json is missing or damaged.
    """
    stores = [inputs.tokens / name / side for side in sides for name in inputs.recipe.data.sources]
    plans = [inputs.rows / "train"] if "train" in sides else []
    if "validation" in sides:
        held_out = (inputs.rows / "validation" / name for name in inputs.recipe.data.sources)
        plans += [plan for plan in held_out if plan.is_dir()]
    return Verification(stores, plans)


@contextmanager
def run_lock(run: RunFolder) -> Iterator[None]:
    """Allow one training at a time in a folder; a second waits, so that a run whose launcher ended is not doubled."""
    run.lock_file.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"{run.path}: another process is training here; waiting for it"
    with locked(run.lock_file, lambda: print(waiting, flush=True)):
        yield


def _check_plan(inputs: Inputs, plan: RowPlan) -> None:
    phase = inputs.recipe.phase(inputs.phase)
    planned = (plan.meta.sequence_length, tuple((pool.min_tokens, pool.share) for pool in plan.meta.pools))
    if planned != (phase.sequence_length, phase.pools):
        raise DataError(
            f"{inputs.rows}: rows of {planned[0]} tokens in the mixture {planned[1]}, the recipe asks for "
            f"{phase.sequence_length} in {phase.pools}; run `dvc repro rows`"
        )
