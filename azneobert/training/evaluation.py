"""Held-out loss and masked accuracy, for each collection and over all."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn import functional as F  # noqa: N812

from azneobert.data.stream import Stream
from azneobert.engine.interface import World
from azneobert.engine.micro_batches import logits_of
from azneobert.model.encoder import MaskedLM


@torch.no_grad()
def evaluate(
    model: MaskedLM, streams: dict[str, Stream], micro_batch: int, max_rows: int, world: World
) -> dict[str, float]:
    """Metrics `eval/loss`, `eval/accuracy`, and both by collection, over at most `max_rows` rows of each.

    Every row counts the same: each has the same number of masks. Ranks take rows in turn; every rank gets the result.
    """
    sums = torch.zeros(len(streams), 3, dtype=torch.float64)
    for number, stream in enumerate(streams.values()):
        rows = min(len(stream), max_rows)
        for start in range(world.rank * micro_batch, rows, world.size * micro_batch):
            # The last batch keeps the fixed shape; its surplus rows are read and left out.
            losses, accuracies = _row_scores(model, stream, start, micro_batch, world.device)
            inside = min(micro_batch, rows - start)
            sums[number] += torch.tensor([losses[:inside].sum(), accuracies[:inside].sum(), inside])
    if world.size > 1:
        sums = sums.to(world.device)
        dist.all_reduce(sums)
    return _as_metrics(list(streams), sums.cpu())


def _row_scores(
    model: MaskedLM, stream: Stream, start: int, rows: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    batch = stream.packed_batch(start, rows).to(device)
    logits_MV = logits_of(model, batch)
    losses = F.cross_entropy(logits_MV, batch.targets, reduction="none")
    hits = (logits_MV.argmax(-1) == batch.targets).float()
    return losses.view(rows, -1).mean(1).double().cpu(), hits.view(rows, -1).mean(1).double().cpu()


def _as_metrics(names: list[str], sums: torch.Tensor) -> dict[str, float]:
    metrics = {}
    total = sums.sum(0)
    for name, (loss, accuracy, rows) in zip(["", *(f"/{n}" for n in names)], [total, *sums], strict=True):
        if rows:
            metrics[f"eval/loss{name}"] = float(loss / rows)
            metrics[f"eval/accuracy{name}"] = float(accuracy / rows)
    return metrics
