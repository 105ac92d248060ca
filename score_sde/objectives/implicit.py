r"""Score matching without noise levels: implicit (Hyvärinen 2005) and sliced (Song, Garg, Shi and Ermon 2019).

The score s of a density p that falls to 0 at infinity makes the Fisher divergence E || s - grad log p ||^2 / 2 smallest.
Integration by parts takes the unknown grad log p away,

    implicit     E [ tr grad s + || s ||^2 / 2 ]                                       (Hyvärinen 2005, Eq. 4)

up to a constant. With random vectors v of E v v^T = I, one product of the Jacobian takes the place of D:

    sliced       E [ v^T (grad s) v + (v^T s)^2 / 2 ]                                  (Song et al. 2019, Eq. 8)
    reduced      E [ v^T (grad s) v + || s ||^2 / 2 ], of smaller variance              (ibid., Eq. 9, SSM-VR)

Here each is divided by D, the number of coordinates, as all losses of this package are means over them. The published code
sums, and scales its vectors to unit length in the first form, which divides that loss by D too.

x is the data plus the noise of ``FixedNoise``, which may be 0. Half the denoising loss at that sigma is then the implicit one
up to a constant (Vincent 2011).

What makes these losses wrong is refused. Integers without noise have no density, and the loss falls without bound.
A ReLU, or a maximum, has a derivative that jumps. The gradient of the trace in the weights is partly in these jumps, and
autograd does not see them. What torch.compile makes has no second derivative. The fused attention of torch has none either; the
plain one is taken here. It would not be taken again where activations are recomputed, which is refused too.

Dequantized data is allowed. Its density jumps from bin to bin, so that the loss is bounded only by how steep the network can
be. A little noise helps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from score_sde.composition import modules
from score_sde.data import Batch
from score_sde.divergence import ExactDivergence, GivenProbes, Hutchinson
from score_sde.draws import Draws
from score_sde.model import ScoreModel
from score_sde.networks.recompute import Recomputed
from score_sde.objectives.base import Objective, State, Terms
from score_sde.score import Score, data_of
from score_sde.tensors import batch_time, mean_event, sum_event

Function = Callable[[Tensor], Tensor]

KINKED = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.Threshold,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardshrink,
    nn.Softshrink,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
"""Layers whose derivative jumps."""


class _WithoutLevels(Objective):
    one_level: ClassVar[bool] = True
    differentiates: ClassVar[bool] = True

    def check(self, model: ScoreModel) -> None:
        """As ``Objective.check``; the data must have a density, and the network a continuous derivative.

        Raises:
            ValueError: the SDE is not ``FixedNoise``, the data is integers without noise, the derivative of a layer jumps, or
                activations are recomputed.
        """
        super().check(model)
        data = data_of(model)
        if data is not None and data.levels is not None and not data.dequantize and not model.sde.sigma(model.sde.T) > 0:
            raise ValueError(
                f"{type(self).__name__} of integers has no lower bound: dequantize the data, set the noise of the SDE fixed, "
                "or take the objective denoising_at_sigma"
            )
        for module in modules(model):
            for name, layer in module.named_modules():
                if isinstance(layer, Recomputed) and layer.recompute:
                    raise ValueError(
                        f"{type(self).__name__} takes second derivatives, and these cannot be recomputed through attention: "
                        "set the network's recompute to False"
                    )
                if isinstance(layer, KINKED):
                    raise ValueError(
                        f"{type(self).__name__} needs a network whose derivative is continuous, and that of {name}, a "
                        f"{type(layer).__name__}, jumps: take smooth layers, SiLU or average pooling for example, or the "
                        "objective denoising_at_sigma"
                    )

    def _score(self, model: ScoreModel, batch: Batch, draws: Draws) -> tuple[Function, Tensor]:
        """The score as a function of x, and the samples with noise."""
        x, sde = batch.values, model.sde
        if sde.sigma(sde.T) > 0:
            x = sde.perturb(x, sde.T, draws.normal("noise", x.shape).to(x))
        return lambda x: model(x, batch_time(sde.T, x), batch.cond), x


@dataclass(frozen=True)
class ImplicitScoreMatching(_WithoutLevels):
    """Implicit score matching with the exact trace: D products of the Jacobian a step."""

    def __call__(self, model: ScoreModel, batch: Batch, draws: Draws, state: State) -> Terms:
        return self.terms(*self._score(model, batch, draws))

    def terms(self, score: Score | Function, x: Tensor, vectors: None = None) -> Terms:
        """The loss and its parts ``trace`` and ``square``, whose sum it is.

        Args:
            score: a score with an SDE of one level, or a function of ``x`` alone.
            x: samples, ``(B, *D)``.
            vectors: none: the trace is exact. ``SlicedScoreMatching`` takes them here.
        """
        with sdpa_kernel(SDPBackend.MATH):
            value, trace, _ = ExactDivergence()(_function(score), x)
        return _terms(trace[0] / x[0].numel(), mean_event(value**2) / 2)


@dataclass(frozen=True)
class SlicedScoreMatching(_WithoutLevels):
    """Sliced score matching: one product of the Jacobian for each vector.

    Args:
        vectors: random vectors for each sample.
        distribution: of them: ``rademacher``, ``gaussian``, or ``orthogonal``: on the sphere of radius sqrt(D), those of a
            sample orthogonal to each other.
        reduced: take || s ||^2 in place of (v^T s)^2, which has a smaller variance.

    Raises:
        ValueError: there are no vectors, the distribution is unknown, or, in a step, more are to be orthogonal than there are
            coordinates.
    """

    vectors: int = 1
    distribution: str = "rademacher"
    reduced: bool = True

    def __post_init__(self):
        Hutchinson(self.vectors, self.distribution)

    def __call__(self, model: ScoreModel, batch: Batch, draws: Draws, state: State) -> Terms:
        score, x = self._score(model, batch, draws)
        normal = draws.normal("vectors", (len(x), self.vectors, *x.shape[1:])).to(x).transpose(0, 1)
        return self.terms(score, x, Hutchinson(self.vectors, self.distribution).from_normal(normal))

    def terms(self, score: Score | Function, x: Tensor, vectors: Tensor) -> Terms:
        """The loss, the mean over the vectors, and its parts ``trace`` and ``square``, whose sum it is.

        Args:
            score: a score with an SDE of one level, or a function of ``x`` alone.
            x: samples, ``(B, *D)``.
            vectors: ``(M, B, *D)``, or ``(B, *D)`` for one of each sample; they are taken as they are.
        """
        vectors = vectors.reshape(-1, *x.shape)
        with sdpa_kernel(SDPBackend.MATH):
            value, forms, _ = GivenProbes(vectors)(_function(score), x, vectors)
        if self.reduced:
            square = mean_event(value**2)
        else:
            square = torch.stack([sum_event(v * value) ** 2 for v in vectors]).mean(0) / x[0].numel()
        return _terms(forms.mean(0) / x[0].numel(), square / 2)


def _function(score: Score | Function) -> Function:
    if isinstance(score, Score):
        return lambda x: score(x, batch_time(score.sde.T, x))
    return score


def _terms(trace: Tensor, square: Tensor) -> Terms:
    return Terms(trace + square, {"trace": trace, "square": square})
