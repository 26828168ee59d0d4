"""Every module imports, light ones stay light, and arrows point down."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

import azneobert

ROOT = Path(__file__).parents[1]
PACKAGE = Path(azneobert.__file__).parent
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for folder in ("azneobert", "pipelines")
    for file in sorted((ROOT / folder).rglob("*.py"))
}
MODULES = [module for module in FILES if module.startswith("azneobert")]
# What these need is made for GPUs, and installed on machines that have one.
NEEDS = {"azneobert.kernels.epilogues": "quack", "azneobert.kernels.rows": "triton"}
LIGHT = [
    "azneobert",
    "azneobert.checkpoint.manifest",
    "azneobert.checkpoint.rotation",
    "azneobert.cli",
    "azneobert.course",
    "azneobert.doctor.checkup",
    "azneobert.dotted",
    "azneobert.errors",
    "azneobert.files",
    "azneobert.history.figures",
    "azneobert.launching.cluster",
    "azneobert.launching.container",
    "azneobert.launching.local",
    "azneobert.launching.outcome",
    "azneobert.launching.place",
    "azneobert.launching.settings",
    "azneobert.launching.slurm",
    "azneobert.layout",
    "azneobert.locks",
    "azneobert.mlflow_store",
    "azneobert.model.memory",
    "azneobert.model.size",
    "azneobert.provenance",
    "azneobert.recipe",
    "azneobert.recipe_files",
    "azneobert.tracking.delivery",
    "azneobert.tracking.tracker",
    "azneobert.training.watchdog",
]
HEAVY = {"torch", "mlflow", "transformers", "wandb", "accelerate", "deepspeed", "matplotlib"}

# What each part of the library may import of the others, from the bottom to the top: nothing that stands below it here.
MAY_IMPORT: dict[str, set[str]] = {
    "printable": set(),
    "errors": {"printable"},
    "environment": set(),
    "dotted": set(),
    "provenance": {"environment"},
    "pace": set(),
    "locks": set(),
    "scratch": set(),
    "files": {"errors"},
    "pictures": {"files"},
    "yaml_files": {"files"},
    "dvc_files": {"files", "yaml_files", "errors"},
    "settings": set(),
    "language": {"settings"},
    "task_settings": {"settings"},
    "recipe": {"errors", "files", "yaml_files", "settings", "language", "task_settings", "printable"},
    "recipe_files": {"recipe", "language", "settings", "errors", "files", "yaml_files"},
    "course": {"recipe"},
    "mlflow_place": {"recipe", "errors"},
    "mlflow_answers": set(),
    "mlflow_store": {"mlflow_answers", "mlflow_place", "recipe", "errors", "files", "locks"},
    "data": {"language", "settings", "recipe", "errors", "files", "pace", "environment", "dvc_files", "printable"},
    "migration": {"recipe_files", "recipe", "files", "settings", "errors", "yaml_files", "data"},
    "pretrained": {"errors"},
    "filling": {"pretrained", "data", "errors"},
    "finetuning": {"pretrained", "data", "task_settings", "settings", "yaml_files", "files", "errors"},
    "kernels": {"errors"},
    "model": {"language", "kernels", "data", "recipe", "errors", "files"},
    "checkpoint": {"errors", "files", "dotted", "locks"},
    "tracking": {"mlflow_place", "mlflow_store", "recipe", "errors", "files", "dotted", "locks", "pictures"},
    "layout": {"checkpoint", "tracking", "errors", "files"},
    "history": {"layout", "checkpoint", "tracking", "recipe", "errors", "pictures"},
    "engine": {"model", "data", "checkpoint", "recipe", "errors", "environment", "files"},
    "training": {
        *("engine", "model", "data", "checkpoint", "course", "layout", "tracking"),
        *("mlflow_place", "mlflow_store", "recipe", "errors", "environment", "files", "locks", "dotted", "pace"),
        "yaml_files",
    },
    "launching": {
        *("training", "checkpoint", "layout", "tracking", "recipe", "settings", "yaml_files", "locks", "pace"),
        *("errors", "environment", "files", "printable", "dvc_files"),
    },
    "registry": {
        *("training", "layout", "tracking", "language", "checkpoint", "model", "data"),
        *("mlflow_place", "mlflow_store", "recipe", "errors", "files", "locks", "pretrained", "scratch", "yaml_files"),
    },
}
MAY_IMPORT["encoders"] = {"registry", "pretrained", "recipe", "errors", "files"}
MAY_IMPORT["tune"] = {
    *("encoders", "finetuning", "registry", "tracking", "mlflow_place", "mlflow_store", "recipe", "task_settings"),
    "errors",
}
MAY_IMPORT["evaluate_suite"] = {
    *("encoders", "finetuning", "tracking", "mlflow_store", "recipe", "settings", "errors"),
}
MAY_IMPORT["doctor"] = {
    *("engine", "model", "kernels", "checkpoint", "layout", "mlflow_place", "mlflow_store", "recipe", "dvc_files"),
    *("course", "provenance", "environment", "errors", "files", "locks", "printable", "launching"),
}
MAY_IMPORT["bench"] = set(MAY_IMPORT)
MAY_IMPORT["pipelines"] = set(MAY_IMPORT) - {"bench"}
MAY_IMPORT["cli"] = set(MAY_IMPORT) - {"pipelines"}


def test_the_modules_are_those_of_this_checkout() -> None:
    assert ROOT / "azneobert" == PACKAGE
    assert len(MODULES) > 20


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_says_what_it_is(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    module = importlib.import_module(name)
    assert module.__doc__


@pytest.mark.parametrize("name", LIGHT)
def test_importing_a_light_module_imports_nothing_heavy(name: str) -> None:
    program = f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(json.loads(loaded))


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """What each module of the library and each stage imports of them."""
    return {module: imports_of(file.read_text(encoding="utf-8"), module, FILES) for module, file in FILES.items()}


def test_what_each_part_of_the_library_may_import_is_said() -> None:
    parts = {part_of(module) for module in FILES} - {"azneobert"}
    assert parts - set(MAY_IMPORT) == set(), "say in MAY_IMPORT what these may import"
    assert set(MAY_IMPORT) - parts == set(), "these are no more: take them out of MAY_IMPORT"


def test_no_part_may_import_what_stands_below_it() -> None:
    parts = list(MAY_IMPORT)
    upwards = {name: MAY_IMPORT[name] - set(parts[:place]) for place, name in enumerate(parts)}
    assert not {name: others for name, others in upwards.items() if others}


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_arrows_point_down(part: str, imports: dict[str, set[str]]) -> None:
    allowed = {"azneobert", part, *MAY_IMPORT[part]}
    upwards = [
        f"{module} imports {other}"
        for module, others in imports.items()
        if part_of(module) == part
        for other in sorted(others)
        if part_of(other) not in allowed
    ]
    assert not upwards


def test_no_modules_import_each_other_in_a_circle(imports: dict[str, set[str]]) -> None:
    assert circles(imports) == set()


def test_a_circle_is_named_without_what_only_leads_to_it_or_from_it() -> None:
    graph = {"before": {"a"}, "a": {"b"}, "b": {"c", "d"}, "c": {"a", "after"}, "d": {"after"}, "after": set()}
    assert circles(graph) == {("a", "b", "c")}
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"c"}}) == {("a", "b"), ("c",)}


def test_imports_count_wherever_they_stand() -> None:
    program = (
        "if TYPE_CHECKING:\n    from azneobert import errors\ndef f():\n    import azneobert.data.rows as rows, stage\n"
    )
    found = {"azneobert", "azneobert.errors", "azneobert.data.rows"}
    assert imports_of(program, "azneobert.files", FILES) == found
    assert imports_of(program, "pipelines.rows", FILES) == found | {"pipelines.stage"}


def part_of(module: str) -> str:
    """The package or module at the top level of the library that a module belongs to; of a stage, `pipelines`."""
    first, *rest = module.split(".")
    return rest[0] if first == "azneobert" and rest else first


def circles(graph: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """The strongly connected components in which something imports itself, each sorted."""
    reached = {module: reached_from(module, graph) for module in graph}
    return {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in graph
        if module in reached[module]
    }


def reached_from(module: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def imports_of(program: str, module: str, modules: Collection[str]) -> set[str]:
    """Which of `modules` a program imports, wherever in it: for type checkers alone and inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}, line {node.lineno}: imports are absolute"
            assert node.module
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    if module.startswith("pipelines."):
        names |= {f"pipelines.{name}" for name in names}  # stages import each other as scripts do
    return names & set(modules)
