"""Stage: pack the windows of all collections into rows of one phase's sequence length."""

from stage import run_stage

import shutil
from argparse import Namespace

from azneobert.data.phase_rows import write_phase_rows
from azneobert.data.rows import plan_facts
from azneobert.files import write_json
from azneobert.layout import Layout
from azneobert.recipe import PHASES, Recipe


def rows(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    phase = recipe.phase(options.phase)
    target = layout.rows(options.phase)
    shutil.rmtree(target, ignore_errors=True)
    plan, validation = write_phase_rows(layout.tokens, tuple(recipe.data.sources), phase, recipe.seed, target)
    facts = plan_facts(plan)
    facts |= {f"validation_rows/{collection}": len(held_out) for collection, held_out in validation.items()}
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
