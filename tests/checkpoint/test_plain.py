"""Accelerate's plain folders: what is read from them is what the program held, and what we write loads as its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign as stock
import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from azneobert.checkpoint.foreign import Foreign
from azneobert.checkpoint.plain import read_plain, write_plain
from azneobert.checkpoint.universal import TrainState
from azneobert.errors import CheckpointError

Tensors = dict[str, torch.Tensor]


class Net(nn.Module):
    """Tied, with buffers of several dtypes and odd sizes, and a table that no optimizer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)
        self.down = nn.Linear(7, 3)
        self.tied = nn.Linear(5, 7, bias=False)
        self.tied.weight = self.up.weight
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("table", torch.linspace(0, 1, 11))
        self.register_buffer("count", torch.tensor(2**53 + 1))  # a float would lose the last digit

    def trained(self) -> Tensors:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.norm(self.up(x) + self.tied(x)))


def trained(steps: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(1)
    net = Net().to(dtype)
    optimizer = torch.optim.AdamW(net.parameters(), **options)
    for step in range(steps):
        advance(net, optimizer, step)
    return net, optimizer


def advance(net: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step)).to(net.up.weight.dtype)
    optimizer.zero_grad()
    net(x).square().sum().backward()
    optimizer.step()


def saved(folder: Path, net: Net, optimizer: torch.optim.Optimizer | None, *, safe: bool = False) -> Path:
    """As `save_state` lays it out, which the tests with stock programs below see to."""
    folder.mkdir(exist_ok=True)
    if safe:
        save_model(net, str(folder / "model.safetensors"))
    else:
        torch.save(net.state_dict(), folder / "pytorch_model.bin")
    if optimizer:
        torch.save(optimizer.state_dict(), folder / "optimizer.bin")
    torch.save({}, folder / "random_states_0.pkl")
    return folder


def rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    content = torch.load(file, weights_only=False)
    torch.save(change(content), file)


def moments(net: Net, optimizer: torch.optim.Optimizer, kind: str) -> Tensors:
    return {name: optimizer.state[parameter][kind] for name, parameter in net.named_parameters()}


def assert_same(read: Any, truth: Tensors) -> None:
    """Twice, since memory is given back after the first time."""
    assert set(read) == set(truth)
    for name in [*truth, *truth]:
        assert torch.equal(read[name], truth[name].float()), name
        assert read[name].dtype == torch.float32


@pytest.mark.long
@pytest.mark.parametrize(
    ("world", "options"),
    [
        (1, {"safe_serialization": False, "tied": True, "groups": 2}),
        (1, {"named": True, "tied": True, "compiled": True, "unused": True}),
        (2, {"named": True, "frozen": True, "groups": 2, "compiled": True}),
        (2, {"safe_serialization": False, "compiled": "by accelerate", "unused": True}),
    ],
)
def test_what_a_stock_program_saves_is_read_and_what_we_write_it_takes_for_its_own(
    world: int, options: dict[str, Any], tmp_path: Path
) -> None:
    truth = stock.write_plain(tmp_path / "theirs", world, **options)
    read = read_plain(tmp_path / "theirs")
    state = read.state
    for kind in ("weights", "exp_avg", "exp_avg_sq"):
        assert_same(getattr(state, kind), getattr(truth, kind))
    assert {name: str(buffer) for name, buffer in state.buffers.items()} == {
        n: str(b) for n, b in truth.buffers.items()
    }
    assert read.step == state.optimizer_step == truth.step
    assert [group["names"] for group in state.groups] == [group["names"] for group in truth.groups]
    assert state.scheduler == truth.scheduler
    assert read.facts["processes"] == world
    # Accelerate saves the model as it was before its own DDP and compilation wrapped it.
    assert read.facts["prefix"] == ""
    # Of tied names model.safetensors keeps the first and a note of none; pytorch_model.bin keeps all.
    assert state.tied == ({} if options.get("safe_serialization", True) else truth.tied)
    (tmp_path / "ours").mkdir()
    write_plain(tmp_path / "ours", read, prefix="_orig_mod." if options.get("compiled") is True else "")
    ours = stock.load_plain(tmp_path / "ours", world, **options)
    assert ours.losses == stock.load_plain(tmp_path / "theirs", world, **options).losses
    assert_same(ours.exp_avg_sq, truth.exp_avg_sq)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_moments_are_read_in_fp32_and_buffers_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    net, optimizer = trained(dtype=dtype)
    state = read_plain(saved(tmp_path, net, optimizer)).state
    assert_same(state.weights, net.trained() | {"table": net.table})
    assert_same(state.exp_avg, moments(net, optimizer, "exp_avg"))
    assert state.tied == {"tied.weight": "up.weight"}
    assert {name: buffer.dtype for name, buffer in state.buffers.items()} == {
        "norm.running_mean": dtype,
        "norm.running_var": dtype,
        "norm.num_batches_tracked": torch.int64,
        "mask": torch.bool,
        "count": torch.int64,
    }
    assert state.buffers["count"] == 2**53 + 1


