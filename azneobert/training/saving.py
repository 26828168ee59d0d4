"""Saving a run: the loop waits only for the copy to the host; the disk is written in the background."""

from __future__ import annotations

from collections.abc import Callable

from azneobert.checkpoint.manifest import Manifest
from azneobert.checkpoint.rotation import BackgroundWriter
from azneobert.checkpoint.universal import KINDS
from azneobert.data.integrity import Verification
from azneobert.engine.interface import Engine
from azneobert.model.size import count_parameters
from azneobert.training.inputs import Inputs
from azneobert.training.position import Position


class Saver:
    """Checkpoints of one run. Every rank has one, since the ranks gather the state together; the main one writes.

    Use as a context manager: leaving it waits for what is being written. `position` is where the saved run began; a
    rewind changes it.
    """

    def __init__(
        self,
        inputs: Inputs,
        engine: Engine,
        position: Position,
        run_id: Callable[[], str | None],
        verification: Verification | None = None,
    ):
        """With a `verification`, nothing is saved before it has found the data whole."""
        self._inputs = inputs
        self._engine = engine
        self.position = position
        self._run_id = run_id
        self._verification = verification
        self._writer = BackgroundWriter(inputs.checkpoints)
        if engine.world.is_main:
            every, steps = inputs.recipe.runtime.keep_every, inputs.recipe.phase(inputs.phase).steps
            inputs.checkpoints.check_room(
                4 * len(KINDS) * count_parameters(inputs.recipe.model),
                steps // every - position.step // every if every else 0,
            )
        self._staging = engine.stage()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.wait()

    def save(self, step: int) -> None:
        """Take the state as it is now; on return the loop may go on and change it.

        Raises:
            CheckpointError: this checkpoint's predecessor could not be written, for another reason than a full disk.
            DataError: the data that the steps were trained on are damaged.
        """
        if self._verification:
            self._verification.require()
        self._writer.make_way()
        state = self._engine.gather(self._staging)
        if state is not None:
            self._writer.submit(state, self._manifest(step), self._inputs.tokenizer)

    def wait(self) -> None:
        """Wait until what is being written is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        self._writer.wait()

    def check(self) -> None:
        """Raise the error of the writer or of the verification in the background, if there is one."""
        self._writer.check()
        if self._verification:
            self._verification.check()

    def _manifest(self, step: int) -> Manifest:
        recipe, position = self._inputs.recipe, self.position
        phase = recipe.phase(self._inputs.phase)
        sample_index = position.course.samples(step)
        return Manifest(
            phase=self._inputs.phase,
            step=step,
            samples=sample_index,
            tokens=position.course.tokens(step),
            recipe_name=self._inputs.recipe.name,
            recipe=recipe.model_dump(mode="json"),
            identity=position.identity,
            lineage={
                **self._inputs.lineage,
                "mlflow_run_id": self._run_id(),  # now: MLflow may not have answered at the start
                "started_from": position.started_from,
            },
            segments=position.segments,
            schedule={
                "offset": position.schedule_offset,
                "warmup_steps": phase.warmup_steps,
                "steps": phase.steps,
                "peak_learning_rate": phase.peak_learning_rate,
            },
            stream={"seed": recipe.seed, "first_sample": position.course.samples(0), "sample_index": sample_index},
        )
