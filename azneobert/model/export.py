"""To transformers: its EuroBERT class computes the same function, so an export needs no remote code.

EuroBERT keeps Q, K and V, and gate and up, in separate matrices; here each group is one matrix, in that order.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from azneobert.data.tokenizer import CLS, MASK, PAD, SEP, UNK, load_tokenizer, special_ids, tokenizer_sha256
from azneobert.language import Language, LanguageName
from azneobert.model.exported_tokenizer import repairing_tokenizer
from azneobert.model.size import swiglu_size
from azneobert.recipe import Model

_OUTER = {
    "encoder.embedding.weight": "model.embed_tokens.weight",
    "encoder.final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_WHOLE = {
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "out.weight": "self_attn.o_proj.weight",
    "down.weight": "mlp.down_proj.weight",
}
_FUSED = {
    "qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}


def to_eurobert(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This project's weights by name -> those of transformers' EuroBertForMaskedLM."""
    exported = {}
    for name, tensor in weights.items():
        if name in _OUTER:
            exported[_OUTER[name]] = tensor.contiguous()
            continue
        _, _, layer, inner = name.split(".", 3)
        if inner in _WHOLE:
            exported[f"model.layers.{layer}.{_WHOLE[inner]}"] = tensor.contiguous()
        else:
            for target, part in zip(_FUSED[inner], tensor.chunk(len(_FUSED[inner])), strict=True):
                exported[f"model.layers.{layer}.{target}"] = part.contiguous()
    return exported


def eurobert_config(config: Model, token_ids: dict[str, int]) -> dict[str, object]:
    """The config.json under which `AutoModel*` finds transformers' own EuroBERT classes."""
    return {
        "architectures": ["EuroBertForMaskedLM"],
        "model_type": "eurobert",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "intermediate_size": swiglu_size(config.intermediate_size),
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_embeddings,
        "pad_token_id": token_ids[PAD],
        "bos_token_id": token_ids[CLS],
        "eos_token_id": token_ids[SEP],
        "mask_token_id": token_ids[MASK],
        "dtype": "float32",
    }


def export_transformers(
    weights: dict[str, torch.Tensor],
    config: Model,
    tokenizer: Path,
    target: Path,
    language: LanguageName | Language = "azeri_latin",
) -> None:
    """Write a folder that `AutoModel*.from_pretrained` and `AutoTokenizer.from_pretrained` load as it is.

    `weights` may hold a tied head or leave it out. The exported tokenizer repairs its input as the documents of
    `language` were repaired before training; its config holds the sha256 of the training tokenizer.
    """
    target.mkdir(parents=True, exist_ok=True)
    loaded = load_tokenizer(tokenizer, config.vocab_size)
    exported = to_eurobert(weights)
    if config.tie_embeddings:
        exported.pop("lm_head.weight", None)
    save_file(exported, target / "model.safetensors", metadata={"format": "pt"})
    _write_json(target / "config.json", eurobert_config(config, special_ids(loaded)))
    (target / "tokenizer.json").write_text(repairing_tokenizer(tokenizer, language), encoding="utf-8")
    _write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_position_embeddings,
            "pad_token": PAD,
            "unk_token": UNK,
            "cls_token": CLS,
            "sep_token": SEP,
            "mask_token": MASK,
            "model_input_names": ["input_ids", "attention_mask"],
            "training_tokenizer_sha256": tokenizer_sha256(tokenizer),
        },
    )


def _write_json(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
