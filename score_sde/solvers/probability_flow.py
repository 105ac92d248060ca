r"""The probability-flow ODE (Song et al. 2021, Eq. 13) by any method of torchdiffeq, or with steps for each sample.

    dx/dt = f x - g^2 score / 2

Adaptive methods work to a tolerance. Their error is measured as the root mean square over the coordinates of each sample,
then the largest over the batch (torchdiffeq's own norm averages over the batch, which lets one bad sample hide among good
ones), and their last step ends exactly at the end time (torchdiffeq would step past it and interpolate back, evaluating the
score outside its range). With them a batch shares its steps, so that a sample's result depends on its neighbours within the
tolerance; ``rk45`` gives each sample steps of its own, and the same result in any batch. Fixed-step methods take one step per
interval of a time grid. ``scipy_solver`` is scipy's LSODA, on the CPU and with scipy's own norm over the whole batch: an
independent check, not a way to sample.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from score_sde.inputs import require_finite
from score_sde.score import BoundScore
from score_sde.sdes import SDE
from score_sde.solvers.base import Observer, Solver, SolverError
from score_sde.solvers.guard import FiniteGuard, non_finite
from score_sde.solvers.runge_kutta import Velocity, dormand_prince
from score_sde.solvers.time_grids import ExplicitGrid, TimeGrid, as_grid, check_grid, time_grid
from score_sde.solvers.transport import Flow, Transported, along_ode
from score_sde.tables import require_name
from score_sde.tensors import SampleNoise

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
# method: (order, evaluations per step); the Adams methods of torchdiffeq raise their order as they go, so have none to declare
FIXED = {
    "euler": (1, 1),
    "midpoint": (2, 2),
    "heun2": (2, 2),
    "heun3": (3, 3),
    "rk4": (4, 4),
    "explicit_adams": (None, 1),
    "implicit_adams": (None, 2),
}
METHODS = (*ADAPTIVE, "rk45", *FIXED, "scipy_solver")
MAX_STEPS = 5000


@dataclass(frozen=True)
class ProbabilityFlow(Solver):
    """The probability-flow ODE, deterministic and reversible in time.

    Args:
        method: a method of torchdiffeq, adaptive (dopri5, dopri8, bosh3, fehlberg2, adaptive_heun, scipy_solver) or with
            fixed steps (euler, midpoint, heun2, heun3, rk4, explicit_adams, implicit_adams); or ``rk45``, which is dopri5 with
            steps of its own for each sample: the states of a trajectory then belong to different times, the slowest of which
            is reported.
        rtol, atol: tolerances of an adaptive method, relative and in model coordinates.
        steps: number of steps of a fixed-step method.
        grid: time grid of a fixed-step method.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 50
    grid: str | TimeGrid = "uniform"

    def __post_init__(self):
        require_name("method", self.method, METHODS)
        require_finite({"rtol": self.rtol, "atol": self.atol})
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"rtol and atol must be positive, got {self.rtol} and {self.atol}")
        grid = check_grid(self.grid, self.steps)
        if grid.count is not None:
            object.__setattr__(self, "steps", grid.count)

    @property
    def order(self) -> int | None:
        return FIXED[self.method][0] if self.method in FIXED else None

    def with_budget(self, nfe: int) -> Self:
        """A method without a fixed cost has no budget: the midpoint rule stands in for it, on a log-SNR grid."""
        if self.order is None:
            return type(self)(method="midpoint", grid="log_snr").with_budget(nfe)
        per_step = FIXED[self.method][1]
        if nfe < per_step:
            raise ValueError(f"a step of {self.method} takes {per_step} evaluations, got {nfe}")
        if as_grid(self.grid).count not in (None, nfe // per_step):
            raise ValueError(f"the grid is an explicit list of {self.steps} steps, and {nfe} evaluations are not theirs")
        return dataclasses.replace(self, steps=nfe // per_step)

    def finer(self) -> Self:
        """The same method with a tenth of the tolerance, or twice the steps: what shows the error of this one."""
        grid = as_grid(self.grid)
        twice = {"grid": grid.halved()} if isinstance(grid, ExplicitGrid) else {"steps": 2 * self.steps}
        return dataclasses.replace(self, rtol=self.rtol / 10, atol=self.atol / 10, **twice)

    def describe(self) -> str:
        """The method and its tolerances or steps, in words."""
        name = {"rk45": "RK45 with steps for each sample", "dopri5": "dopri5 with steps shared by a batch"}
        if self.method in FIXED:
            return f"{self.method}, {self.steps} steps ({self.grid})"
        return f"{name.get(self.method, self.method)}, rtol = {self.rtol:g}, atol = {self.atol:g}"

    def follow(
        self, score: BoundScore, x: Tensor, t_from: float, t_to: float, noise: SampleNoise, observe: Observer | None
    ) -> Tensor:

        def velocity(t: Tensor, y: Tensor) -> Tensor:
            state = y.reshape(x.shape)
            return score.sde.probability_flow(state, t, score(state, t)).reshape(y.shape)

        watch = (lambda t, y: observe(t, y.reshape(x.shape))) if observe else None
        return self.integrate(velocity, x.flatten(1), t_from, t_to, score.sde, observe=watch).reshape(x.shape)

    def transport(
        self, flow: Flow, x: Tensor, t_from: float, t_to: float, *, observe: Observer | None = None, partial: bool = False
    ) -> Transported:
        """Carry ``x`` ``(B, *D)`` together with its log-density; ``partial`` as in ``integrate``."""
        integrate = lambda velocity, y: self.integrate(velocity, y, t_from, t_to, flow.sde, observe=observe, partial=partial)
        return along_ode(flow, x, integrate)

    def integrate(
        self,
        velocity: Velocity,
        y: Tensor,
        t_from: float,
        t_to: float,
        sde: SDE,
        *,
        observe: Observer | None = None,
        partial: bool = False,
    ) -> Tensor:
        """Integrate dy/dt = ``velocity(t, y)`` for a state ``(B, n)`` whose coordinates count alike in the error.

        ``t`` is 0-dimensional, or ``(B,)`` where each sample has steps of its own. There ``partial`` lets samples that cannot
        be solved end as NaN, as long as there is another one that can be.

        Raises:
            SolverError: the state stopped being finite, or the tolerance asks for steps below the precision.
        """
        if self.method == "rk45":
            return dormand_prince(
                velocity,
                y,
                t_from,
                t_to,
                rtol=self.rtol,
                atol=self.atol,
                max_steps=MAX_STEPS,
                partial=partial,
                observe=observe,
            )
        from torchdiffeq import odeint  # here: it takes long to import

        watched = _Watched(velocity, t_from, t_to, f"ode ({self.method})", observe)
        ends = torch.tensor([t_from, t_to], dtype=torch.float64, device=y.device)
        options: dict = {}
        if self.method in ADAPTIVE:
            options = {"norm": _largest_rms, "step_t": ends[1:], "max_num_steps": MAX_STEPS}
        elif self.method in FIXED:
            grid = time_grid(self.grid, sde, t_from, t_to, self.steps).to(y.device)
            options = {"grid_constructor": lambda *_: grid}
        tolerances = {"rtol": self.rtol, "atol": self.atol}
        # scipy reports nothing between the ends, and torchdiffeq warns of a callback that it does not call
        function = watched.__call__ if self.method == "scipy_solver" else watched
        try:
            states: Any = odeint(function, y, ends, method=self.method, options=options, **tolerances)
        except AssertionError as error:
            raise SolverError(watched.reason(str(error))) from error
        if len(states) < 2:  # scipy gave up without an exception
            raise SolverError(watched.reason("it did not reach the end"))
        end = states[-1]
        watched.guard.check()
        watched.guard.watch(t_to, end)
        watched.guard.check()
        if observe:
            observe(t_to, end)
        return end


def _largest_rms(error: Tensor) -> Tensor:
    return error.square().mean(dim=1).sqrt().amax()


class _Watched:
    """A velocity that keeps inside its interval of time, counts, and notes where it stopped being finite."""

    def __init__(self, velocity: Velocity, t_from: float, t_to: float, name: str, observe: Observer | None):
        self.velocity, self.observe, self.seen = velocity, observe, t_from
        self.low, self.high = min(t_from, t_to), max(t_from, t_to)
        self.guard, self.name, self.calls, self.last = FiniteGuard(name, unit="evaluation"), name, 0, t_from

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        self.last = t
        value = self.velocity(t.clamp(self.low, self.high), y)
        self.guard.watch(t, value)
        return value

    def callback_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        # called with the state from which the step starts; a rejected step starts again from the same time
        if self.observe and (now := float(t)) != self.seen:
            self.seen = now
            self.observe(now, y)

    def reason(self, error: str) -> str:
        t, spent = float(self.last), f"after {self.calls} evaluations"
        if math.isfinite(t):  # else the first step was not even chosen: the tolerance is to blame, not the score
            try:
                self.guard.check()
            except SolverError as reason:
                return str(reason)
            if "non-finite" in error:
                return non_finite(self.name, t, spent)
        return (
            f"{self.name} gave up at t = {t:.3g} {spent} ({error}): the tolerance asks for more than the precision or the "
            "smoothness of the score allows; use a larger rtol and atol, or float64"
        )
