r"""A variational bound on the negative log-likelihood of integers by a chain of discrete steps.

A chain 0 < t_1 < ... < t_N, with the data x0 itself before t_1 and the prior N(0, sigma^2 I) after t_N, bounds -log P(x0) from
above by (Ho et al. 2020, Eq. 5; Kingma et al. 2021, Eq. 11)

    KL(q(x_N | x0) || prior) + sum_{k > 1} KL(q(x_{k-1} | x_k, x0) || p(x_{k-1} | x_k)) - log p(x0 | x_1),

each term in expectation over q. ``transitions`` derives the steps of both, and their divergence.

For p(x0 | x_1) the Gaussian N(x0_hat, Sigma_1) is integrated over the bin, the outermost bins reaching to infinity (Ho et al.
2020, Eq. 13). There beta is sigma_1^2, and beta_tilde, which is 0 for a step down to the data, is that of the step above.
"""

import math

import torch
from torch import Tensor

from score_sde.data import DataSpec
from score_sde.inputs import whole
from score_sde.likelihood.bounds import Batch, centres, estimate_bound
from score_sde.likelihood.record import VariationalBound
from score_sde.score import Score
from score_sde.sdes import SDE
from score_sde.tables import require_name
from score_sde.tensors import expand, sum_event
from score_sde.transitions import VARIANCES, step_divergence


