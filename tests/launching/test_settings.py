"""launch.yaml is read strictly, each wrong key in one line; without it everything runs here."""

from __future__ import annotations

from pathlib import Path

import pytest

from azneobert.errors import RecipeError
from azneobert.launching.settings import LaunchSettings, load_launch, seconds_of

ROOT = Path(__file__).parents[2]


def test_without_a_file_everything_runs_here(tmp_path: Path) -> None:
    assert load_launch(tmp_path).launcher == "local"


def test_the_template_says_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "launch.yaml").write_bytes((ROOT / "slurm" / "launch.yaml").read_bytes())
    assert load_launch(tmp_path) == LaunchSettings(launcher="slurm")


def test_a_copy_of_the_project_by_dvc_has_that_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "launch.yaml").write_text("launcher: slurm\n")
    monkeypatch.chdir(tmp_path / "copy")
    assert load_launch().launcher == "local"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert load_launch().launcher == "slurm"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("launcher: torchrun", "launcher"),
        ("gpus: -1", "gpus"),
        ("nodes: 2-1", "use 1-2"),
        ("nodes: 0", "nodes"),
        ("time: soon", "time"),
        ("time: 5", "warning_seconds 300 leave nothing of 300 s"),
        ("partition: 'a b'", "one word without quotes"),
        ("account: $(id)", "one word without quotes"),
        ("options: [exclusive]", "expected one line as --exclusive"),
        ('options: ["--exclusive\\n#SBATCH --qos=high"]', "expected one line"),
        ('cache: "it\'s"', "cache"),
        ("container: docker://debian:12", "expected a file as containers/azneobert.sif"),
        ("container: image.sif", "container: local ranks run without one; use launcher: slurm"),
        ("launcher: slurm\ncontainer: a,b.sif", "no path with a comma"),
        ("launcher: slurm\ncontainer: image.sif\ncache: /tmp/a:b", "cache: Apptainer mounts no path"),
        ("partitions: gpu", "unknown key"),
        ("- a", "holds list"),
        ("time: [", "not YAML"),
    ],
)
def test_what_is_wrong_is_one_line(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "launch.yaml").write_text(f"{line}\n")
    with pytest.raises(RecipeError) as caught:
        load_launch(tmp_path)
    assert str(caught.value).startswith("launch.yaml: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("90", 5400), ("90:30", 5430), ("24:00:00", 86400), ("1-12", 129600), ("1-0:5", 86700), ("0-0:0:9", 9)],
)
def test_time_limits_are_read_as_sbatch_reads_them(limit: str, seconds: int) -> None:
    assert seconds_of(limit) == seconds


def test_numbers_and_ranges_of_nodes() -> None:
    assert LaunchSettings.model_validate({"nodes": 4}).node_range == (4, 4)
    assert LaunchSettings.model_validate({"nodes": "1-2", "gpus": 0, "ranks": 3}).node_range == (1, 2)
    assert LaunchSettings.model_validate({"gpus": 0, "ranks": 3}).ranks_per_node == 3
    assert LaunchSettings.model_validate({"gpus": 8, "ranks": 3}).ranks_per_node == 8
