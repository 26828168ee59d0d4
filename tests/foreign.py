"""A network that is not this project's, trained and saved by stock Accelerate and stock DeepSpeed, as others would.

`write_plain` and `write_zero2` leave the folder that the stock program leaves, and return what was in the program's
memory: the fp32 master weights and both moments are taken from the live optimizer, never from a file. `load_plain` and
`load_zero2` read a folder, the stock program's or ours, back into a network with another seed and train on from there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from toy import _free_port, run_ranks

Tensors = dict[str, torch.Tensor]
VOCAB_SIZE, HIDDEN_SIZE, LENGTH, ROWS = 23, 7, 5, 12
NEXT_STEPS = 3
_FRESH_SEED = 99


@dataclass(frozen=True)
class Program:
    """What a stock program does. `stage` 0 is plain Accelerate.

    `block` names its modules, all linear but `norm`: the four of the default share one shape, and do not sort in
    their order. `compiled` is `torch.compile` before `prepare`, or, as "by accelerate", in it. With bf16 and
    stage 1, `fp32_accumulation` makes DeepSpeed take its BF16_Optimizer. DeepSpeed cannot load its own `elastic`
    folders into torch's AdamW: these are for writing only.
    """

    stage: int = 0
    seed: int = 1
    steps: int = 3
    layers: int = 2
    block: tuple[str, ...] = ("norm", "query", "key", "value", "output")
    tied: bool = False
    frozen: bool = False
    unused: bool = False
    groups: int = 1
    named: bool = False
    scheduler: bool = True
    compiled: bool | str = False
    safe_serialization: bool = True
    bf16: bool = False
    fp32_accumulation: bool = False
    round_robin: bool = False
    parameter_alignment: bool = False
    elastic: bool = False
    through: str = "accelerate"


@dataclass
class Truth:
    """What a live program holds, by the names of the bare network; `losses` are those of the steps after a load.

    `module` are the weights that the network computes with, under bf16 the master's rounded. `groups` are the
    optimizer's in its own order, each with its parameters' `names`; `parameter_names` is the network's order.
    """

    weights: Tensors
    exp_avg: Tensors
    exp_avg_sq: Tensors
    step: int
    groups: list[dict[str, Any]]
    buffers: Tensors
    tied: dict[str, str]
    module: Tensors
    parameter_names: list[str]
    scheduler: dict[str, Any] | None
    losses: list[float] = field(default_factory=list)


class Block(nn.Module):
    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.LayerNorm(HIDDEN_SIZE) if name == "norm" else nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x
        for module in self.children():
            hidden = torch.tanh(module(hidden)) + 0.5 * hidden
        return x + hidden


class Net(nn.Module):
    """Every group has an odd number of elements, so that no number of ranks divides it without padding."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE)
        self.blocks = nn.ModuleList(Block(program.block) for _ in range(program.layers))
        self.final_norm = nn.LayerNorm(HIDDEN_SIZE)
        self.head = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE)
        self.temperature = nn.Parameter(torch.tensor([0.7]))
        if program.tied:
            self.head.weight = self.embedding.weight
        if program.unused:
            self.spare = nn.Linear(3, 3)
        self.blocks[0].requires_grad_(not program.frozen)
        self.register_buffer("running_mean", torch.linspace(0, 1, HIDDEN_SIZE))
        self.register_buffer("seen", torch.tensor(2**53 + program.seed))  # a float would lose the last digit
        self.register_buffer("positions", torch.linspace(-1, 1, LENGTH)[:, None], persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + (self.running_mean + self.positions).to(x.dtype)  # DeepSpeed's bf16 leaves buffers in fp32
        for block in self.blocks:
            x = block(x)
        with torch.no_grad():
            self.running_mean.mul_(0.9).add_(0.01)
            self.seen.add_(1)
        return self.head(self.final_norm(x)) * self.temperature


def write_plain(folder: Path, world: int, **options: Any) -> Truth:
    """`accelerator.save_state` after some steps of a stock Accelerate program; the options are those of `Program`."""
    return run_ranks(_write, Program(**options), folder, processes=world, folder=folder.parent)[0]


def write_zero2(folder: Path, world: int, *, stage: int = 2, **options: Any) -> Truth:
    """The same under ZeRO, through Accelerate's `save_state` or, without Accelerate, DeepSpeed's `save_checkpoint`."""
    return write_plain(folder, world, stage=stage, **options)


def load_plain(folder: Path, world: int, **options: Any) -> Truth:
    """What a fresh stock Accelerate program holds after `accelerator.load_state`, and its next losses."""
    program = Program(seed=_FRESH_SEED, **options)
    ranks = run_ranks(_load, program, folder, processes=world, folder=folder.parent)
    ranks[0].losses = [sum(losses) / world for losses in zip(*(rank.losses for rank in ranks), strict=True)]
    return ranks[0]


def load_zero2(folder: Path, world: int, *, stage: int = 2, **options: Any) -> Truth:
    """What a fresh ZeRO program holds after `load_state` or, without Accelerate, `load_checkpoint`; its next losses."""
    return load_plain(folder, world, stage=stage, **options)


def _write(program: Program, folder: Path) -> Truth:
    stock = _start(program)
    for step in range(program.steps):
        stock.train_step(step)
    stock.save(folder)
    return stock.truth()


def _load(program: Program, folder: Path) -> Truth:
    stock = _start(program)
    stock.load(folder)
    truth = stock.truth()
    truth.losses = [stock.train_step(100 + step) for step in range(NEXT_STEPS)]
    return truth


def _start(program: Program) -> _Plain:
    torch.manual_seed(program.seed)
    if program.stage == 0:
        return _Plain(program)
    return _Zero(program) if program.through == "accelerate" else _BareZero(program)


class _Plain:
    """Stock Accelerate on gloo."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.net = Net(program)
        model = torch.compile(self.net, backend="eager") if program.compiled is True else self.net
        self.optimizer = torch.optim.AdamW(list(_groups(model, program)), betas=(0.9, 0.98), eps=1e-7)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9) if program.scheduler else None
        self.prepare(model)

    def prepare(self, model: nn.Module) -> None:
        from accelerate.utils import DistributedDataParallelKwargs

        handlers = [DistributedDataParallelKwargs(find_unused_parameters=self.program.unused)]
        self.accelerate(model, cpu=True, kwargs_handlers=handlers)

    def accelerate(self, model: nn.Module, **options: Any) -> None:
        from accelerate import Accelerator

        dynamo = "eager" if self.program.compiled == "by accelerate" else None
        self.accelerator = Accelerator(dynamo_backend=dynamo, **options)
        assert self.accelerator.num_processes == _rank_and_world()[1]
        parts = [part for part in (model, self.optimizer, self.schedule) if part is not None]
        self.model, self.stepper, *self.schedules = self.accelerator.prepare(*parts)

    def train_step(self, step: int) -> float:
        tokens, targets = _batch(step)
        loss = nn.functional.cross_entropy(self.model(tokens).float().flatten(0, 1), targets.flatten())
        self.update(loss)
        return float(loss.detach())

    def update(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)  # under ZeRO only its configuration clips
        for part in (self.stepper, *self.schedules):
            part.step()
        self.stepper.zero_grad()

    def save(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder), safe_serialization=self.program.safe_serialization)

    def load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))

    def truth(self) -> Truth:
        names = {parameter: name for name, parameter in self.net.named_parameters()}
        state = {names[parameter]: values for parameter, values in self.optimizer.state.items()}
        tensors: dict[str, Tensors] = {"weights": dict(self.net.named_parameters())}
        for kind in ("exp_avg", "exp_avg_sq"):
            tensors[kind] = {name: values[kind] for name, values in state.items()}
        step = next(iter(state.values()))["step"]
        return self.collect(tensors, step, [group["params"] for group in self.optimizer.param_groups])

    def collect(self, tensors: dict[str, Tensors], step: torch.Tensor, groups: list[list[nn.Parameter]]) -> Truth:
        """Copies of everything, for the program trains on."""
        # DeepSpeed puts its flat partitions into the optimizer that it is given, and leaves the rest of each group.
        names = {parameter: name for name, parameter in self.net.named_parameters()}
        stored = dict(self.net.named_parameters(remove_duplicate=False))
        hyper = [
            {k: v for k, v in group.items() if k not in ("params", "param_names")}
            for group in self.optimizer.param_groups
        ]
        return Truth(
            **{kind: _copies(each) for kind, each in tensors.items()},
            step=int(step),
            groups=[{"names": [names[p] for p in group], **h} for group, h in zip(groups, hyper, strict=True)],
            buffers=_copies({name: value for name, value in self.net.state_dict().items() if name not in stored}),
            tied={name: names[parameter] for name, parameter in stored.items() if names[parameter] != name},
            module=_copies(dict(self.net.named_parameters())),
            parameter_names=list(names.values()),
            scheduler=dict(self.schedule.state_dict()) if self.schedule else None,
        )


class _Zero(_Plain):
    """Accelerate's DeepSpeed on gloo."""

    def prepare(self, model: nn.Module) -> None:
        from accelerate import DeepSpeedPlugin
        from accelerate.utils import InitProcessGroupKwargs

        os.environ.pop("ACCELERATE_USE_CPU", None)  # with it Accelerate takes DDP and says nothing
        _on_cpu()
        plugin = DeepSpeedPlugin(hf_ds_config=self.config())
        self.accelerate(model, deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])

    def config(self) -> dict[str, Any]:
        program = self.program
        zero = {
            "stage": program.stage,
            "reduce_bucket_size": 500_000,  # with the default ones a step on CPU takes a second
            "allgather_bucket_size": 500_000,
            "round_robin_gradients": program.round_robin,
            "parameter_alignment": program.parameter_alignment,
            "elastic_checkpoint": program.elastic,
        }
        return {
            "train_micro_batch_size_per_gpu": ROWS // _rank_and_world()[1],
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": program.bf16},
            "data_types": {"grad_accum_dtype": "fp32" if program.fp32_accumulation else None},
        }

    def truth(self) -> Truth:
        """Put together from all ranks' partitions, whose order may be another than the optimizer's."""
        zero = self.model.optimizer
        if hasattr(zero, "bf16_groups"):  # BF16_Optimizer
            groups = flat = zero.bf16_groups
            partitions, gaps = zero.fp32_groups_flat_partition, [[0] * len(group) for group in flat]
        else:
            groups, flat = zero.bit16_groups, zero.round_robin_bit16_groups
            partitions, gaps = zero.single_partition_of_fp32_groups, zero.round_robin_bit16_padding
        names = {parameter: name for name, parameter in self.net.named_parameters()}
        frozen = {name: parameter for parameter, name in names.items() if not parameter.requires_grad}
        tensors: dict[str, Tensors] = {"weights": frozen, "exp_avg": {}, "exp_avg_sq": {}}
        for parameters, partition, gap in zip(flat, partitions, gaps, strict=True):
            layout = [
                (names[parameter], parameter.shape, after) for parameter, after in zip(parameters, gap, strict=True)
            ]
            for kind, local in {"weights": partition, **zero.optimizer.state[partition]}.items():
                if kind in tensors:
                    tensors[kind] |= _gathered(local, layout)
        return self.collect(tensors, zero.optimizer.state[partitions[0]]["step"], groups)


