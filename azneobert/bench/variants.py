"""The ways of computing a step that `bench train` and `bench loss` compare, from the seed project's to ours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from azneobert.bench.models import some_runtime, some_training
from azneobert.bench.seed_model import build_seed_model
from azneobert.engine.interface import Engine
from azneobert.engine.make import make_accelerator, make_engine
from azneobert.model.backend import choose_backend
from azneobert.recipe import EngineName, Model


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
    "zero2": Variant("our kernels, ZeRO-2", attention="auto", blocks="auto", engine="zero2"),
}


def build_engine(variant: Variant, config: Model, micro_batch: int, accumulation: int) -> Engine:
    """A model with random weights in the engine of this process."""
    accelerator = make_accelerator(variant.engine)
    dtype = torch.float32 if variant.exact else torch.bfloat16
    runtime = some_runtime(
        variant.engine,
        variant.compile,
        attention=variant.attention,
        blocks=variant.blocks,
        deterministic=variant.deterministic,
    )
    backend = choose_backend(runtime, config, accelerator.device, dtype)
    model = build_seed_model(config, dtype, backend, variant.complex_rope, variant.head_on_all)
    training = some_training(str(dtype).removeprefix("torch."))
    return make_engine(model, training, runtime, accelerator, micro_batch, accumulation)
