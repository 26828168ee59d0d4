"""The tokenizer of an exported model: the training tokenizer, and before it the repair of the training documents.

It is derived: the tokenizer that a checkpoint holds stays as it is, and the export says which one it was made from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers

from azneobert.data.languages import find_language
from azneobert.data.repair import tokenizer_steps
from azneobert.data.tokenizer import LARGEST
from azneobert.files import read_json
from azneobert.language import Language, LanguageName


def repairing_tokenizer(tokenizer: Path, setting: LanguageName | Language) -> str:
    """The tokenizer.json of an export: the one at `tokenizer`, with the repair before its own normalizer.

    A repaired text has the same tokens under both.
    """
    content = read_json(tokenizer.resolve(), LARGEST)
    repair = _repair(setting)
    of_its_own = content.get("normalizer")
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [*_as_json(repair), *([of_its_own] if of_its_own else [])],
    }
    for token in content.get("added_tokens", []):
        # Such a token, for example two spaces, is normalized before it is looked for, and would then be found in any
        # text with one space. Only unrepaired texts hold it, so it is looked for in those.
        if token.get("normalized") and repair.normalize_str(token["content"]) != token["content"]:
            token["normalized"] = False
    if _is_byte_level(content["pre_tokenizer"]):
        # If a word's piece holds the space before it, the offsets that are reported for the piece leave the space out.
        trimming = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        content["post_processor"] = {"type": "Sequence", "processors": [trimming, content["post_processor"]]}
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def _is_byte_level(pre_tokenizer: dict[str, Any] | None) -> bool:
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    return any(step.get("type") == "ByteLevel" for step in steps)


def _repair(setting: LanguageName | Language) -> normalizers.Sequence:
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(pattern), by) if pattern else normalizers.NFC()
            for pattern, by in tokenizer_steps(find_language(setting))
        ]
    )


def _as_json(repair: normalizers.Sequence) -> list[dict[str, Any]]:
    bare = Tokenizer(models.BPE())
    bare.normalizer = repair
    steps: list[dict[str, Any]] = json.loads(bare.to_str())["normalizer"]["normalizers"]
    return steps
