"""A folder that transformers loads: as data alone, from this machine alone."""

from __future__ import annotations

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


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        AzNeoBertError: transformers cannot read it.
    """
    from transformers import AutoTokenizer

    return _loaded(folder, AutoTokenizer)


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
    except Exception as error:  # whatever a content that does not fit makes of transformers
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise AzNeoBertError(f"{folder}: transformers cannot load it ({reason}); pull it again") from None
