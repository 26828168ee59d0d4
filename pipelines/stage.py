"""The part that every stage shares: where its recipe keeps things, and how it fails or is interrupted.

A stage imports this before anything else, and it imports nothing slow: its settings must hold while torch is imported.
"""

from __future__ import annotations

import interruption  # noqa: F401 - from here on Ctrl-C is one line

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from azneobert.dvc_files import locked_outputs
from azneobert.environment import RECIPE, quiet_barriers
from azneobert.errors import AzNeoBertError, DataError, RecipeError
from azneobert.layout import Layout
from azneobert.printable import log_in_lines, os_error_line
from azneobert.recipe import PARAMS, Recipe, load_recipe, recipe_fingerprint
from failure import kept_if_it_fails

ACCEPT_CHANGED = {"accept-changed": "go on although this part of the run's identity has changed, such as training"}

quiet_barriers()


def run_stage(
    stage: Callable[[Recipe, Layout, argparse.Namespace], None],
    options: dict[str, str] | None = None,
    *,
    flags: dict[str, str] | None = None,
    **arguments: Iterable[str] | Callable[[Recipe], Iterable[str]],
) -> None:
    """Read the recipe, run the stage, and print an error that a user can mend in one line, with exit code 1.

    `arguments` are the stage's positional arguments, each with its possible values, or a function of the recipe;
    `options` are options that may be given several times, `flags` those without a value, each with its help.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    for option, explanation in (options or {}).items():
        parser.add_argument(f"--{option}", action="append", default=[], metavar="KEY", help=explanation)
    for flag, explanation in (flags or {}).items():
        parser.add_argument(f"--{flag}", action="store_true", help=explanation)
    for argument, choices in arguments.items():
        parser.add_argument(argument, choices=None if callable(choices) else list(choices))
    chosen = parser.parse_args()
    log_in_lines()
    try:
        recipe = load_recipe(os.environ.get(RECIPE, PARAMS))
        for argument, choices in arguments.items():
            if callable(choices):
                _check_choice(argument, getattr(chosen, argument), list(choices(recipe)), recipe.name)
        layout = Layout(recipe.name)
        with kept_if_it_fails(layout):
            stage(recipe, layout, chosen)
    except AzNeoBertError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {os_error_line(error)}")


def _check_choice(argument: str, found: str, choices: list[str], recipe: str) -> None:
    if found not in choices:
        raise RecipeError(f"{argument}: {found!r} is not in recipe {recipe}; expected one of {', '.join(choices)}")


def lineage(recipe: Recipe, layout: Layout) -> dict[str, Any]:
    """The lineage of a checkpoint: DVC's hashes of its tokens, and the hash of its recipe."""
    return {"tokens_md5": _tokens_md5(recipe.data.order, layout), "recipe_sha256": recipe_fingerprint(recipe)}


def locked_hashes() -> dict[str, str]:
    """DVC's hash of each output, by its path, from dvc.lock, which DVC brings up to date after each stage."""
    try:
        return {output.path: output.md5 for output in locked_outputs()}
    except DataError:
        return {}  # run without DVC


def _tokens_md5(collections: Iterable[str], layout: Layout) -> dict[str, str]:
    hashes = locked_hashes()
    return {c: hashes[str(layout.tokens / c)] for c in collections if str(layout.tokens / c) in hashes}
