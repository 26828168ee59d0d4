"""Files that a stranger hands over: whatever they hold, a command succeeds or says one line, soon and in little memory.

Seeds are fixed; ``AZNEOBERT_FUZZ=20 pytest tests/faults/test_hostile.py`` goes on twenty times as long.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from tokenizers import Tokenizer
from toy import CheckpointMaker, Toy, run_command

from azneobert.checkpoint.compare import read_through
from azneobert.checkpoint.convert import convert, open_any
from azneobert.checkpoint.manifest import MANIFEST, STATE, Manifest
from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.cli.checkpoint import _facts_table, _groups_table
from azneobert.cli.console import console
from azneobert.data.discover import discover
from azneobert.data.sources import open_source
from azneobert.data.tokenizer import load_tokenizer
from azneobert.errors import AzNeoBertError
from azneobert.finetuning.reading import read_task
from azneobert.recipe import FileSource, load_recipe
from azneobert.task_settings import SPLITS, TaskFiles

ROUNDS = int(os.environ.get("AZNEOBERT_FUZZ", "1"))
SECONDS = 10  # that anything may take
ESCAPE = "\x1b[31m[/b]\u202e\n"
ODD: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1e308, -0.0, "", "\0", ESCAPE, "../../etc/passwd", "/dev/zero"),
    *([], {}, [[]], {"": {}}, ["x"], "encoder.embedding.weight", "F32", 7, 0.5),
]


def attempt(action: Callable[[], Any]) -> str:
    """`whole` or `refused`: the action succeeds, or raises an error of ours in one line that may be printed."""
    began = time.monotonic()

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    said = ""
    try:
        action()
    except AzNeoBertError as error:
        said = str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
    assert said.isprintable()
    assert len(said) < 2000
    assert time.monotonic() - began < SECONDS
    return "refused" if said else "whole"


def flipped(content: bytes, chance: random.Random) -> bytes:
    """The content with a few bits changed, cut short, or with a piece of it twice."""
    changed = bytearray(content)
    kind = chance.random()
    if kind < 0.2:
        return bytes(changed[: chance.randrange(len(changed) + 1)])
    if kind < 0.3:
        start = chance.randrange(len(changed) + 1)
        piece = changed[start : start + chance.randrange(1, 64)]
        return bytes(changed[:start] + piece * chance.randrange(2, 50) + changed[start:])
    for _ in range(chance.randrange(1, 4)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def altered(tree: Any, chance: random.Random) -> Any:
    """A nested structure with a value or two replaced by an odd one, or left out."""
    changed = json.loads(json.dumps(tree))
    for _ in range(chance.randrange(1, 3)):
        places = list(_places(changed))
        within, key = chance.choice(places)
        if chance.random() < 0.2:
            del within[key]
        else:
            within[key] = chance.choice(ODD)
        if not list(_places(changed)):
            break
    return changed


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


@contextmanager
def kept(file: Path) -> Iterator[bytes]:
    """Its content; the file is as it was afterwards."""
    content = file.read_bytes()
    try:
        yield content
    finally:
        file.write_bytes(content)


@pytest.fixture(scope="module")
def maker(toy_corpus: Path) -> CheckpointMaker:
    return CheckpointMaker(toy_corpus / "tokenizer.json")


@pytest.fixture
def universal(maker: CheckpointMaker, tmp_path: Path) -> Path:
    return maker.publish(CheckpointFolder(tmp_path, 9), 7)


@pytest.fixture
def plain(universal: Path, tmp_path: Path) -> Path:
    convert(universal, tmp_path / "plain", "plain")
    return tmp_path / "plain"


@pytest.fixture
def zero2(universal: Path, tmp_path: Path) -> Path:
    convert(universal, tmp_path / "zero2", "zero2", world_size=2)
    return tmp_path / "zero2"


def gone_through(folder: Path) -> None:
    """All that the commands do with a checkpoint, but for writing it."""
    for verified in (False, True):
        opened = open_any(folder, verified=verified)
        with console.capture() as printed:
            console.print(_facts_table(opened))
            console.print(_groups_table(opened))
        assert all(character.isprintable() or character == "\n" for character in printed.get())
        read_through(opened.state)


# One bit


def test_no_bit_of_manifest_or_state_starts_a_run_anew_or_at_another_sample(
    make_toy: Callable[..., Toy], tmp_path: Path
) -> None:
    toy = make_toy({"runtime": {"keep_checkpoints": 3}})
    toy.train()
    checkpoints = toy.checkpoints()
    newest, whole = checkpoints.latest() or (tmp_path, None)
    before = checkpoints.steps()[-2]
    passed_over = 0
    for name, stride in ((MANIFEST, 5), (STATE, 7)):
        with kept(newest / name) as content:
            for place in range(0, len(content), max(1, stride // ROUNDS)):
                changed = bytearray(content)
                changed[place] ^= 1 << place % 8
                (newest / name).write_bytes(changed)
                found = checkpoints.latest()
                assert found is not None, f"{name}: byte {place}: the run would begin anew"
                assert found[0] in (newest, before), f"{name}: byte {place}"
                assert found[0] == before or found[1] == whole, f"{name}: byte {place}: another manifest"
                passed_over += found[0] == before
    assert passed_over > 500
    with kept(newest / MANIFEST) as content:
        (newest / MANIFEST).write_bytes(content.replace(b'"sample_index": ', b'"sample_index": 9', 1))
        expected = toy.losses()
        toy.train()
        assert toy.losses() == expected, "it goes on from the one before, to the same numbers"


def test_a_manifest_that_states_its_own_hash_and_anything_else_is_whole_or_refused(universal: Path) -> None:
    chance = random.Random(1)
    outcomes = []
    with kept(universal / MANIFEST) as manifest, kept(universal / STATE) as state:
        for _ in range(400 * ROUNDS):
            content = json.loads(manifest)
            if chance.random() < 0.5:
                of_state = json.dumps(altered(json.loads(state), chance)).encode()
                (universal / STATE).write_bytes(of_state)
                content["files"][STATE] = {"sha256": hashlib.sha256(of_state).hexdigest(), "size": len(of_state)}
            else:
                (universal / STATE).write_bytes(state)
                content = altered(content, chance)
            content.pop("sha256", None)
            digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            (universal / MANIFEST).write_text(json.dumps(content | {"sha256": digest}))
            outcomes.append(attempt(lambda: gone_through(universal)))
    assert {"whole", "refused"} <= set(outcomes)


# Folders of other programs


@pytest.mark.parametrize("kind", ["plain", "zero2"])
def test_a_foreign_folder_with_changed_bytes_is_whole_or_refused(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    chance = random.Random(2)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    outcomes = []
    for _ in range(150 * ROUNDS):
        file = chance.choice(files)
        with kept(file) as content:
            file.write_bytes(flipped(content, chance))
            outcomes.append(attempt(lambda: gone_through(folder)))
    assert "refused" in outcomes


@pytest.mark.parametrize("kind", ["plain", "zero2"])
def test_a_foreign_folder_with_other_values_is_whole_or_refused(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(kind)
    chance = random.Random(3)
    pickled = [file for file in sorted(folder.rglob("*")) if file.suffix in (".bin", ".pt")]
    maze: list[Any] = ["x"] * 10
    for _ in range(40):
        maze = [maze, maze]
    circle: list[Any] = []
    circle.append(circle)
    vast = torch.zeros(1).expand(10**12)
    odd = [*ODD, maze, circle, vast, torch.tensor(float("nan")), torch.zeros(0), torch.zeros(3, dtype=torch.int64)]
    outcomes = []
    for round_ in range(150 * ROUNDS):
        file = chance.choice(pickled)
        with kept(file):
            content = torch.load(file, weights_only=True)
            within, key = chance.choice(list(_places(content)))
            within[key] = chance.choice(odd)
            torch.save(content, file)
            outcomes.append(attempt(lambda: gone_through(folder)))
            if outcomes[-1] == "whole":
                target = tmp_path / f"converted-{round_}"
                attempt(lambda: convert(folder, target, chance.choice(("universal", "plain", "zero2"))))  # noqa: B023
    assert {"whole", "refused"} <= set(outcomes)


def test_a_pickle_that_unpacks_to_more_than_it_holds_is_refused(plain: Path) -> None:
    file = plain / "optimizer.bin"
    content = zipfile.ZipFile(file)
    packed = {name: content.read(name) for name in content.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, of_name in packed.items():
            archive.writestr(name, of_name)
        archive.writestr("archive/data/99", bytes(100 << 20))
    with pytest.raises(AzNeoBertError, match="unpacks to more than it holds"):
        open_any(plain)


class _Code:
    """A pickle of it runs a command when it is loaded by pickle itself."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["plain", "zero2"])
