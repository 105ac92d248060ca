r"""Variational dequantization: points of a bin drawn from a density that is learned (Ho et al. 2019, Section 3.1).

For any density q(u | k) on the bin [0, 1)^D of the integers k, with x the point k + u in model coordinates,

    -log P(k) <= E_q[log q(x | k) - log p(x)],

and the difference is the divergence KL(q || p on the bin, normalized). q is fitted to a model that stays as it is.

*The flow.* Start from logistic variables e, logit of uniform ones, with density l(e) = sigmoid(e) sigmoid(-e). Affine couplings
(Dinh et al. 2017, Section 3.2) change every other coordinate, in the pattern of a checkerboard, given the rest and k:

    y <- y exp(a) + b,   (a, b) = network(the other y, k),   u = sigmoid(y)
    log q(u | k) = sum [ log l(e) - sum of the a's - log l(y) ]

since sigmoid' = l. The last layer of each network starts at zero: then y = e, and q is uniform on the bin.

*Its training.* u is a function of e and the parameters phi. p does not depend on phi, so the chain rule leaves

    d/dphi E[log p(x)] = E[grad_x log p(x)^T dx/dphi].

The gradient of log p is that of the probability-flow ODE, differentiated with a single probe along a path of few steps. For the
exact score it would be the score at t_min. But a network's score there can be much larger than the gradient, and point
elsewhere: the density of the ODE is smoother. A q that is fitted to the score can do worse than uniform dequantization.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from score_sde.data import DataSource, DataSpec, check_source
from score_sde.divergence import Divergence
from score_sde.inputs import whole
from score_sde.likelihood.dual_weighted import DualWeighted
from score_sde.likelihood.ode import log_likelihood
from score_sde.progress import Progress
from score_sde.score import Score, device_of, dtype_of
from score_sde.sdes import SDE
from score_sde.solvers.base import SolverError
from score_sde.solvers.transport import Transport
from score_sde.tensors import Condition, SampleNoise, derive_seed, sum_event


class VariationalDequantizer(nn.Module):
    """A conditional normalizing flow on the bins of integers, called as any ``Dequantization``.

    Untrained it is uniform dequantization.

    Args:
        spec: description of the integers, vectors ``(d,)`` or signals, images or volumes ``(C, *sides)``.
        couplings: affine couplings, of which every coordinate is moved by every other one.
        width: hidden units, or channels, of their networks.
        depth: hidden layers of their networks.
        max_log_scale: bound on the |a| of a single coupling.

    Raises:
        ValueError: the data is not integer, has more than three sides, or a size is not positive.
    """

    name = "variational"

    def __init__(self, spec: DataSpec, *, couplings: int = 4, width: int = 32, depth: int = 2, max_log_scale: float = 2.0):
        super().__init__()
        if spec.levels is None:
            raise ValueError("continuous data has no bins to dequantize: give a DataSpec with levels")
        if len(spec.shape) > 4:
            raise ValueError(f"events may have one to four dimensions, a channel and up to three sides, got {spec.shape}")
        for name, size in (
            ("couplings", couplings),
            ("width", width),
            ("depth", depth),
            ("max_log_scale", max_log_scale),
        ):
            if not size > 0:
                raise ValueError(f"{name} must be positive, got {size}")
        self.spec, self.max_log_scale = spec, max_log_scale
        self.conditioners = nn.ModuleList(_conditioner(spec.shape, width, depth) for _ in range(couplings))
        indices = torch.meshgrid(*map(torch.arange, spec.shape), indexing="ij")
        self.even: Tensor
        self.register_buffer("even", torch.stack(indices).sum(0) % 2 == 0, persistent=False)

    def forward(self, integers: Tensor, noise: SampleNoise, spec: DataSpec, sde: SDE) -> tuple[Tensor, Tensor]:
        """Integers ``(B, *D)`` to points in model coordinates ``(B, *D)`` and log q there, in nats, ``(B,)``."""
        if spec != self.spec:
            raise ValueError(f"the dequantizer was made for {self.spec}, the model has {spec}")
        u, log_q = self.warp(integers, noise.uniform())
        return spec.dequantized(integers.double(), u).to(noise.dtype), log_q - spec.log_det

    def warp(self, integers: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform numbers to places in the bins of ``integers``, all ``(B, *D)``, and log q(u | k) ``(B,)``, in float64."""
        # float32 has zeros among its uniform numbers, where the logit is infinite
        start = torch.logit(uniform.double().clamp(2**-25, 1 - 2**-25))
        level = 2 * integers.double() / (self.spec.bins - 1) - 1
        dtype = next(self.parameters()).dtype
        y, log_scales = start, torch.zeros_like(start)
        for i, conditioner in enumerate(self.conditioners):
            moved = self.even if i % 2 == 0 else ~self.even
            seen = torch.where(moved, 0, torch.tanh(y / 2))  # 2 u - 1, within [-1, 1] as the levels are
            a, b = conditioner(torch.cat([seen, level], 1).to(dtype)).double().chunk(2, 1)
            a = torch.where(moved, self.max_log_scale * torch.tanh(a / self.max_log_scale), 0)
            y = y * a.exp() + torch.where(moved, b, 0)
            log_scales = log_scales + a
        log_q = sum_event(_log_logistic(start) - log_scales - _log_logistic(y))
        return torch.sigmoid(y).clamp(max=1 - 2**-25), log_q


