"""The errors a user can cause. The command prints them in one line, without a traceback, and exits non-zero."""

from azneobert.printable import printable


class AzNeoBertError(Exception):
    """Something a user can mend: the message names the place, what was found there, and what to do.

    It is one line that is safe to print, whatever it quotes of a file.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class RecipeError(AzNeoBertError, ValueError):
    """params.yaml holds something that no run can be made of."""


class DataError(AzNeoBertError, ValueError):
    """A source, a token store or a row plan is missing, damaged or does not fit the rest."""


class CheckpointError(AzNeoBertError, RuntimeError):
    """A checkpoint is missing, damaged, or of another run."""


class TrainingError(AzNeoBertError, RuntimeError):
    """A training run cannot start or go on as asked."""


class RegistryError(AzNeoBertError, RuntimeError):
    """The registry does not answer, or does not hold what was asked for."""


class RemoteError(AzNeoBertError, RuntimeError):
    """The DVC remote does not answer, or does not hold what was asked for."""
