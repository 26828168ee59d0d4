"""`azneobert recipe ...`, as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from azneobert.cli import app
from azneobert.errors import AzNeoBertError
from azneobert.recipe import load_recipe
from azneobert.yaml_files import edit_yaml, write_yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def project(recipes: Path) -> Path:
    """One collection of the recipe is there."""
    shutil.copytree(ROOT / "data/sample/folklor", "corpus/folklor")
    return recipes


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["recipe", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refusal(*arguments: str) -> str:
    with pytest.raises(AzNeoBertError) as caught:
        CliRunner().invoke(app, ["recipe", *arguments], catch_exceptions=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path: str, block: str, **edits: object) -> None:
    content = edit_yaml(Path(path))
    content[block].update(edits)
    write_yaml(Path(path), content)


def test_from_a_folder_to_a_recipe_in_place() -> None:
    said = invoke("new", "kitab", "--from", "corpus")
    assert "folklor: corpus/folklor, text in text, id in id" in said
    assert "dvc add corpus/folklor" in said
    assert "azneobert recipe use kitab" in said
    assert "recipe kitab runs from now on" in invoke("use", "kitab")
    assert load_recipe().name == "kitab"
    said = invoke("check")
    assert "recipe kitab: " in said
    assert "1 collections" in said


def test_what_git_or_dvc_has_is_not_offered_again(project: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "corpus"], check=True)
    assert "dvc add" not in invoke("new", "kitab", "--from", "corpus")
    subprocess.run(["git", "rm", "-rq", "--cached", "corpus"], check=True)
    (project / "corpus/folklor.dvc").write_text("outs: []\n")
    assert "dvc add" not in invoke("new", "other", "--from", "corpus")


def test_what_lies_elsewhere_is_not_offered_to_dvc(tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree("corpus/folklor", elsewhere / "folklor")
    assert "dvc add" not in invoke("new", "kitab", "--from", str(elsewhere))


def test_a_new_recipe_without_a_folder_says_what_it_lacks() -> None:
    assert "name its collections under data.files or data.hub" in invoke("new", "kitab")
    assert "data: no collection" in refusal("use", "kitab")


def test_a_new_recipe_of_a_folder_without_a_collection_writes_nothing() -> None:
    Path("empty").mkdir()
    assert "empty: no collection there" in refusal("new", "kitab", "--from", "empty")
    assert not Path("recipes/kitab.yaml").exists()


def test_the_list_says_which_runs_and_whether_it_is_changed() -> None:
    assert "runs" in next(line for line in invoke("list").splitlines() if "sample" in line)
    change("params.yaml", "runtime", log_every=7)
    assert "runs, changed" in next(line for line in invoke("list").splitlines() if "sample" in line)
    Path("params.yaml").unlink()
    result = CliRunner().invoke(app, ["recipe", "list"])
    assert "h200" in result.output, "the others are shown"
    assert "params.yaml: no such file" in refusal("list")
    shutil.copy("recipes/sample.yaml", "params.yaml")
    Path("recipes/wrong.yaml").write_text("name: wrong\n")
    assert "recipes/wrong.yaml: seed: is missing" in refusal("list")


def test_a_changed_recipe_is_kept_and_the_place_is_said() -> None:
    change("params.yaml", "runtime", log_every=7)
    assert "kept as recipes/kept/sample-1.yaml" in invoke("use", "h200")
    assert "kept" not in invoke("use", "recipes/kept/sample-1.yaml")
    assert load_recipe().runtime.log_every == 7


@pytest.mark.parametrize(
    ("block", "edits", "words"),
    [
        ("data", {}, ["params.yaml: data.files.wikipedia.path: data/sample/wikipedia: no such source file"]),
        (
            "tokenizer",
            {"trained": {}, "imported": {"ours": {"path": "nowhere.json"}}},
            ["tokenizer.imported.ours.path"],
        ),
        ("finetuning", {"files": {"ner": {"path": "data/ner"}}}, ["finetuning.files.ner.path: data/ner is not there"]),
    ],
)
def test_a_file_that_is_not_there_is_refused_by_its_key(block: str, edits: dict, words: list[str]) -> None:
    if block != "data":
        change("params.yaml", "data", files={"folklor": {"path": "corpus/folklor"}}, order=["folklor"])
        shutil.copytree(ROOT / "data/sample/punctuation", "data/sample/punctuation")
    change("params.yaml", block, **edits)
    line = refusal("check")
    assert all(word in line for word in words), line
    assert "--allow-missing" not in line, "without a dvc.lock nothing was made of it yet"
    Path("dvc.lock").write_text("{}")
    assert "`dvc repro --allow-missing`" in refusal("check")
    assert "recipe sample: " in invoke("check", "--allow-missing")


def test_a_file_of_before_is_migrated_on_request() -> None:
    content = edit_yaml(Path("recipes/sample.yaml"))
    data, tokenizer, tuning = content["data"], content["tokenizer"], content["finetuning"]
    data["sources"] = data.pop("files")
    del data["hub"]
    del content["name"]
    content["tokenizer"] = {"algorithm": "bpe", "vocab_size": tokenizer["vocab_size"], "lowercase": False, "path": None}
    tuning["task"] = next(iter(tuning.pop("files").values()))["path"]
    write_yaml(Path("params.yaml"), {"recipe": "old", "old": json.loads(json.dumps(content))})
    assert "`azneobert recipe migrate`" in refusal("check")
    said = invoke("migrate")
    assert "recipes/old.yaml: written" in said
    assert "the former file is recipes/kept/params-1.yaml" in said
    recipe, sample = load_recipe(), load_recipe("recipes/sample.yaml")
    assert recipe.model_copy(update={"name": "sample"}) == sample


def test_check_predicts_the_memory_of_a_gpu_for_each_kind_of_blocks() -> None:
    said = invoke("check", "h200", "--allow-missing")
    assert said.count("fused blocks (Hopper): a GPU is predicted to need 32.7 GiB") == 1  # ZeRO-2 on 8, 48 rows
    assert said.count("torch blocks: a GPU is predicted to need") == 2
    change("recipes/h200.yaml", "training", fp8=True)
    assert "torch blocks" not in invoke("check", "h200", "--allow-missing")
    change("recipes/h200.yaml", "training", fp8=False)
    change("recipes/h200.yaml", "runtime", blocks="torch")
    assert "fused" not in invoke("check", "h200", "--allow-missing")


def test_check_says_which_micro_batches_cards_hold_where_the_recipe_leaves_it_open() -> None:
    change("recipes/h200.yaml", "runtime", max_micro_batch="auto")
    said = invoke("check", "h200", "--allow-missing")
    assert "2,304 rows (8 x 288 rows, in micro-batches that fit) of 1,024 tokens" in said
    assert "rows of a micro-batch that a GPU is predicted to hold: 24 GB 24, 40 GB 48, 80 GB 96, 141 GB 144" in said
    change("recipes/h200.yaml", "model", num_hidden_layers=1000)
    assert "predicted to hold: 24 GB none, 40 GB none, " in invoke("check", "h200", "--allow-missing")


def test_check_predicts_no_fused_blocks_where_they_cannot_be() -> None:
    """In fp32, as the sample computes."""
    said = invoke("check", "--allow-missing")
    assert "torch blocks: a GPU is predicted to need 47 MiB" in said
    assert "fused" not in said
