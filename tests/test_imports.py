"""Every module imports, light ones stay light, and arrows point down."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import azneobert

PACKAGE = Path(azneobert.__file__).parent
MODULES = ["azneobert", *(module.name for module in pkgutil.walk_packages([str(PACKAGE)], "azneobert."))]
# What these need is made for GPUs, and installed on machines that have one.
NEEDS = {"azneobert.kernels.epilogues": "quack", "azneobert.kernels.rows": "triton"}
HEAVY = {"torch", "mlflow", "transformers", "wandb", "accelerate", "deepspeed", "matplotlib"}


def test_the_modules_are_those_of_this_checkout() -> None:
    assert Path(__file__).parents[1] / "azneobert" == PACKAGE
    assert len(MODULES) > 20


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_says_what_it_is(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    module = importlib.import_module(name)
    assert module.__doc__


@pytest.mark.parametrize(
    "name", ["azneobert", "azneobert.recipe", "azneobert.errors", "azneobert.cli", "azneobert.tracking.tracker"]
)
def test_importing_a_light_module_imports_nothing_heavy(name: str) -> None:
    program = f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(json.loads(loaded))


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("checkpoint", ("training", "model")),
        ("data", ("training", "model", "checkpoint", "registry", "tracking", "cli")),
        ("kernels", ("model", "training", "checkpoint", "data", "registry", "tracking", "cli")),
        ("model", ("training", "checkpoint", "registry", "tracking", "cli")),
        ("training", ("registry", "cli", "finetuning")),
        ("tracking", ("training", "engine", "model", "checkpoint", "data", "registry", "cli")),
        ("registry", ("finetuning", "cli")),
    ],
)
def test_arrows_point_down(package: str, forbidden: tuple[str, ...]) -> None:
    upwards = {
        f"{file.name} imports {name}"
        for file in (PACKAGE / package).glob("*.py")
        for name in imports_of(file)
        if name.split(".")[1:2] and name.split(".")[1] in forbidden
    }
    assert not upwards


def test_the_modules_of_data_import_each_other_in_no_circle() -> None:
    left = {
        file.stem: {name.split(".")[2] for name in imports_of(file) if name.startswith("azneobert.data.")}
        for file in (PACKAGE / "data").glob("*.py")
    }
    while ready := [module for module, needed in left.items() if not needed & set(left)]:
        for module in ready:
            del left[module]
    assert not left


def imports_of(file: Path) -> set[str]:
    """The modules of this project that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("azneobert")}
