"""TokenStore: the tokens of one collection on disk, written once, memory-mapped read-only ever after.

``tokens.npy`` (int32) holds the documents one after the other, without special tokens; ``offsets.npy`` (int64, one
more entry than documents) says where each begins; ``meta.json`` comes last and holds the counts and hashes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from azneobert.errors import DataError
from azneobert.files import read_json, sha256_file, sha256_of_json, sync, write_json

FORMAT_VERSION = 1
_CHUNK = 1 << 22
_PIECE_BYTES = 8 << 20
HEADER_BYTES = 128  # of a .npy file of one dimension
_SEAL = "content_sha256"
_RESTORE_META = "`azneobert cache check`, then `dvc repro` makes it anew"
LARGEST_META = 64 << 20  # bytes
RESTORE = "`azneobert cache check`, then `dvc repro tokens` makes it anew"


@dataclass(frozen=True)
class StoreMeta:
    """The content of meta.json. `source_md5` is the md5 of the documents that the tokens were made from."""

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
        meta = read_store_meta(path)
        tokens = _map(path / "tokens.npy", np.int32, meta.tokens)
        offsets = _map(path / "offsets.npy", np.int64, meta.documents + 1)
        return cls(path, meta, tokens, offsets)

    def verify(self) -> None:
        """Read every byte: tokens inside the vocabulary, offsets that never decrease, hashes.

        Raises:
            DataError: naming the file and the first place where it is wrong.
        """
        self._verify_offsets()
        for start in range(0, self.meta.tokens, _CHUNK):
            chunk = self.tokens[start : start + _CHUNK]
            if chunk.min() < 0 or chunk.max() >= self.meta.vocab_size:
                at = int(np.flatnonzero((chunk < 0) | (chunk >= self.meta.vocab_size))[0])
                raise DataError(
                    f"{self.path}/tokens.npy: token {chunk[at]} at {start + at} is outside the vocabulary of "
                    f"{self.meta.vocab_size}; {RESTORE}"
                )
        for name, expected in (("tokens", self.meta.tokens_sha256), ("offsets", self.meta.offsets_sha256)):
            found = sha256_file(self.path / f"{name}.npy")
            if found != expected:
                raise DataError(
                    f"{self.path / name}.npy: a byte has changed (sha256 {found[:12]}…, expected {expected[:12]}…); "
                    f"{RESTORE}"
                )

    def _verify_offsets(self) -> None:
        falls = np.flatnonzero(np.diff(self.offsets) < 0)
        if falls.size:
            raise DataError(
                f"{self.path}/offsets.npy: decreases after document {falls[0]}, from {self.offsets[falls[0]]} to "
                f"{self.offsets[falls[0] + 1]}; {RESTORE}"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != self.meta.tokens:
            raise DataError(
                f"{self.path}/offsets.npy: goes from {self.offsets[0]} to {self.offsets[-1]}, expected 0 to "
                f"{self.meta.tokens}; {RESTORE}"
            )


class Column:
    """Entries of a one-dimensional array, by position. Those of a mapped array are read from its file.

    If a file has become shorter or a disk fails, access to a map ends the process by SIGBUS; a read raises an error.
    """

    def __init__(self, array: np.ndarray, restore: str = RESTORE):
        self._array = np.asarray(array)
        self._restore = restore
        self.path = None
        if isinstance(array, np.memmap) and len(array):
            self.path = Path(str(array.filename))
            self._offset, self._file = array.offset, self.path.open("rb", buffering=0)
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead of 32 pages

    def __len__(self) -> int:
        return len(self._array)

    def read(self, first: int, count: int) -> np.ndarray:
        """The entries first, first + 1, ... as a new array.

        Raises:
            DataError: the file does not have them.
        """
        entries = np.empty(count, self._array.dtype)
        self.read_into(entries, first)
        return entries

    def read_into(self, target: np.ndarray, first: int) -> None:
        """Fill an array (contiguous, of the same type) with the entries from `first` on.

        Raises:
            DataError: the file does not have them.
        """
        if not 0 <= first <= len(self._array) - len(target):
            raise DataError(
                f"{self.path or 'array'}: entries {first:,} to {first + len(target):,} asked for, it has "
                f"{len(self._array):,}; {self._restore}"
            )
        if self.path is None:
            target[:] = self._array[first : first + len(target)]
            return
        place = self._offset + first * target.itemsize
        try:
            found = os.preadv(self._file.fileno(), [target.data], place)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be read at byte {place:,} ({error.strerror}); {self._restore}"
            ) from None
        if found != target.nbytes:
            raise DataError(
                f"{self.path}: {os.fstat(self._file.fileno()).st_size:,} bytes found, at least "
                f"{place + target.nbytes:,} expected: it has become shorter; {self._restore}"
            )


class ShardWriter:
    """Writes consecutive documents of a future store to flat files, which appear under their names when whole.

    ``<name>.tokens`` holds int32 ids, ``<name>.lengths`` the int64 length of each document.
    """

    def __init__(self, folder: Path, name: str):
        self._targets = shard_files(folder, name)
        self._partials = [target.with_name(f".{target.name}.partial") for target in self._targets]
        self._files = [partial.open("wb") for partial in self._partials]

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents: their ids end to end, and how many each has."""
        self._files[0].write(tokens.astype(np.int32, copy=False).tobytes())
        self._files[1].write(lengths.astype(np.int64, copy=False).tobytes())

    def close(self) -> None:
        """Put the shard under its name; the lengths come last, so that they say that it is whole."""
        for file, partial, target in zip(self._files, self._partials, self._targets, strict=True):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            partial.replace(target)


