"""The official NeoBERT's layout: the same function by another code, there and back to the last bit; what is refused.

`official_logits` computes what the official code is described to compute, from its own tensors and with none of this
project's code: each head's Q, K and V side by side, rotations of neighbours as complex numbers, a head with a bias.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812
from toy import Toy, lively, packed, random_ids, run_command, toy_recipe

from azneobert.checkpoint.convert import convert, open_any
from azneobert.checkpoint.manifest import Manifest, read_manifest
from azneobert.checkpoint.universal import TrainState, all_weights, read_checkpoint, write_checkpoint
from azneobert.data.tokenizer import load_tokenizer, special_ids, tokenizer_sha256
from azneobert.errors import CheckpointError
from azneobert.model.encoder import MaskedLM

CONFIG_OF_THE_PUBLISHED_MODEL = {
    "architectures",
    "auto_map",
    "decoder_init_range",
    "dim_head",
    "embedding_init_range",
    "hidden_size",
    "intermediate_size",
    "max_length",
    "model_type",
    "norm_eps",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "torch_dtype",
    "vocab_size",
}


def official_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits (S, V) of one text (S,) without padding, from an official folder's files alone."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    heads, size = config["num_attention_heads"], config["dim_head"]
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, size, 2).float() / size))
    angles = torch.outer(torch.arange(config["max_length"]), frequencies).float()
    turns = torch.polar(torch.ones_like(angles), angles)[None, : len(ids), None]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["norm_eps"]) * tensors[f"model.{name}.weight"]

    def turned(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns).flatten(3)

    x = tensors["model.encoder.weight"][ids][None]
    for layer in range(config["num_hidden_layers"]):
        at = f"transformer_encoder.{layer}"
        fused = norm(x, f"{at}.attention_norm") @ tensors[f"model.{at}.qkv.weight"].T
        q, k, v = fused.view(1, len(ids), heads, 3 * size).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(turned(q).transpose(1, 2), turned(k).transpose(1, 2), v.transpose(1, 2))
        x = x + mixed.transpose(1, 2).reshape(1, len(ids), heads * size) @ tensors[f"model.{at}.wo.weight"].T
        gate, up = (norm(x, f"{at}.ffn_norm") @ tensors[f"model.{at}.ffn.w12.weight"].T).chunk(2, dim=-1)
        x = x + (F.silu(gate) * up) @ tensors[f"model.{at}.ffn.w3.weight"].T
    return F.linear(norm(x, "layer_norm"), tensors["decoder.weight"], tensors["decoder.bias"])[0]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest) -> MaskedLM:
    return lively(toy_recipe({"model": {"tie_embeddings": request.param, "rms_norm_eps": 1e-3}}).model).eval()


def universal(model: MaskedLM, tokenizer: Path, folder: Path) -> Path:
    """A run's checkpoint of a model, moments included."""
    folder.mkdir()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    moments = {name: torch.rand_like(tensor) for name, tensor in weights.items()}
    tied = {"head.weight": "encoder.embedding.weight"} if model.config.tie_embeddings else {}
    group = {"names": list(weights), "lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01}
    state = TrainState(weights, moments, moments, 7, [group], tied)
    identity = {"model": model.config.model_dump(mode="json"), "tokenizer": tokenizer_sha256(tokenizer)}
    manifest = Manifest("phase1", 7, 56, 1792, "toy", {"seed": 1}, identity, {}, {"offset": 0}, {"sample_index": 56})
    write_checkpoint(folder, state, manifest, tokenizer)
    return folder


@pytest.fixture
def source(model: MaskedLM, toy_corpus: Path, tmp_path: Path) -> Path:
    return universal(model, toy_corpus / "tokenizer.json", tmp_path / "source")


@pytest.fixture
def official(source: Path, tmp_path: Path) -> Path:
    convert(source, tmp_path / "official", "neobert")
    return tmp_path / "official"


@pytest.fixture
def untied(toy_corpus: Path, tmp_path: Path) -> Path:
    """An official folder to be damaged."""
    source = universal(lively(toy_recipe().model), toy_corpus / "tokenizer.json", tmp_path / "source")
    convert(source, tmp_path / "official", "neobert")
    return tmp_path / "official"


def change(folder: Path, **changes: Any) -> Path:
    """Some keys of config.json with other values; None takes one away."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return folder


# The same function, and the same bits.


@torch.no_grad()
def test_the_official_computation_on_converted_weights_gives_our_logits(model: MaskedLM, official: Path) -> None:
    for ids in (random_ids(64, 1), random_ids(9, 2)):
        ours = model(*packed([ids], len(ids)), torch.arange(len(ids)))
        theirs = official_logits(official, ids)
        assert theirs.abs().max() > 1, "weights too small to show a difference"
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_comparison_would_show_rows_that_are_not_interleaved(model: MaskedLM, official: Path) -> None:
    ids = random_ids(64, 1)
    right = official_logits(official, ids)
    hidden, heads = model.config.hidden_size, model.config.num_attention_heads
    ours = model.encoder.blocks[0].get_parameter("qkv.weight")
    by_head = ours.view(3, heads, hidden // heads, hidden).transpose(0, 1).reshape(3 * hidden, hidden)
    name = "model.transformer_encoder.0.qkv.weight"
    for wrong in (ours, by_head):
        change_weights(official, lambda tensors, wrong=wrong: tensors.update({name: wrong.clone()}))
        assert (official_logits(official, ids) - right).abs().max() > 1e-2


def test_there_and_back_is_the_same_to_the_last_bit(source: Path, official: Path, tmp_path: Path) -> None:
    convert(official, tmp_path / "back", "universal")
    expected = read_checkpoint(source)[0]
    state, manifest = read_checkpoint(tmp_path / "back", moments=False)
    assert state.weights.keys() == expected.weights.keys()
    assert all(torch.equal(state.weights[name], tensor) for name, tensor in expected.weights.items())
    assert (tmp_path / "back" / "weights.safetensors").read_bytes() == (source / "weights.safetensors").read_bytes()
    assert state.tied == expected.tied
    assert not manifest.moments
    assert not list((tmp_path / "back").glob("exp_avg*"))
    assert manifest.identity == read_manifest(source).identity
    facts = manifest.lineage["imported_from"]
    assert (facts["format"], facts["folder"]) == ("neobert", "official")
    convert(tmp_path / "back", tmp_path / "again", "neobert")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (official / name).read_bytes()


def test_a_folder_has_the_names_the_shapes_and_the_keys_of_the_published_model(
    model: MaskedLM, official: Path, toy_corpus: Path
) -> None:
    tensors = load_file(official / "model.safetensors")
    assert len(tensors) == 4 + 6 * model.config.num_hidden_layers
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    at = "model.transformer_encoder.1."
    assert shapes["model.encoder.weight"] == shapes["decoder.weight"] == (300, 32)
    assert (shapes["decoder.bias"], shapes["model.layer_norm.weight"]) == ((300,), (32,))
    assert (shapes[f"{at}qkv.weight"], shapes[f"{at}wo.weight"]) == ((96, 32), (32, 32))
    assert (shapes[f"{at}ffn.w12.weight"], shapes[f"{at}ffn.w3.weight"]) == ((96, 32), (32, 48))
    assert (shapes[f"{at}attention_norm.weight"], shapes[f"{at}ffn_norm.weight"]) == ((32,), (32,))
    assert not tensors["decoder.bias"].any()
    config = json.loads((official / "config.json").read_text())
    assert config.keys() == CONFIG_OF_THE_PUBLISHED_MODEL | {"tie_word_embeddings"}
    assert (config["model_type"], config["architectures"], config["dim_head"]) == ("neobert", ["NeoBERTLMHead"], 16)
    assert (config["max_length"], config["norm_eps"], config["intermediate_size"]) == (64, 1e-3, 64)
    assert config["pad_token_id"] == special_ids(load_tokenizer(official / "tokenizer.json"))["[PAD]"]
    assert (official / "tokenizer.json").read_bytes() == (toy_corpus / "tokenizer.json").read_bytes()


# What others write: the published folder says less, and may be pickled or in bf16.


def test_a_config_as_it_was_published_is_read(untied: Path, tmp_path: Path) -> None:
    kwargs = {"classifier_init_range": 0.02, "trust_remote_code": True}
    change(untied, tie_word_embeddings=None, transformers_version="4.48.2", kwargs=kwargs, classifier_init_range=0.02)
    (untied / "tokenizer.json").unlink()
    convert(untied, tmp_path / "back", "universal")
    manifest = read_manifest(tmp_path / "back")
    assert manifest.identity == {"model": toy_recipe().model.model_dump(mode="json"), "tokenizer": None}


def test_pickled_weights_are_read_as_those_in_safetensors(official: Path, tmp_path: Path) -> None:
    pickled = Path(shutil.copytree(official, tmp_path / "pickled"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    one, other = open_any(official).state, open_any(pickled).state
    assert all(torch.equal(one.weights[name], tensor) for name, tensor in other.weights.items())
    assert open_any(pickled).foreign.facts["file"] == "pytorch_model.bin"


def test_weights_in_bf16_become_fp32_without_loss(untied: Path) -> None:
    expected = dict(open_any(untied).state.weights)
    change_weights(untied, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    found = dict(open_any(untied).state.weights)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], tensor.bfloat16().float()) for name, tensor in expected.items())


def test_a_head_with_a_bias_is_refused_until_it_is_given_up(untied: Path, tmp_path: Path) -> None:
    expected = dict(open_any(untied).state.weights)
    change_weights(untied, lambda tensors: tensors["decoder.bias"].fill_(0.25))
    with refused(CheckpointError, "its head has a bias (up to 0.25)", "--drop-head-bias"):
        convert(untied, tmp_path / "back", "universal")
    assert list(open_any(untied).state.buffers) == ["head.bias"], "inspect and diff show it"
    convert(untied, tmp_path / "back", "universal", drop_head_bias=True)
    state, manifest = read_checkpoint(tmp_path / "back", moments=False)
    assert all(torch.equal(state.weights[name], tensor) for name, tensor in expected.items())
    assert not state.buffers
    assert manifest.lineage["imported_from"]["dropped_head_bias"] == 0.25


# A run starts from it.


def test_a_phase_starts_from_official_weights(make_toy: Callable[..., Toy]) -> None:
    carry = {"moments": False, "schedule": False, "position": False}
    toy = make_toy({"phase2": {"carry": carry, "peak_learning_rate": 1e-9, "steps": 2}, "evaluation": {"every": 1}})
    model = lively(toy.recipe.model)
    source = universal(model, toy.corpus / "tokenizer.json", toy.folder / "source")
    convert(source, toy.folder / "official", "neobert")
    convert(toy.folder / "official", toy.folder / "phase1" / "checkpoint", "universal")
    assert toy.train("phase2")
    state, manifest = toy.result("phase2")
    started = read_manifest(toy.folder / "phase1" / "checkpoint")
    assert manifest.lineage["started_from"]["weights"] == started.files["weights.safetensors"]["sha256"]
    trained, begun = all_weights(state), {name: tensor.detach() for name, tensor in model.named_parameters()}
    assert max(float((trained[name] - begun[name]).abs().max()) for name in begun) < 1e-7


def test_weights_without_their_tokenizer_start_no_phase(make_toy: Callable[..., Toy]) -> None:
    carry = {"moments": False, "schedule": False, "position": False}
    toy = make_toy({"phase2": {"carry": carry}})
    source = universal(lively(toy.recipe.model), toy.corpus / "tokenizer.json", toy.folder / "source")
    convert(source, toy.folder / "official", "neobert")
    (toy.folder / "official" / "tokenizer.json").unlink()
    convert(toy.folder / "official", toy.folder / "phase1" / "checkpoint", "universal")
    with refused(CheckpointError, "another tokenizer"):
        toy.train("phase2")


# What is refused, and by the command.


def test_the_command_goes_there_and_back_and_says_what_it_finds(source: Path, official: Path, toy_corpus: Path) -> None:
    here = source.parent

    def run(*words: str) -> tuple[int, str, str]:
        return run_command(["checkpoint", *words], here)

    assert run("convert", "source", "to", "--to", "neobert") == (0, "to: neobert\n", "")
    (here / "to" / "tokenizer.json").unlink()
    tokenizer = str(toy_corpus / "tokenizer.json")
    assert run("convert", "to", "back", "--to", "universal", "--tokenizer", tokenizer)[::2] == (0, "")
    assert (here / "back" / "tokenizer.json").read_bytes() == (toy_corpus / "tokenizer.json").read_bytes()
    assert run("diff", "to", "back")[:2] == (0, "A and B hold the same tensors, bit for bit\n")
    assert run("verify", "to")[1].startswith("to: whole; neobert checkpoint, step 0, ")
    code, printed, _ = run("inspect", "to")
    assert code == 0
    assert '"num_attention_heads": 2' in printed
    change_weights(official, lambda tensors: tensors["model.layer_norm.weight"].add_(0.5))
    code, printed, _ = run("diff", "official", "to")
    assert code == 1
    assert "encoder.final_norm" in printed
    assert "32 of 32" in printed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_attention_heads": 3}, "hidden_size: 32 over 3 heads"),
        ({"num_attention_heads": None}, "num_attention_heads: found None; expected a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: found 1000000000; expected a whole number from 1 to 1,000"),
        ({"num_hidden_layers": 3}, "model.transformer_encoder.2.attention_norm.weight is missing"),
        ({"num_hidden_layers": 1}, "model.transformer_encoder.1.attention_norm.weight is no tensor"),
        ({"intermediate_size": 128}, "ffn.w12.weight is of shape [96, 32]; expected [176, 32], by config.json"),
        ({"norm_eps": "small"}, "norm_eps is small; expected a number above 0"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu; expected swiglu"),
        ({"rope": False}, "rope is False; expected True"),
        ({"ngpt": True}, "ngpt is True; expected False"),
        ({"tie_word_embeddings": True}, "decoder.weight is not the embedding"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_does_not_fit_is_refused(changes: dict[str, Any], said: str, untied: Path) -> None:
    with refused(CheckpointError, said, str(untied)):
        open_any(change(untied, **changes))


def test_weights_that_are_not_whole_are_refused(untied: Path, tmp_path: Path) -> None:
    lacking = Path(shutil.copytree(untied, tmp_path / "lacking"))
    with refused(CheckpointError, "decoder.weight is missing", "NeoBERTLMHead"):
        open_any(change_weights(lacking, lambda tensors: tensors.pop("decoder.weight")))
    whole = Path(shutil.copytree(untied, tmp_path / "integers"))
    convert_to_integers = {"model.layer_norm.weight": torch.ones(32, dtype=torch.int64)}
    opened = open_any(change_weights(whole, lambda tensors: tensors.update(convert_to_integers)))
    with refused(CheckpointError, "model.layer_norm.weight holds torch.int64"):
        opened.state.weights["encoder.final_norm.weight"]
    (untied / "model.safetensors").write_bytes(b"torn")
    with refused(CheckpointError, "model.safetensors: cannot be read"):
        open_any(untied)
    (untied / "model.safetensors").unlink()
    with refused(CheckpointError, "model.safetensors: is missing", "pytorch_model.bin"):
        open_any(untied)
    (untied / "config.json").write_text("{")
    with refused(CheckpointError, "config.json: cannot be read", "copy it again"):
        open_any(untied)


def test_what_the_official_code_cannot_compute_is_not_written(toy_corpus: Path, tmp_path: Path) -> None:
    tokenizer = toy_corpus / "tokenizer.json"
    other = universal(lively(toy_recipe({"model": {"rope_theta": 5e5}}).model), tokenizer, tmp_path / "theta")
    with refused(CheckpointError, "rope_theta: found 500000.0; expected 10000"):
        convert(other, tmp_path / "official", "neobert")
    plain = universal(lively(toy_recipe().model), tokenizer, tmp_path / "source")
    convert(plain, tmp_path / "plain", "plain")
    with refused(CheckpointError, "plain: does not say how many heads"):
        convert(tmp_path / "plain", tmp_path / "official", "neobert")
    assert not (tmp_path / "official").exists()
    assert not list(tmp_path.glob(".partial*"))
