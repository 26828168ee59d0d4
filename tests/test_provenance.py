"""A stage depends on the code that decides its outputs, and on no other; what cannot be known is unknown."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from azneobert.provenance import NOT_DECIDING, UNKNOWN, code_sha256, deciding_files, git_state, versions
from azneobert.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]


@pytest.mark.parametrize("name", STAGES)
def test_the_deps_of_a_stage_are_the_code_that_it_imports(name: str) -> None:
    stage = STAGES[name].get("do", STAGES[name])  # the `do` of a foreach
    (entry,) = re.findall(r"pipelines/\w+\.py", stage["cmd"])
    code = [dep for dep in stage["deps"] if dep.startswith(("azneobert/", "pipelines/"))]
    needed = deciding_files(entry, root=ROOT)
    missing, surplus = sorted(set(needed) - set(code)), sorted(set(code) - set(needed))
    assert (missing, surplus) == ([], []), f"dvc.yaml, {name}.deps: add {missing}, remove {surplus}"
    assert len(code) == len(set(code))


def test_every_exception_is_a_place_that_is_there_and_has_a_reason() -> None:
    for place, reason in NOT_DECIDING.items():
        assert (ROOT / place).exists(), place
        assert len(reason) > 10


@pytest.mark.parametrize(
    ("entry", "inside", "outside"),
    [
        ("pipelines/launch.py", "azneobert/kernels/epilogues.py", "azneobert/checkpoint/convert.py"),
        ("pipelines/launch.py", "azneobert/engine/zero2.py", "azneobert/training/progress.py"),
        ("pipelines/launch.py", "azneobert/model/size.py", "azneobert/model/export.py"),
        ("pipelines/tokens.py", "azneobert/data/tokens.py", "azneobert/data/rows.py"),
        ("pipelines/evaluate.py", "azneobert/training/evaluation.py", "azneobert/engine/plain.py"),
    ],
)
def test_what_decides_and_what_does_not(entry: str, inside: str, outside: str) -> None:
    found = deciding_files(entry, root=ROOT)
    assert inside in found
    assert outside not in found
    assert (ROOT / outside).is_file()


def small_project(folder: Path) -> Path:
    for name, text in {
        "pipelines/one.py": "import two\nfrom azneobert import far\ndef f():\n    from azneobert.deep.er import x\n",
        "pipelines/two.py": "import os\n",
        "pipelines/other.py": "",
        "azneobert/far.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from azneobert import types\n",
        "azneobert/types.py": "",
        "azneobert/deep/er.py": "from azneobert.errors import E\nfrom azneobert import far\n",
        "azneobert/errors.py": "from azneobert import never\n",
        "azneobert/never.py": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_imports_are_followed_into_functions_and_not_for_type_checkers_nor_through_an_exception(tmp_path: Path) -> None:
    found = deciding_files("pipelines/one.py", root=small_project(tmp_path))
    assert found == ["azneobert/deep/er.py", "azneobert/far.py", "pipelines/one.py", "pipelines/two.py"]


def test_the_hash_changes_with_a_file_that_decides_and_with_no_other(tmp_path: Path) -> None:
    root = small_project(tmp_path)
    before = code_sha256("pipelines/one.py", root=root)
    for other in ("pipelines/other.py", "azneobert/errors.py", "azneobert/types.py"):
        (root / other).write_text("changed = 1\n")
    assert code_sha256("pipelines/one.py", root=root) == before
    (root / "azneobert/deep/er.py").write_text("x = 1\n")
    assert code_sha256("pipelines/one.py", root=root) != before


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    for name in ("code.py", "params.yaml", "dvc.lock"):
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_a_commit_is_dirty_when_code_differs_and_not_when_the_recipe_or_the_lock_does(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD").strip()
    (repository / "params.yaml").write_text("2\n")
    (repository / "dvc.lock").write_text("2\n")
    assert git_state(repository) == (commit, False)
    (repository / "code.py").write_text("2\n")
    assert git_state(repository) == (commit, True)


def test_where_git_does_not_answer_the_commit_is_unknown_and_never_clean(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(repository / ".git")
    assert git_state(repository) == (UNKNOWN, None)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert git_state(repository) == (UNKNOWN, None)


@pytest.mark.skipif(not hasattr(__import__("os"), "geteuid") or __import__("os").geteuid() != 0, reason="needs root")
def test_a_folder_of_another_owner_as_in_a_container_is_known_all_the_same(repository: Path) -> None:
    import os

    for path in [repository, *repository.rglob("*")]:
        os.chown(path, 12345, 12345)
    refused = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True)
    assert "dubious ownership" in refused.stderr
    assert len(git_state(repository)[0]) == 40


def test_versions_name_what_decides_numbers() -> None:
    found = versions()
    assert {"python", "torch", "deepspeed", "numpy"} <= found.keys()
    assert UNKNOWN not in found.values()