class _BareZero(_Zero):
    """DeepSpeed alone, which keeps the schedule in its own file and names the tag after the step."""

    def prepare(self, model: nn.Module) -> None:
        import deepspeed

        _on_cpu()
        deepspeed.init_distributed("gloo")
        settings = {"config": self.config(), "lr_scheduler": self.schedule}
        self.model, *_ = deepspeed.initialize(model=model, optimizer=self.optimizer, **settings)

    def update(self, loss: torch.Tensor) -> None:
        self.model.backward(loss)
        self.model.step()

    def save(self, folder: Path) -> None:
        self.model.save_checkpoint(str(folder))

    def load(self, folder: Path) -> None:
        assert self.model.load_checkpoint(str(folder))[0], f"{folder}: DeepSpeed found nothing"


def _groups(model: nn.Module, program: Program) -> Iterator[dict[str, Any]]:
    """One group, or two: what is decayed first, so that the optimizer's order is not the network's."""
    sides = [[pair for pair in model.named_parameters() if pair[1].requires_grad]]
    if program.groups == 2:
        sides = [[pair for pair in sides[0] if (pair[1].ndim > 1) is decayed] for decayed in (True, False)]
    for pairs, weight_decay, lr in zip(sides, (0.1, 0.0), (1e-2, 5e-3), strict=False):
        parameters = pairs if program.named else [parameter for _, parameter in pairs]
        yield {"params": parameters, "weight_decay": weight_decay, "lr": lr}


def _rank_and_world() -> tuple[int, int]:
    return int(os.environ.get("RANK", "0")), int(os.environ["WORLD_SIZE"])


def _batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's part of the step's rows, which are the same in any world."""
    tokens, targets = torch.randint(VOCAB_SIZE, (2, ROWS, LENGTH), generator=torch.Generator().manual_seed(step))
    rank, world = _rank_and_world()
    part = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    return tokens[part], targets[part]


def _on_cpu() -> None:
    """DeepSpeed's shared memory takes 40 s to compile; and where one rank has no address, it looks for MPI."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}.items():
        os.environ.setdefault(name, str(value))


def _gathered(partition: torch.Tensor, layout: list[tuple[str, torch.Size, int]]) -> Tensors:
    """The parameters of a flat group, given each one's name and shape and the gap after it."""
    parts = [torch.empty_like(partition) for _ in range(_rank_and_world()[1])]
    torch.distributed.all_gather(parts, partition.detach())
    flat, start, result = torch.cat(parts), 0, {}
    for name, shape, gap in layout:
        result[name] = flat[start : start + shape.numel()].view(shape)
        start += shape.numel() + gap
    return result


def _copies(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
