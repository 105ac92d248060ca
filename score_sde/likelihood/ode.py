r"""log p by the probability-flow ODE (Song et al. 2021, Eq. 39 and Appendix D.2; Chen et al. 2018, Theorem 1).

Along dx/dt = v(x, t) the log-density changes by d log p_t(x(t)) / dt = -div v, so that

    log p_{t_min}(x) = log p_T(x(T)) + \int_{t_min}^T div v(x(t), t) dt.

State and integral are one state of D + 1 coordinates, and one network pass gives the velocity and its divergence: with
v = f x - g^2 score / 2, div v = f D - g^2 div(score) / 2.

What is computed is the density at t_min, of data plus noise of standard deviation sigma(t_min).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.divergence import Divergence, as_divergence
from score_sde.model import Score
from score_sde.solvers.base import BoundScore, Counter, ProgressBar, counted
from score_sde.solvers.probability_flow import ProbabilityFlow
from score_sde.tensors import SampleNoise


@dataclass(frozen=True)
class LogLikelihood:
    """``log_prob`` ``(B,)`` in nats; ``latent`` ``(B, *D)``, the state at T; the network forwards and vector-Jacobian
    products that it took."""

    log_prob: Tensor
    latent: Tensor
    nfe: int
    vjps: int


def log_likelihood(
    score: Score,
    x: Tensor,
    *,
    solver: ProbabilityFlow = ProbabilityFlow(),
    divergence: str | Divergence = "exact",
    prior: Callable[[Tensor], Tensor] | None = None,
    cond: Tensor | None = None,
    seed: int = 0,
    first: int = 0,
    t_min: float | None = None,
    progress: bool = False,
) -> LogLikelihood:
    """The log-density of ``x`` under the model, at t_min.

    Args:
        score: the score, which also carries the SDE.
        x: points in model coordinates, ``(B, *D)``.
        solver: how the ODE is solved: method and tolerances.
        divergence: a key of ``DIVERGENCES``, ``exact`` or ``hutchinson`` for example, or an object such as
            ``Hutchinson(probes=4)``.
        prior: log-density at T in nats, ``(B, *D)`` to ``(B,)``; by default the SDE's.
        cond: condition passed to the score, ``(B, ...)``.
        seed: the probes of sample i depend on ``seed`` and ``first + i`` alone.
        first: index of the first sample.
        t_min: time at which the density is taken; by default the SDE's.
        progress: show a progress bar.

    Raises:
        SolverError: the state stopped being finite.
        ValueError: the divergence is unknown, x holds NaN, or t_min is outside (0, T).
    """
    divergence = as_divergence(divergence)
    if not x.isfinite().all():
        raise ValueError("x holds NaN or infinite values: their likelihood is not defined")
    sde, counter = score.sde, Counter()
    t_min = sde.t_min if t_min is None else t_min
    if not 0 < t_min < sde.T:
        raise ValueError(f"t_min must lie between 0 and T = {sde.T}, got {t_min}")
    bound = BoundScore(counted(score, counter), cond)
    noise = SampleNoise(seed, x.shape, first=first, purpose="probes", device=x.device, dtype=x.dtype)
    probes = divergence.draw(noise)
    dim = x[0].numel()

    def velocity(t: Tensor, y: Tensor) -> Tensor:
        state = y[:, :-1].reshape(x.shape)
        value, trace, vjps = divergence(lambda point: bound(point, t), state, probes)
        counter.vjps += vjps
        flow = sde.probability_flow(state, t, value)
        change = sde.drift_coefficient(t) * dim - sde.diffusion(t) ** 2 / 2 * trace
        return torch.cat([flow.reshape(len(y), -1), change[:, None]], dim=1)

    with torch.no_grad(), ProgressBar(solver, t_min, sde.T, progress) as bar:
        start = torch.cat([x.reshape(len(x), -1), x.new_zeros(len(x), 1)], dim=1)
        end = solver.integrate(velocity, start, t_min, sde.T, sde, observe=lambda t, y: bar(t, counter.nfe))
    latent = end[:, :-1].reshape(x.shape)
    log_prob = (prior or sde.prior_log_prob)(latent) + end[:, -1]
    return LogLikelihood(log_prob, latent, counter.nfe, counter.vjps)
