"""An SDE without noise at t_min, or without data at T, is named by its cause at the first use, whatever that is."""

import math
from dataclasses import dataclass

import pytest
import torch

from score_sde import (
    DDIM,
    SDE,
    AdaptiveSDE,
    DataSpec,
    DualWeighted,
    ProbabilityFlow,
    ScoreModel,
    bits_per_dim,
    decode,
    encode,
    fit_dequantizer,
    log_likelihood,
    sample_with_log_prob,
    tune,
)
from score_sde.data import TensorSource
from score_sde.likelihood import continuous_bound, discrete_bound
from score_sde.networks import MLP
from score_sde.solvers import SOLVERS
from score_sde.tensors import as_time
from tests.oracles import SDE_CASES, DoubleWellSDE, mixture
from tests.solvers.variants import TO_DATA


@dataclass(frozen=True)
class Straight(SDE):
    """The straight path of flow matching: alpha(1) = 0."""

    def alpha(self, t):
        return 1 - as_time(t)

    def sigma(self, t):
        return as_time(t)


@dataclass(frozen=True)
class Late(Straight):
    """No noise before t = 0.1."""

    def sigma(self, t):
        return (as_time(t) - 0.1).clamp_min(0)


@dataclass(frozen=True)
class Rising(Straight):
    """Data that becomes clearer again."""

    def alpha(self, t):
        return torch.ones_like(as_time(t))

    def sigma(self, t):
        return torch.sin(3 * as_time(t))


@dataclass(frozen=True)
class Negative(Straight):
    def alpha(self, t):
        return torch.cos(as_time(t) * 2)


@dataclass(frozen=True)
class Constant(Straight):
    def alpha(self, t):
        return torch.ones_like(as_time(t))

    def sigma(self, t):
        return torch.ones_like(as_time(t))


FAULTS = {
    "no data at T": (Straight(), r"log-SNR of Straight is -inf at T = 1, .* alpha = 0 and sigma = 1: .* choose T below, 0.999"),
    "no noise at t_min": (Late(T=0.9), r"log-SNR of Late is inf at t_min = 1e-05, .*sigma = 0: .* choose t_min above"),
    "NaN": (Straight(T=1.5), r"log-SNR of Straight is nan at T = 1.5, where alpha = -0.5"),
    "a negative factor": (Negative(), r"log-SNR of Negative is nan at T = 1, where alpha = -0.416"),
    "rising": (Rising(), r"log-SNR of Rising must fall from t_min to T, and is"),
    "constant": (Constant(), r"log-SNR of Constant must fall from t_min to T, and is"),
}
X, SPEC = torch.zeros(2, 2, dtype=torch.float64), DataSpec((2,), levels=4)
USES = {
    **{f"sample, {name}": lambda score, name=name: SOLVERS[name]().sample(score, (2, 2)) for name in TO_DATA},
    "solve": lambda score: DDIM().solve(score, X, 0.8, 0.2),
    "solve, rk45": lambda score: ProbabilityFlow(method="rk45").solve(score, X, 0.8, 0.2),
    "solve, adaptive": lambda score: AdaptiveSDE().solve(score, X, 0.8, 0.2),
    "log_likelihood": lambda score: log_likelihood(score, X),
    "log_likelihood, dual": lambda score: log_likelihood(score, X, solver=DualWeighted()),
    "bits_per_dim": lambda score: bits_per_dim(score, X.long(), data=SPEC),
    "sample_with_log_prob": lambda score: sample_with_log_prob(score, (2, 2)),
    "encode": lambda score: encode(score, X),
    "decode": lambda score: decode(score, X),
    "discrete_bound": lambda score: discrete_bound(score, X.long(), data=SPEC),
    "continuous_bound": lambda score: continuous_bound(score, X.long(), data=SPEC),
    "tune": lambda score: tune(score, (2,), [4]),
    "fit_dequantizer": lambda score: fit_dequantizer(score, TensorSource(X.long(), SPEC)),
    "ScoreModel": lambda score: ScoreModel(MLP((2,), width=8, depth=1), score.sde, SPEC),
}


@pytest.mark.parametrize("use", USES)
def test_the_cause_is_named_at_the_first_use(use):
    for sde, message in FAULTS.values():
        with pytest.raises(ValueError, match=message):
            USES[use](mixture().score(sde))


def test_the_remedy_is_one():
    score = mixture().score(Straight(T=0.999, t_min=1e-3))
    assert DDIM(steps=20).sample(score, (2, 2)).x.isfinite().all()
    exact = score.log_prob(X, 1e-3)
    torch.testing.assert_close(log_likelihood(score, X).log_prob, exact, rtol=0, atol=0.05)


def test_every_sound_sde_passes(sde):
    sde.require_ends()


def test_nothing_is_asked_where_there_is_no_log_snr():
    DoubleWellSDE().require_ends()


def test_it_is_computed_once():
    calls = []

    @dataclass(frozen=True)
    class Counting(Straight):
        def sigma(self, t):
            calls.append(t)
            return as_time(t)

    sde = Counting(T=0.99)
    sde.require_ends()
    known = len(calls)
    for _ in range(3):
        sde.require_ends()
    assert len(calls) == known


def test_it_is_computed_anew_when_a_schedule_has_learned():
    @dataclass(frozen=True)
    class Learned(SDE):
        rate: torch.Tensor = None

        def alpha(self, t):
            return 1 - self.rate * as_time(t)

        def sigma(self, t):
            return as_time(t)

    sde = Learned(rate=torch.tensor(0.9, dtype=torch.float64))
    sde.require_ends()
    sde.rate.fill_(1.0)
    with pytest.raises(ValueError, match="is -inf at T = 1"):
        sde.require_ends()


def test_sdes_of_the_suite_are_all_here():
    assert math.isfinite(sum(float(sde.log_snr(sde.T)) for sde in SDE_CASES.values()))
