"""States that are not finite: noticed without waiting for the device at every step, and said in one sentence."""

import math

import torch
from torch import Tensor

from score_sde.solvers.base import SolverError


class FiniteGuard:
    """Notes after each step, on the device, whether the state is finite, and looks at the notes only now and then."""

    def __init__(self, solver: str, *, unit: str = "step", every: int = 64):
        self.solver, self.unit, self.every = solver, unit, every
        self.seen, self.times, self.notes = 0, [], []

    def watch(self, t: float | Tensor, x: Tensor) -> None:
        """Note whether ``x``, reached at ``t``, is finite."""
        self.seen += 1
        self.times.append(t)
        if x.numel():
            self.notes.append(torch.linalg.vector_norm(x, math.inf))  # one kernel, and NaN and infinity survive it
        if len(self.notes) == self.every:
            self.check()

    def check(self) -> None:
        """Raise a ``SolverError`` if a noted state was not finite."""
        if self.notes:
            finite = torch.stack(self.notes).isfinite().tolist()
            if not all(finite):
                bad = finite.index(False)
                step = self.seen - len(finite) + bad + 1
                raise SolverError(non_finite(self.solver, float(self.times[bad]), f"{self.unit} {step}"))
        self.times, self.notes = [], []


def non_finite(solver: str, t: float, spent: str) -> str:
    """The sentence for a state that is not finite any more."""
    return (
        f"{solver}: the state is not finite at t = {t:.3g}, {spent}; the score returned NaN, or the steps are too "
        "large: try more steps or a smaller tolerance, clip x0, or check the model at this time"
    )