def test_pickles_of_before_torch_1_6_which_cannot_be_mapped_are_refused(tmp_path: Path) -> None:
    net, optimizer = trained()
    saved(tmp_path, net, optimizer)
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with refused(CheckpointError, "pytorch_model.bin: not a file of torch.save", "expected one of torch 1.6 or later"):
        read_plain(tmp_path)


def test_groups_that_share_shapes_are_told_apart_by_given_names_for_each(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = torch.optim.AdamW([{"params": net[1].parameters()}, {"params": net[0].parameters()}])
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved(tmp_path, net, optimizer)
    groups = [["1.weight", "1.bias"], ["0.weight", "0.bias"]]
    assert [group["names"] for group in read_plain(tmp_path, groups).state.groups] == groups
    with refused(CheckpointError, "--parameter-names: 3 groups of names, the optimizer has 2"):
        read_plain(tmp_path, [*groups, ["0.bias"]])


def test_an_alias_that_the_file_notes_is_read(tmp_path: Path) -> None:
    net, optimizer = trained()
    saved(tmp_path, net, optimizer, safe=True)  # safetensors' own writer keeps another name, and notes which
    assert "up.weight" not in load_file(tmp_path / "model.safetensors")
    state = read_plain(tmp_path, [list(net.trained())]).state
    assert state.tied == {"up.weight": "tied.weight"}
    assert state.groups[0]["names"][0] == "tied.weight"
    assert torch.equal(state.exp_avg["tied.weight"], moments(net, optimizer, "exp_avg")["up.weight"])


@pytest.mark.parametrize(("ranks", "prefix"), [(1, ""), (2, "module.")])
def test_the_prefix_of_ddp_is_taken_off_where_there_were_several_ranks(ranks: int, prefix: str, tmp_path: Path) -> None:
    net, optimizer = trained()
    saved(tmp_path, net, optimizer)
    torch.save({}, tmp_path / f"random_states_{ranks - 1}.pkl")
    rewrite(tmp_path / "pytorch_model.bin", lambda model: {f"module.{name}": each for name, each in model.items()})
    read = read_plain(tmp_path)
    assert read.facts["prefix"] == prefix
    assert ("up.weight" if prefix else "module.up.weight") in read.state.weights
    rewrite(tmp_path / "pytorch_model.bin", lambda model: model | {"odd": torch.zeros(13)})
    assert "module.up.weight" in read_plain(tmp_path).state.weights, "not all names begin with it"


def test_what_torch_compile_adds_to_names_anywhere_is_taken_out(tmp_path: Path) -> None:
    net, optimizer = trained()
    saved(tmp_path, net, optimizer)
    rewrite(
        tmp_path / "pytorch_model.bin",
        lambda model: {f"_orig_mod.{name.replace('.', '._orig_mod.')}": each for name, each in model.items()},
    )
    assert_same(read_plain(tmp_path).state.weights, net.trained() | {"table": net.table})


@pytest.mark.parametrize("key", ["param_names", "names"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_names_that_the_optimizer_kept_are_trusted_in_any_order_and_wrapping(
    key: str, prefix: str, tmp_path: Path
) -> None:
    net, _ = trained(0)
    backwards = dict(reversed(net.trained().items()))
    optimizer = torch.optim.AdamW([net.get_parameter(name) for name in backwards])
    advance(net, optimizer, 0)
    saved(tmp_path, net, optimizer)
    names = [prefix + name for name in backwards]
    rewrite(tmp_path / "optimizer.bin", lambda kept: kept | {"param_groups": [kept["param_groups"][0] | {key: names}]})
    state = read_plain(tmp_path).state
    assert state.groups[0]["names"] == list(backwards)
    assert "param_names" not in state.groups[0]
    assert_same(state.exp_avg, moments(net, optimizer, "exp_avg"))


def test_a_parameter_that_never_got_a_gradient_has_no_moments_here_and_there(tmp_path: Path) -> None:
    net, optimizer = trained(0)
    net.norm.weight.requires_grad_(False)
    advance(net, optimizer, 0)
    state = read_plain(saved(tmp_path / "theirs", net, optimizer)).state
    assert set(state.weights) - set(state.exp_avg) == {"norm.weight", "table"}
    assert "norm.weight" in state.groups[0]["names"]
    ours = written(tmp_path / "ours", state)
    assert torch.load(ours / "optimizer.bin")["state"].keys() == optimizer.state_dict()["state"].keys()


@pytest.mark.parametrize("safe", [True, False])
def test_buffers_that_share_memory_are_each_kept(safe: bool, tmp_path: Path) -> None:
    net, optimizer = trained()
    net.register_buffer("again", net.mask)
    state = read_plain(saved(tmp_path, net, optimizer, safe=safe), [list(net.trained())]).state
    assert torch.equal(state.buffers["again"], state.buffers["mask"])


def written(folder: Path, state: TrainState, prefix: str = "") -> Path:
    folder.mkdir()
    write_plain(folder, Foreign(state, state.optimizer_step), prefix=prefix)
    return folder


@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_goes_on_from_what_we_write_to_the_last_bit(prefix: str, tmp_path: Path) -> None:
    net, optimizer = trained(lr=0.03, weight_decay=0.2, betas=(0.8, 0.95))
    folder = written(tmp_path / "ours", read_plain(saved(tmp_path / "theirs", net, optimizer)).state, prefix)
    fresh, other = trained(0)
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.zero_()
    whole = nn.ModuleDict({"module": fresh}) if prefix else fresh
    load_model(whole, str(folder / "model.safetensors"))  # strictly
    other.load_state_dict(torch.load(folder / "optimizer.bin"))
    for step in (7, 8):
        advance(net, optimizer, step)
        advance(fresh, other, step)
    theirs, ours = net.state_dict(), fresh.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_what_we_write_tells_tied_names_and_order_when_it_is_read_again(tmp_path: Path) -> None:
    net, optimizer = trained()
    first = read_plain(saved(tmp_path / "theirs", net, optimizer)).state
    again = read_plain(written(tmp_path / "ours", first))
    assert again.facts["order"] == "recorded"
    assert (again.state.tied, again.state.groups, again.step) == (first.tied, first.groups, 3)
    assert_same(again.state.exp_avg, dict(first.exp_avg))


@pytest.mark.parametrize(
    ("schedule", "kept"),
    [
        (lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10), True),
        (lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4]), False),  # its keys are numbers
    ],
)
def test_a_schedule_is_kept_where_json_can_hold_it_and_else_said_to_be_lost(
    schedule: Callable[[Any], Any], kept: bool, tmp_path: Path
) -> None:
    net, optimizer = trained()
    state = schedule(optimizer).state_dict()
    torch.save(state, saved(tmp_path, net, optimizer) / "scheduler.bin")
    read = read_plain(tmp_path)
    assert read.facts["scheduler_kept"] is kept
    assert read.state.scheduler == (state if kept else None)


