r"""Which steps of a chain a batch is trained at.

Every rule estimates the mean of a loss over all N steps: it draws steps with a probability p and gives the weights 1 / (N p).

The variance of the estimate is least where p is proportional to sqrt(E loss^2) at each step. Loss-aware sampling takes that
from the last losses seen there (Nichol and Dhariwal 2021, Eq. 18), and mixes in a little of the uniform distribution, so that
no step is forgotten.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from score_sde.inputs import whole
from score_sde.objectives.base import State


class StepRule(Protocol):
    """A rule for steps. One of your own is a frozen dataclass."""

    def begin(self, steps: int) -> State:
        """What is known before training on a chain of ``steps`` steps."""
        ...

    def sample(self, u: Tensor, steps: int, state: State) -> tuple[Tensor, Tensor]:
        """Steps, whole numbers from 0, and their weights, both ``(B,)``, from numbers ``u`` ``(B,)`` uniform in [0, 1)."""
        ...

    def learn(self, state: State, step: Tensor, loss: Tensor) -> State:
        """What is known after these losses were seen at these steps, both ``(B,)``, in this order."""
        ...


@dataclass(frozen=True)
class UniformSteps:
    """All steps alike."""

    def begin(self, steps: int) -> State:
        return {}

    def sample(self, u: Tensor, steps: int, state: State) -> tuple[Tensor, Tensor]:
        return (u * steps).long().clamp_max(steps - 1), torch.ones_like(u)

    def learn(self, state: State, step: Tensor, loss: Tensor) -> State:
        return state


@dataclass(frozen=True)
class LossAwareSteps:
    """Steps with probability in proportion to the root mean square of the last losses there; all alike until all have them.

    Args:
        history: the number of losses that are kept of each step.
        uniform: the share of the uniform distribution.

    Raises:
        ValueError: ``history`` is not positive, or ``uniform`` outside (0, 1].
    """

    history: int = 10
    uniform: float = 0.001

    def __post_init__(self):
        whole("history", self.history, 1)
        if not 0 < self.uniform <= 1:
            raise ValueError(f"uniform must be above 0 and at most 1, got {self.uniform}")

    def begin(self, steps: int) -> State:
        return {
            "losses": torch.zeros(steps, self.history, dtype=torch.float64),
            "counts": torch.zeros(steps, dtype=torch.int64),
        }

    def probabilities(self, state: State) -> Tensor:
        """p of each step, ``(N,)``, float64."""
        losses, counts = state["losses"], state["counts"]
        root = losses.square().mean(1).sqrt()
        known = (counts == self.history).all() & (root.sum() > 0)
        p = torch.where(known, root / root.sum().clamp_min(torch.finfo(root.dtype).tiny), 1 / len(root))
        return (1 - self.uniform) * p + self.uniform / len(root)

    def sample(self, u: Tensor, steps: int, state: State) -> tuple[Tensor, Tensor]:
        p = self.probabilities(state)
        total = p.cumsum(0)
        step = torch.searchsorted(total / total[-1], u.double(), right=True).clamp_max(steps - 1)
        return step, (1 / (steps * p[step])).to(u.dtype)

    def learn(self, state: State, step: Tensor, loss: Tensor) -> State:
        losses, counts = state["losses"], state["counts"]
        order = step.argsort(stable=True)
        step, loss = step[order], loss[order].to(losses)
        new = torch.zeros_like(counts).index_add(0, step, torch.ones_like(step))
        end = new.cumsum(0)[step]  # the last of these losses at the same step is at end - 1
        later = end - 1 - torch.arange(len(step), device=step.device)
        total = (counts + new).clamp_max(self.history)
        place = torch.arange(self.history, device=step.device) + (counts + new - total)[:, None]
        shifted = losses.gather(1, place.clamp_max(self.history - 1))
        column = torch.where(later < self.history, total[step] - 1 - later, self.history)
        # a column more for those that are not kept: to choose them would make a GPU wait
        padded = torch.cat([shifted, torch.zeros_like(shifted[:, :1])], dim=1)
        padded[step, column] = loss
        return {"losses": padded[:, :-1].contiguous(), "counts": total}


STEPS: dict[str, Callable[..., StepRule]] = {"uniform": UniformSteps, "loss_aware": LossAwareSteps}
"""Name -> rule."""
