"""Keeps what a stage leaves that fails in `dvc exp run --temp` or `--queue`: DVC removes the folder of such a run."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from azneobert.environment import experiment
from azneobert.layout import Layout
from azneobert.tracking.published import publish_record


@contextmanager
def kept_if_it_fails(layout: Layout) -> Iterator[None]:
    """Keep what the runs of this folder have recorded, and why the stage failed, in the project itself."""
    try:
        yield
    except BaseException as error:
        name, project = experiment(), Path(os.environ.get("DVC_ROOT", ".")).resolve()
        if name is not None and project != Path.cwd():
            target = project / layout.root / "failed" / name
            _keep(layout, target, error)
            print(f"experiment {name}: what it leaves is in {target.relative_to(project)}", file=sys.stderr)
        raise


def _keep(layout: Layout, target: Path, error: BaseException) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for folder in layout.tracking_folders():
        publish_record(folder, target / folder.parent.name)
    with (target / "error.txt").open("a", encoding="utf-8") as file:
        file.write(f"{shlex.join(sys.argv)}\n{''.join(traceback.format_exception(error))}\n")