def discrete_bound(
    model: Score,
    values: Tensor,
    *,
    steps: int = 1000,
    nodes: Tensor | None = None,
    variance: str = "beta_tilde",
    sampled_steps: int | None = None,
    draws: int = 1,
    data: DataSpec | None = None,
    cond: Tensor | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> VariationalBound:
    """The bound of a discrete chain, L_T + L_{t-1} + L_0, on the negative log-likelihood of ``values``, each sample once.

    Args:
        model: a ``ScoreModel``, or any score together with ``data``.
        values: integers from 0 to levels - 1, ``(N, *D)``.
        steps: number of steps N of the chain t_k = k T / N; for a ``TabulatedSDE`` of N betas these are its own times.
        nodes: times t_1 ... t_N of a chain of one's own, rising, in place of ``steps``.
        variance: of the model's steps: ``beta_tilde``, ``beta``, or ``learned``, as the model's ``score_and_variance`` has it.
        sampled_steps: evaluate that many steps drawn for each sample, one from each of as many equal parts of the chain, which
            leaves the bound unbiased; by default all of them.
        draws: number of independent repetitions to be averaged; two or more give Monte-Carlo errors.
        data: description of the data; by default the model's.
        cond: condition of each sample, ``(N, ...)``.
        batch_size: samples at a time.
        seed: the noise and the steps of sample i depend on ``seed`` and i alone.
        progress: show a progress bar.

    Raises:
        DataError: the values are not data of this description.
        SolverError: the score returned NaN or infinite values.
        ValueError: an argument is not one of those allowed, or the data has no levels.
    """
    require_name("variance", variance, VARIANCES)
    if variance == "learned" and not hasattr(model, "score_and_variance"):
        raise ValueError("the score has no score_and_variance: choose variance='beta_tilde' or 'beta'")
    model.sde.require_ends()
    chain = Chain(model.sde, _chain_nodes(model.sde, steps, nodes))
    inner_steps = len(chain.nodes) - 1
    if sampled_steps is not None and not 1 <= whole("sampled_steps", sampled_steps, 0) <= inner_steps:
        raise ValueError(f"sampled_steps must lie between 1 and {inner_steps}, all steps but the first, got {sampled_steps}")
    times = sampled_steps or inner_steps

    def terms(batch: Batch) -> tuple[Tensor, Tensor]:
        if sampled_steps is None:
            taken = torch.arange(inner_steps)
        else:
            taken = (batch.stratified() * inner_steps).long().clamp_max(inner_steps - 1).T
        diffusion = sum((chain.divergence(batch, step, VARIANCES[variance]) for step in taken), start=torch.zeros(()))
        return diffusion * (inner_steps / times), chain.reconstruction(batch, VARIANCES[variance])

    return estimate_bound(
        model,
        values,
        terms,
        bound="discrete",
        steps=len(chain.nodes),
        variance=variance,
        times=times,
        draws=draws,
        t_min=float(chain.nodes[0]),
        T=float(chain.nodes[-1]),
        data=data,
        cond=cond,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )


def discretized_gaussian(integers: Tensor, mean: Tensor, std: Tensor | float, data: DataSpec) -> Tensor:
    """Log-probability in nats of the bins of ``integers`` under N(mean, std^2), float64, ``(B, *D)``.

    With a < b the ends of a bin in units of std from the mean, taken on the side where a + b <= 0,

        log(Phi(b) - Phi(a)) = log Phi(b) + log(-expm1(-d)),   d = log Phi(b) - log Phi(a),

    and in the tail, where Phi(z) = exp(-z^2/2) erfcx(-z / sqrt 2) / 2, the leading part (a^2 - b^2) / 2 of d is the product of
    the bin's width and its distance, which loses no digits. The first and the last bin are open (Ho et al. 2020, Eq. 13).

    Args:
        integers: ``(B, *D)``, from 0 to levels - 1.
        mean, std: in model coordinates, of a shape that broadcasts with ``integers``.
        data: levels and width of the bins.
    """
    mean, std = mean.double(), torch.as_tensor(std, dtype=torch.float64, device=mean.device)
    centre = (centres(integers, data) - mean) / std
    half = data.slope / 2 / std
    below = torch.where(integers == 0, -math.inf, centre - half)
    above = torch.where(integers == data.bins - 1, math.inf, centre + half)
    flip = below + above > 0
    a, b = torch.where(flip, -above, below), torch.where(flip, -below, above)
    tails = [torch.special.erfcx(-z / math.sqrt(2)) for z in (a, b)]
    far = torch.where(a.isinf(), math.inf, 2 * half * centre.abs() + (tails[1] / tails[0]).log())
    near = torch.special.log_ndtr(b) - torch.special.log_ndtr(a)
    return torch.special.log_ndtr(b) + (-torch.expm1(-torch.where(b > 0, near, far))).log()


class Chain:
    """What the steps between ``nodes`` ``(N,)`` need of the SDE, in float64."""

    def __init__(self, sde: SDE, nodes: Tensor):
        self.nodes, self.sde = nodes, sde
        log_snr, log_variance = sde.log_snr(nodes), 2 * sde.sigma(nodes).log()
        self.gain = torch.expm1(-log_snr.diff())
        self.log_ratio = log_variance.diff()
        self.log_first = log_variance[0], (-torch.expm1(log_snr[1] - log_snr[0])).log()

    def divergence(self, batch: Batch, step: Tensor, v: Tensor | float | None) -> Tensor:
        """KL of the step from node ``step + 1`` to node ``step``, in nats, ``(B,)``; ``step`` is ``()`` or ``(B,)``."""
        error, v = batch.error(self.nodes[step + 1], v)
        gain, log_ratio = (expand(values[step].to(error), error) for values in (self.gain, self.log_ratio))
        return sum_event(step_divergence(error, gain, log_ratio, v))

    def reconstruction(self, batch: Batch, v: Tensor | float | None) -> Tensor:
        """-log p(x0 | x_1) in nats, ``(B,)``."""
        t = self.nodes[0]
        error, v = batch.error(t, v)
        log_beta, log_shrinkage = self.log_first
        std = torch.as_tensor((log_beta + (1 - v) * log_shrinkage) / 2).exp()
        mean = batch.x0 + self.sde.sigma(t) / self.sde.alpha(t) * error
        return -sum_event(discretized_gaussian(batch.integers, mean, std, batch.data))


def _chain_nodes(sde: SDE, steps: int, nodes: Tensor | None) -> Tensor:
    if nodes is None:
        whole("steps", steps, 2)
        if sde.T / steps < sde.t_min * (1 - 1e-9):
            raise ValueError(
                f"the first of {steps} steps ends at t = {sde.T / steps:.3g}, below t_min = {sde.t_min:g}, where the score is "
                f"not known: take at most {math.floor(sde.T / sde.t_min * (1 + 1e-9))} steps"
            )
        return torch.arange(1, steps + 1, dtype=torch.float64) / steps * sde.T
    nodes = torch.as_tensor(nodes, dtype=torch.float64, device="cpu")
    if nodes.ndim != 1 or len(nodes) < 2 or not (nodes.diff() > 0).all() or nodes[0] < sde.t_min or nodes[-1] > sde.T:
        raise ValueError(f"nodes must be two or more rising times between t_min = {sde.t_min:g} and T = {sde.T:g}")
    return nodes
