"""The official NeoBERT's folders, both directions: config.json and the weights, by the names of chandar-lab/NeoBERT.

The names, the shapes and the keys of config.json are those of the published model (huggingface.co/chandar-lab/NeoBERT,
revision 5424c8e: 172 tensors in fp32), the order of rows that of the code (github.com/chandar-lab/NeoBERT, ed75b68):

- ``qkv`` holds for each head its Q, K and V; here it holds all of Q, all of K and all of V.
- A rotation turns neighbours, the rows 2i and 2i + 1 of a head; here it turns the rows i and i + size / 2. So the rows
  of Q and K are interleaved: the first half of a head's rows at the even places, the second half at the odd ones.
- ``ffn.w12`` holds gate and up, as `gate_up` here; ``decoder`` has a bias, and is never tied.

Together they are one permutation of rows, so converting there and back gives the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from azneobert.checkpoint.foreign import Foreign
from azneobert.checkpoint.pickles import load_pickle
from azneobert.checkpoint.tensors import LazyTensors, open_safetensors, shapes_of, write_safetensors
from azneobert.checkpoint.universal import TrainState
from azneobert.errors import CheckpointError
from azneobert.files import copy_regular, read_json, write_json

CONFIG = "config.json"
HEAD_BIAS = "head.bias"  # a buffer of what is read: this project's head has none
_SAFE, _PICKLED, _TOKENIZER = "model.safetensors", "pytorch_model.bin", "tokenizer.json"
_BIAS, _DECODER = "decoder.bias", "decoder.weight"
_EMBEDDING, _HEAD = "encoder.embedding.weight", "head.weight"
_OUTER = {"model.encoder.weight": _EMBEDDING, "model.layer_norm.weight": "encoder.final_norm.weight", _DECODER: _HEAD}
_INNER = {
    "attention_norm.weight": "attention_norm.weight",
    "qkv.weight": "qkv.weight",
    "wo.weight": "out.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "ffn.w12.weight": "gate_up.weight",
    "ffn.w3.weight": "down.weight",
}
_THETA = 10_000.0  # of the rotations: the official code takes no other
_MOST_LAYERS, _WIDEST = 1000, 1 << 24  # as a recipe may have them
_LARGEST_TOKENIZER = 64 << 20  # bytes, as data/tokenizer.py has it
# The switches of the official repository's code, with their values in the published model.
_SWITCHES = {"ngpt": False, "rope": True, "rms_norm": True, "hidden_act": "swiglu", "rope_theta": _THETA}


@dataclass(frozen=True)
class _Sizes:
    """The sizes that decide the shapes."""

    hidden: int
    layers: int
    heads: int
    intermediate: int  # before the 2/3 rule of SwiGLU
    vocabulary: int

    @classmethod
    def of(cls, model: dict[str, Any]) -> _Sizes:
        """The sizes that a recipe's block `model` states."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
        sizes = []
        for name, most in zip(names, (_WIDEST, _MOST_LAYERS, _WIDEST, _WIDEST, _WIDEST), strict=True):
            if type(found := model.get(name)) is not int or not 0 < found <= most:
                raise CheckpointError(f"{name}: found {str(found)[:40]}; expected a whole number from 1 to {most:,}")
            sizes.append(found)
        made = cls(*sizes)
        if made.hidden % (2 * made.heads):
            raise CheckpointError(f"hidden_size: {made.hidden} over {made.heads} heads; expected an even size a head")
        return made

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each official tensor, except the head's bias."""
        hidden = self.hidden
        inner = -(-(2 * self.intermediate // 3) // 8) * 8  # two thirds, rounded up to a multiple of 8
        of_layer = {
            "attention_norm.weight": (hidden,),
            "qkv.weight": (3 * hidden, hidden),
            "wo.weight": (hidden, hidden),
            "ffn_norm.weight": (hidden,),
            "ffn.w12.weight": (2 * inner, hidden),
            "ffn.w3.weight": (hidden, inner),
        }
        layers = {f"{_layer(n)}{name}": shape for n in range(self.layers) for name, shape in of_layer.items()}
        embedding = (self.vocabulary, hidden)
        return {"model.encoder.weight": embedding, **layers, "model.layer_norm.weight": (hidden,), _DECODER: embedding}

    def rows(self) -> torch.Tensor:
        """For each official row of `qkv`, the number of our row that stands there."""
        size = self.hidden // self.heads
        ours = torch.arange(3 * self.hidden).view(3, self.heads, 2, size // 2)
        turned = ours[:2].transpose(-1, -2).reshape(2, self.heads, size)
        return torch.cat([turned, ours[2:].reshape(1, self.heads, size)]).transpose(0, 1).reshape(-1)


def is_neobert(folder: Path) -> bool:
    """Whether a folder is one of the official NeoBERT's, by its config.json.

    Raises:
        CheckpointError: there is a config.json that cannot be read.
    """
    if not os.path.lexists(folder / CONFIG):
        return False
    config = _read_config(folder / CONFIG)
    return config.get("model_type") == "neobert"


def read_neobert(folder: Path) -> Foreign:
    """The weights of an official folder in this project's layout, loaded when they are asked for, at step 0.

    There are no moments. The facts hold `model`, the block of a recipe that such a model has. A head's bias that is not
    zero is kept as the buffer `head.bias`; one that is zero is left out.

    Raises:
        CheckpointError: a file is missing or damaged, or config.json and the weights do not fit each other or describe
            another model than the published one's kind.
    """
    model = _model_of(folder / CONFIG)
    try:
        sizes = _Sizes.of(model)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    file, tensors = _open_weights(folder)
    tied = bool(model["tie_embeddings"])
    bias = _check(file, tensors, sizes, tied)
    back = sizes.rows().argsort()
    names = {ours: official for official, ours in _names(sizes).items() if not (tied and ours == _HEAD)}

    def load(name: str) -> torch.Tensor:
        tensor = tensors[names[name]]
        if not tensor.is_floating_point():
            raise CheckpointError(f"{file}: {names[name]} holds {tensor.dtype}; expected floating-point numbers")
        tensor = tensor[back] if name.endswith("qkv.weight") else tensor
        return tensor.to(torch.float32, copy=True).contiguous()

    shapes = shapes_of(tensors)
    state = TrainState(
        weights=LazyTensors({ours: shapes[official] for ours, official in names.items()}, load),
        exp_avg={},
        exp_avg_sq={},
        optimizer_step=0,
        groups=[],
        tied={_HEAD: _EMBEDDING} if tied else {},
        buffers={} if bias is None else {HEAD_BIAS: bias},
    )
    return Foreign(state, 0, {"format": "neobert", "file": file.name, "model": model})


def write_neobert(folder: Path, state: TrainState, model: dict[str, Any], tokenizer: Path | None = None) -> None:
    """Write the weights of a state as an official folder, into an empty one: fp32, the head's bias zero.

    `model` is the block of the recipe. A tied head is written out, since the official code has only untied ones,
    and `tie_word_embeddings` in config.json says that it was tied. `tokenizer` is copied.

    Raises:
        CheckpointError: the state is not that model's, or the official code cannot compute what the model computes.
    """
    sizes = _Sizes.of(model)
    if model.get("rope_theta") != _THETA:
        raise CheckpointError(
            f"rope_theta: found {model.get('rope_theta')}; expected {_THETA:g}, as the official NeoBERT has it"
        )
    names = _names(sizes)
    owners = {official: state.tied.get(ours, ours) for official, ours in names.items()}
    expected, found = sizes.shapes(), shapes_of(state.weights)
    for official, name in owners.items():
        if found.get(name) != expected[official]:
            has = f"of shape {list(found[name])}" if name in found else "missing"
            raise CheckpointError(
                f"{names[official]}: is {has}; expected {list(expected[official])}, as a NeoBERT has it"
            )
    if extra := sorted((found.keys() | state.buffers.keys()) - set(owners.values())):
        raise CheckpointError(f"{extra[0]}: is no tensor of a NeoBERT; use --to plain")
    rows, zeros = sizes.rows(), torch.zeros(sizes.vocabulary)

    def load(official: str) -> torch.Tensor:
        if official == _BIAS:
            return zeros
        tensor = state.weights[owners[official]]
        return tensor[rows] if official.endswith("qkv.weight") else tensor

    write_safetensors(folder / _SAFE, LazyTensors({**expected, _BIAS: (sizes.vocabulary,)}, load))
    write_json(folder / CONFIG, _config(model, _HEAD in state.tied, _pad_id(tokenizer)))
    if tokenizer is not None:
        copy_regular(tokenizer.resolve(), folder / _TOKENIZER)


def _names(sizes: _Sizes) -> dict[str, str]:
    """Official names and ours, in the order in which the model itself names them: files come back byte for byte."""
    layers = {
        f"{_layer(n)}{official}": f"encoder.blocks.{n}.{ours}"
        for n in range(sizes.layers)
        for official, ours in _INNER.items()
    }
    (first, embedding), *last = _OUTER.items()
    return {first: embedding, **layers, **dict(last)}


def _layer(number: int) -> str:
    return f"model.transformer_encoder.{number}."


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = read_json(file)
        if not isinstance(config, dict):
            raise ValueError("holds no settings by name")
        return config
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); copy it again") from None


def _model_of(file: Path) -> dict[str, Any]:
    """The block `model` of a recipe, from config.json; what that leaves out has the default of the official class."""
    config = _read_config(file)
    for name, published in _SWITCHES.items():
        found = config.get(name, published)
        if (found.lower() if isinstance(found, str) else found) != published:
            raise CheckpointError(
                f"{file}: {name} is {str(found)[:40]}; expected {published}, as in the published model"
            )
    model = {
        name: config.get(name)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    }
    defaults = {"max_length": 1024, "norm_eps": 1e-6, "decoder_init_range": 0.02}
    numbers = {name: config.get(name, default) for name, default in defaults.items()}
    for name, found in numbers.items():
        if isinstance(found, bool) or not isinstance(found, int | float) or found <= 0:
            raise CheckpointError(f"{file}: {name} is {str(found)[:40]}; expected a number above 0")
    return {
        **model,
        "max_position_embeddings": int(numbers["max_length"]),
        "rope_theta": _THETA,
        "rms_norm_eps": float(numbers["norm_eps"]),
        "initializer_range": float(numbers["decoder_init_range"]),
        "tie_embeddings": config.get("tie_word_embeddings") is True,
    }


def _config(model: dict[str, Any], tied: bool, pad_id: int) -> dict[str, Any]:
    """The content of the published model's config.json, without what its class left there by accident."""
    return {
        "architectures": ["NeoBERTLMHead"],
        "auto_map": {
            "AutoConfig": "model.NeoBERTConfig",
            "AutoModel": "model.NeoBERT",
            "AutoModelForMaskedLM": "model.NeoBERTLMHead",
            "AutoModelForSequenceClassification": "model.NeoBERTForSequenceClassification",
        },
        "decoder_init_range": model["initializer_range"],
        "dim_head": model["hidden_size"] // model["num_attention_heads"],
        "embedding_init_range": model["initializer_range"],
        "hidden_size": model["hidden_size"],
        "intermediate_size": model["intermediate_size"],
        "max_length": model["max_position_embeddings"],
        "model_type": "neobert",
        "norm_eps": model["rms_norm_eps"],
        "num_attention_heads": model["num_attention_heads"],
        "num_hidden_layers": model["num_hidden_layers"],
        "pad_token_id": pad_id,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "vocab_size": model["vocab_size"],
    }


def _pad_id(tokenizer: Path | None) -> int:
    """The id of [PAD]; 0, as in the published model, if there is no tokenizer."""
    if tokenizer is None:
        return 0
    try:
        content = read_json(tokenizer.resolve(), _LARGEST_TOKENIZER)
        ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{tokenizer}: cannot be read ({error}); expected a tokenizer.json") from None
    return int(ids.get("[PAD]", 0))


def _open_weights(folder: Path) -> tuple[Path, Mapping[str, torch.Tensor]]:
    """The file of the weights and its tensors; if there are two files, the one that transformers takes."""
    safe, pickled = folder / _SAFE, folder / _PICKLED
    if os.path.lexists(safe):
        try:
            return safe, open_safetensors(safe)
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"{safe}: cannot be read ({error}); copy it again") from None
    if not os.path.lexists(pickled):
        raise CheckpointError(f"{safe}: is missing; copy it, or {_PICKLED}, beside {CONFIG}")
    content = load_pickle(pickled)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{pickled}: holds no state dict of tensors; expected one")
    return pickled, content


def _check(file: Path, tensors: Mapping[str, torch.Tensor], sizes: _Sizes, tied: bool) -> torch.Tensor | None:
    """Check that a file holds the tensors of config.json; returns the head's bias if it is not zero."""
    expected, found = sizes.shapes(), shapes_of(tensors)
    if tied and _DECODER not in found:
        expected.pop(_DECODER)
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{file}: {name} is missing; use the folder of a NeoBERTLMHead, and copy it whole")
        if found[name] != shape:
            raise CheckpointError(
                f"{file}: {name} is of shape {list(found[name])}; expected {list(shape)}, by {CONFIG}"
            )
    if extra := sorted(found.keys() - expected.keys() - {_BIAS}):
        raise CheckpointError(f"{file}: {extra[0]} is no tensor of the published model; expected its names alone")
    if tied and _DECODER in found and not torch.equal(tensors[_DECODER], tensors["model.encoder.weight"]):
        raise CheckpointError(
            f"{file}: {_DECODER} is not the embedding, as {CONFIG} says; set tie_word_embeddings to false there"
        )
    if _BIAS not in found:
        return None
    if found[_BIAS] != (sizes.vocabulary,):
        raise CheckpointError(
            f"{file}: {_BIAS} is of shape {list(found[_BIAS])}; expected [{sizes.vocabulary}], by {CONFIG}"
        )
    bias = tensors[_BIAS].to(torch.float32, copy=True)
    return bias if bool((bias != 0).any()) else None
