"""What can be wrong with a run. The messages know nothing of any command: whoever shows one adds what to type."""

from collections.abc import Sequence
from pathlib import Path

from score_sde.checkpoint import CheckpointError


class RunError(ValueError):
    """A directory is not a run, or something in it cannot be used; the message says what is wrong."""


def damaged(path: Path, what: object) -> RunError:
    """The error of a file at ``path`` that is not as a run has it; ``what`` is wrong with it."""
    return RunError(f"{path} is damaged or of another program: {what}")


class NotARun(RunError):
    """``folder`` has no config.json."""

    def __init__(self, folder: Path):
        super().__init__(f"{folder} is not a run directory: it has no config.json")
        self.folder = folder


class EditedConfig(RunError):
    """A config.json was edited by hand; ``load`` takes it with ``accept_edited_config``."""


class NoWeights(CheckpointError):
    """The run in ``folder`` has no checkpoint yet, and no weights of an import."""

    def __init__(self, folder: Path):
        super().__init__(f"{folder} has no checkpoint yet")
        self.folder = folder


class UnusableMoments(RunError):
    """The moments of the run in ``folder`` are damaged or of another run; training makes them anew."""

    def __init__(self, folder: Path, message: str):
        super().__init__(message)
        self.folder = folder


class NoTuned(RunError):
    """No solver was tuned for the run in ``folder``, or none for what is asked for."""

    def __init__(self, folder: Path, message: str):
        super().__init__(message)
        self.folder = folder


class UnusableTuned(NoTuned):
    """The tuned solvers of the run in ``folder`` are damaged or of another version."""


class TunedOtherwise(UserWarning):
    """The solvers for ``budgets`` evaluations were tuned for another run, other weights or a simpler field."""

    def __init__(self, folder: Path, budgets: Sequence[int], message: str):
        super().__init__(message)
        self.folder, self.budgets = folder, tuple(budgets)
