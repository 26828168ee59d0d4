"""Held-out loss and masked accuracy: over all, for each collection, and by how far into its document a token stands."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn import functional as F  # noqa: N812

from azneobert.data.stream import Stream
from azneobert.engine.interface import World
from azneobert.engine.micro_batches import logits_of
from azneobert.model.encoder import MaskedLM

# Ranges of positions. All numbers have four digits, so that a page that sorts by name also sorts by length.
LENGTHS = ("0000-0127", "0128-0511", "0512-1023", "1024-2047", "2048-4095", "4096-up")
_LATER_BEGINNINGS = [int(length[:4]) for length in LENGTHS[1:]]


@torch.no_grad()
def evaluate(
    model: MaskedLM, streams: dict[str, Stream], micro_batch: int, max_rows: int, world: World
) -> dict[str, float]:
    """Metrics `eval/loss` (nats a masked token) and `eval/accuracy`, over at most `max_rows` rows of each collection.

    Every masked token counts once. Both metrics are also given by collection, as `eval/loss/news`, and by length, as
    `eval/loss_by_length/1024-2047`: over the masked tokens of all collections that have so many tokens before them in
    their own document, [CLS] included. It is not the place in the row, since a row holds several documents, and neither
    attention nor positions reach from one into another. A document longer than a row is cut into windows, and each
    counts as a document, since that is all that the model sees. A length without a token is left out.

    Ranks take rows in turn; every rank gets the result.
    """
    by_collection = torch.zeros(len(streams), 3, dtype=torch.float64, device=world.device)
    by_length = torch.zeros(len(LENGTHS), 3, dtype=torch.float64, device=world.device)
    for number, stream in enumerate(streams.values()):
        rows = min(len(stream), max_rows)
        for start in range(world.rank * micro_batch, rows, world.size * micro_batch):
            # The last batch keeps the fixed shape; its surplus rows are read and left out.
            scores, positions = _token_scores(model, stream, start, micro_batch, min(micro_batch, rows - start), world)
            by_collection[number] += scores.sum(0)
            by_length += _sums_by_length(scores, positions)
    sums = torch.cat([by_collection, by_length])
    if world.size > 1:
        dist.all_reduce(sums)
    return _as_metrics(list(streams), sums.cpu())


def masked_perplexity(loss: float) -> float:
    """The exponential of a masked loss: the number of equally likely tokens with the same uncertainty.

    Not the pseudo-perplexity of Salazar et al. (ACL 2020), which masks one token at a time: here the recipe's share of
    the tokens is masked at once, so that less is known of each. Infinite if it is too large for a float.
    """
    return float(torch.tensor(loss, dtype=torch.float64).exp())


def _token_scores(
    model: MaskedLM, stream: Stream, start: int, micro_batch: int, rows: int, world: World
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each mask of the first `rows` rows: its loss, whether it was found, and 1, (masks, 3) in fp64; its position.

    A row with padding repeats its masks: a repeated mask has a row of zeros, so that sums count each token once.
    """
    batch = stream.packed_batch(start, micro_batch).to(world.device)
    logits_MV = logits_of(model, batch)
    losses = F.cross_entropy(logits_MV, batch.targets, reduction="none")
    hits = logits_MV.argmax(-1) == batch.targets
    places = batch.masked_indices.long()
    new = torch.ones_like(hits)
    new[1:] = places[1:] != places[:-1]
    scores = torch.stack([losses.double(), hits.double(), torch.ones_like(losses).double()], dim=-1) * new[:, None]
    inside = rows * stream.masks_per_row
    return scores[:inside], batch.position_ids[places][:inside]


def _sums_by_length(scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Loss, hits and number of the tokens of each length: (lengths, 3), in fp64."""
    beginnings = torch.tensor(_LATER_BEGINNINGS, device=positions.device)
    return scores.new_zeros(len(LENGTHS), 3).index_add_(0, torch.bucketize(positions, beginnings, right=True), scores)


def _as_metrics(collections: list[str], sums: torch.Tensor) -> dict[str, float]:
    by_collection, by_length = sums.split([len(collections), len(LENGTHS)])
    parts = ["", *(f"/{name}" for name in collections), *(f"_by_length/{name}" for name in LENGTHS)]
    metrics = {}
    for part, (loss, accuracy, count) in zip(parts, [by_collection.sum(0), *by_collection, *by_length], strict=True):
        if count:
            metrics[f"eval/loss{part}"] = float(loss / count)
            metrics[f"eval/accuracy{part}"] = float(accuracy / count)
    return metrics
