"""The rows of a phase: its training rows, and the validation rows of each collection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from azneobert.data.rows import RowPlan, plan_rows, write_plan
from azneobert.data.store import TokenStore
from azneobert.errors import DataError
from azneobert.recipe import Phase


def write_phase_rows(
    tokens: Path, collections: Sequence[str], phase: Phase, seed: int, target: Path
) -> tuple[RowPlan, dict[str, RowPlan]]:
    """Plan the rows of a phase from the stores tokens/COLLECTION/{train,validation} and write the plans.

    Returns the plan of target/train, and the plan of target/validation/COLLECTION for each collection that holds out
    documents.

    Raises:
        DataError: no document is left to train on, or none is held out.
    """
    training = {name: TokenStore.open(tokens / name / "train") for name in collections}
    plan = plan_rows(training, phase.sequence_length, seed, phase.pools)
    if not len(plan):
        raise DataError(f"{tokens}: no document to train on; use a smaller data.cleaning.validation_fraction")
    write_plan(plan, target / "train")
    validation = {}
    for name in collections:
        held_out = TokenStore.open(tokens / name / "validation")
        if len(held_out):
            validation[name] = plan_rows({name: held_out}, phase.sequence_length, seed)
            write_plan(validation[name], target / "validation" / name)
    if not validation:
        raise DataError(f"{tokens}: no document is held out; use a larger data.cleaning.validation_fraction")
    return plan, validation