def steps_apart(content: dict[str, Any]) -> dict[str, Any]:
    content["state"][1]["step"] += 4
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (steps_apart, r"optimizer\.bin: parameters at different steps \(3, 7\); expected one step for all"),
        (lambda content: content["state"], r"optimizer\.bin: holds no state of a torch optimizer"),
        (lambda _: torch.optim.SGD(trained(0)[0].parameters()).state_dict(), "keeps nothing; expected exp_avg"),
        (lambda _: trained(amsgrad=True)[1].state_dict(), "keeps exp_avg, exp_avg_sq, max_exp_avg_sq, step; expected"),
        (lambda _: torch.optim.AdamW(nn.Linear(9, 9).parameters()).state_dict(), "could be swapped"),
    ],
)
def test_an_optimizer_that_we_cannot_take_over_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    saved(tmp_path, *trained())
    rewrite(tmp_path / "optimizer.bin", change)
    with pytest.raises(CheckpointError, match=message) as refused:
        read_plain(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("file", ["model_1.safetensors", "pytorch_model_1.bin", "optimizer_1.bin", "model.safetensors"])
def test_a_second_model_or_optimizer_is_refused(file: str, tmp_path: Path) -> None:
    saved(tmp_path, *trained())
    (tmp_path / file).touch()
    with pytest.raises(CheckpointError, match=re.escape(file)):
        read_plain(tmp_path)
