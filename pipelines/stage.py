"""What every stage shares: where its recipe keeps things, how it reports numbers, and how it fails."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from azneobert.errors import AzNeoBertError, RecipeError
from azneobert.recipe import Recipe, load_recipe, recipe_fingerprint

# What decides the numbers that training computes; a finished run made by other code is not finished.
TRAINING_CODE = (
    "azneobert/data/stream.py",
    "azneobert/kernels",
    "azneobert/model",
    "azneobert/engine",
    "azneobert/training",
    "azneobert/checkpoint",
)
# What decides the documents that come out of a source; an interrupted ingest by other code starts anew.
INGEST_CODE = tuple(
    f"azneobert/data/{name}.py"
    for name in ("records", "local_files", "hub", "sources", "cleaning", "documents", "ingest")
)


class Paths:
    """The places of one recipe's outputs, as dvc.yaml names them."""

    def __init__(self, recipe: str):
        self.root = Path("outputs") / recipe
        self.tokens = self.root / "tokens"
        self.tokenizer = self.root / "tokenizer" / "tokenizer.json"
        self.registered = self.root / "registered.json"

    def documents(self, collection: str) -> Path:
        """The cleaned documents of one collection."""
        return self.root / "documents" / collection

    def partial(self, stage: str) -> Path:
        """What an interrupted stage has done so far. DVC does not know it, and so does not delete it."""
        return self.root / "partial" / stage

    def duplicates(self, collection: str) -> Path:
        """Which of them another collection already holds."""
        return self.root / "duplicates" / f"{collection}.npy"

    def rows(self, phase: str) -> Path:
        """The row plans of one phase: train, and validation by collection."""
        return self.root / "rows" / phase

    def run(self, phase: str) -> Path:
        """The checkpoints of one phase."""
        return self.root / phase

    def tracking(self, phase: str) -> Path:
        """The points of one phase's run, and which MLflow run it is."""
        return self.root / "tracking" / phase

    def metrics(self, stage: str) -> Path:
        """The numbers that a stage leaves."""
        return self.root / "metrics" / f"{stage}.json"

    def plot(self, name: str) -> Path:
        """A curve or a picture."""
        return self.root / "plots" / name


def run_stage(
    stage: Callable[[str, Recipe, Paths, argparse.Namespace], None],
    options: dict[str, str] | None = None,
    **arguments: Iterable[str] | Callable[[Recipe], Iterable[str]],
) -> None:
    """Read the recipe, run the stage, and print what a user can mend as one line with exit code 1.

    `arguments` are the stage's positional arguments, each with the values it may have, or how a recipe says them;
    `options` are options that may be given several times, each with its help.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    for option, explanation in (options or {}).items():
        parser.add_argument(f"--{option}", action="append", default=[], metavar="KEY", help=explanation)
    for argument, choices in arguments.items():
        parser.add_argument(argument, choices=None if callable(choices) else list(choices))
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        name, recipe = load_recipe()
        for argument, choices in arguments.items():
            if callable(choices):
                _check_choice(argument, getattr(chosen, argument), list(choices(recipe)), name)
        stage(name, recipe, Paths(name), chosen)
    except AzNeoBertError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")


def _check_choice(argument: str, found: str, choices: list[str], recipe: str) -> None:
    if found not in choices:
        raise RecipeError(f"{argument} {found!r} is not in recipe {recipe}; expected one of {', '.join(choices)}")


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a stage's numbers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


_PACKAGES = ("azneobert", "torch", "accelerate", "deepspeed", "safetensors", "tokenizers", "numpy")


def lineage(recipe: Recipe, paths: Paths) -> dict[str, Any]:
    """What a checkpoint is made of: commit, DVC's hashes of the tokens, recipe, code and versions."""
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "tokens_md5": _tokens_md5(recipe.data.order, paths),
        "recipe_sha256": recipe_fingerprint(recipe),
        "code_sha256": code_sha256(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
    }


def code_sha256(places: Iterable[str] = TRAINING_CODE) -> str:
    """The sha256 of code, by default of that which decides what training computes."""
    digest = hashlib.sha256()
    for place in places:
        path = Path(place)
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _tokens_md5(collections: Iterable[str], paths: Paths) -> dict[str, str]:
    """DVC's hash of each collection's tokens, from dvc.lock, which DVC brings up to date after each stage."""
    try:
        stages = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return {}  # run without DVC
    hashes = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    return {c: hashes[str(paths.tokens / c)] for c in collections if str(paths.tokens / c) in hashes}
