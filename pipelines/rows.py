"""Stage: pack the windows of all collections into rows of one phase's sequence length."""

from stage import run_stage

import shutil
from argparse import Namespace

from azneobert.data.rows import plan_facts, plan_rows, write_plan
from azneobert.data.store import TokenStore
from azneobert.errors import DataError
from azneobert.files import write_json
from azneobert.layout import Layout
from azneobert.recipe import PHASES, Recipe


def rows(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    phase = recipe.phase(options.phase)
    target = layout.rows(options.phase)
    shutil.rmtree(target, ignore_errors=True)
    training = {collection: TokenStore.open(layout.tokens / collection / "train") for collection in recipe.data.sources}
    plan = plan_rows(training, phase.sequence_length, recipe.seed, phase.pools)
    if not len(plan):
        raise DataError(f"{layout.tokens}: no document to train on; use a smaller data.cleaning.validation_fraction")
    write_plan(plan, target / "train")
    facts = plan_facts(plan)
    for collection in recipe.data.sources:
        held_out = TokenStore.open(layout.tokens / collection / "validation")
        if len(held_out):
            validation = plan_rows({collection: held_out}, phase.sequence_length, recipe.seed)
            write_plan(validation, target / "validation" / collection)
            facts[f"validation_rows/{collection}"] = len(validation)
    if not any(fact.startswith("validation_rows/") for fact in facts):
        raise DataError(f"{layout.tokens}: no document is held out; use a larger data.cleaning.validation_fraction")
    write_json(layout.report(f"rows/{options.phase}"), facts)
    print(
        f"{options.phase}: {facts['rows']:,} rows of {phase.sequence_length}, {facts['fill']:.2%} full, "
        f"{facts['windows_per_row']} windows a row"
    )
    shares = (f"{key.removeprefix('share/')} {value:.1%}" for key, value in facts.items() if key.startswith("share/"))
    print(f"{options.phase}: tokens by collection: {', '.join(shares)}")
    for pool in plan.meta.pools if phase.mixture else ():
        long = facts[f"pool_{pool.min_tokens}/long_share"]
        print(
            f"{options.phase}: {pool.share:.0%} of samples from {pool.rows:,} rows of documents of {pool.min_tokens:,} "
            f"tokens or more ({long:.1%} of their tokens, the rest fills room)"
        )


if __name__ == "__main__":
    run_stage(rows, phase=PHASES)
