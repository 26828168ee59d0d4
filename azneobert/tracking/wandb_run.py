"""A run in wandb, beside the one in MLflow, where the recipe asks for it."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Any

from azneobert.dotted import flatten
from azneobert.recipe import Tracking
from azneobert.tracking.record import RunInfo

log = logging.getLogger(__name__)

_SECONDS_OF_THE_START = 10.0  # that a run waits for wandb's server
_SECONDS_OF_THE_END = 60.0  # what has not gone up by then stays in the folder, for `wandb sync`


def start_wandb(folder: Path, tracking: Tracking, info: RunInfo) -> Any:
    """The run in wandb, or None if wandb is off or does not work; a resumed run is the same run."""
    if tracking.wandb == "off":
        return None
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb
    except ImportError:
        log.warning("tracking.wandb is %s but wandb is not installed: pip install 'azneobert[wandb]'", tracking.wandb)
        return None
    identity = folder / "wandb_id"
    if not identity.exists():
        identity.write_text(secrets.token_hex(4))
    try:
        return wandb.init(
            project=tracking.wandb_project,
            name=info.name,
            id=identity.read_text(),
            resume="allow",
            mode=tracking.wandb,
            dir=folder,
            config=flatten(info.params),
            # wandb would note the git remote's address with its token, and every SLURM_ variable, such as SLURM_JWT.
            settings=wandb.Settings(
                init_timeout=_SECONDS_OF_THE_START,
                finish_timeout=_SECONDS_OF_THE_END,
                disable_git=True,
                x_disable_meta=True,
            ),
        )
    except wandb.Error as error:
        log.warning("wandb: %s; this run is recorded in MLflow alone", " ".join(str(error).split()))
        return None
