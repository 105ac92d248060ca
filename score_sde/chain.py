r"""The steps of a discrete chain, for training and for likelihood.

A chain has nodes 0 < t_1 < ... < t_N, with the data x0 before t_1 and the prior N(0, sigma^2 I) after t_N. It bounds -log P(x0)
from above by (Ho et al. 2020, Eq. 5; Kingma et al. 2021, Eq. 11)

    KL(q(x_N | x0) || prior) + sum_{k > 1} KL(q(x_{k-1} | x_k, x0) || p(x_{k-1} | x_k)) - log p(x0 | x_1),

each term in expectation over q. ``transitions`` derives the steps of both, and their divergence. Steps are counted from 0: step
k goes from t_{k+1} to the node below it, and step 0 to the data.

For p(x0 | x_1) = N(x0_hat, Sigma_1), beta is sigma_1^2, and beta_tilde, which is 0 in a step to the data, is that of the step
above. The published code of DDPM takes this beta_tilde where the variance is fixed, for beta too, and so does this one.
Integers have the probability of their bin (``decoder``), continuous data the density.
"""

import math

import torch
from torch import Tensor

from score_sde.data import DataSpec
from score_sde.decoder import discretized_gaussian
from score_sde.inputs import whole
from score_sde.sdes import SDE, TabulatedSDE
from score_sde.tensors import expand, sum_event
from score_sde.transitions import step_divergence


class Chain:
    """What the steps between ``nodes`` ``(N,)`` need of the SDE, in float64 on the device of the nodes.

    A step is a whole number, ``()`` or ``(B,)``, from 0 to N - 1.
    """

    def __init__(self, sde: SDE, nodes: Tensor):
        self.sde, self.nodes = sde, nodes
        log_snr, log_variance = sde.log_snr(nodes), 2 * sde.sigma(nodes).log()
        change = log_snr.diff()
        self.gain = torch.cat([torch.zeros_like(nodes[:1]), torch.expm1(-change)])
        log_ratio, log_shrinkage = log_variance.diff(), (-torch.expm1(change)).log()
        self.fixed_ratio = torch.cat([torch.zeros_like(nodes[:1]), log_ratio])
        log_beta = torch.cat([log_variance[:1], log_variance[1:] + log_shrinkage])
        self.log_beta_tilde = torch.cat([log_beta[:1] + log_shrinkage[:1], log_beta[1:] - log_ratio])
        self.log_beta = log_beta

    def variance_ends(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """log beta_tilde and log beta of ``step``, in its shape."""
        return self.log_beta_tilde[step], self.log_beta[step]

    def fixed_excess(self, step: Tensor, v: float) -> Tensor:
        """r = log Sigma - log beta_tilde of a fixed variance, log Sigma = v log beta + (1 - v) log beta_tilde; 0 in step 0."""
        return v * self.fixed_ratio[step]

    def divergence(self, error: Tensor, step: Tensor, r: Tensor) -> Tensor:
        """KL(q || p) of a ``step`` from 1 on, in nats, ``(B,)``.

        Args:
            error: epsilon + sigma score at the node where the step begins, ``(B, *D)``.
            step: the step.
            r: log Sigma - log beta_tilde, of the shape of ``step`` or ``(B, *D)``.
        """
        gain, r = (value if value.ndim > 1 else expand(value, error) for value in (self.gain[step].to(error), r.to(error)))
        return sum_event(step_divergence(error, gain, r))

    def reconstruction(self, x0: Tensor, integers: Tensor | None, error: Tensor, r: Tensor, data: DataSpec) -> Tensor:
        """-log p(x0 | x_1) in nats, ``(B,)``; of continuous data that of its density in model coordinates.

        Args:
            x0: data in model coordinates, ``(B, *D)``.
            integers: the same as integers; None for continuous data.
            error, r: as for ``divergence``, of step 0.
            data: what the data is.
        """
        t = self.nodes[0]
        distance = self.sde.sigma(t) / self.sde.alpha(t) * error
        log_variance = self.log_beta_tilde[0] + (r if r.ndim > 1 else expand(r, error))
        if integers is None:
            density = log_variance + distance**2 * (-log_variance).exp() + math.log(2 * math.pi)
            return sum_event(density.expand_as(error)) / 2
        return -sum_event(discretized_gaussian(integers, x0 + distance, (log_variance / 2).exp(), data))


def chain_nodes(sde: SDE, steps: int | None = None) -> Tensor:
    """The nodes k T / N of a chain of N = ``steps`` steps, ``(N,)``, float64.

    By default they are those of its table for a ``TabulatedSDE``, and of 1000 steps for any other SDE.

    Raises:
        ValueError: there are fewer than two steps, or the first ends below t_min.
    """
    if steps is None and isinstance(sde, TabulatedSDE):
        nodes = sde.nodes()
    else:
        steps = whole("steps", 1000 if steps is None else steps, 2)
        nodes = torch.arange(1, steps + 1, dtype=torch.float64, device="cpu") / steps * sde.T
    if nodes[0] < sde.t_min * (1 - 1e-9):
        raise ValueError(
            f"the first of {len(nodes)} steps ends at t = {nodes[0]:.3g}, below t_min = {sde.t_min:g}, where the score is "
            f"not known: take at most {math.floor(sde.T / sde.t_min * (1 + 1e-9))} steps"
        )
    return nodes
