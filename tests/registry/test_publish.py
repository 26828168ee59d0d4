"""A pulled version becomes a folder that a model hub takes, whole or not at all, and goes there only if asked to."""

from __future__ import annotations

import base64
import copy
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from pushed import FIGURES, push_newest
from refusals import refused
from safetensors.torch import load_file, save_file
from toy import Toy
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from azneobert.checkpoint.manifest import Segment
from azneobert.errors import RegistryError
from azneobert.files import sha256_file, write_json
from azneobert.registry.assemble import assemble
from azneobert.registry.hub_card import Published, hub_card
from azneobert.registry.publish import check_upload, publish, upload

FILES = {"README.md", "SHA256SUMS", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
PROGRAM = "from azneobert.cli import main; main()"


@pytest.fixture(scope="module")
def assembled(trained: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registered")
    picture = folder / "phase1.png"
    picture.write_bytes(b"\x89PNG a picture")
    assemble(trained.checkpoints().steps()[-1], trained.recipe, FIGURES, [picture], folder / "version")
    return folder / "version"


@pytest.fixture
def version(assembled: Path, tmp_path: Path) -> Path:
    """A version as it is pulled."""
    return sealed(Path(shutil.copytree(assembled, tmp_path / "version")))


def sealed(folder: Path) -> Path:
    """The same folder with a manifest of the files that it holds now."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    files = {
        name: {"sha256": sha256_file(folder / name), "size": (folder / name).stat().st_size}
        for name in names
        if name != "manifest.json"
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", manifest | {"files": files})
    return folder


def change_facts(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    file = folder / "card.json"
    facts = json.loads(file.read_text())
    change(facts)
    write_json(file, facts)
    return sealed(folder)


def facts_of(version: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((version / "card.json").read_text())
    return content


def nothing_left(folder: Path) -> bool:
    return not list(folder.glob(".publish-*"))


# What is in the folder.


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
@torch.no_grad()
def test_a_published_folder_is_loaded_by_plain_transformers(
    dtype: Any, expected: torch.dtype, version: Path, tmp_path: Path
) -> None:
    folder = publish(version, tmp_path / "hub", dtype, "apache-2.0")
    assert {file.name for file in folder.iterdir()} == FILES | {"phase1.png"}
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=False)
    assert model.dtype == expected
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = AutoModelForMaskedLM.from_pretrained(version)
    encoded = tokenizer("bakı [MASK] şəhər", return_tensors="pt")
    difference = (model(**encoded).logits.float() - before(**encoded).logits).abs().max()
    assert difference == 0 if dtype == "fp32" else 0 < difference < 0.1
    [found, *_] = pipeline("fill-mask", model=str(folder), tokenizer=str(folder))("bakı [MASK] şəhər")
    assert 0 < found["score"] <= 1


def test_bf16_is_the_nearest_number_and_halves_go_to_even(version: Path, tmp_path: Path) -> None:
    weights = load_file(version / "model.safetensors")
    halves = [1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1 + 2**-8 + 2**-20]  # between 1, 1 + 2^-7 and 1 + 2^-6
    weights["model.norm.weight"][:4] = torch.tensor(halves)
    save_file(weights, version / "model.safetensors", metadata={"format": "pt"})
    folder = publish(sealed(version), tmp_path / "hub", "bf16", "mit")
    rounded = load_file(folder / "model.safetensors")
    assert rounded["model.norm.weight"][:4].tolist() == [1, 1 + 2**-6, -1, 1 + 2**-7]
    assert rounded.keys() == weights.keys()
    for name, tensor in weights.items():
        step = torch.finfo(torch.bfloat16).eps * tensor.abs().clamp_min(1e-30)
        assert ((rounded[name].float() - tensor).abs() <= step / 2 * 1.001).all(), name


def test_fp32_is_the_version_file_itself_and_the_same_is_published_twice_alike(version: Path, tmp_path: Path) -> None:
    one, two = (publish(version, tmp_path / name, "fp32", "mit") for name in ("one", "two"))
    assert (one / "model.safetensors").read_bytes() == (version / "model.safetensors").read_bytes()
    assert (one / "SHA256SUMS").read_bytes() == (two / "SHA256SUMS").read_bytes()
    assert json.loads((one / "config.json").read_text())["dtype"] == "float32"


def test_sha256sum_checks_every_file_and_finds_one_that_was_changed(version: Path, tmp_path: Path) -> None:
    folder = publish(version, tmp_path / "hub", "bf16", "mit")
    command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(list(folder.iterdir())) - 1
    (folder / "README.md").write_text("a card of somebody else's\n")
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1


# What the card says.


def test_the_header_is_what_the_hub_reads(version: Path, tmp_path: Path) -> None:
    card = ModelCard.load(publish(version, tmp_path / "hub", "bf16", "Apache-2.0") / "README.md")
    assert (card.data.language, card.data.license) == ("az", "apache-2.0")
    assert (card.data.pipeline_tag, card.data.library_name) == ("fill-mask", "transformers")
    assert card.data.datasets == list(facts_of(version)["recipe"]["data"]["order"])
    assert card.data.metrics == ["accuracy", "loss"]
    assert card.data.model_name == "toy-phase1"
    found = {(result.dataset_type, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert found == {
        ("held-out", "loss"): 5.25,
        ("held-out", "accuracy"): 0.125,
        ("news", "loss"): 5.5,
        ("news", "accuracy"): 0.0625,
    }


def test_the_card_answers_what_people_ask_of_a_model(version: Path, tmp_path: Path) -> None:
    folder = publish(version, tmp_path / "hub", "bf16", "mit")
    card = (folder / "README.md").read_text()
    titles = [line for line in card.splitlines() if line.startswith("## ")]
    expected = ("Intended use", "Data", "Recipe", "Results", "Limits", "How it was made", "Checksums")
    assert titles == [f"## {title}" for title in expected]
    version_of_fp32 = sha256_file(version / "model.safetensors")
    for part in (
        "| all | 5.2500 | 12.50% |",
        "| news | 5.5000 | 6.25% |",
        "| wikipedia | local files |",
        "![loss curve](phase1.png)",
        '"peak_learning_rate": 0.002',
        "| 0 | toy | toy | plain | 1 | none | unknown |",
        f"fp32 | `{version_of_fp32}` |",
        f"bf16 | `{sha256_file(folder / 'model.safetensors')}` |",
        sha256_file(version / "manifest.json"),
        "rounded to the nearest one, halves to even",
        "Its tokenizer does not take white space from the two ends",
        "in one run of 1 segment, from random weights",
    ):
        assert part in card, part
    assert "phase2" not in card


def test_no_path_no_run_and_no_store_is_published(version: Path, tmp_path: Path) -> None:
    def hide(facts: dict[str, Any]) -> None:
        facts["recipe"]["data"]["files"]["news"]["path"] = "/home/somebody/secret"
        facts["recipe"]["tracking"]["mlflow_uri"] = "http://secret.example"
        facts["recipe"]["tokenizer"] |= {"trained": {}, "imported": {"ours": {"path": "secret/tokenizer.json"}}}
        facts["lineage"]["mlflow_run_id"] = "secret"
        hub = facts["recipe"]["data"]["hub"]
        hub["crawl"] = {"dataset": "json", "data_files": ["https://host.example/a.jsonl?key=secret"]}
        facts["recipe"]["data"]["order"].append("crawl")

    folder = publish(change_facts(version, hide), tmp_path / "hub", "bf16", "mit")
    for file in folder.iterdir():
        assert b"secret" not in file.read_bytes(), file.name
    assert '"imported": [\n   "ours"' in (folder / "README.md").read_text()


def test_collections_of_the_hub_and_counts_are_told_where_they_are_known(version: Path) -> None:
    facts = facts_of(version)
    data = facts["recipe"]["data"]
    data["hub"] = {
        "web": {"dataset": "HuggingFaceFW/fineweb-2", "config": "azj_Latn", "revision": "abc"},
        "parallel": {"dataset": "csv", "data_files": "https://host.example/pairs.csv.gz"},
    }
    data["order"] += ["web", "parallel"]
    facts["collections"] = {"web": {"documents": 1_000_000, "tokens": 2_000_000_000}}
    card = hub_card(facts, Published("fp32", "mit", [], {}))
    link = "[HuggingFaceFW/fineweb-2](https://huggingface.co/datasets/HuggingFaceFW/fineweb-2)"
    assert "| collection | from | documents | tokens |" in card
    assert f"| web | {link}, azj_Latn, abc | 1,000,000 | 2,000,000,000 |" in card
    assert "| parallel | https://host.example/pairs.csv.gz |" in card
    assert ModelCard(card).data.datasets[-2:] == ["HuggingFaceFW/fineweb-2", "parallel"]


@pytest.mark.parametrize(
    ("language", "code", "said"),
    [
        ("turkish", "tr", "language model for Turkish:"),
        ("any", "multilingual", "Texts of fewer than 3 words were left out"),
        ({"name": "kazakh_cyrillic", "letters": "А-Яа-я"}, None, "texts that are not `kazakh_cyrillic`"),
    ],
)
def test_the_language_is_the_one_of_the_recipe(language: Any, code: str | None, said: str, version: Path) -> None:
    facts = facts_of(version)
    facts["recipe"]["data"]["cleaning"]["language"] = language
    card = hub_card(facts, Published("fp32", "mit", [], {}))
    assert said in card
    assert ModelCard(card).data.language == code


def test_the_history_of_a_second_phase_is_told(version: Path) -> None:
    facts = facts_of(version)
    segment = facts["segments"][0]
    assert segment.keys() == Segment(0).__dict__.keys()
    later = copy.deepcopy(segment) | {
        "from_step": 1200,
        "engine": "zero2",
        "world_size": 8,
        "git_dirty": True,
        "image": "sha256:abc",
        "versions": {"torch": "2.11.0"},
    }
    facts |= {"phase": "phase2", "segments": [segment, later]}
    facts["lineage"]["started_from"] = {"phase": "phase1", "step": 10, "weights": "f00", "carry": {}}
    card = hub_card(facts, Published("bf16", "mit", [], {}))
    for part in (
        "in one run of 2 segments, from the weights of phase1 at step 10 (sha256 `f00`)",
        "| 1,200 | toy, changed | toy | zero2 | 8 | sha256:abc | torch 2.11.0 |",
        '"phase2": {',
    ):
        assert part in card, part


# What is refused.


def test_a_licence_must_be_stated(version: Path, tmp_path: Path) -> None:
    with refused(RegistryError, "no licence is stated; use --license apache-2.0"):
        publish(version, tmp_path / "hub")
    with refused(RegistryError, "--license my own licence: no identifier"):
        publish(version, tmp_path / "hub", "bf16", "my own licence")
    free = change_facts(version, lambda facts: facts["recipe"]["registry"].update(license="our own"))
    with refused(RegistryError, "registry.license our own: no identifier"):
        publish(free, tmp_path / "hub")
    stated = change_facts(version, lambda facts: facts["recipe"]["registry"].update(license="cc-by-4.0"))
    assert ModelCard.load(publish(stated, tmp_path / "hub") / "README.md").data.license == "cc-by-4.0"


def test_a_target_that_is_in_the_way_is_left_as_it_is(version: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert publish(version, tmp_path / "empty", "bf16", "mit") == tmp_path / "empty"
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").write_text("mine")
    for target in (tmp_path / "taken", tmp_path / "taken" / "notes"):
        with refused(RegistryError, str(target), "not an empty folder"):
            publish(version, target, "bf16", "mit")
    assert [file.name for file in (tmp_path / "taken").iterdir()] == ["notes"]


def lose(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "README.md").write_text("another\n"), "README.md"),
        (lose("model.safetensors"), "model.safetensors: is missing"),
        (lose("manifest.json"), "has no readable manifest.json"),
        (lambda folder: (lose("card.json")(folder), sealed(folder)), "has no card.json, as versions of an earlier"),
        (lambda folder: ((folder / "card.json").write_text("[]"), sealed(folder)), "holds no facts by name"),
        (lambda folder: ((folder / "card.json").write_text('{"phase": 1}'), sealed(folder)), "is not laid out as"),
        (lambda folder: (lose("tokenizer.json")(folder), sealed(folder)), "tokenizer.json"),
        (lambda folder: ((folder / "model.safetensors").write_bytes(b"torn"), sealed(folder)), "is not laid out as"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_a_version_that_is_not_whole_is_not_published(
    damage: Callable[[Path], Any], said: str, version: Path, tmp_path: Path
) -> None:
    damage(version)
    with refused(RegistryError, said, str(version)):
        publish(version, tmp_path / "hub", "bf16", "mit")
    assert not (tmp_path / "hub").exists()
    assert nothing_left(tmp_path)


def test_a_number_that_bf16_does_not_hold_is_not_published(version: Path, tmp_path: Path) -> None:
    weights = load_file(version / "model.safetensors")
    weights["model.norm.weight"][0] = torch.finfo(torch.float32).max
    save_file(weights, version / "model.safetensors", metadata={"format": "pt"})
    with refused(RegistryError, "model.norm.weight: holds numbers that are not finite in bf16", "--dtype fp32"):
        publish(sealed(version), tmp_path / "hub", "bf16", "mit")
    assert nothing_left(tmp_path)
    publish(version, tmp_path / "hub", "fp32", "mit")


def test_without_a_token_nothing_is_uploaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with refused(RegistryError, "--upload owner/model: no token of the hub; set HF_TOKEN"):
        check_upload("owner/model")
    monkeypatch.setenv("HF_TOKEN", "hf_no_real_one")
    check_upload("owner/model")
    for wrong in ("model", "owner/model/part", "https://huggingface.co/owner/model", "owner/"):
        with refused(RegistryError, f"--upload {wrong}: no name of a repository; use OWNER/NAME"):
            check_upload(wrong)
    with refused(RegistryError, "owner/model: not uploaded", f"use `hf upload owner/model {tmp_path}`"):
        upload(tmp_path, "owner/model")  # the tests have the hub's library offline


# The command, from the registry to a hub.


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as one commit of small files takes; it keeps what it was sent."""

    requests: list[tuple[str, str | None]] = []  # noqa: RUF012 - the server makes an instance a request
    made: dict[str, Any] = {}  # noqa: RUF012
    committed: dict[str, bytes] = {}  # noqa: RUF012
    full = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Hub.requests.append((self.path, self.headers["Authorization"]))
        if self.path == "/api/repos/create":
            Hub.made = json.loads(body)
            self.answer(200, {"url": f"http://{self.headers['Host']}/owner/model", "id": "owner/model"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/models/owner/model/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer(200, {"files": files})
        elif self.path == "/api/models/owner/model/commit/main" and not Hub.full:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    Hub.committed[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            address = f"http://{self.headers['Host']}/owner/model/commit/c0ffee"
            self.answer(200, {"commitOid": "c0ffee", "commitUrl": address})
        else:
            self.answer(403, {"error": "this token may not write here"})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """The test says what it expects."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.requests, Hub.made, Hub.committed, Hub.full = [], {}, {}, False
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the hub's library reads its settings when it is imported."""
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "MLFLOW_TRACKING_URI")}
    home = {"HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "registry", "publish", *words],
        cwd=folder,
        env={**kept, **home, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.long
def test_the_command_uploads_when_asked_to_and_with_a_token_alone(version: Path, hub: str, tmp_path: Path) -> None:
    asked = ("version", "hub", "--license", "mit", "--upload", "owner/model")
    done = run(tmp_path, *asked, HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --upload owner/model: no token of the hub; set HF_TOKEN")
    assert Hub.requests == []
    assert not (tmp_path / "hub").exists(), "it is said before anything is made"

    done = run(tmp_path, *asked, HF_ENDPOINT=hub, HF_HUB_OFFLINE="0", HF_TOKEN="hf_no_real_one")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"uploaded: {hub}/owner/model/commit/c0ffee"
    assert Hub.made["visibility"] == "private"
    assert Hub.committed == {file.name: file.read_bytes() for file in (tmp_path / "hub").iterdir()}
    assert {token for _, token in Hub.requests} == {"Bearer hf_no_real_one"}

    Hub.full = True
    again = run(tmp_path, "version", "again", *asked[2:], HF_ENDPOINT=hub, HF_HUB_OFFLINE="0", HF_TOKEN="hf_other")
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
    assert "error: owner/model: not uploaded (403 Forbidden" in again.stderr
    assert "use `hf upload owner/model again`" in again.stderr


@pytest.mark.long
def test_the_command_takes_a_registry_uri_and_asks_no_hub(toy: Toy, hub: str, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    write_json(tmp_path / "params.yaml", toy.recipe.model_dump(mode="json"))  # JSON is YAML
    done = run(tmp_path, "models:/toybert@phase1", "out", "--dtype", "fp32", "--license", "mit", HF_ENDPOINT=hub)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("models:/toybert@phase1 is in out, in fp32")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES | {"phase1.png"}
    assert Hub.requests == []
    done = run(tmp_path, "models:/toybert@phase9", "other", "--license", "mit")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "models:/toybert@phase9: not in" in done.stderr
