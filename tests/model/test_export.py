"""An export is a folder that transformers loads as it is, and that computes what the model computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from refusals import refused
from toy import lively, packed, random_ids, toy_recipe
from transformers import AutoModelForMaskedLM, AutoTokenizer, EuroBertConfig, EuroBertForMaskedLM

from azneobert.data.tokenizer import load_tokenizer, special_ids, tokenizer_sha256
from azneobert.errors import DataError
from azneobert.model.encoder import MaskedLM
from azneobert.model.export import eurobert_config, export_transformers, to_eurobert

TEXTS = ["bakı gözəl şəhər", "dağ [MASK] su", "çay evdir gözəl ölkəmiz ağ dağlər üz su çay"]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest) -> MaskedLM:
    return lively(toy_recipe({"model": {"tie_embeddings": request.param}}).model).eval()


@pytest.fixture
def exported(model: MaskedLM, toy_corpus: Path, tmp_path: Path) -> Path:
    weights = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    export_transformers(weights, model.config, toy_corpus / "tokenizer.json", tmp_path / "export")
    return tmp_path / "export"


def our_logits(model: MaskedLM, ids: torch.Tensor) -> torch.Tensor:
    return model(*packed([ids], len(ids)), torch.arange(len(ids)))


@torch.no_grad()
def test_eurobert_with_the_same_weights_gives_the_same_logits(model: MaskedLM, toy_corpus: Path) -> None:
    ids = special_ids(load_tokenizer(toy_corpus / "tokenizer.json"))
    theirs = EuroBertForMaskedLM(EuroBertConfig(**eurobert_config(model.config, ids))).eval()
    missing, unexpected = theirs.load_state_dict(to_eurobert(model.state_dict()), strict=True)
    assert not missing
    assert not unexpected
    documents = [random_ids(64, 1), random_ids(7, 2)]
    for document in documents:
        expected = theirs(input_ids=document[None]).logits[0]
        assert expected.abs().max() > 1, "weights too small to show a difference"
        torch.testing.assert_close(our_logits(model, document), expected, atol=1e-5, rtol=0)
    # Packed rows too: each document as EuroBERT sees it alone.
    both = model(*packed(documents, 71), torch.arange(71)).split([64, 7])
    for found, document in zip(both, documents, strict=True):
        torch.testing.assert_close(found, theirs(input_ids=document[None]).logits[0], atol=1e-5, rtol=0)


def from_eurobert(theirs: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The inverse of `to_eurobert`."""
    ours = {"encoder.embedding.weight": theirs["model.embed_tokens.weight"]}
    for layer in range(layers):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        parts = {
            "attention_norm": [f"model.layers.{layer}.input_layernorm"],
            "qkv": [f"{attention}.{part}_proj" for part in "qkv"],
            "out": [f"{attention}.o_proj"],
            "ffn_norm": [f"model.layers.{layer}.post_attention_layernorm"],
            "gate_up": [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
            "down": [f"{mlp}.down_proj"],
        }
        for name, names in parts.items():
            ours[f"encoder.blocks.{layer}.{name}.weight"] = torch.cat([theirs[f"{part}.weight"] for part in names])
    ours["encoder.final_norm.weight"] = theirs["model.norm.weight"]
    if "lm_head.weight" in theirs:
        ours["head.weight"] = theirs["lm_head.weight"]
    return ours


def test_coming_back_from_eurobert_is_the_identity(model: MaskedLM) -> None:
    ours = {name: p.detach() for name, p in model.named_parameters()}
    back = from_eurobert(to_eurobert(ours), model.config.num_hidden_layers)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)


@torch.no_grad()
def test_an_exported_folder_loads_without_remote_code_and_gives_our_logits(model: MaskedLM, exported: Path) -> None:
    theirs, loading = AutoModelForMaskedLM.from_pretrained(exported, output_loading_info=True, trust_remote_code=False)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not list(exported.glob("*.py"))
    assert "auto_map" not in json.loads((exported / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(exported)
    for text in TEXTS:
        encoded = tokenizer(text, return_tensors="pt")
        expected = theirs.eval()(**encoded).logits[0]
        torch.testing.assert_close(our_logits(model, encoded["input_ids"][0]), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_padded_batch_gives_each_text_the_logits_it_has_alone(model: MaskedLM, exported: Path) -> None:
    theirs = AutoModelForMaskedLM.from_pretrained(exported).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert not batch["attention_mask"].all()
    logits = theirs(**batch).logits
    for row, mask, ids in zip(logits, batch["attention_mask"], batch["input_ids"], strict=True):
        torch.testing.assert_close(row[mask.bool()], our_logits(model, ids[mask.bool()]), atol=1e-5, rtol=0)


def test_the_exported_tokenizer_frames_a_text_as_training_does(exported: Path, toy_corpus: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    plain = load_tokenizer(toy_corpus / "tokenizer.json")
    ids = special_ids(plain)
    encoded = tokenizer("bakı [MASK] şəhər")["input_ids"]
    assert encoded[0] == ids["[CLS]"]
    assert encoded[-1] == ids["[SEP]"]
    assert encoded.count(ids["[MASK]"]) == 1
    assert encoded == plain.encode("bakı [MASK] şəhər").ids
    assert tokenizer.model_max_length == 64
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (ids["[PAD]"], ids["[MASK]"])


def test_the_export_repairs_in_its_language_and_names_the_tokenizer_of_training(
    model: MaskedLM, exported: Path, toy_corpus: Path, tmp_path: Path
) -> None:
    of_training = toy_corpus / "tokenizer.json"
    config = json.loads((exported / "tokenizer_config.json").read_text())
    assert config["training_tokenizer_sha256"] == tokenizer_sha256(of_training)
    assert tokenizer_sha256(exported / "tokenizer.json") != tokenizer_sha256(of_training)
    plain = load_tokenizer(of_training)
    assert (
        AutoTokenizer.from_pretrained(exported)("dağlǝr\u00a0\u00ad su")["input_ids"] == plain.encode("dağlər su").ids
    )
    weights = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    export_transformers(weights, model.config, of_training, tmp_path / "any", "any")
    of_any = AutoTokenizer.from_pretrained(tmp_path / "any")
    assert of_any("dağlǝr\u00a0\u00ad su")["input_ids"] == plain.encode("dağlǝr su").ids


def test_weights_without_a_tied_head_export_like_weights_with_it(toy_corpus: Path, tmp_path: Path) -> None:
    model = lively(toy_recipe({"model": {"tie_embeddings": True}}).model)
    for name, duplicates in (("with", False), ("without", True)):
        weights = {n: p.detach() for n, p in model.named_parameters(remove_duplicate=duplicates)}
        export_transformers(weights, model.config, toy_corpus / "tokenizer.json", tmp_path / name)
    assert (tmp_path / "with/model.safetensors").read_bytes() == (tmp_path / "without/model.safetensors").read_bytes()
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "with")
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


def test_a_tokenizer_of_another_size_is_refused_in_one_line(toy_corpus: Path, tmp_path: Path) -> None:
    model = lively(toy_recipe({"model": {"vocab_size": 301}, "tokenizer": {"vocab_size": 301}}).model)
    with refused(DataError, "tokenizer.json", "300 tokens", "301"):
        export_transformers(dict(model.state_dict()), model.config, toy_corpus / "tokenizer.json", tmp_path / "export")
