"""Stage: one phase of pretraining, in this process or as several on this machine.

A run that stands half-finished in the phase's folder goes on; one of other data, model or settings is set aside.
"""

import os
import signal
import subprocess
import sys
from argparse import Namespace

from azneobert.engine.make import PROCESSES
from azneobert.errors import TrainingError
from azneobert.recipe import PHASES, Recipe
from azneobert.training.inputs import Inputs, stop_file
from azneobert.training.report import write_report
from azneobert.training.run import prepare_folder, pretrain
from azneobert.training.stopping import EXIT_STOPPED
from pretrain import ACCEPT_CHANGED, phase_inputs
from stage import Paths, run_stage, write_json


def launch(name: str, recipe: Recipe, paths: Paths, options: Namespace) -> None:
    """Train the phase, then write its metrics and curves."""
    inputs = phase_inputs(name, recipe, paths, options.phase)
    accepted = tuple(options.accept_changed)
    if prepare_folder(inputs, accepted):
        print(f"{options.phase}: complete already; nothing that decides its numbers has changed")
    elif not (pretrain(inputs, accepted) if recipe.runtime.processes == 1 else _several(inputs, accepted)):
        print(f"{options.phase}: stopped as asked, with a checkpoint; start again to go on")
        sys.exit(EXIT_STOPPED)
    write_json(paths.metrics(options.phase), write_report(inputs, paths.root / "plots"))


def _several(inputs: Inputs, accepted: tuple[str, ...]) -> bool:
    """Start the ranks with `accelerate launch`, which would kill them at a signal: a stop file tells them instead."""
    processes = str(inputs.recipe.runtime.processes)
    # On a CPU, too: with --cpu, Accelerate starts one process however many it is asked for.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes", processes]
    command += [
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--multi_gpu",
        "pipelines/pretrain.py",
        inputs.phase,
    ]
    command += [f"--accept-changed={key}" for key in accepted]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda *_: stop_file(inputs.folder).touch())
    environment = os.environ | {PROCESSES: processes}
    code = subprocess.Popen(command, start_new_session=True, env=environment).wait()
    if code and not stop_file(inputs.folder).exists():
        raise TrainingError(f"{inputs.phase}: a rank ended with an error (exit code {code}); its message stands above")
    return code == 0


if __name__ == "__main__":
    run_stage(launch, ACCEPT_CHANGED, phase=PHASES)
