"""What the image's %test runs: where its packages lie, and one training step, on a GPU where one is visible."""

from __future__ import annotations

import math
import sysconfig
import tempfile
from pathlib import Path

import torch

import azneobert
from azneobert.bench.models import small_model, some_runtime, some_training
from azneobert.bench.synthetic import open_small_corpus, write_small_corpus
from azneobert.data.stream import SampleRange, micro_batch_loader
from azneobert.engine.make import make_accelerator, make_engine
from azneobert.model.backend import choose_backend
from azneobert.model.encoder import build_model

ROWS, ROW_LENGTH = 4, 64


def main() -> None:
    """Check the layout, then train on one batch; it fails unless the loss is that of random weights."""
    check_layout(sysconfig.get_path("purelib"), azneobert.__file__)
    accelerator = make_accelerator()
    config, runtime, training = small_model(), some_runtime("plain"), some_training()
    backend = choose_backend(runtime, config, accelerator.device, torch.float32)
    engine = make_engine(build_model(config, 1, torch.float32, backend), training, runtime, accelerator, ROWS, 1)
    with tempfile.TemporaryDirectory() as scratch:
        write_small_corpus(Path(scratch), config.vocab_size, ROW_LENGTH, documents=20)
        samples = SampleRange(range(0, ROWS, ROWS), ROWS, 1, 0)
        batches = micro_batch_loader(open_small_corpus(Path(scratch)), samples, workers=0, pin_memory=False)
        loss = engine.step(batches, 1e-4)[0].item()
    expected = math.log(config.vocab_size)
    if not abs(loss - expected) < 0.5:
        raise SystemExit(f"error: a training step: loss {loss:.4f}; expected about {expected:.2f}, of random weights")
    print(f"one training step on {accelerator.device}, torch {torch.__version__}: loss {loss:.4f}")


def check_layout(packages: str, package: str) -> None:
    """Packages lie in a folder called site-packages, and the package among them, not elsewhere on the path."""
    if Path(packages).name != "site-packages":
        raise SystemExit(f"error: {packages}: QuACK imports from a folder called site-packages alone; use a venv")
    if not package.startswith(f"{packages}/"):
        raise SystemExit(f"error: {package}: expected the package in {packages}")


if __name__ == "__main__":
    main()
