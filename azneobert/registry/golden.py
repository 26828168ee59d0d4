"""Golden ids and logits: a version's outputs for some sentences at registration. It must give them everywhere.

Libraries have silently changed the ids of a tokenizer from one release to the next. A model then gives other numbers
and no error.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

from azneobert.errors import RegistryError
from azneobert.files import read_json
from azneobert.pretrained import load_model, load_tokenizer
from azneobert.registry.sentences import SENTENCES

GOLDEN = "golden.json"
TOLERANCE = 0.01  # of a logit in fp32; other orders of addition on processors and in kernels give some 1e-5
_TOP = 10


def make_golden(folder: Path) -> dict[str, Any]:
    """The outputs of the model in a folder for each sentence: `ids`, the `masked` position, and its `top` logits.

    `top` are the ten largest logits at the mask with their ids, largest first.

    Raises:
        AzNeoBertError: transformers cannot load the folder.
    """
    tokenizer = load_tokenizer(folder)
    encoded = [list(map(int, tokenizer(sentence)["input_ids"])) for sentence in SENTENCES]
    rows = [_masked(ids, tokenizer.mask_token_id) for ids in encoded]
    entries = [
        {"text": text, "ids": ids, "masked": position, "top": [[i, round(v, 4)] for i, v in top]}
        for text, ids, (position, _), top in zip(SENTENCES, encoded, rows, _top_logits(folder, rows), strict=True)
    ]
    return {"format": "azneobert-golden", "sentences": entries}


def check_ids(uri: str, folder: Path) -> int:
    """Check that the tokenizer in a folder gives the ids of golden.json here. Returns the number of sentences.

    Raises:
        RegistryError: an id differs (the message names the first such sentence), or golden.json cannot be read.
    """
    entries = _read(uri, folder)
    tokenizer = load_tokenizer(folder)
    for entry in entries:
        found = list(tokenizer(entry["text"])["input_ids"])
        if found != entry["ids"]:
            at = next((i for i, (a, b) in enumerate(zip(found, entry["ids"], strict=False)) if a != b), None)
            what = (
                f"{len(found)} ids found, {len(entry['ids'])} expected"
                if at is None
                else (f"id {at} is {found[at]}, {entry['ids'][at]} expected")
            )
            raise RegistryError(
                f"{uri}: {entry['text'][:40]!r} has other ids under transformers {version('transformers')} and "
                f"tokenizers {version('tokenizers')}: {what}; use the versions of its requirements.txt"
            )
    return len(entries)


def largest_difference(uri: str, folder: Path) -> float:
    """The largest difference of a golden logit from its value here in fp32; infinite if one here is not finite.

    Raises:
        RegistryError: golden.json cannot be read.
        AzNeoBertError: transformers cannot load the folder.
    """
    entries = _read(uri, folder)
    mask = load_tokenizer(folder).mask_token_id
    rows = [
        (entry["masked"], [*entry["ids"][: entry["masked"]], mask, *entry["ids"][entry["masked"] + 1 :]])
        for entry in entries
    ]
    wanted = [[i for i, _ in entry["top"]] for entry in entries]
    found = _logits_of(folder, rows, wanted)
    differences = [
        abs(a - b) for e, values in zip(entries, found, strict=True) for a, (_, b) in zip(values, e["top"], strict=True)
    ]
    return max((d if math.isfinite(d) else math.inf for d in differences), default=0.0)


def _masked(ids: list[int], mask: int) -> tuple[int, list[int]]:
    """The position in the middle, and the ids with the mask there."""
    position = len(ids) // 2
    return position, [*ids[:position], mask, *ids[position + 1 :]]


def _top_logits(folder: Path, rows: list[tuple[int, list[int]]]) -> list[list[tuple[int, float]]]:
    found = []
    for logits in _at_masks(folder, rows):
        top = logits.topk(min(_TOP, len(logits)))
        found.append(list(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
    return found


def _logits_of(folder: Path, rows: list[tuple[int, list[int]]], wanted: list[list[int]]) -> list[list[float]]:
    return [logits[ids].tolist() for logits, ids in zip(_at_masks(folder, rows), wanted, strict=True)]


def _at_masks(folder: Path, rows: list[tuple[int, list[int]]]) -> list[Any]:
    """The logits (vocabulary) of each row at its mask, in fp32, a row at a time: no padding."""
    import torch
    from transformers import AutoModelForMaskedLM

    network = load_model(folder, AutoModelForMaskedLM, dtype=torch.float32).eval()
    with torch.no_grad():
        return [network(torch.tensor([ids])).logits[0, position] for position, ids in rows]


def _read(uri: str, folder: Path) -> list[dict[str, Any]]:
    try:
        entries = read_json(folder / GOLDEN)["sentences"]
        for entry in entries:
            ids, masked = [int(i) for i in entry["ids"]], int(entry["masked"])
            if not (str(entry["text"]) and 0 <= masked < len(ids) and [(int(i), float(v)) for i, v in entry["top"]]):
                raise ValueError("a sentence with ids, a masked position in them, and top logits expected")
        return list(entries)
    except FileNotFoundError:
        raise RegistryError(
            f"{uri}: holds no {GOLDEN}, as it was registered before there were golden ids; use a newer version"
        ) from None
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise RegistryError(f"{uri}: {GOLDEN} cannot be read ({error}); use another version") from None
