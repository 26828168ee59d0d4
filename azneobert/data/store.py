"""TokenStore: the tokens of one collection on disk, written once, memory-mapped read-only ever after.

``tokens.npy`` (int32) holds the documents one after the other, without special tokens; ``offsets.npy`` (int64, one
more entry than documents) says where each begins; ``meta.json`` comes last and holds the counts and hashes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tokenize
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from azneobert.errors import DataError

FORMAT_VERSION = 1
_CHUNK = 1 << 22


@dataclass(frozen=True)
class StoreMeta:
    """What meta.json holds. `source_md5` is that of the documents the tokens were made from."""

    format_version: int
    documents: int
    tokens: int
    dtype: str
    vocab_size: int
    tokenizer_sha256: str
    source_md5: str
    tokens_sha256: str
    offsets_sha256: str


class TokenStore:
    """Documents as token ids: ``store[i]`` is an int32 view into the memory map, shape (tokens of document i,)."""

    def __init__(self, path: Path, meta: StoreMeta, tokens: np.ndarray, offsets: np.ndarray):
        self.path = path
        self.meta = meta
        self.tokens = tokens
        self.offsets = offsets

    def __len__(self) -> int:
        return self.meta.documents

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Map a store. Only sizes are checked here, so that opening costs the same however large the store is.

        Raises:
            DataError: the store is missing, half-written, or a file is shorter or longer than meta.json says.
        """
        meta = _read_meta(path)
        tokens = _map(path / "tokens.npy", np.int32, meta.tokens)
        offsets = _map(path / "offsets.npy", np.int64, meta.documents + 1)
        return cls(path, meta, tokens, offsets)

    def verify(self) -> None:
        """Read every byte: hashes, offsets that never decrease, tokens inside the vocabulary.

        Raises:
            DataError: naming the file and the first place where it is wrong.
        """
        for name, expected in (("tokens", self.meta.tokens_sha256), ("offsets", self.meta.offsets_sha256)):
            found = sha256_file(self.path / f"{name}.npy")
            if found != expected:
                raise DataError(f"{self.path / name}.npy: sha256 {found[:12]}, expected {expected[:12]}; make it anew")
        steps = np.diff(self.offsets)
        if self.offsets[0] != 0 or self.offsets[-1] != self.meta.tokens or (steps < 0).any():
            raise DataError(f"{self.path}/offsets.npy: offsets do not rise from 0 to {self.meta.tokens}; make it anew")
        for start in range(0, self.meta.tokens, _CHUNK):
            chunk = self.tokens[start : start + _CHUNK]
            bad = np.flatnonzero((chunk < 0) | (chunk >= self.meta.vocab_size))
            if bad.size:
                raise DataError(
                    f"{self.path}/tokens.npy: token {chunk[bad[0]]} at {start + bad[0]} is outside the vocabulary of "
                    f"{self.meta.vocab_size}; make it anew"
                )


def write_store(
    path: Path, documents: Iterable[list[int]], *, vocab_size: int, tokenizer_sha256: str, source_md5: str
) -> StoreMeta:
    """Stream token lists into a new store; it appears under its name only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    offsets = [0]
    with (partial / "tokens.npy").open("wb") as file:
        _write_header(file, 0)
        for ids in documents:
            file.write(np.asarray(ids, dtype=np.int32).tobytes())
            offsets.append(offsets[-1] + len(ids))
        file.seek(0)
        _write_header(file, offsets[-1])
    np.save(partial / "offsets.npy", np.asarray(offsets, dtype=np.int64))
    meta = StoreMeta(
        format_version=FORMAT_VERSION,
        documents=len(offsets) - 1,
        tokens=offsets[-1],
        dtype="int32",
        vocab_size=vocab_size,
        tokenizer_sha256=tokenizer_sha256,
        source_md5=source_md5,
        tokens_sha256=sha256_file(partial / "tokens.npy"),
        offsets_sha256=sha256_file(partial / "offsets.npy"),
    )
    (partial / "meta.json").write_text(json.dumps(asdict(meta), indent=1) + "\n")
    shutil.rmtree(path, ignore_errors=True)
    partial.replace(path)
    return meta


def sha256_file(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_header(file: BinaryIO, tokens: int) -> None:
    # NumPy pads the header for growth, so that rewriting it with the true length keeps its size.
    header = {"descr": "<i4", "fortran_order": False, "shape": (tokens,)}
    np.lib.format.write_array_header_1_0(file, header)


def _read_meta(path: Path) -> StoreMeta:
    file = path / "meta.json"
    try:
        meta = StoreMeta(**json.loads(file.read_text()))
    except FileNotFoundError:
        raise DataError(f"{path}: no whole token store there; `dvc repro tokens` writes it") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: not a token store's meta.json ({error}); make the store anew") from None
    if meta.format_version != FORMAT_VERSION:
        raise DataError(f"{file}: format version {meta.format_version}, this program reads {FORMAT_VERSION}; update it")
    return meta


def _map(file: Path, dtype: type, length: int) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r" if length else None)  # an empty file cannot be mapped
    except FileNotFoundError:
        raise DataError(f"{file}: is missing; make the store anew with `dvc repro -f tokens`") from None
    except (ValueError, EOFError, tokenize.TokenError) as error:
        found = file.stat().st_size
        raise DataError(
            f"{file}: truncated or damaged: {found:,} bytes found, {length:,} entries of {np.dtype(dtype).itemsize} "
            f"bytes expected ({error}); restore it with `dvc checkout --force` or `dvc repro -f tokens`"
        ) from None
    if array.dtype != dtype or array.shape != (length,):
        raise DataError(
            f"{file}: {array.dtype} of shape {array.shape}, expected {np.dtype(dtype)} of shape ({length},); "
            "restore it with `dvc checkout --force` or `dvc repro -f tokens`"
        )
    return array
