"""What a model puts in the place of [MASK]."""

from __future__ import annotations

from pathlib import Path

from azneobert.data.tokenizer import MASK
from azneobert.errors import AzNeoBertError
from azneobert.pretrained import load_model, load_tokenizer


def fill_masks(model: Path, text: str, top: int) -> list[list[tuple[str, float]]]:
    """For each mask in the text, the `top` tokens and their probabilities, best first.

    `model` is a folder that transformers loads.

    Raises:
        AzNeoBertError: the text has no mask, or is longer than the model reads.
    """
    import torch
    from transformers import AutoModelForMaskedLM

    tokenizer = load_tokenizer(model)
    encoded = tokenizer(text, return_tensors="pt")
    masks = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
    if not len(masks):
        raise AzNeoBertError(f"text: no {MASK} in {text[:40]!r}; put one where a word is to be guessed")
    length = encoded["input_ids"].shape[1]
    if length > tokenizer.model_max_length:
        raise AzNeoBertError(f"text: has {length} tokens, the model reads {tokenizer.model_max_length}; shorten it")
    network = load_model(model, AutoModelForMaskedLM).eval()
    with torch.no_grad():
        probabilities = network(**encoded).logits[0, masks].softmax(-1)
    found = probabilities.topk(min(top, probabilities.shape[-1]))
    return [
        [(shown_token(tokenizer.decode([token])), float(p)) for token, p in zip(tokens, values, strict=True)]
        for tokens, values in zip(found.indices.tolist(), found.values, strict=True)
    ]


def shown_token(token: str) -> str:
    """A token as a person can read it: white space by its escape."""
    return token.strip() or repr(token)[1:-1]