def shard_files(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of a shard: its tokens and its lengths."""
    return folder / f"{name}.tokens", folder / f"{name}.lengths"


def assemble_store(
    path: Path, shards: Iterable[tuple[Path, Path]], *, vocab_size: int, tokenizer_sha256: str, source_md5: str
) -> StoreMeta:
    """Join shards into a new store; it appears under its name only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shards = list(shards)
    lengths = np.concatenate([np.empty(0, np.int64), *(np.fromfile(file, np.int64) for _, file in shards)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens_sha256 = _join(partial / "tokens.npy", [file for file, _ in shards], int(offsets[-1]))
    np.save(partial / "offsets.npy", offsets)
    meta = StoreMeta(
        format_version=FORMAT_VERSION,
        documents=len(lengths),
        tokens=int(offsets[-1]),
        dtype="int32",
        vocab_size=vocab_size,
        tokenizer_sha256=tokenizer_sha256,
        source_md5=source_md5,
        tokens_sha256=tokens_sha256,
        offsets_sha256=sha256_file(partial / "offsets.npy"),
    )
    write_meta(partial / "meta.json", asdict(meta))
    for file in partial.iterdir():
        sync(file)
    shutil.rmtree(path, ignore_errors=True)
    partial.replace(path)
    return meta


def _join(target: Path, files: list[Path], tokens: int) -> str:
    """Join the content of the files into an int32 .npy file; returns its sha256."""
    digest = hashlib.sha256()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i4", "fortran_order": False, "shape": (tokens,)})
    with target.open("wb") as joined:
        for piece in itertools.chain([header.getvalue()], *map(_pieces, files)):
            digest.update(piece)
            joined.write(piece)
    return digest.hexdigest()


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE_BYTES):
            yield piece


def write_meta(file: Path, content: dict[str, Any]) -> None:
    """Write a meta.json, with the sha256 of its own content in it."""
    write_json(file, content | {_SEAL: sha256_of_json(content)})


def read_meta(file: Path, version: int, remedy: str) -> dict[str, Any]:
    """The content of a meta.json of this format version, checked against its own sha256; older files have none.

    Raises:
        FileNotFoundError: it is missing.
        DataError: it is damaged, or of another format version, where `remedy` says what to do.
    """
    try:
        content = read_json(file, LARGEST_META)
        found = content["format_version"]
        stated = content.pop(_SEAL, None)
        if found == version and stated is not None and stated != sha256_of_json(content):
            raise ValueError("its content does not have the sha256 that it states")
    except FileNotFoundError:
        raise
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise DataError(f"{file}: damaged ({' '.join(str(error).split())[:200]}); {_RESTORE_META}") from None
    if found != version:
        raise DataError(f"{file}: format version {found}, this program reads {version}; {remedy}")
    return dict(content)


def read_store_meta(path: Path) -> StoreMeta:
    """The meta.json of a store.

    Raises:
        DataError: it is missing or damaged, or of another format version.
    """
    file = path / "meta.json"
    try:
        meta = StoreMeta(**read_meta(file, FORMAT_VERSION, "update it"))
        if not all(isinstance(getattr(meta, f.name), int if f.type == "int" else str) for f in fields(meta)):
            raise TypeError("numbers and texts expected")
        return meta
    except FileNotFoundError:
        raise DataError(f"{path}: no whole token store there; `dvc repro tokens` writes it") from None
    except TypeError as error:
        raise DataError(f"{file}: not a token store's meta.json ({error}); {_RESTORE_META}") from None


def _map(file: Path, dtype: type, length: int) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r" if length else None)  # an empty file cannot be mapped
    except FileNotFoundError:
        raise DataError(f"{file}: is missing; {RESTORE}") from None
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        found = file.stat().st_size
        raise DataError(
            f"{file}: truncated or damaged: {found:,} bytes found, {length:,} entries of {np.dtype(dtype).itemsize} "
            f"bytes expected ({error}); {RESTORE}"
        ) from None
    if array.dtype != dtype or array.shape != (length,):
        raise DataError(
            f"{file}: {array.dtype} of shape {array.shape}, expected {np.dtype(dtype)} of shape ({length},); {RESTORE}"
        )
    if file.stat().st_size != HEADER_BYTES + array.nbytes:
        raise DataError(f"{file}: {file.stat().st_size:,} bytes, expected {HEADER_BYTES + array.nbytes:,}; {RESTORE}")
    return array
