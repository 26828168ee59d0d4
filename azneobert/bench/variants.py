"""The ways of computing a step that `bench train` and `bench loss` compare, from the seed project's to ours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from azneobert.bench.models import some_runtime, some_training
from azneobert.bench.seed_model import build_seed_model
from azneobert.engine.interface import Engine
from azneobert.engine.make import make_accelerator, make_engine
from azneobert.model.attention import Attention
from azneobert.model.backend import choose_backend
from azneobert.recipe import EngineName, Model, Runtime, Training


@dataclass(frozen=True)
class Variant:
    """One way to compute a step. The settings are those of `Runtime`; the first two are the seed project's."""

    name: str
    complex_rope: bool = False
    head_on_all: bool = False
    compile: bool = True
    attention: str = "fa2"
    blocks: str = "torch"
    deterministic: bool = False
    engine: EngineName = "plain"
    exact: bool = False  # in fp32, and not in bfloat16
    fp8: bool = False
    wrong: bool = False  # each token gets its neighbour's attention, an error that a comparison has to see


_SEED = Variant("seed", complex_rope=True, head_on_all=True, compile=False)
ABLATION = {
    "eager": replace(_SEED, name="eager: complex RoPE, head on all tokens, FA2"),
    "compile": replace(_SEED, name="+ torch.compile", compile=True),
    "rope": replace(_SEED, name="+ real RoPE", compile=True, complex_rope=False),
    "head": Variant("+ head on masked tokens only (FA2)"),
    "fa3": Variant("+ FA3", attention="fa3"),
    "fa4": Variant("+ FA4", attention="fa4"),
    "fused": Variant("+ our kernels", attention="auto", blocks="auto"),
    "deterministic": Variant("+ every sum in one order", attention="auto", blocks="auto", deterministic=True),
    "fp8": Variant("our kernels, fp8", attention="auto", blocks="auto", fp8=True),
    "zero2": Variant("our kernels, ZeRO-2", attention="auto", blocks="auto", engine="zero2"),
}

REFERENCE = replace(ABLATION["head"], name="eager, bfloat16", compile=False)
WRONG = replace(REFERENCE, name="attention of the token before", wrong=True)


def runtime_of(variant: Variant) -> Runtime:
    """The settings of a run that computes in this way."""
    return some_runtime(
        variant.engine,
        variant.compile,
        attention=variant.attention,
        blocks=variant.blocks,
        deterministic=variant.deterministic,
    )


def build_engine(
    variant: Variant, config: Model, micro_batch: int, accumulation: int, training: Training | None = None
) -> Engine:
    """A model with random weights in the engine of this process; `training` is the published run's if not given."""
    accelerator = make_accelerator(variant.engine)
    dtype = torch.float32 if variant.exact else torch.bfloat16
    runtime = runtime_of(variant)
    backend = choose_backend(runtime, config, accelerator.device, dtype, fp8=variant.fp8)
    if variant.wrong:
        backend = replace(backend, attention=_off_by_one(backend.attention))
    model = build_seed_model(config, dtype, backend, variant.complex_rope, variant.head_on_all)
    name = str(dtype).removeprefix("torch.")
    training = (training or some_training()).model_copy(update={"compute_dtype": name, "fp8": variant.fp8})
    return make_engine(model, training, runtime, accelerator, micro_batch, accumulation)


def _off_by_one(attention: Attention) -> Attention:
    def shifted(*inputs: Any) -> torch.Tensor:
        return attention(*inputs).roll(1, 0)

    return shifted
