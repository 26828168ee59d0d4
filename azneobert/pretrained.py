"""Loads a folder with transformers: only as data, and only from this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from azneobert.errors import AzNeoBertError

# Neither code that a config.json names, nor a pickle, nor a download.
_DATA_ALONE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def load_config(folder: Path, **changes: Any) -> Any:
    """The configuration in a folder, with some changes.

    Raises:
        AzNeoBertError: transformers cannot read it.
    """
    from transformers import AutoConfig

    return _loaded(folder, AutoConfig, **changes)


def load_tokenizer(folder: Path, *, split_words: bool = False) -> Any:
    """The tokenizer in a folder. With `split_words`, one for words that come one by one, as they do in NER data.

    To a byte-level tokenizer `Bakı` at the start of a text and ` Bakı` after a space are different tokens, and it takes
    each word of a list for the start of a text: the model would meet tokens that it has hardly seen in pretraining. The
    one for split words puts the space before every word, also before the first.

    Raises:
        AzNeoBertError: transformers cannot read it.
    """
    from transformers import AutoTokenizer

    if not split_words:
        return _loaded(folder, AutoTokenizer)
    tokenizer = _loaded(folder, AutoTokenizer, add_prefix_space=True)  # as RoBERTa's class and others like it keep it
    _put_space_before_words(tokenizer.backend_tokenizer)
    return tokenizer


def _put_space_before_words(tokenizer: Any) -> None:
    """Make a byte-level `tokenizers.Tokenizer` do it; to other kinds a word is the same wherever it stands."""
    from tokenizers import normalizers

    if not any(step["type"] == "ByteLevel" for step in _steps(tokenizer.pre_tokenizer)):
        return
    if _steps(tokenizer.normalizer)[-1:] == [{"type": "Prepend", "prepend": " "}]:  # that of a fine-tuned model
        return
    # Not the pre-tokenizer's own setting: after a step that cuts words, it would put a space before each part of one.
    before = [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Prepend(" ")])
    if (processor := tokenizer.post_processor) is not None:  # it says where in the text a piece stands
        state = json.loads(processor.__getstate__())
        for step in state.get("processors", [state]):
            if "add_prefix_space" in step:
                step["add_prefix_space"] = True
        processor.__setstate__(json.dumps(state).encode())
        tokenizer.post_processor = processor


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, which may be one step or none."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    return list(state.get("normalizers", state.get("pretokenizers", [state])))


def load_model(folder: Path, auto_class: Any, **options: Any) -> Any:
    """The model in a folder, as one of transformers' `AutoModel` classes makes it.

    Raises:
        AzNeoBertError: transformers cannot read it.
    """
    return _loaded(folder, auto_class, use_safetensors=True, **options)


def _loaded(folder: Path, auto_class: Any, **options: Any) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it reports new heads and dropped ones at every load
    try:
        return auto_class.from_pretrained(folder, **_DATA_ALONE, **options)
    except Exception as error:  # any error that content which does not fit causes in transformers
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise AzNeoBertError(f"{folder}: transformers cannot load it ({reason}); pull it again") from None
