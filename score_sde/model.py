"""A trained network as a score.

A network's output is a score only if several things agree: the SDE, the parameterization, how the network is told the time, and
the map between data and model coordinates. ``ScoreModel`` holds all of them.
"""

import warnings
import weakref
from itertools import chain

import torch
from torch import Tensor, nn

from score_sde.data import DataSpec, Moments
from score_sde.inputs import require_classes, require_finite, require_float, require_kind, require_times, whole
from score_sde.networks.contract import Network, require_condition, state
from score_sde.parameterization import PARAMETERIZATIONS, TIME_INPUTS, Coefficients
from score_sde.score import ClassScore, Ends, NoLearnedVariance, Score
from score_sde.sdes import SDE, FixedNoise
from score_sde.tables import require_name
from score_sde.tensors import Condition, as_time, expand

LEARNED_VARIANCES = ("learned_range", "learned")
"""How a learned variance is read; ``ScoreModel`` says what they mean."""

WORST_ROUNDING = 0.01
"""A model warns where rounding makes its scores wrong by more than this share of their size."""


class ScoreModel(Network):
    """A network with the SDE and the conventions that turn its output into a score.

    Args:
        network: a module that returns the shape of ``x``. It is called as ``network(x, c_noise)``, or as
            ``network(x, c_noise, cond)`` where it is conditional. It may state the attributes of ``networks.Network``; the
            model states the same.
        sde: the forward SDE.
        data: shape, levels and scaling of the data.
        parameterization: what the network predicts, a key of ``PARAMETERIZATIONS``.
        time_input: how the network is told the time, a key of ``TIME_INPUTS``.
        labels: the number of steps of a discrete chain, for the rows of ``TIME_INPUTS`` that count them.
        scale_input: whether the network is given c_in x, of unit scale, or x itself.
        sigma_data: root mean square of the data in model coordinates, about 0; ``edm`` uses it, as parameterization and as
            weighting.
        variance: how the second half of the output is read where the network has learned its variance: ``learned_range``, v
            in log Sigma = (1 + v)/2 log beta + (1 - v)/2 log beta_tilde, or ``learned``, log Sigma itself.

    ``moments`` are those of the training data where they are known. ``load`` sets them, and solvers use them.

    Raises:
        ValueError: a name is unknown, the network states another shape than the data's, ``sigma_data`` is not positive, there
            are fewer than two labels, ``time_input`` is not positive where the network takes its logarithm, the
            parameterization is ``mu`` and the SDE no table of betas, or the SDE is ``FixedNoise`` and the model is told a time,
            or would divide by a sigma of 0.
    """

    score_parts = ()

    def __init__(
        self,
        network: nn.Module,
        sde: SDE,
        data: DataSpec,
        *,
        parameterization: str = "epsilon",
        time_input: str = "label",
        labels: int = 1000,
        scale_input: bool = True,
        sigma_data: float = 0.5,
        variance: str = "learned_range",
    ):
        super().__init__()
        for name, thing, of in (("network", network, nn.Module), ("sde", sde, SDE), ("data", data, DataSpec)):
            require_kind(name, thing, of)
        for kind, name, table in (
            ("parameterization", parameterization, PARAMETERIZATIONS),
            ("time_input", time_input, TIME_INPUTS),
            ("variance", variance, LEARNED_VARIANCES),
        ):
            require_name(kind, name, table)
        if not isinstance(sde, FixedNoise):
            sde.require_ends()
        elif time_input != "none" or (parameterization != "score" and not sde.noise):
            raise ValueError(
                "a model with the SDE fixed is told no time: set its time_input to none"
                f"{'' if sde.noise else ', and its parameterization to score, which divides by no sigma'}"
            )
        require_finite({"sigma_data": sigma_data})
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        whole("labels", labels, 2)
        state(self, network)
        if self.event is not None and tuple(self.event) != data.shape:
            raise ValueError(f"the network was built for samples of shape {self.event}, the data has {data.shape}")
        self.event = data.shape
        if self.takes_logarithm:
            ends = torch.tensor([sde.t_min, sde.T], dtype=torch.float64, device="cpu")
            lowest = TIME_INPUTS[time_input](sde, ends, labels).min().item()
            if not lowest > 0:
                raise ValueError(
                    f"the network takes the logarithm of its noise level, and time_input {time_input!r} goes down to "
                    f"{lowest:.3g}: use time_input sigma, or the network's embedding sinusoidal"
                )
        self.network, self.sde, self.data = network, sde, data
        self.moments: Moments | None = None
        self.parameterization, self.time_input, self.sigma_data = parameterization, time_input, sigma_data
        self.labels, self.scale_input, self.variance = labels, scale_input, variance
        if parameterization.startswith("mu"):
            self.coefficients(sde.T)  # refused where the SDE is no table

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._sample.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self._sample.dtype

    @property
    def _sample(self) -> Tensor:
        """Any parameter, or buffer, of floating-point numbers; a network may have none."""
        weights = chain(self.parameters(), self.buffers())
        return next((weight for weight in weights if weight.is_floating_point()), torch.empty(0))

    def coefficients(self, t: Tensor | float) -> Coefficients:
        """a, b and c_in of score = a x + b F(c_in x, c_noise) at ``t``."""
        t = as_time(t)
        a, b, c_in = PARAMETERIZATIONS[self.parameterization](self.sde, t, self.sigma_data)
        return Coefficients(a, b, c_in if self.scale_input else torch.ones_like(c_in))

    def rounding_error(self, state: torch.dtype, output: torch.dtype) -> float:
        """What rounding of x and of the network's output F leaves of error in the score, as a share of its size 1 / sigma.

        score = a x + b F. Where |a x| is far above 1 / sigma the two nearly cancel, as for ``x0`` where sigma is small:
        score = (alpha x0 - x) / sigma^2. In units of 1 / sigma, rounding of a relative size of eps / 4 leaves
        (|a| |x| sigma) eps / 4 of x and (|a| |x| sigma + 1) eps / 4 of F. The larger of the values at t_min and at T.
        """
        ends = torch.tensor([self.sde.t_min, self.sde.T], dtype=torch.float64, device="cpu")
        a, _, c_in = PARAMETERIZATIONS[self.parameterization](self.sde, ends, self.sigma_data)
        cancelling = (a.abs() / c_in * self.sde.sigma(ends)).max().item()
        return (torch.finfo(state).eps * cancelling + torch.finfo(output).eps * (cancelling + 1)) / 4

    def _warn_of_rounding(self, state: torch.dtype, output: torch.dtype) -> None:
        """Warn once for a model where its score loses most of its digits in these dtypes."""
        judged = _JUDGED.setdefault(self, set())
        if (state, output) in judged or torch.compiler.is_compiling():
            return
        judged.add((state, output))
        error, sde = self.rounding_error(state, output), self.sde
        if error > WORST_ROUNDING:
            warnings.warn(
                f"rounding alone makes the scores of this model wrong by about {error:.2g} of their size at t_min = "
                f"{sde.t_min:g}: parameterization {self.parameterization!r} divides by sigma^2, sigma is "
                f"{float(sde.sigma(sde.t_min)):.2g} there, and the network answers in {str(output).removeprefix('torch.')}. "
                "Take another parameterization, edm, v or epsilon, a larger t_min, or float64 for the states and the network",
                stacklevel=5,
            )

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The score at ``x`` ``(B, *D)`` and ``t`` ``(B,)``, in the dtype of ``x``.

        The network runs in the dtype of its parameters; everything around it, the noise level it is given included, in float32
        or better, as are the points it is given where it says so.
        """
        return self._evaluate(x, t, cond)[0]

    def score_and_variance(self, x: Tensor, t: Tensor, ends: Ends, cond: Condition | None = None) -> tuple[Tensor, Tensor]:
        """The score and the logarithm of the learned variance of a step, by one pass of the network, both ``(B, *D)``.

        log Sigma is in the dtype of ``x`` or, where they have one value for each sample, of ``ends``, if that is more precise.

        Args:
            x, t, cond: as for the score.
            ends: log beta_tilde and log beta of the step, ``()`` or ``(B,)``, between which ``learned_range`` runs: linearly,
                and without bounds (Nichol and Dhariwal 2021, Eq. 15).

        Raises:
            NoLearnedVariance: the network has not learned its variance.
        """
        score, rest = self._evaluate(x, t, cond)
        if rest is None:
            raise NoLearnedVariance("this model has no learned variance: its network was built with learned_variance=False")
        low, high = (expand(end, x) for end in ends)
        if self.variance == "learned":
            return score, rest.to(torch.promote_types(x.dtype, low.dtype) if low.ndim else x.dtype)
        return score, low + (rest.to(x.dtype) + 1) / 2 * (high - low)

    def _evaluate(self, x: Tensor, t: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor | None]:
        """The score, and the second half of the network's output where there is one."""
        require_float("x", x)
        require_times(t, len(x))
        if self.classes and cond is not None:
            require_classes(cond, len(x), self.classes, no_class=self.knows_no_class)
        elif self.cond_shape is not None and cond is not None:
            require_condition(cond, len(x), self.cond_shape)
        precise = torch.promote_types(x.dtype, torch.float32)
        state, t = x.to(precise), t.to(precise)
        a, b, c_in = self.coefficients(t)
        scaled = expand(c_in, state) * state if self.scale_input else state
        noise = TIME_INPUTS[self.time_input](self.sde, t, self.labels)
        # labels run to 999, which a half-precision number does not resolve, nor does it resolve fine structure of x
        dtype = self.dtype if self._sample.numel() else precise  # a network without weights takes states as they are
        exact = torch.promote_types(dtype, torch.float32)
        inputs = scaled.to(exact if self.takes_float32 else dtype), noise.to(exact)
        output = self.network(*inputs) if cond is None else self.network(*inputs, cond)
        returned = output.dtype
        output, rest = output.to(precise).chunk(2, dim=1) if self.learned_variance else (output.to(precise), None)
        self._warn_of_rounding(precise, returned)
        if output.shape != x.shape:
            twice = ", with twice the channels for its learned variance" if self.learned_variance else ""
            raise ValueError(f"the network must return the shape of x, {tuple(x.shape)}{twice}, it gave {tuple(output.shape)}")
        return (expand(a, state) * state + expand(b, state) * output).to(x.dtype), rest


class ClassNeeded(ValueError):
    """A model that knows no samples without a class is told none."""


def score_for_class(model: ScoreModel, class_: int | None) -> Score:
    """The model, told ``class_`` for all samples unless it is None.

    Raises:
        ClassNeeded: the model must be told a class.
        ValueError: there is no such class.
    """
    if class_ is not None and class_ >= model.classes:
        which = f"has classes 0 to {model.classes - 1}" if model.classes else "was trained without classes"
        raise ValueError(f"there is no class {class_}: the model {which}")
    if class_ is None and model.classes and not model.knows_no_class:
        raise ClassNeeded(f"the model must be told one of its {model.classes} classes")
    return model if class_ is None else ClassScore(model, class_)


_JUDGED: weakref.WeakKeyDictionary[ScoreModel, set] = weakref.WeakKeyDictionary()
