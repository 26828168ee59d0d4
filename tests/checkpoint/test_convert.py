"""Stock Accelerate's and stock DeepSpeed's folders become ours and ours theirs, every tensor to the last bit."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import Truth, load_plain, load_zero2, write_plain, write_zero2
from refusals import refused

from azneobert.checkpoint.convert import convert
from azneobert.checkpoint.universal import TrainState, read_checkpoint
from azneobert.errors import CheckpointError

TENSORS = ("weights", "exp_avg", "exp_avg_sq", "buffers")
TWO_GROUPS = {"groups": 2, "tied": True}
BF16_OPTIMIZER = {"stage": 1, "bf16": True, "fp32_accumulation": True}
SIMPLE = {"layers": 11, "block": ("linear",)}  # eleven: 10 sorts before 2

# Name: number of ranks and what the stock program is.
ZERO2: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank, by DeepSpeed": (1, {"through": "deepspeed"}),
    "two ranks, tied, two groups": (2, TWO_GROUPS),
    "two ranks, one step further": (2, {**TWO_GROUPS, "steps": 4}),
    "three ranks, frozen, by DeepSpeed": (3, {"frozen": True, "through": "deepspeed"}),
    "four ranks, round robin, tied": (4, {"round_robin": True, **TWO_GROUPS}),
    "bf16": (2, {"bf16": True}),
    "bf16, aligned": (2, {"bf16": True, "parameter_alignment": True, "scheduler": False}),
    "stage 1, aligned, two groups": (2, {"stage": 1, "parameter_alignment": True, "groups": 2}),
    "stage 1, BF16_Optimizer": (2, {**BF16_OPTIMIZER, "round_robin": True}),
    "compiled, elastic": (2, {"compiled": True, "elastic": True, "groups": 2}),
}
PLAIN: dict[str, tuple[int, dict[str, Any]]] = {
    "bin": (1, {"safe_serialization": False}),
    "bin, two ranks, tied, two groups": (2, {"safe_serialization": False, **TWO_GROUPS}),
    "bin, compiled": (1, {"safe_serialization": False, "compiled": True, "scheduler": False}),
    "names in the optimizer, two ranks": (2, {"named": True}),
    "names in the optimizer, two groups": (1, {"named": True, **TWO_GROUPS}),
    "names in the optimizer, compiled": (1, {"named": True, "compiled": True}),
    "names in the optimizer, frozen": (1, {"named": True, "frozen": True}),
    "names in the optimizer, unused": (1, {"named": True, "unused": True}),
    "no two layers alike": (1, SIMPLE),
    "no two layers alike, two ranks, tied": (2, {**SIMPLE, "tied": True}),
}
NEED_NAMES: dict[str, tuple[int, dict[str, Any]]] = {
    "layers alike": (1, {}),
    "layers alike, two ranks, two groups": (2, {"groups": 2}),
    "layers alike, compiled": (1, {"compiled": True}),
}


@dataclass
class Stock:
    """A stock program's folder, and what the program held when it wrote it."""

    folder: Path
    truth: Truth
    world: int
    options: dict[str, Any]

    def names(self, file: Path) -> Path:
        file.write_text("\n".join(self.truth.parameter_names) + "\n")
        return file

    @cached_property
    def next_losses(self) -> list[float]:
        """Of the stock program that goes on from its own folder."""
        return self.load(self.folder).losses

    def load(self, folder: Path, world: int | None = None) -> Truth:
        """What the same stock program makes of a folder."""
        kept = ("tied", "groups", "frozen", "bf16", "scheduler", "through", "stage", "layers", "block")
        options = {key: value for key, value in self.options.items() if key in kept}
        return (load_zero2 if "zero2" in self.folder.name else load_plain)(folder, world or self.world, **options)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stock]:
    """A stock folder by name, written when it is first asked for."""
    written: dict[str, Stock] = {}

    def of(name: str) -> Stock:
        if name not in written:
            write = write_zero2 if name in ZERO2 else write_plain
            world, options = (ZERO2 | PLAIN | NEED_NAMES)[name]
            folder = tmp_path_factory.mktemp("stock") / ("zero2" if name in ZERO2 else "plain")
            written[name] = Stock(folder, write(folder, world, **options), world, options)
        return written[name]

    return of