def test_nothing_of_a_foreign_folder_is_run(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(kind)
    marker = tmp_path / "ran"
    for file in [file for file in sorted(folder.rglob("*")) if file.suffix in (".bin", ".pt")]:
        with kept(file):
            torch.save({"state": _Code(marker)}, file)
            assert attempt(lambda: gone_through(folder)) == "refused"
            file.write_bytes(pickle.dumps(_Code(marker)))
            assert attempt(lambda: gone_through(folder)) == "refused"
    assert not marker.exists()
    pickle.loads(pickle.dumps(_Code(marker)))
    assert marker.exists(), "the pickle would have run"


# What is no file


def _secret(tmp_path: Path) -> Path:
    secret = tmp_path / "secret" / "tokenizer.json"
    secret.parent.mkdir(exist_ok=True)
    secret.write_text('{"secret": "root:x:0:0"}')
    return secret


REPLACEMENTS: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda file, tmp_path: file.symlink_to(_secret(tmp_path)),
    "link to a device": lambda file, _: file.symlink_to("/dev/zero"),
    "link to itself": lambda file, _: file.symlink_to(file.name),
    "pipe": lambda file, _: os.mkfifo(file),
    "folder": lambda file, _: file.mkdir(),
    "process's file": lambda file, _: file.symlink_to("/proc/self/environ"),
}