def _conditioner(shape: tuple[int, ...], width: int, depth: int) -> nn.Sequential:
    """From two numbers per coordinate to two others, at first zero."""
    kinds = (nn.Linear, *(partial(conv, kernel_size=3, padding=1) for conv in (nn.Conv1d, nn.Conv2d, nn.Conv3d)))
    layer, sizes = kinds[len(shape) - 1], [2 * shape[0], *[width] * depth]
    hidden = [part for before, after in pairwise(sizes) for part in (layer(before, after), nn.SiLU())]
    last = layer(width, 2 * shape[0])
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(*hidden, last)


def _log_logistic(y: Tensor) -> Tensor:
    """Log-density of the logistic distribution, the log-derivative of the sigmoid."""
    return logsigmoid(y) + logsigmoid(-y)


def bound(
    flow: VariationalDequantizer,
    model: Score,
    integers: Tensor,
    uniform: Tensor,
    cond: Condition | None = None,
    *,
    solver: Transport = DualWeighted(steps=24, tolerance=0.1, doublings=4),
    divergence: str | Divergence = "hutchinson",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Tensor:
    """log q(x | k) - log p(x) in nats, ``(B,)`` in float64, with a gradient in the parameters of ``flow`` alone.

    Args:
        flow: the dequantizer.
        model: the score.
        integers: ``(B, *D)``.
        uniform: the random numbers, ``(B, *D)``.
        cond: what the score is conditioned on, ``(B, ...)``.
        solver, divergence, seed: as for ``log_likelihood``.
        dtype: in which the score is evaluated.
    """
    u, log_q = flow.warp(integers, uniform)
    x = flow.spec.dequantized(integers.double(), u)
    point = x.detach().to(dtype).requires_grad_()
    found = log_likelihood(model, point, solver=solver, divergence=divergence, cond=cond, seed=seed, differentiable=True)
    log_p = found.log_prob
    (gradient,) = torch.autograd.grad(log_p.sum(), point)
    change = sum_event(gradient.double() * x)
    return log_q - flow.spec.log_det - log_p.detach().double() - (change - change.detach())


def fit_dequantizer(
    model: Score,
    source: DataSource,
    *,
    conditional: bool = False,
    couplings: int = 4,
    width: int = 32,
    steps: int = 150,
    batch_size: int = 32,
    learning_rate: float = 2e-2,
    seed: int = 0,
    progress: bool = False,
) -> VariationalDequantizer:
    """Fit a ``VariationalDequantizer`` to a model, which stays as it is, by the gradient of the bound.

    A step takes as long as the likelihood of three batches or so.

    Args:
        model: any score.
        source: integers to train on; not those whose likelihood is to be measured.
        conditional: whether the model is told what the source tells of each sample. The flow is not told.
        couplings, width: size of the flow.
        steps: updates by Adam.
        batch_size: integers per update.
        learning_rate: at the beginning; it falls to zero along a cosine.
        seed: of the flow's initial weights, the batches and the points.
        progress: show a progress bar.

    Raises:
        DataError: the samples are not what the source says that they are.
        ValueError: an argument is not one of those allowed.
        SolverError: the loss or its gradient is not finite any more.
    """
    model.sde.require_ends()
    spec = source.spec
    for name, number in (("steps", steps), ("batch_size", batch_size)):
        whole(name, number, 1)
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "dequantizer"))
        flow = VariationalDequantizer(spec, couplings=couplings, width=width)
    check_source(source)
    device, dtype = device_of(model), torch.promote_types(dtype_of(model), torch.float32)
    flow = flow.to(device)
    optimizer = torch.optim.Adam(flow.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    random = torch.Generator().manual_seed(derive_seed(seed, "dequantization"))
    with Progress("dequantizer", steps, unit="step", shown=progress) as bar:
        for step in bar.over(range(1, steps + 1)):
            rows = torch.randint(len(source), (batch_size,), generator=random)
            uniform = torch.rand(batch_size, *spec.shape, generator=random, dtype=torch.float64).to(device)
            batch, noise = source.batch(rows).to(device), derive_seed(seed, "dequantizer", step)
            cond = batch.cond if conditional else None
            loss = bound(flow, model, batch.values, uniform, cond, dtype=dtype, seed=noise).mean() / spec.dim
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            if not (loss + norm).isfinite():
                raise SolverError(
                    f"the dequantizer's loss is {loss.item():.3g} and its gradient's norm {norm.item():.3g} at step {step}: "
                    f"check the score at t_min = {model.sde.t_min:g}, or lower learning_rate"
                )
            optimizer.step()
            schedule.step()
    return flow.eval().requires_grad_(False)
