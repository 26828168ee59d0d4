"""Train a tokenizer with Hugging Face `tokenizers`, or import one unchanged."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from azneobert.errors import DataError
from azneobert.files import read_json, sha256_file

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PROBE = f"Salam, dünya! {MASK} \U0010fffd"  # with a character that no vocabulary holds
LARGEST = 64 << 20  # bytes of a tokenizer.json; one of 262,000 pieces has 33 MB
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def train_tokenizer(texts: Iterator[list[str]], algorithm: str, vocab_size: int, lowercase: bool) -> Tokenizer:
    """A tokenizer with the special tokens first, trained on batches of texts.

    BPE works on bytes and Unigram falls back to them, so that neither has an unknown token for any UTF-8 text.

    Raises:
        DataError: the texts do not hold enough pieces for `vocab_size`.
    """
    tokenizer, trainer = _untrained(algorithm, vocab_size)
    tokenizer.normalizer = _normalizer(lowercase)
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # `tokenizers` raises bare Exception
        if "not large enough" not in str(error):
            raise
        raise DataError(
            f"tokenizer.vocab_size: {vocab_size} asked for, but the bytes, the special tokens and the documents' "
            f"alphabet alone are more; try {2 * vocab_size} for tokenizer.vocab_size and model.vocab_size"
        ) from None
    if algorithm == "unigram":
        tokenizer = _with_byte_fallback(tokenizer)
    found = tokenizer.get_vocab_size()
    if found > vocab_size:
        raise DataError(
            f"tokenizer.vocab_size: {vocab_size} asked for, but the alphabet and the special tokens alone are {found}; "
            f"use {-(-found // 64) * 64} or more for tokenizer.vocab_size and model.vocab_size"
        )
    if found < vocab_size:
        smaller = found // 64 * 64
        enough = smaller >= _smallest(tokenizer, algorithm)
        advice = f"{smaller} for tokenizer.vocab_size and model.vocab_size" if enough else "more documents"
        raise DataError(
            f"tokenizer.vocab_size: {vocab_size} asked for, but the documents give only {found} pieces; use {advice}"
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
    tokenizer = read_tokenizer(path)
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}; expected {', '.join(SPECIAL_TOKENS)}")
    found = tokenizer.get_vocab_size()
    if vocab_size is not None and found != vocab_size:
        raise DataError(f"{path}: has {found} tokens, model.vocab_size is {vocab_size}; set it to {found} or retrain")
    highest = max(tokenizer.get_vocab().values())
    if highest >= found:
        raise DataError(f"{path}: numbers its {found} tokens up to {highest}; expected 0 to {found - 1}")
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """Any tokenizer.json. Whole texts are encoded, even if the file says to cut or to pad them.

    Raises:
        DataError: the file is missing or damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such tokenizer; `dvc repro tokens` brings it, or correct the path")
    try:
        _check_merges(read_json(path.resolve(), LARGEST))  # a person may name a link
        with _panics_kept():
            tokenizer = Tokenizer.from_file(str(path))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            for pair in (None, _PROBE):
                tokenizer.decode(tokenizer.encode(_PROBE, pair).ids)
    except BaseException as error:  # `tokenizers` raises bare Exception, and its panics are not even that
        if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        raise DataError(f"{path}: not a tokenizer.json ({str(error)[:200]}); fetch or train it again") from None
    return tokenizer


def _check_merges(content: Any) -> None:
    """Refuse merges without the prefix: the library cuts it off by its length, and the process would abort."""
    model = content.get("model") if isinstance(content, dict) else None
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    if isinstance(model, dict) and prefix and isinstance(model.get("merges"), list):
        for merge in model["merges"]:
            right = (merge.split(" ") if isinstance(merge, str) else merge)[-1]
            if not str(right).startswith(str(prefix)):
                raise ValueError(f"merges {merge!r}, whose second part does not begin with {prefix!r}")


@contextmanager
def _panics_kept() -> Iterator[None]:
    """Hold back what is written to standard error, and print it only if all went well: a panic writes pages there."""
    sys.stderr.flush()
    former = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
            kept.seek(0)
            os.write(former, kept.read())
        finally:
            os.dup2(former, 2)
            os.close(former)


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the five special tokens, by token."""
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    return {token: number for token, number in ids.items() if number is not None}


def tokenizer_sha256(path: Path) -> str:
    """The sha256 of a tokenizer.json: what token stores and checkpoints are tied to."""
    return sha256_file(path)


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
    # A space is put only before the text, not before what follows a [MASK]; and if a document spells out a byte's
    # piece, that is cut in two, so that it is not taken for the byte.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("<0x", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # The trainer knows nothing of bytes: their 256 pieces are put into the vocabulary afterwards.
    return tokenizer, trainers.UnigramTrainer(unk_token=UNK, **common | {"vocab_size": vocab_size - len(_BYTES)})


def _smallest(tokenizer: Tokenizer, algorithm: str) -> int:
    """The least vocabulary that can be trained on the same documents: the special tokens and the alphabet."""
    if algorithm == "unigram":
        return 512  # the recipe's own bound
    return len(SPECIAL_TOKENS) + sum(len(piece.removeprefix("##")) == 1 for piece in tokenizer.get_vocab())


def _with_byte_fallback(tokenizer: Tokenizer) -> Tokenizer:
    """A trained Unigram whose vocabulary also spells every byte, so that no text has an unknown piece."""
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    special, pieces = vocabulary[: len(SPECIAL_TOKENS)], vocabulary[len(SPECIAL_TOKENS) :]
    lowest = min((score for _, score in pieces), default=0.0)
    content["model"]["vocab"] = [*special, *([piece, lowest - 10.0] for piece in _BYTES), *pieces]
    content["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(content))
