from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import ParallelMode

from azneobert.finetuning.classification import _arguments
from azneobert.recipe import load_recipe

SETTINGS = load_recipe(Path(__file__).parents[2] / "recipes" / "sample.yaml").finetuning


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_a_batch_is_the_recipe_s_however_many_gpus_the_machine_has(monkeypatch, tmp_path, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert TrainingArguments(output_dir=str(tmp_path)).n_gpu == gpus  # what it would be without our doing
    arguments = _arguments(SETTINGS, 1, str(tmp_path))
    assert arguments.n_gpu == min(gpus, 1)
    assert arguments.parallel_mode == ParallelMode.NOT_PARALLEL
    assert arguments.train_batch_size == arguments.eval_batch_size == SETTINGS.batch_size
    trainer = Trainer(model=torch.nn.Linear(2, 2), args=arguments, train_dataset=[{"x": 0}] * 64)
    assert len(trainer.get_train_dataloader()) == 64 // SETTINGS.batch_size
    assert trainer.args.n_gpu <= 1