@pytest.mark.parametrize("what", REPLACEMENTS)
@pytest.mark.parametrize("kind", ["universal", "plain", "zero2"])
def test_what_is_no_file_of_the_folder_is_neither_followed_nor_waited_for(
    kind: str, what: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(kind)
    for file in [file for file in sorted(folder.rglob("*")) if file.is_file()]:
        content = file.read_bytes()
        file.unlink()
        REPLACEMENTS[what](file, tmp_path)
        target = tmp_path / "converted"
        assert attempt(lambda: convert(folder, target, "universal")) == "refused", file.name  # noqa: B023
        assert attempt(lambda: gone_through(folder)) == "refused", file.name
        assert not target.exists()
        shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        file.write_bytes(content)
    assert attempt(lambda: gone_through(folder)) == "whole"


@pytest.mark.parametrize("said", ["../secret", "/etc", "..", ".", "", "pytorch_model/../../secret", "a\0b", ESCAPE])
def test_what_latest_names_is_a_folder_beside_it(zero2: Path, said: str) -> None:
    secret = zero2.parent / "secret"
    shutil.copytree(zero2 / "pytorch_model", secret)
    (zero2 / "latest").write_text(said)
    assert attempt(lambda: gone_through(zero2)) == "refused"
    (zero2 / "latest").write_text("elsewhere")
    (zero2 / "elsewhere").symlink_to(secret)
    assert attempt(lambda: gone_through(zero2)) == "refused"


def test_the_commands_say_one_line_and_show_no_escape_of_a_file(universal: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a\x1b[31m[b]\u202e"
    universal.rename(odd)
    code, said, wrong = run_command(["checkpoint", "inspect", odd.name], tmp_path)
    assert (code, wrong) == (0, "")
    assert "\\x1b[31m[b]\\u202e" in said
    (odd / MANIFEST).unlink()
    os.mkfifo(odd / MANIFEST)
    for command in (["inspect"], ["verify"], ["convert", "new", "--to", "plain"], ["diff", odd.name]):
        code, said, wrong = run_command(["checkpoint", command[0], odd.name, *command[1:]], tmp_path)
        assert (code, said) == (1, ""), command
        assert wrong.startswith("error: "), wrong
        assert wrong.rstrip("\n").isprintable()


# Recipes


def test_a_recipe_of_any_bytes_is_read_or_refused(recipes: Path) -> None:
    chance = random.Random(4)
    file = recipes / "params.yaml"
    content = file.read_bytes()
    outcomes = []
    scalars = [
        *(b"!!int abc", b"!!python/object/apply:os.system [x]"),
        *(b"&a [*a]", b"2024-13-45", b".inf", b"-.NaN", b"0x", b"~"),
        *(b"[/b]",),
        *(b"{" * 3000, b"[" * 3000, b"? ", b"<<: *x", b'"\\ud800"', b"1e999", b"9" * 5000, b"\x1b[31m", b"|\n"),
        *(b"%YAML 9.9\n---", b"--- 1\n--- 2", b"'", b"\t", b"\0", b"\xff\xfe"),
    ]
    for round_ in range(150 * ROUNDS):
        if round_ % 2:
            changed = flipped(content, chance)
        else:
            lines = content.split(b"\n")
            place = chance.randrange(len(lines))
            lines[place] = lines[place].split(b":")[0] + b": " + chance.choice(scalars)
            changed = b"\n".join(lines)
        file.write_bytes(changed)
        outcomes.append(attempt(load_recipe))
    assert {"whole", "refused"} <= set(outcomes)


# Sources and labelled tasks


def _read(path: Path, **options: Any) -> None:
    for records in open_source(FileSource(path=str(path), **options)).read():
        assert all(line.isprintable() for line in records.malformed) or records.malformed


def _rows(file: Path) -> int:
    """How many records a reader gives of a file, malformed ones included."""
    return sum(len(records) for records in open_source(FileSource(path=str(file), id_field=None)).read())


def test_a_parquet_file_of_any_bytes_loses_no_row_in_silence(tmp_path: Path) -> None:
    chance = random.Random(8)
    file = tmp_path / "a.parquet"
    columns = {"text": [f"mətn {number % 7}" for number in range(90)], "id": [str(number) for number in range(90)]}
    pq.write_table(pa.table(columns), file, row_group_size=30)
    content = file.read_bytes()
    found: list[int] = []
    outcomes = []
    for _ in range(600 * ROUNDS):
        file.write_bytes(flipped(content, chance))
        outcomes.append(attempt(lambda: found.append(_rows(file))))
        outcomes.append(attempt(lambda: discover(tmp_path)))
    assert {"whole", "refused"} <= set(outcomes)
    assert set(found) == {90}


def _sources(folder: Path) -> list[Path]:
    rows = [{"text": f"Salam, dünya! {number} 🙂", "id": f"n{number}", "deep": {"a": [1]}} for number in range(60)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    table = "text,id\n" + "".join(f'"{row["text"]}",{row["id"]}\n' for row in rows)
    contents = {"a.jsonl": lines, "a.csv": table.encode(), "a.txt": lines}
    contents |= {f"{name}.gz": gzip.compress(of_name) for name, of_name in list(contents.items())}
    contents |= {f"{n}.zst": zstandard.compress(c) for n, c in list(contents.items()) if not n.endswith(".gz")}
    for name, of_name in contents.items():
        (folder / name).write_bytes(of_name)
    columns = {"text": [row["text"] for row in rows], "id": [row["id"] for row in rows]}
    for codec in ("snappy", "zstd"):
        pq.write_table(pa.table(columns), folder / f"{codec}.parquet", compression=codec)
    return sorted(folder.iterdir())


def test_a_source_of_any_bytes_is_read_or_refused(tmp_path: Path) -> None:
    chance = random.Random(5)
    outcomes = []
    files = _sources(tmp_path)
    for _ in range(400 * ROUNDS):
        file = chance.choice(files)
        with kept(file) as content:
            file.write_bytes(flipped(content, chance))
            outcomes.append(attempt(lambda: _read(file, id_field=None)))  # noqa: B023
    assert {"whole", "refused"} <= set(outcomes)


def test_a_labelled_task_of_any_bytes_is_read_or_refused(tmp_path: Path) -> None:
    chance = random.Random(6)
    lines = [json.dumps({"text": f"mətn {n}", "label": ("a", "b")[n % 2]}, ensure_ascii=False) for n in range(20)]
    for split in SPLITS:
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    outcomes = []
    for round_ in range(200 * ROUNDS):
        file = tmp_path / f"{chance.choice(SPLITS)}.jsonl"
        with kept(file) as content:
            if round_ % 2:
                file.write_bytes(flipped(content, chance))
            else:
                row = {"text": "x", "label": "a"} | {chance.choice(("text", "label")): chance.choice(ODD)}
                file.write_text("\n".join([*lines, json.dumps(row)]))
            outcomes.append(attempt(lambda: read_task("toy", TaskFiles(path=str(tmp_path)))))
    assert {"whole", "refused"} <= set(outcomes)


_BOUNDED = """
import resource, sys
from pathlib import Path
from azneobert.data.discover import discover
from azneobert.data.sources import open_source
from azneobert.data.discover import first_records
from azneobert.errors import DataError
from azneobert.recipe import FileSource
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
first_records(Path(sys.argv[1]))
try:
    for records in open_source(FileSource(path=sys.argv[1], sample_by=sys.argv[2])).read():
        print("malformed" if records.malformed else "read", *records.malformed[:1])
except DataError as error:
    print("refused", error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("packed", ["gz", "zst"])
@pytest.mark.parametrize(
    ("name", "piece", "sample_by"),
    [
        ("one line without an end.jsonl", b"x", "document"),
        ("deep.jsonl", b'{"text":', "document"),
        ("one document without an end.txt", b"metn\n", "document"),
        ("one line without an end.txt", b"x", "line"),
        ("one row without an end.csv", b"x", "document"),
        ("rows without an end.csv", b"id,text\n1," + b"x" * 5000 + b"\n", "document"),
    ],
)
def test_what_unpacks_without_an_end_takes_little_time_and_memory(
    name: str, piece: bytes, sample_by: str, packed: str, tmp_path: Path
) -> None:
    file = tmp_path / f"{name}.{packed}"
    block = (piece * (1 << 20))[: 1 << 20]
    # What a few MB may hold: half a gigabyte.
    with gzip.open(file, "wb", 1) if packed == "gz" else zstandard.open(file, "wb") as out:
        for _ in range(512):
            out.write(block)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _BOUNDED, str(file), sample_by], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    *_, said, megabytes = done.stdout.splitlines()
    assert said.startswith(("refused", "malformed")), said
    assert int(megabytes) < 600, done.stdout
    assert time.monotonic() - began < 2 * SECONDS


# Tokenizers


def test_a_tokenizer_of_any_bytes_is_read_or_refused(
    toy_corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(7)
    file = tmp_path / "tokenizer.json"
    content = (toy_corpus / "tokenizer.json").read_bytes()
    tree = json.loads(content)

    def use() -> None:
        tokenizer: Tokenizer = load_tokenizer(file)
        tokenizer.encode("Salam, dünya! [MASK]")

    outcomes = []
    for round_ in range(300 * ROUNDS):
        if round_ % 2:
            file.write_bytes(flipped(content, chance))
        else:
            changed = {key: value for key, value in tree.items() if key != "model"}
            changed |= {"model": {**tree["model"]}}
            file.write_text(json.dumps(altered(changed, chance) if chance.random() < 0.7 else _other(tree, chance)))
        outcomes.append(attempt(use))
    assert {"whole", "refused"} <= set(outcomes)
    assert capfd.readouterr().err == "", "a panic of the library writes no pages"


def _other(tree: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """With a part that names what is not there."""
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}], "pair": []}
    parts = {
        "post_processor": template | {"special_tokens": {}},
        "decoder": {"type": "Strip", "content": " ", "start": 2**63, "stop": 2**63},
        "truncation": {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False},
    }
    name = chance.choice(list(parts))
    return {**tree, name: parts[name]}


def test_a_manifest_is_the_same_after_all_this(universal: Path, maker: CheckpointMaker) -> None:
    found: Manifest = open_any(universal).manifest or pytest.fail("no manifest")
    assert replace(found, files={}) == replace(maker.manifest(7), files={})
