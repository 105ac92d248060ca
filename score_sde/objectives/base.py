"""What an objective is: a loss for each sample of a batch, and what it learns on the way.

An objective of your own is a frozen dataclass with a method ``__call__``. Its random numbers come from ``draws``, each under a
name for its purpose.

An objective may learn during training, as loss-aware sampling of times does. What it knows, its state, is a dictionary of
tensors. It is saved with the run:

    state = objective.begin(model)
    terms = objective(model, batch, draws, state)          for the samples of one process
    state = objective.learn(state, observed)               from ``terms.observed`` of the whole batch

``__call__`` changes no state: it says in ``Terms.observed`` what each of its samples showed. ``learn`` is then given that of
all samples of the global batch. So the state is the same on one process and on many.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from score_sde.data import Batch
from score_sde.draws import Draws
from score_sde.model import ScoreModel
from score_sde.sdes import FixedNoise
from score_sde.tensors import State


@dataclass(frozen=True)
class Terms:
    """What an objective says of a batch. Training minimizes the mean loss.

    Args:
        loss: of each sample, ``(B,)``.
        parts: named parts of the loss to log, each ``(B,)``.
        times: of the samples, ``(B,)``, for messages about the step; None where it has none.
        observed: what ``learn`` needs of each sample, by name, each ``(B, ...)``.
    """

    loss: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    times: Tensor | None = None
    observed: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """What training makes small."""

    one_level: ClassVar[bool] = False
    """Whether it learns the score of one density, that of ``FixedNoise``, in place of those at all levels of noise."""

    differentiates: ClassVar[bool] = False
    """Whether the loss has derivatives of the score in it, so that training takes second derivatives of the network."""

    @property
    def trains_variance(self) -> bool:
        """Whether it trains a learned variance; no, by default."""
        return False

    def check(self, model: ScoreModel) -> None:
        """Check that the model has what this objective trains; it is called before the first step.

        An objective with further demands extends it.

        Raises:
            ValueError: the model's SDE has one level of noise, and the objective learns at all, or the other way round.
        """
        if self.one_level and not isinstance(model.sde, FixedNoise):
            raise ValueError(
                f"{type(self).__name__} learns the score of one density, and {type(model.sde).__name__} has one for each t: "
                "take the SDE fixed, or another objective"
            )
        if isinstance(model.sde, FixedNoise) and not self.one_level:
            raise ValueError(
                f"{type(self).__name__} learns the score at all levels of noise, and the SDE fixed has one: take the objective "
                "implicit, sliced or denoising_at_sigma, or another SDE"
            )

    def begin(self, model: ScoreModel) -> State:
        """What the objective knows before the first step: nothing, by default.

        The names and shapes of its tensors stay what they are here.
        """
        return {}

    @abstractmethod
    def __call__(self, model: ScoreModel, batch: Batch, draws: Draws, state: State) -> Terms:
        """The loss of a batch.

        Args:
            model: the model, or any score with its SDE.
            batch: samples in model coordinates, ``(B, *D)``, and their condition.
            draws: the random numbers of the step.
            state: what is known before it; it is not changed.
        """

    def learn(self, state: State, observed: Mapping[str, Tensor]) -> State:
        """What is known after a step of training; by default what was known before.

        Args:
            state: what was known before; it is not changed.
            observed: ``Terms.observed`` of every sample of the global batch, in its order, without gradients. The new state
                must be a function of ``state`` and of these alone: no random numbers, and nothing of one process.
        """
        return state
