"""A phase's folder before it is trained: which run goes on, which is complete, which is set aside. Nothing is lost."""

from __future__ import annotations

import time
from pathlib import Path

from azneobert.checkpoint.universal import Manifest
from azneobert.training.inputs import Inputs, open_streams, run_lock
from azneobert.training.position import changes, code_changed, run_identity


def prepare_folder(inputs: Inputs, accept_changed: tuple[str, ...] = ()) -> bool:
    """Make a run's folder ready: set aside what another run left there, refuse what cannot be trained.

    Returns whether the run is complete already. A complete one of other code counts as the recipe says
    (`runtime.changed_code`).

    Raises:
        AzNeoBertError: an input is missing, damaged, or does not fit the others.
    """
    with run_lock(inputs.run):
        inputs.run.stop_file.unlink(missing_ok=True)
        inputs.run.outcome_file.unlink(missing_ok=True)
        identity = run_identity(inputs, open_streams(inputs)[0])
        newest = inputs.checkpoints.latest()
        if newest is None:
            return False
        _, manifest = newest
        changed = changes(manifest.identity, identity, accept_changed)
        complete = manifest.step >= inputs.recipe.phase(inputs.phase).steps
        if complete and not changed:
            changed = _changed_code(inputs, manifest)
        if changed:
            print(
                f"{inputs.run.path} holds another run ({'; '.join(changed[:3])}): "
                f"kept in {set_aside(inputs.run.path).name}, starting anew",
                flush=True,
            )
        return complete and not changed


def set_aside(folder: Path) -> Path:
    """Move a folder out of the way of another run; where it is now."""
    while (aside := folder.with_name(f"{folder.name}.aside-{time.strftime('%Y%m%d-%H%M%S')}")).exists():
        time.sleep(0.1)
    return folder.rename(aside)


def _changed_code(inputs: Inputs, manifest: Manifest) -> list[str]:
    if not code_changed(inputs, manifest):
        return []
    if inputs.recipe.runtime.changed_code == "retrain":
        return ["it is complete, and the code has changed since"]
    print(f"{inputs.phase}: complete, by other code than today's; kept, as runtime.changed_code: keep says", flush=True)
    return []