@pytest.fixture
def tied_zero2(stock: Callable[[str], Stock], tmp_path: Path) -> Path:
    """A copy of a ZeRO-2 folder of two ranks, to be damaged."""
    return Path(shutil.copytree(stock("two ranks, tied, two groups").folder, tmp_path / "damaged"))


def shard(folder: Path, rank: int) -> Path:
    [file] = folder.glob(f"*/*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return file


def assert_same_tensors(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert different == []
    assert [name for name in expected if found[name].dtype != expected[name].dtype] == []


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def assert_holds(state: TrainState, truth: Truth, *, hyper: bool = True) -> None:
    """The state is what the stock program held."""
    for kind in TENSORS:
        assert_same_tensors(getattr(state, kind), getattr(truth, kind))
    assert state.optimizer_step == truth.step
    assert [group["names"] for group in state.groups] == [group["names"] for group in truth.groups]
    if hyper:
        assert as_json(state.groups) == as_json(truth.groups)
    assert state.scheduler == as_json(truth.scheduler)


def assert_same_program(found: Truth, expected: Truth) -> None:
    """Two live programs hold the same."""
    for kind in (*TENSORS, "module"):
        assert_same_tensors(getattr(found, kind), getattr(expected, kind))
    assert (found.step, found.tied, found.scheduler) == (expected.step, expected.tied, expected.scheduler)
    assert as_json(found.groups) == as_json(expected.groups)


def assert_same_state(one: TrainState, other: TrainState) -> None:
    for kind in TENSORS:
        assert_same_tensors(getattr(one, kind), getattr(other, kind))
    assert (one.optimizer_step, one.tied, one.scheduler) == (other.optimizer_step, other.tied, other.scheduler)
    assert one.groups == other.groups


def universal(source: Stock, folder: Path) -> Path:
    target = folder / "universal"
    convert(source.folder, target, "universal", parameter_names=source.names(folder / "names.txt"))
    return target


# Into universal.


@pytest.mark.parametrize("name", [name for name in ZERO2 if "step further" not in name])
def test_a_zero2_folder_becomes_universal_to_the_last_bit(
    name: str, stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    source = stock(name)
    convert(source.folder, tmp_path / "universal", "universal")
    state, manifest = read_checkpoint(tmp_path / "universal")
    # An elastic folder does not hold the hyper-parameters.
    assert_holds(state, source.truth, hyper="elastic" not in source.options)
    assert state.tied == source.truth.tied
    assert manifest.step == source.truth.step


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_folder_becomes_universal_to_the_last_bit(
    name: str, stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    source = stock(name)
    convert(source.folder, tmp_path / "universal", "universal")
    state, manifest = read_checkpoint(tmp_path / "universal")
    assert_holds(state, source.truth)
    if "safe_serialization" in source.options:  # safetensors drops a tied weight's alias and keeps no note of it
        assert state.tied == source.truth.tied
    assert manifest.step == source.truth.step


@pytest.mark.parametrize("name", NEED_NAMES)
def test_a_plain_folder_that_does_not_tell_its_order_is_refused_until_the_names_are_given(
    name: str, stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    source = stock(name)
    with refused(CheckpointError, "--parameter-names FILE"):
        convert(source.folder, tmp_path / "universal", "universal")
    assert not (tmp_path / "universal").exists()
    assert_holds(read_checkpoint(universal(source, tmp_path))[0], source.truth)


def test_names_that_are_not_the_models_are_refused(stock: Callable[[str], Stock], tmp_path: Path) -> None:
    source = stock("layers alike")
    names = source.truth.parameter_names
    for wrong in (names[:-1], [*names[:-1], "tail.bias"], names[::-1]):
        file = tmp_path / "names.txt"
        file.write_text("\n".join(wrong))
        with refused(CheckpointError):
            convert(source.folder, tmp_path / "universal", "universal", parameter_names=file)


def test_the_tokenizer_goes_along_where_one_is_given(stock: Callable[[str], Stock], tmp_path: Path) -> None:
    tokenizer = tmp_path / "some.json"
    tokenizer.write_text("{}")
    convert(stock("bin").folder, tmp_path / "universal", "universal", tokenizer=tokenizer)
    assert (tmp_path / "universal" / "tokenizer.json").read_text() == "{}"
    assert "tokenizer.json" in read_checkpoint(tmp_path / "universal")[1].files


def test_a_universal_one_without_a_tokenizer_goes_to_universal_and_takes_one(
    stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    source = universal(stock("bin"), tmp_path)
    convert(source, tmp_path / "copy", "universal")
    assert "tokenizer.json" not in read_checkpoint(tmp_path / "copy")[1].files
    assert_same_state(read_checkpoint(source)[0], read_checkpoint(tmp_path / "copy")[0])


# Out of universal, into stock programs.


@pytest.mark.parametrize(
    "name",
    [
        "bin",
        "bin, two ranks, tied, two groups",
        "names in the optimizer, two groups",
        "names in the optimizer, frozen",
        "layers alike, two ranks, two groups",
    ],
)
def test_stock_accelerate_goes_on_from_our_plain_folder_as_from_its_own(
    name: str, stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    source = stock(name)
    convert(universal(source, tmp_path), tmp_path / "plain", "plain", world_size=source.world)
    ours = source.load(tmp_path / "plain")
    assert_same_program(ours, source.truth)
    assert ours.losses == source.next_losses


@pytest.mark.parametrize(
    "name",
    [
        "one rank, by DeepSpeed",
        "two ranks, tied, two groups",
        "three ranks, frozen, by DeepSpeed",
        "bf16",
        "stage 1, BF16_Optimizer",
    ],
)
def test_stock_deepspeed_goes_on_from_our_zero2_folder_as_from_its_own(
    name: str, stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    source = stock(name)
    convert(universal(source, tmp_path), tmp_path / "zero2", "zero2", world_size=source.world)
    ours = source.load(tmp_path / "zero2")
    assert_same_program(ours, source.truth)
    assert ours.losses == source.next_losses


def test_a_stock_engine_with_round_robin_gradients_goes_on_from_a_folder_in_its_order(
    stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    source = stock("four ranks, round robin, tied")
    convert(universal(source, tmp_path), tmp_path / "zero2", "zero2", world_size=4)  # as the source was
    ours = load_zero2(tmp_path / "zero2", 4, round_robin=True, **TWO_GROUPS)
    assert_same_program(ours, source.truth)
    assert ours.losses == load_zero2(source.folder, 4, round_robin=True, **TWO_GROUPS).losses
    convert(source.folder, tmp_path / "in order", "zero2", world_size=4, round_robin=False)
    assert_same_program(load_zero2(tmp_path / "in order", 4, **TWO_GROUPS), source.truth)


def test_a_tied_weight_that_safetensors_does_not_record_can_be_named(
    stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    folder = tmp_path / "plain"
    truth = write_plain(folder, 1, tied=True, named=True)
    convert(folder, tmp_path / "zero2", "zero2", world_size=2, tied={"head.weight": "embedding.weight"})
    assert_same_program(load_zero2(tmp_path / "zero2", 2, tied=True), truth)


@pytest.mark.parametrize("world", [1, 3])
def test_stock_deepspeed_goes_on_with_another_number_of_ranks(
    world: int, stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    source = stock("two ranks, tied, two groups")
    convert(source.folder, tmp_path / "zero2", "zero2", world_size=world)
    assert_same_program(source.load(tmp_path / "zero2", world), source.truth)


def test_a_plain_folder_goes_straight_to_zero2_and_stock_deepspeed_goes_on(
    stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    source = stock("bin, two ranks, tied, two groups")
    convert(source.folder, tmp_path / "zero2", "zero2", world_size=2)
    taken = load_zero2(tmp_path / "zero2", 2, **TWO_GROUPS)
    assert_same_program(taken, source.truth)
    assert taken.losses == pytest.approx(source.next_losses, abs=1e-6)


def test_a_zero2_folder_goes_straight_to_plain_and_stock_accelerate_goes_on(
    stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    source = stock("two ranks, tied, two groups")
    convert(source.folder, tmp_path / "plain", "plain", world_size=2)
    taken = load_plain(tmp_path / "plain", 2, **TWO_GROUPS)
    assert_same_program(taken, source.truth)
    assert taken.losses == pytest.approx(source.next_losses, abs=1e-6)


def test_a_compiled_stock_program_takes_our_folders_with_a_prefix(
    stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    source = stock("bin, compiled")
    convert(source.folder, tmp_path / "plain", "plain", prefix="_orig_mod.")
    convert(source.folder, tmp_path / "zero2", "zero2", prefix="_orig_mod.")
    for load, folder in ((load_plain, "plain"), (load_zero2, "zero2")):
        assert_same_program(load(tmp_path / folder, 1, compiled=True, scheduler=False), source.truth)


def test_names_with_the_prefix_of_ddp_are_read_as_those_without(stock: Callable[[str], Stock], tmp_path: Path) -> None:
    source = stock("bin, two ranks, tied, two groups")
    convert(source.folder, tmp_path / "wrapped", "plain", world_size=2, prefix="module.")
    for rank in range(2):
        (tmp_path / "wrapped" / f"random_states_{rank}.pkl").touch()
    convert(tmp_path / "wrapped", tmp_path / "universal", "universal")
    state = read_checkpoint(tmp_path / "universal")[0]
    assert_holds(state, source.truth)
    assert state.tied == source.truth.tied


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_universal_to_zero2_and_back_changes_nothing(world: int, stock: Callable[[str], Stock], tmp_path: Path) -> None:
    first = universal(stock("four ranks, round robin, tied"), tmp_path)
    convert(first, tmp_path / "zero2", "zero2", world_size=world)
    assert len(list((tmp_path / "zero2").glob("*/*_optim_states.pt"))) == world
    convert(tmp_path / "zero2", tmp_path / "again", "universal")
    assert_same_state(read_checkpoint(tmp_path / "again")[0], read_checkpoint(first)[0])


@pytest.mark.parametrize("chosen", [True, False])
def test_bf16_can_be_asked_for_and_declined(chosen: bool, stock: Callable[[str], Stock], tmp_path: Path) -> None:
    source = stock("two ranks, tied, two groups" if chosen else "bf16")
    convert(source.folder, tmp_path / "zero2", "zero2", bf16=chosen)
    assert shard(tmp_path / "zero2", 0).name.startswith("bf16_") is chosen
    module = torch.load(tmp_path / "zero2" / "pytorch_model" / "mp_rank_00_model_states.pt")["module"]
    dtype = torch.bfloat16 if chosen else torch.float32
    for name, weight in source.truth.weights.items():
        assert torch.equal(module[name], weight.to(dtype))
        assert module[name].dtype is dtype
    convert(tmp_path / "zero2", tmp_path / "again", "universal")
    assert_same_tensors(read_checkpoint(tmp_path / "again")[0].weights, source.truth.weights)


def test_deepspeed_is_never_imported(stock: Callable[[str], Stock], tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from azneobert.checkpoint.convert import convert\n"
        f"convert(Path({str(stock('bf16').folder)!r}), Path('universal'), 'universal')\n"
        "convert(Path('universal'), Path('zero2'), 'zero2', world_size=2)\n"
        "convert(Path('zero2'), Path('plain'), 'plain')\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('deepspeed', 'accelerate')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# What cannot be read.


def assert_refused(source: Path, *parts: str) -> None:
    """Refused, and nothing left behind; `parts` are what the line says."""
    target = source.parent / "new"
    before = sorted(source.parent.iterdir())
    with refused(CheckpointError, *parts):
        convert(source, target, "universal")
    assert sorted(source.parent.iterdir()) == before


def test_a_missing_shard_is_refused(tied_zero2: Path) -> None:
    file = shard(tied_zero2, 1)
    file.unlink()
    assert_refused(tied_zero2, file.name, "missing")


def test_missing_model_states_are_refused(tied_zero2: Path) -> None:
    (tied_zero2 / "pytorch_model" / "mp_rank_00_model_states.pt").unlink()
    assert_refused(tied_zero2, "mp_rank_00_model_states.pt", "missing")


@pytest.mark.parametrize("file", ["zero_pp_rank_1_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"])
def test_files_of_two_steps_are_refused(file: str, tied_zero2: Path, stock: Callable[[str], Stock]) -> None:
    other = stock("two ranks, one step further").folder
    shutil.copy(other / "pytorch_model" / file, tied_zero2 / "pytorch_model" / file)
    assert_refused(tied_zero2, "two steps")


def test_shards_in_each_others_place_are_refused(tied_zero2: Path) -> None:
    one, other = shard(tied_zero2, 0), shard(tied_zero2, 1)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert_refused(tied_zero2)


@pytest.mark.parametrize("position", [0.3, 0.5, 0.9])
def test_a_flipped_byte_in_a_shard_is_refused(position: float, tied_zero2: Path) -> None:
    file = shard(tied_zero2, 1)
    stored = positions_of_data(file)  # what stands between the records, such as their padding, is not read
    content = bytearray(file.read_bytes())
    content[stored[int(position * len(stored))]] ^= 0x10
    file.write_bytes(content)
    assert_refused(tied_zero2, file.name)


def positions_of_data(file: Path) -> list[int]:
    """Where the bytes of a zip file's records stand, each after a header of 30 bytes, a name and an extra field."""
    content = file.read_bytes()
    found: list[int] = []
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            name, extra = struct.unpack_from("<HH", content, record.header_offset + 26)
            start = record.header_offset + 30 + name + extra
            found += range(start, start + record.file_size)
    return found


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_shard_is_refused(kept: float, tied_zero2: Path) -> None:
    file = shard(tied_zero2, 1)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    assert_refused(tied_zero2, file.name)


class Reduced:
    """An object that is pickled as a call."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def test_an_enum_that_python_3_11_2_pickled_is_read(tied_zero2: Path, tmp_path: Path) -> None:
    # Regression: "holds getattr". Debian 12's Python pickles a member of an Enum as `getattr(its class, its name)`.
    from deepspeed.runtime.zero.config import ZeroStageEnum

    stage = Reduced(getattr, ZeroStageEnum, "gradients")
    file = shard(tied_zero2, 1)
    content = torch.load(file, weights_only=False)
    assert "zero_stage" in content["optimizer_state_dict"]
    content["optimizer_state_dict"]["zero_stage"] = stage
    torch.save(content, file)
    convert(tied_zero2, tmp_path / "universal", "universal")
    for owner in (torch.Tensor, stage, "text"):
        content["optimizer_state_dict"]["zero_stage"] = Reduced(getattr, owner, "__class__")
        torch.save(content, file)
        assert_refused(tied_zero2, file.name, "getattr")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "file", ["pytorch_model/zero_pp_rank_0_mp_rank_00_optim_states.pt", "pytorch_model/mp_rank_00_model_states.pt"]
)
def test_a_zero2_file_that_would_run_code_is_refused_and_nothing_is_run(
    file: str, zipped: bool, tied_zero2: Path, tmp_path: Path
) -> None:
    content = {"optimizer_state_dict": Reduced(os.mkdir, str(tmp_path / "made"))}
    torch.save(content, tied_zero2 / file, _use_new_zipfile_serialization=zipped)
    assert_refused(tied_zero2, Path(file).name)


@pytest.mark.parametrize("file", ["optimizer.bin", "scheduler.bin", "pytorch_model.bin"])
def test_a_plain_file_that_would_run_code_is_refused_and_nothing_is_run(
    file: str, stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(stock("bin").folder, tmp_path / "damaged"))
    torch.save({"state": Reduced(os.mkdir, str(tmp_path / "made"))}, copy / file)
    assert_refused(copy, file)


def test_a_plain_folder_without_its_optimizer_is_weights_at_step_0(
    stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    source = stock("bin")
    copy = Path(shutil.copytree(source.folder, tmp_path / "weights"))
    (copy / "optimizer.bin").unlink()
    convert(copy, tmp_path / "universal", "universal")
    state, manifest = read_checkpoint(tmp_path / "universal")
    assert_same_tensors(state.weights, source.truth.weights)
    assert (manifest.step, state.groups, dict(state.exp_avg)) == (0, [], {})


def test_a_truncated_safetensors_file_is_refused(stock: Callable[[str], Stock], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stock("no two layers alike").folder, tmp_path / "damaged"))
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert_refused(copy, "model.safetensors")


@pytest.mark.parametrize("to", ["universal", "plain", "zero2"])
def test_a_target_that_is_there_is_refused_and_left_alone(
    to: Any, stock: Callable[[str], Stock], tmp_path: Path
) -> None:
    (tmp_path / "target").mkdir()
    with refused(CheckpointError, str(tmp_path / "target")):
        convert(stock("bin").folder, tmp_path / "target", to)
    assert list((tmp_path / "target").iterdir()) == []


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.txt").write_text("nothing\n")
    assert_refused(tmp_path / "source", str(tmp_path / "source"))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", str(tmp_path / "nowhere"))
