"""How many bytes a training step takes on a rank, predicted from what each block saves for its backward pass.

Imports no torch: a login node can ask it. Letters in the formulas as in layers.py: T tokens, D hidden, N heads, H head
size, F feed-forward, V vocabulary, M masked tokens; b bytes of a value in the compute dtype.

A worked example: the published model (D 768, N 12, F 2,048, V 64,000, 28 layers, 296.5 M parameters), fused, bfloat16,
one process, 48 rows of 1,024. A block saves 6bD + 3bF + 4N + 8 = 21,560 bytes a token, and 28 blocks of 49,152 tokens
27.6 GiB. Parameters, moments and gradients are 16 bytes a parameter, 4.4 GiB; what the fused blocks take in place of
the parameters, 0.5 GiB in fp32, and its copy in bfloat16 0.5 GiB. The head, which starts the backward pass with
everything saved, holds the logits of 9,840 tokens, 1.2 GiB, and two gradients of its weight, 0.2 GiB. Together
34.4 GiB; the allocator's peak was 34.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from azneobert.model.size import FUSED_HEAD_SIZES, count_parameters, swiglu_size
from azneobert.recipe import EngineName, Model, PhaseName, Recipe, Runtime

Blocks = Literal["fused", "compiled", "eager"]  # azneobert/kernels; torch's blocks with torch.compile, and without

MARGIN = 0.05  # the share of a device's memory left free, for NCCL, CUDA itself and fragmentation
HEAD_ROWS = 12_288  # masked tokens whose logits the fused head holds at once: kernels/head.py
CARDS = (24, 40, 80, 141)  # GB by their names
_OF_A_CARD = 0.98  # at least this part of a card's GiB can be used; the driver has the rest
_FP32 = 4
_BUCKET = 50_000_000 * _FP32  # of ZeRO-2: gradients on their way to other ranks, engine/zero2.py


@dataclass(frozen=True)
class StepMemory:
    """Predicted bytes of a rank's training step as a function of its rows.

    value_bytes: of a value in the compute dtype; masks_per_row: masked tokens of a row; with `attention_mask` the
    attention is `reference`, which keeps a mask of (length, length) for each row.
    """

    model: Model
    sequence_length: int
    masks_per_row: int
    value_bytes: int
    blocks: Blocks
    attention_mask: bool
    engine: EngineName
    processes: int

    @classmethod
    def of(cls, recipe: Recipe, phase: PhaseName, blocks: Blocks, processes: int, attention: str) -> StepMemory:
        """A phase of a recipe by these blocks and this attention kernel."""
        length = recipe.phase(phase).sequence_length
        return cls(
            model=recipe.model,
            sequence_length=length,
            masks_per_row=max(1, round(recipe.training.masking_rate * length)),  # as data/stream.py has it
            value_bytes=2 if recipe.training.compute_dtype == "bfloat16" else 4,
            blocks=blocks,
            attention_mask=attention == "reference",
            engine=recipe.runtime.engine,
            processes=processes,
        )

    def state_bytes(self) -> int:
        """Parameters and moments, and what the engine keeps beside them from step to step."""
        parameters = _FP32 * count_parameters(self.model)
        if self.engine == "zero2":  # a rank's share of a second copy and of both moments
            return parameters + 3 * parameters // self.processes
        reduced = parameters if self.processes > 1 else 0  # the buckets of DistributedDataParallel
        return 3 * parameters + reduced

    def weights_bytes(self) -> int:
        """The weights that a step makes of the parameters once, for all its micro-batches: see engine/weights.py."""
        hidden, inner = self.model.hidden_size, swiglu_size(self.model.intermediate_size)
        matrices = self.model.num_hidden_layers * (4 * hidden * hidden + 3 * hidden * inner)
        head = 0 if self.model.tie_embeddings else self.model.vocab_size * hidden
        cast = matrices + head if self.value_bytes < _FP32 else 0
        # Fused, the norms' weights are inside the matrices behind them, in fp32.
        folded = self.model.num_hidden_layers * (3 * hidden * hidden + 2 * hidden * inner)
        return self.value_bytes * cast + (_FP32 * folded if self.blocks == "fused" else 0)

    def gradient_bytes(self) -> int:
        """The gradients that the micro-batches of a step add up."""
        return _FP32 * count_parameters(self.model)

    def saved_bytes(self, rows: int) -> int:
        """The bytes that the forward pass of `rows` rows saves for the backward pass."""
        layers = self.model.num_hidden_layers * self._saved_by_block() * rows * self.sequence_length
        return layers + self._saved_by_embedding(rows) + self._saved_by_head(rows)

    def peak_bytes(self, rows: int) -> int:
        """The most that is allocated at once, in a micro-batch or beside it."""
        standing = self.state_bytes() + self.weights_bytes() + self.gradient_bytes()
        return max(standing + self.saved_bytes(rows) + self._passing_bytes(rows), self.bytes_beside(rows))

    def bytes_beside(self, rows: int) -> int:
        """The most that is allocated at once outside of micro-batches: in an update, or in an evaluation."""
        # Gradients on their way from the step's weights to the parameters stand twice.
        update = 2 * self.gradient_bytes()
        if self.engine == "zero2":
            update += self.gradient_bytes() // self.processes + _BUCKET
        # Of all masked tokens: logits in the compute dtype and in fp32, and their log-softmax.
        evaluation = rows * self.masks_per_row * self.model.vocab_size * (self.value_bytes + 2 * _FP32)
        return self.state_bytes() + self.weights_bytes() + max(update, evaluation)

    def _saved_by_block(self) -> int:
        """Bytes per token."""
        b, hidden, inner = self.value_bytes, self.model.hidden_size, swiglu_size(self.model.intermediate_size)
        small = _FP32 * self.model.num_attention_heads + 2 * _FP32  # log-sum-exp; the roots of two norms
        mask = b * self.sequence_length if self.attention_mask else 0
        if self.blocks == "fused":
            # x, rotated q, k and v, mixed values, middle: 6bD; gate and up, gated values: 3bF.
            return 6 * b * hidden + 3 * b * inner + small
        if self.blocks == "compiled":
            # x and middle, each once more normed, q, k and v raw, q and k rotated, mixed: 10bD; then as above. It is
            # what torch's partitioner keeps: elementwise work is recomputed, products are not.
            return 10 * b * hidden + 3 * b * inner + small
        # Two norms: x in fp32, over its root, and times the weight: 2 (4 + 4 + b) D. q, k and v raw, q and k
        # rotated, mixed: 6bD. Gate and up, silu(gate), gated: 4bF.
        return (4 * _FP32 + 8 * b) * hidden + 4 * b * inner + small + mask

    def _saved_by_embedding(self, rows: int) -> int:
        """Ids and positions (int64), and in torch's blocks a cosine and a sine for each of H."""
        head_size = self.model.hidden_size // self.model.num_attention_heads
        a_token = 16 if self.blocks != "eager" else 8 + 2 * _FP32 * head_size
        return a_token * rows * self.sequence_length

    def _saved_by_head(self, rows: int) -> int:
        masked, b = rows * self.masks_per_row, self.value_bytes
        hidden, vocabulary = self.model.hidden_size, self.model.vocab_size
        normed = b * hidden
        if self.blocks == "fused":  # both gradients come out of the forward pass
            return masked * (2 * _FP32 * hidden + normed + 16) + b * vocabulary * hidden
        if self.blocks == "compiled":
            return masked * (2 * normed + b * vocabulary + 3 * _FP32 + 16) + self._tied_head_bytes()
        return masked * (2 * _FP32 * hidden + normed + _FP32 * vocabulary + _FP32 + 16) + self._tied_head_bytes()

    def _tied_head_bytes(self) -> int:
        """The cast copy of a tied head: it is not cast once a step, since the embedding's rows are read in fp32."""
        cast = self.model.tie_embeddings and self.value_bytes < _FP32
        return self.value_bytes * self.model.vocab_size * self.model.hidden_size if cast else 0

    def _passing_bytes(self, rows: int) -> int:
        """Temporary bytes at the beginning of the backward pass, when everything saved still exists."""
        tokens, masked, b = rows * self.sequence_length, rows * self.masks_per_row, self.value_bytes
        hidden, vocabulary = self.model.hidden_size, self.model.vocab_size
        inner = swiglu_size(self.model.intermediate_size)
        if self.blocks == "fused":
            at_once = -(-masked // -(-masked // HEAD_ROWS))
            head = b * at_once * vocabulary + b * vocabulary * hidden + self._tied_head_bytes()
            # The gradients of the result, of gate and up, of the middle; or of the attention, with q's in fp32.
            block = tokens * max(2 * b * hidden + 2 * b * inner, (6 * b + _FP32) * hidden)
        elif self.blocks == "compiled":
            head = b * vocabulary * hidden  # the logits' gradient takes their place
            block = tokens * b * (2 * hidden + 2 * inner)
        else:
            head = 2 * _FP32 * masked * vocabulary  # the gradients of log-softmax and of the loss
            block = tokens * b * (2 * hidden + 6 * inner)
        return max(head, block - self._saved_by_head(rows))


def blocks_of(runtime: Runtime, attention: str, *, fused: bool) -> Blocks:
    """How blocks are computed; `reference` attention, which torch.compile does not go through, makes them eager."""
    if fused:
        return "fused"
    return "compiled" if runtime.compile and attention != "reference" else "eager"


def needs_on_gpus(recipe: Recipe, phase: PhaseName) -> dict[str, StepMemory]:
    """The memory that a step takes on each kind of GPU, keyed by a readable name of its blocks."""
    runtime, model = recipe.runtime, recipe.model
    flash = recipe.training.compute_dtype == "bfloat16" and runtime.attention != "reference"
    attention = "fa2" if flash else "reference"
    fused = {}
    if runtime.blocks != "torch" and flash and model.hidden_size // model.num_attention_heads in FUSED_HEAD_SIZES:
        fused = {"fused blocks (Hopper)": blocks_of(runtime, attention, fused=True)}
    torch = {"torch blocks": blocks_of(runtime, attention, fused=False)}
    if runtime.blocks == "fused" or recipe.training.fp8:
        torch = {}
    return {
        name: StepMemory.of(recipe, phase, blocks, runtime.processes, attention)
        for name, blocks in (fused | torch).items()
    }


def room_of_card(gigabytes: int) -> float:
    """The bytes that a step may take on a card of this many GB."""
    return gigabytes * 2**30 * _OF_A_CARD * (1 - MARGIN)


def micro_batches(share: int, most: int | None = None) -> list[int]:
    """The micro-batches that make up a rank's share of a global batch, in rows, ascending; up to `most` of them."""
    return [rows for rows in range(1, min(share, most or share) + 1) if share % rows == 0]


def largest_that_fits(need: StepMemory, candidates: list[int], memory: float) -> int | None:
    """The largest of these micro-batches that is predicted to fit into `memory` bytes; None if none is."""
    return max((rows for rows in candidates if need.peak_bytes(rows) <= memory), default=None)
