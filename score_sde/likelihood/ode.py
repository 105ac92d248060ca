r"""log p by the probability-flow ODE (Song et al. 2021, Eq. 39 and Appendix D.2; Chen et al. 2018, Theorem 1).

    log p_{t_min}(x) = log p_T(x(T)) + \int_{t_min}^T div v(x(t), t) dt,    dx/dt = v(x, t).

``ProbabilityFlow`` carries the integral along as a coordinate of the state; ``DualWeighted`` goes another way, which its module
derives.

What is computed is the density at t_min, of data plus noise of standard deviation sigma(t_min).
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from score_sde.divergence import Divergence, as_divergence
from score_sde.inputs import require_time
from score_sde.progress import TimeProgress
from score_sde.score import BoundScore, Score, counting, require_inputs
from score_sde.solvers.probability_flow import ProbabilityFlow
from score_sde.solvers.transport import Flow, Transport
from score_sde.tables import require_instance
from score_sde.tensors import Condition, SampleNoise


@dataclass(frozen=True)
class LogLikelihood:
    """What was found, and what it took.

    ``log_prob`` ``(B,)`` in nats; ``latent`` ``(B, *D)``, the state at T; network forwards and vector-Jacobian products,
    averaged over the samples. ``probe_variance`` ``(B,)`` is the variance of ``log_prob`` over the draw of the probes,
    estimated from their spread: 0 for an exact divergence, None where there is a single probe.

    ``error`` ``(B,)`` is the solver's estimate of its own error in ``log_prob``, in nats. ``steps`` ``(B,)`` are the steps of
    each sample's path, 0 where it was solved by Runge-Kutta steps of its own. Both are of ``DualWeighted`` alone, else None. A
    sample that could not be solved has the ``log_prob`` NaN, and a warning tells how many there are.
    """

    log_prob: Tensor
    latent: Tensor
    nfe: float
    vjps: float
    probe_variance: Tensor | None
    error: Tensor | None = None
    steps: Tensor | None = None


def log_likelihood(
    score: Score,
    x: Tensor,
    *,
    solver: Transport = ProbabilityFlow(method="rk45"),
    divergence: str | Divergence = "exact",
    prior: Callable[[Tensor], Tensor] | None = None,
    cond: Condition | None = None,
    seed: int = 0,
    first: int | Sequence[int] = 0,
    t_min: float | None = None,
    differentiable: bool = False,
    progress: bool = False,
) -> LogLikelihood:
    """The log-density of ``x`` under the model, at t_min.

    Args:
        score: the score, which also carries the SDE.
        x: points in model coordinates, ``(B, *D)``.
        solver: how the ODE is solved: ``ProbabilityFlow`` with its method and tolerances, by default with steps for each
            sample, or ``DualWeighted``, which is several times cheaper at the accuracy that bits/dim need.
        divergence: a key of ``DIVERGENCES``, ``exact`` or ``hutchinson`` for example, or an object such as
            ``Hutchinson(probes=4)``.
        prior: log-density at T in nats, ``(B, *D)`` to ``(B,)``; by default the SDE's.
        cond: condition passed to the score: a tensor ``(B, ...)``, or several by their names.
        seed: the probes of sample i depend on ``seed`` and ``first + i`` alone.
        first: index of the first sample, or the index of each.
        t_min: time at which the density is taken, not below the SDE's own, which is the default.
        differentiable: keep what is needed to differentiate ``log_prob`` with respect to ``x`` and to whatever the score
            depends on. Memory then grows with the number of evaluations.
        progress: show a progress bar.

    Raises:
        SolverError: the state stopped being finite.
        TypeError: the SDE is not linear, or the solver carries no log-density.
        ValueError: the divergence is unknown; x holds integers, NaN or infinite values, or is not of the shape of the score's
            data; t_min is outside [the SDE's t_min, T); or the prior does not give one number for each sample.
    """
    require_instance("solver", solver)
    if not hasattr(solver, "transport"):
        raise TypeError(f"log p needs a ProbabilityFlow or a DualWeighted, got {type(solver).__name__}")
    divergence = as_divergence(divergence)
    require_inputs(score, x, cond)
    sde = score.sde
    t_min = sde.t_min if t_min is None else t_min
    require_time("t_min", t_min, sde.t_min, sde.T, below=True)
    noise = SampleNoise(seed, x.shape, first=first, purpose="probes", device=x.device, dtype=x.dtype)
    attention = sdpa_kernel(SDPBackend.MATH) if differentiable else nullcontext()  # the fused one has no second derivative
    shown = TimeProgress(solver, t_min, sde.T, shown=progress)
    with torch.set_grad_enabled(differentiable), attention, counting(score) as (counted, counter), shown as bar:
        flow = Flow(BoundScore(counted, cond), divergence, divergence.draw(noise), counter)
        end = solver.transport(flow, x, t_min, sde.T, observe=lambda t, state: bar.reach(t, counter.nfe))
        log_prob = of_prior(prior or sde.prior_log_prob, end.state) + end.changes.mean(0)
    if end.error is not None and (lost := log_prob.detach().isnan()).any():
        places = range(first, first + len(x)) if isinstance(first, int) else first
        named = ", ".join(str(place) for place, gone in zip(places, lost.tolist(), strict=True) if gone)
        warnings.warn(
            f"{int(lost.sum())} of {len(x)} samples have no log p but NaN ({named}): neither a multistep path nor Runge-Kutta "
            "steps solve the ODE for them; try float64, or leave them out",
            stacklevel=2,
        )
    variance = divergence.variance(end.changes.detach(), x[0].numel())
    nfe, vjps = counter.samples / len(x), counter.vjps / len(x)
    return LogLikelihood(log_prob, end.state, nfe, vjps, variance, end.error, end.steps)


def of_prior(prior: Callable[[Tensor], Tensor], latent: Tensor) -> Tensor:
    """log p at T of ``latent`` ``(B, *D)``, ``(B,)``; a ``ValueError`` where ``prior`` gives anything else."""
    log_prob = prior(latent)
    if log_prob.shape != latent.shape[:1]:
        raise ValueError(f"the prior must give {len(latent)} numbers, one for each sample, got {tuple(log_prob.shape)}")
    return log_prob
