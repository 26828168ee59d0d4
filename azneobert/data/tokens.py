"""Documents -> token stores: every core tokenizes a part at a time, and an interrupted run keeps the parts it has."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from azneobert.data.documents import read_duplicates, read_texts, split_by_part
from azneobert.data.progress import Progress
from azneobert.data.store import ShardWriter, StoreMeta, assemble_store, shard_files
from azneobert.data.tokenizer import load_tokenizer, tokenizer_sha256

SIDES = ("train", "validation")
_PR_SET_PDEATHSIG = 1
_SMALL = 8 << 20  # bytes of documents below which starting processes costs more than it gains


@dataclass(frozen=True)
class _Job:
    """One part to tokenize: the file, which of its documents to leave out, and where its shards go."""

    part: Path
    struck: np.ndarray
    folder: Path

    @property
    def done(self) -> bool:
        return all(file.exists() for side in SIDES for file in shard_files(self.folder, self.shard(side)))

    def shard(self, side: str) -> str:
        return f"{self.part.stem}.{side}"


def tokenize_collection(
    documents: Path, duplicates: Path, tokenizer_file: Path, target: Path, partial: Path, *, vocab_size: int
) -> dict[str, StoreMeta]:
    """Tokenize a collection into the stores ``target/train`` and ``target/validation``, without its duplicates.

    It runs on all the cores that this process may use. Finished parts are kept in a folder of `partial` that is named
    by what they depend on, so that shards of other documents or of another tokenizer are never mistaken for them.
    """
    struck = read_duplicates(duplicates)
    sha256 = tokenizer_sha256(tokenizer_file)
    sources = [(part, indices, _md5(part)) for part, indices in split_by_part(documents, struck)]
    source_md5 = hashlib.md5("".join(f"{p.name}{md5}{i.tobytes().hex()}" for p, i, md5 in sources).encode()).hexdigest()
    folder = partial / f"{source_md5[:16]}-{sha256[:16]}"
    _remove_others(folder)
    jobs = [_Job(part, indices, folder) for part, indices, _ in sources]
    with Progress(documents.name, sum(job.part.stat().st_size for job in jobs)) as progress:
        progress.advance(0, sum(job.part.stat().st_size for job in jobs if job.done))
        for job, count in _run([job for job in jobs if not job.done], tokenizer_file, vocab_size):
            progress.advance(count, job.part.stat().st_size)
    metas = {
        side: assemble_store(
            target / side,
            [shard_files(folder, job.shard(side)) for job in jobs],
            vocab_size=vocab_size,
            tokenizer_sha256=sha256,
            source_md5=source_md5,
        )
        for side in SIDES
    }
    shutil.rmtree(partial)
    return metas


def _run(jobs: list[_Job], tokenizer_file: Path, vocab_size: int) -> Iterator[tuple[_Job, int]]:
    """Each job with the number of its documents, as they end."""
    processes = min(len(os.sched_getaffinity(0)), len(jobs))
    if processes <= 1 or sum(job.part.stat().st_size for job in jobs) < _SMALL:
        tokenizer = _load(tokenizer_file, vocab_size)
        for job in jobs:
            yield job, _tokenize_part(tokenizer, job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_worker, (tokenizer_file, vocab_size, os.getpid())) as pool:
        waiting = {pool.submit(_work, job): job for job in jobs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_worker_tokenizer: Tokenizer


def _start_worker(tokenizer_file: Path, vocab_size: int, parent: int) -> None:
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # or a killed parent would leave its workers waiting
    if os.getppid() != parent:
        os._exit(1)  # the parent was killed before the line above
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_tokenizer = _load(tokenizer_file, vocab_size)


def _work(job: _Job) -> int:
    return _tokenize_part(_worker_tokenizer, job)


def _load(tokenizer_file: Path, vocab_size: int) -> Tokenizer:
    tokenizer = load_tokenizer(tokenizer_file, vocab_size)
    tokenizer.encode_special_tokens = True  # "[MASK]" written in a document is text
    return tokenizer


def _tokenize_part(tokenizer: Tokenizer, job: _Job) -> int:
    documents = 0
    writers = [ShardWriter(job.folder, job.shard(side)) for side in SIDES]
    for texts, validation in read_texts(job.part, job.struck):
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        documents += len(ids)
        for writer, side in zip(writers, (~validation, validation), strict=True):
            chosen = [ids[i] for i in np.flatnonzero(side).tolist()]
            lengths = np.fromiter(map(len, chosen), np.int64, len(chosen))
            writer.add(np.fromiter(itertools.chain.from_iterable(chosen), np.int32, int(lengths.sum())), lengths)
    for writer in writers:
        writer.close()
    return documents


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "md5").hexdigest()


def _remove_others(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other != folder and other.is_dir():
            shutil.rmtree(other)
