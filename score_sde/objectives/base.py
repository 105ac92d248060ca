"""What an objective is: a loss for each sample of a batch, and what it learns on the way.

An objective of your own is a frozen dataclass with a method ``__call__`` and, where it draws times by a rule, its own
``sample_times``. Its random numbers come from ``draws``, each under a name for its purpose. What it learns during training is
a dictionary of tensors: ``begin`` makes it, each call gives it back, and it is saved with the run.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from score_sde.data import Batch
from score_sde.draws import Draws
from score_sde.model import ScoreModel
from score_sde.sdes import SDE

State = dict[str, Tensor]


@dataclass(frozen=True)
class Terms:
    """The loss of each sample, ``(B,)``, and named parts of it to log, each ``(B,)``. Training minimizes the mean loss."""

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """What training makes small."""

    def begin(self) -> State:
        """What the objective knows before the first step: nothing, by default."""
        return {}

    @abstractmethod
    def __call__(self, model: ScoreModel, batch: Batch, draws: Draws, state: State) -> tuple[Terms, State]:
        """The loss of a batch, and what is known after it.

        Args:
            model: the model, or any score with its SDE.
            batch: samples in model coordinates, ``(B, *D)``, and their condition.
            draws: the random numbers of the step.
            state: what is known before it.
        """

    def sample_times(self, sde: SDE, draws: Draws) -> tuple[Tensor, Tensor] | None:
        """The times of a step and their weights, both ``(B,)``; None where it draws none, as here.

        A message about the step names them. They are drawn again for it, so ``draws`` alone must decide them.
        """
        return None
