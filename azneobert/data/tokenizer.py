"""Train a tokenizer with Hugging Face `tokenizers`, or import one unchanged; and measure its fertility."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from azneobert.errors import DataError

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_tokenizer(texts: Iterator[list[str]], algorithm: str, vocab_size: int, lowercase: bool) -> Tokenizer:
    """A tokenizer with the special tokens first, trained on batches of texts.

    Raises:
        DataError: the texts do not hold enough pieces for `vocab_size`.
    """
    tokenizer, trainer = _untrained(algorithm, vocab_size)
    tokenizer.normalizer = _normalizer(lowercase)
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found > vocab_size:
        raise DataError(
            f"tokenizer.vocab_size: {vocab_size} asked for, but the alphabet and the special tokens alone are {found}; "
            f"{-(-found // 64) * 64} or more for tokenizer.vocab_size and model.vocab_size would do"
        )
    if found < vocab_size:
        raise DataError(
            f"tokenizer.vocab_size: {vocab_size} asked for, but the documents give only {found} pieces; "
            f"{found // 64 * 64} for tokenizer.vocab_size and model.vocab_size would do"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)],
    )
    return tokenizer


def load_tokenizer(path: Path, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json.

    Raises:
        DataError: the file is missing or damaged, lacks a special token, or does not have `vocab_size` tokens.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such tokenizer; `dvc repro tokenizer` writes it, or set tokenizer.path")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise DataError(f"{path}: not a tokenizer.json ({error}); fetch or train it again") from None
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}; a tokenizer with {', '.join(SPECIAL_TOKENS)} would do")
    found = tokenizer.get_vocab_size()
    if vocab_size is not None and found != vocab_size:
        raise DataError(f"{path}: has {found} tokens, model.vocab_size is {vocab_size}; set it to {found} or retrain")
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the five special tokens, by token."""
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    return {token: number for token, number in ids.items() if number is not None}


def tokenizer_sha256(path: Path) -> str:
    """The sha256 of a tokenizer.json: what token stores and checkpoints are tied to."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fertility(tokenizer: Tokenizer, batches: Iterable[list[str]]) -> dict[str, float]:
    """Tokens, words (white-space separated), tokens per word and the share of unknown tokens."""
    tokens = words = unknown = 0
    unknown_id = special_ids(tokenizer)[UNK]
    for texts in batches:
        for text, encoding in zip(texts, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            tokens += len(encoding.ids)
            words += len(text.split())
            unknown += encoding.ids.count(unknown_id)
    return {
        "tokens": tokens,
        "words": words,
        "tokens_per_word": round(tokens / max(words, 1), 4),
        "unknown": round(unknown / max(tokens, 1), 6),
    }


def _normalizer(lowercase: bool) -> normalizers.Normalizer:
    if not lowercase:
        return normalizers.NFC()
    # Azerbaijani has two letters where English has one: İ -> i and I -> ı must come before the general rule.
    return normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace("İ", "i"), normalizers.Replace("I", "ı"), normalizers.Lowercase()]
    )


def _untrained(algorithm: str, vocab_size: int) -> tuple[Tokenizer, trainers.Trainer]:
    # Where a word's token holds the space before it, the mask must take that space too.
    special = [AddedToken(token, lstrip=token == MASK, normalized=False, special=True) for token in SPECIAL_TOKENS]
    common: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": special, "show_progress": False}
    if algorithm == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer, trainers.WordPieceTrainer(**common)
    if algorithm == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common)
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(unk_token=UNK, **common)
