"""Data sets of the Hugging Face hub, and files behind URLs, streamed with the `datasets` library."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa

from azneobert.data.records import Position, Records, add_record, parse_json
from azneobert.errors import DataError
from azneobert.recipe import HubSource

_BATCH_RECORDS = 512
# Builders of `datasets` that read plain files: `data_files` names the files, and the dataset is no repository.
_BUILDERS = ("json", "csv", "text", "parquet")
_KEYS = "`dataset`, `config`, `data_files` or `options`"


class HubReader:
    """Streams a data set. A position is the library's own state: the shard, and how far into it the records reach."""

    def __init__(self, source: HubSource):
        self._source = source
        self.size: int | None = None  # unknown for a stream
        # An extra key in a later file would end the json builder's stream, so JSON lines are parsed here.
        self._json_lines = source.dataset == "json"
        with explained(source.name, _KEYS):
            self._builder = self._make_builder()
        splits = list(self._builder.config.data_files or [])
        if source.split not in splits:
            raise DataError(
                f"{source.name}: no split {source.split!r}; expected one of {', '.join(map(str, splits))} as `split`"
            )

    def state(self) -> Any:
        """The files behind the split, with their commit, ETag or date, and how they are read."""
        files = self._builder.config.data_files[self._source.split]
        versions = [list(version) for version in files.origin_metadata]
        names = [str(file) for file in files]
        return {"builder": self._builder.name, "files": names, "versions": versions, "options": self._source.options}

    def read(self, position: Position | None = None) -> Iterator[Records]:
        """The records from a position on, or all of them."""
        with explained(self._source.name, _KEYS):
            stream = self._builder.as_streaming_dataset(split=self._source.split)
            if position is not None:
                stream.load_state_dict(position["state"])
            number, size = (position["record"], position["bytes"]) if position is not None else (0, 0)
            for columns in stream.iter(_BATCH_RECORDS):
                records = Records()
                for values in zip(*columns.values(), strict=True):
                    number += 1
                    row: Any = dict(zip(columns, values, strict=True))
                    record = parse_json(row["text"].encode()) if self._json_lines else row
                    if record is not None:
                        add_record(records, record, self._source, f"{self._source.name}:{number}")
                size += sum(len(text or "") for text in records.texts)
                records.bytes_read = size
                records.position = {"state": stream.state_dict(), "record": number, "bytes": size}
                yield records

    def _make_builder(self) -> Any:
        from datasets import disable_progress_bars, load_dataset_builder
        from fsspec.compression import register_compression

        disable_progress_bars()
        register_compression("zstd", _open_zstd, "zst", force=True)
        source = self._source
        files = _listed(source.data_files) if source.data_files is not None else None
        if source.dataset in _BUILDERS and files is None:
            raise DataError(f"{source.name}: `data_files` is missing; name the files that {source.dataset} shall read")
        if files == []:
            raise DataError(f"{source.name}: names no file; correct `data_files`, or the list that it points to")
        return load_dataset_builder(
            "text" if self._json_lines else source.dataset,
            source.config,
            data_files={source.split: files} if files is not None else None,
            revision=source.revision or None,
            **source.options,
        )


def _open_zstd(file: BinaryIO, mode: str = "rb", **options: Any) -> BinaryIO:
    """A zstd stream that raises an error if it is truncated; the reader that fsspec uses does not."""
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"), 1 << 20)


def _listed(files: str | tuple[str, ...]) -> list[str]:
    """The data files. A file that ends in `.map` is a list of files, one per line, as the HPLT project publishes it."""
    import fsspec

    found: list[str] = []
    for name in (files,) if isinstance(files, str) else files:
        if name.endswith(".map"):
            with fsspec.open(name, "rt") as lines:
                found += [line.strip() for line in lines if line.strip()]
        else:
            found.append(name)
    return found


@contextmanager
def explained(name: str, keys: str) -> Iterator[None]:
    """Turn an error of `datasets` about an unreadable data set into one line that names the `keys` to correct."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # each of its builders and file systems has exceptions of its own
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: {said}; {_remedy(error, keys)}") from None


def _remedy(error: Exception, keys: str) -> str:
    from datasets.exceptions import DatasetNotFoundError

    if isinstance(error, DatasetNotFoundError):
        return "correct its name, or accept its terms on the hub and set HF_TOKEN"
    if isinstance(error, ConnectionError):
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        return f"the hub does not answer: try again later{offline}"
    if isinstance(error, FileNotFoundError):
        return f"correct {keys}, or try again later if it is there"
    if isinstance(error, OSError):
        return "try again later"
    return f"correct {keys}"
