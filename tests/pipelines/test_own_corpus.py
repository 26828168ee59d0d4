"""A user's own corpus, three collections in five formats, by the commands of docs/data.md; and back to the sample."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from project import ROOT, TOY, Project, Reproduced, stages_run

from azneobert.checkpoint.manifest import read_manifest
from azneobert.yaml_files import edit_yaml, write_yaml


def documents(*collections: str) -> list[str]:
    """Texts of the sample, as a user would have them in other files."""
    lines = (line for name in collections for line in (ROOT / f"data/sample/{name}/documents.jsonl").open("rb"))
    return [json.loads(line)["text"] for line in lines]


def write_corpus(folder: Path) -> None:
    texts = documents("news", "folklor", "fineweb2", "culturax")
    for place in ("xeberler", "kitablar", "Forum 2024"):
        (folder / place).mkdir(parents=True)
    with (folder / "xeberler/a.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerows([["url", "metn"], *(["https://a.az", text] for text in texts[:20])])
    lines = [json.dumps({"url": "https://b.az", "metn": text}) + "\n" for text in texts[20:40]]
    (folder / "xeberler/b.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))
    for number, text in enumerate(texts[40:60]):
        (folder / f"kitablar/{number}.txt").write_text(text, encoding="utf-8")
    table = pa.table({"id": [str(n) for n in range(20)], "post": [{"az": text} for text in texts[60:80]]})
    pq.write_table(table, folder / "Forum 2024/a.parquet")
    lines = [json.dumps({"id": n, "post": {"az": text}}) + "\n" for n, text in enumerate(texts[80:])]
    (folder / "Forum 2024/b.jsonl.zst").write_bytes(zstandard.compress("".join(lines).encode()))


def commands() -> list[str]:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    block = re.search(r"^```bash own-corpus\n(.*?)^```", page, re.M | re.S)
    assert block
    return block[1].splitlines()


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def both(pristine: Reproduced, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, str], list[str]]:
    """A project with a finished sample, then those commands on a corpus; what they print, and a whole remote."""
    project = pristine.project.copy(tmp_path_factory.mktemp("own") / "project")
    project.run("dvc", "remote", "add", "-d", "store", str(project.folder.parent / "remote"))
    project.run("dvc", "push", "-q")
    project.commit()
    write_corpus(project.folder / "corpus")
    before = hashes(project.folder / "outputs/sample")
    printed = []
    for command in commands():
        printed.append(project.run("bash", "-c", command).stdout)
        if "recipe new" in command:  # the template trains for minutes
            recipe = edit_yaml(project.folder / "recipes/kitab.yaml")
            for block, values in TOY.items():
                recipe[block].update(values)
            write_yaml(project.folder / "recipes/kitab.yaml", recipe)
    return project, before, printed


def test_there_are_six_commands() -> None:
    assert len(commands()) == 6


def test_the_readme_s_commands_go_from_a_folder_to_a_registered_model(
    both: tuple[Project, dict[str, str], list[str]],
) -> None:
    project, _, printed = both
    assert "kitablar: corpus/kitablar, plain text, a document is a file" in printed[1]
    assert "forum_2024: corpus/Forum 2024, text in post.az, id in id" in printed[1]
    assert "dvc add 'corpus/Forum 2024' corpus/kitablar corpus/xeberler" in printed[1]
    ran = stages_run(printed[3])
    assert [stage for stage in ran if stage.startswith("ingest")] == [
        "ingest@forum_2024",
        "ingest@kitablar",
        "ingest@xeberler",
    ]
    assert not [stage for stage in ran if "finetune" in stage], "there is no labelled task"
    assert "models:/kitab/1" in printed[4]
    assert (project.folder / "my-encoder/model.safetensors").is_file()
    manifest = read_manifest(project.folder / "outputs/kitab/phase2/checkpoint")
    assert set(manifest.lineage["tokens_md5"]) == {"forum_2024", "kitablar", "xeberler"}
    kept = [json.loads(f.read_text()) for f in (project.folder / "outputs/kitab/reports/documents").glob("*.json")]
    assert sum(report["documents"] for report in kept) == len(documents("news", "folklor", "fineweb2", "culturax"))


def test_the_sample_s_version_stays_under_its_alias(both: tuple[Project, dict[str, str], list[str]]) -> None:
    project = both[0]
    listed = project.run("azneobert", "registry", "list", "--recipe", "sample").stdout
    assert "models:/azneobert-sample/2" in listed
    assert "phase2" in listed


def test_an_alias_of_another_recipe_s_version_moves_with_force_alone(
    both: tuple[Project, dict[str, str], list[str]],
) -> None:
    project = both[0].copy(both[0].folder.with_name("displacing"))
    project.change({"registry": {"name": "azneobert-sample"}})
    done = project.run("python", "pipelines/register.py", check=False)
    assert done.returncode == 1
    assert "models:/azneobert-sample@phase1: is models:/azneobert-sample/1 of recipe sample" in done.stderr
    assert "--force" in done.stderr
    project.run("python", "pipelines/register.py", "--force")
    assert "models:/azneobert-sample/3" in project.run("azneobert", "registry", "list").stdout


def test_back_to_the_sample_after_a_pull_nothing_is_lost_and_nothing_trained(
    both: tuple[Project, dict[str, str], list[str]],
) -> None:
    project, before, _ = both
    project.run("dvc", "pull", "-q", check=False)  # without a target: DVC takes the sample's outputs away
    project.run("dvc", "checkout", "-q", check=False)
    project.run("azneobert", "recipe", "use", "recipes/kept/sample-1.yaml")
    printed = project.run("make", "repro").stdout
    assert stages_run(printed) == []
    after = hashes(project.folder / "outputs/sample")
    assert {name: after.get(name) for name in before} == before
    own = hashes(project.folder / "outputs/kitab")
    project.run("azneobert", "recipe", "use", "kitab")
    assert stages_run(project.run("dvc", "repro").stdout) == []
    assert hashes(project.folder / "outputs/kitab").items() >= own.items()
