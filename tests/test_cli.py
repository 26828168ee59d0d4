"""The `azneobert` command: what it shows, and that what a person can mend is one line and exit code 1."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from toy import ROOT, Toy, run_command
from typer.testing import CliRunner

from azneobert.cli import app
from azneobert.errors import RecipeError
from azneobert.registry.push import push
from azneobert.yaml_files import read_yaml, write_yaml, yaml_text

COMMAND = Path(sys.executable).with_name("azneobert")


@dataclass(frozen=True)
class Project:
    """A folder with params.yaml, a checkpoint, and a store with one version."""

    folder: Path
    toy: Toy

    @property
    def checkpoint(self) -> Path:
        return self.toy.checkpoints().steps()[-1]

    def run(self, *arguments: object, installed: bool = False) -> tuple[int, str, str]:
        """Exit code, output and errors of the command in this folder; `installed` starts it as a shell does."""
        words = [str(argument) for argument in arguments]
        if not installed:
            return run_command(words, self.folder)
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        done = subprocess.run(
            [COMMAND, *words], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def refuses(self, *arguments: object, installed: bool = False) -> str:
        """The one line in which the command says what is wrong."""
        code, out, errors = self.run(*arguments, installed=installed)
        assert code == 1, (out, errors)
        assert "Traceback" not in out + errors
        lines = errors.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]


@pytest.fixture(scope="module")
def project(make_toy: Callable[..., Toy]) -> Project:
    toy = make_toy()
    toy = toy.with_({"tracking": {"mlflow_uri": f"sqlite:///{toy.folder}/mlflow.db"}})
    assert toy.train()
    recipe = toy.recipe.model_dump(mode="json")
    (toy.folder / "params.yaml").write_text(yaml_text(recipe))
    figures = {"eval/loss": 5.25, "eval/accuracy": 0.125}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(toy.folder)
        import mlflow

        mlflow.set_tracking_uri(None)
        push(toy.checkpoints().steps()[-1], toy.recipe, figures, [], ["phase2"])
        mlflow.set_tracking_uri(None)
    return Project(toy.folder, toy)


@pytest.fixture
def invoke(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The same command in this process, which saves its start; for what goes well."""
    import mlflow

    monkeypatch.chdir(project.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_recipe_shows_parameters_and_the_size_of_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the sources are there
    result = CliRunner().invoke(app, ["recipe", "check", "sample"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "recipe sample: " in result.output
    assert "11 collections" in result.output
    assert "phase1: " in result.output
    assert "phase2: " in result.output


def test_recipe_refuses_sources_that_are_not_there(project: Project) -> None:
    assert "no such source file or folder" in project.refuses("recipe", "check")


def test_a_misspelt_key_is_refused_by_its_path(project: Project, tmp_path: Path) -> None:
    content = read_yaml(project.folder / "params.yaml")
    content["model"]["hiden_size"] = 32
    write_yaml(tmp_path / "params.yaml", content)
    line = Project(tmp_path, project.toy).refuses("registry", "list", installed=True)
    assert "params.yaml: model.hiden_size: unknown key" in line


def test_a_folder_without_params_yaml_is_refused(project: Project, tmp_path: Path) -> None:
    assert "params.yaml: no such file" in Project(tmp_path, project.toy).refuses("registry", "list")


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are(project: Project) -> None:
    line = project.refuses("registry", "list", "--recipe", "h300")
    assert "'h300'" in line
    assert "recipes/: no recipe" in line


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks up a name or connects fails the test, whatever it would make of the failure."""

    def refuse(*arguments: object) -> None:
        pytest.fail(f"asks the network: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_recipe_of_the_hub_refuses_missing_local_sources(tmp_path: Path, project: Project) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    line = Project(tmp_path, project.toy).refuses("recipe", "check", "h200")
    assert "data/h200/e_qanun: no such source file or folder" in line


@pytest.mark.usefixtures("no_network")
def test_recipe_of_the_hub_does_not_ask_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    for collection in ("e_qanun", "court_cases", "news", "pdfs", "folklor"):
        Path("data/h200", collection).mkdir(parents=True)
        Path("data/h200", collection, "one.jsonl").write_text("{}\n")
    where = r"recipes/h200\.yaml: tokenizer\.imported\.published\.path: "
    with pytest.raises(RecipeError, match=where + r"data/h200/tokenizer\.json is not there"):
        CliRunner().invoke(app, ["recipe", "check", "h200"], catch_exceptions=False)
    Path("data/h200/tokenizer.json").write_text("{}")
    shutil.copytree(ROOT / "data/sample/punctuation", "data/sample/punctuation")
    result = CliRunner().invoke(app, ["recipe", "check", "h200"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "recipe h200: " in result.output
    assert "127,000 steps of 2,304 rows (8 x 48 rows x 6 micro-steps)" in result.output


@pytest.fixture
def data(project: Project, tmp_path: Path) -> Project:
    """A folder with params.yaml and the stores and plans of both phases, as the stages leave them."""
    shutil.copy(project.folder / "params.yaml", tmp_path)
    root = tmp_path / "outputs" / "toy"
    shutil.copytree(project.toy.corpus / "tokens", root / "tokens")
    for phase, length in (("phase1", "32"), ("phase2", "64")):
        shutil.copytree(project.toy.corpus / "rows" / length, root / "rows" / phase)
    return Project(tmp_path, project.toy)


def flip_last_byte(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)


def test_data_verify_says_that_whole_stores_and_plans_are_whole(data: Project) -> None:
    code, out, errors = data.run("data", "verify")
    assert (code, errors) == (0, "")
    assert "outputs/toy: every token store and row plan is whole" in out
    for part in ("wikipedia/train", "cc100/validation", "rows/phase1/train", "rows/phase2/validation/news"):
        assert part in out
    assert "rows/phase1/validation/cc100" not in out  # nothing of it is held out


@pytest.mark.parametrize(
    "file",
    [
        "tokens/wikipedia/train/tokens.npy",
        "tokens/cc100/validation/offsets.npy",
        "rows/phase1/train/start.npy",
        "rows/phase2/validation/folklor/row_offsets.npy",
    ],
)
def test_data_verify_refuses_a_flipped_byte_in_one_line(data: Project, file: str) -> None:
    path = Path("outputs/toy", file)
    flip_last_byte(data.folder / path)
    line = data.refuses("data", "verify")
    assert str(path if file.startswith("tokens") else path.parent) in line
    assert "azneobert cache check" in line


def test_data_verify_refuses_a_plan_of_other_tokens_in_one_line(data: Project) -> None:
    root = data.folder / "outputs" / "toy" / "tokens"
    shutil.rmtree(root / "news" / "train")
    shutil.copytree(root / "folklor" / "train", root / "news" / "train")
    assert "rows/phase1/train: made from other tokens of news;" in data.refuses("data", "verify")


def test_data_verify_before_the_stages_is_refused_in_one_line(project: Project) -> None:
    line = project.refuses("data", "verify", installed=True)
    assert "outputs/toy/tokens/wikipedia/train: no whole token store there; `dvc repro tokens` writes it" in line


def test_inspect_shows_step_lineage_and_files(project: Project, invoke: Callable[..., str]) -> None:
    shown = invoke("checkpoint", "inspect", project.checkpoint)
    manifest = project.toy.result()[1]
    for part in ("phase1", f"{manifest.tokens:,}", "mlflow_run_id", "exp_avg_sq.safetensors", "stream.sample_index"):
        assert part in shown
    assert manifest.files["weights.safetensors"]["sha256"][:16] in shown


def test_verify_says_that_a_whole_checkpoint_is_whole(project: Project, invoke: Callable[..., str]) -> None:
    assert "whole; phase1, step 10" in invoke("checkpoint", "verify", project.checkpoint)


def test_verify_refuses_a_damaged_checkpoint_in_one_line(project: Project, tmp_path: Path) -> None:
    damaged = project.toy.copy_to(tmp_path / "copy").checkpoints().steps()[-1]
    with (damaged / "exp_avg.safetensors").open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\0\1\2")
    line = project.refuses("checkpoint", "verify", damaged, installed=True)
    assert str(damaged / "exp_avg.safetensors") in line
    assert "changed" in line


def test_inspect_refuses_a_folder_that_is_no_checkpoint(project: Project, tmp_path: Path) -> None:
    assert str(tmp_path / "none") in project.refuses("checkpoint", "inspect", tmp_path / "none")


def test_list_shows_versions_with_aliases_and_where_they_are(project: Project, invoke: Callable[..., str]) -> None:
    shown = invoke("registry", "list")
    for part in ("models:/toybert/1", "phase2", str(project.folder / "mlflow.db")):
        assert part in shown


def test_pull_brings_a_version_and_says_so_without_noise(project: Project, tmp_path: Path) -> None:
    code, out, errors = project.run("registry", "pull", "models:/toybert@phase2", tmp_path / "pulled")
    assert (code, errors) == (0, "")
    assert "every file verified" in out
    assert (tmp_path / "pulled" / "model.safetensors").is_file()


def test_pull_refuses_an_unknown_alias_in_one_line(project: Project, tmp_path: Path) -> None:
    line = project.refuses("registry", "pull", "models:/toybert@phase9", tmp_path / "pulled", installed=True)
    assert "toybert has @phase2, /1" in line


def test_pull_into_a_place_that_cannot_be_written_is_one_line(project: Project) -> None:
    assert "/proc/none" in project.refuses("registry", "pull", "models:/toybert@phase2", "/proc/none/model")


def test_fill_mask_shows_candidates_for_each_mask(invoke: Callable[..., str]) -> None:
    shown = invoke("fill-mask", "bakı [MASK] gözəl [MASK] şəhər", "--top", 3)
    assert "[MASK] 1 of 2, models:/toybert@phase2" in shown
    assert "[MASK] 2 of 2" in shown
    assert shown.count("%") == 6


def test_fill_mask_takes_a_folder_too(invoke: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    invoke("registry", "pull", "models:/toybert@phase2", folder)
    shown = invoke("fill-mask", "bakı [MASK] gözəl", "--model", folder)
    registered = invoke("fill-mask", "bakı [MASK] gözəl")
    assert shown.count("%") == 5
    assert shown.splitlines()[-7:] == registered.splitlines()[-7:]


def test_fill_mask_of_a_folder_needs_no_project_and_says_what_it_needs_without_one(
    project: Project, invoke: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "encoder"
    invoke("registry", "pull", "models:/toybert@phase2", folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # or what --tracking-uri sets would be there for the tests to come
    shown = CliRunner().invoke(app, ["fill-mask", "bakı [MASK] gözəl", "--model", str(folder)])
    assert shown.output.count("%") == 5
    store = f"sqlite:///{project.folder}/mlflow.db"
    asked = ["fill-mask", "bakı [MASK]", "--model", "models:/toybert@phase2"]
    assert CliRunner().invoke(app, [*asked, "--tracking-uri", store]).output.count("%") == 5
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    refused = CliRunner().invoke(app, asked)
    assert "use --tracking-uri" in str(refused.exception)
    refused = CliRunner().invoke(app, ["fill-mask", "bakı [MASK]", "--tracking-uri", store])
    assert "params.yaml: no such file; use --model" in str(refused.exception)


def test_fill_mask_refuses_a_text_without_a_mask(project: Project) -> None:
    line = project.refuses("fill-mask", "bakı gözəl şəhər")
    assert "no [MASK] in 'bakı gözəl şəhər'" in line


def test_fill_mask_refuses_a_text_longer_than_the_model_reads(project: Project) -> None:
    line = project.refuses("fill-mask", "[MASK] " + "şəhər " * 100)
    assert "the model reads 64; shorten it" in line


def test_fill_mask_with_more_candidates_than_tokens_shows_them_all_or_is_one_line(project: Project) -> None:
    _, out, errors = project.run("fill-mask", "bakı [MASK]", "--top", 1000)
    assert "Traceback" not in errors
    assert sum("%" in line for line in out.splitlines()) == 300 or len(errors.splitlines()) == 1


def test_the_installed_command_fills_a_mask_without_noise(project: Project) -> None:
    code, out, errors = project.run("fill-mask", "bakı [MASK] şəhər", "--top", 2, installed=True)
    assert (code, errors) == (0, "")
    assert out.count("%") == 2


def test_help_shows_what_there_is(project: Project) -> None:
    _, shown, _ = project.run("--help")
    for command in ("recipe", "checkpoint", "data", "registry", "runs", "doctor", "fill-mask"):
        assert command in shown
