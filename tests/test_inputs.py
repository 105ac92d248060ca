"""What can only be a mistake is refused where it enters, before it becomes a number that looks right."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from score_sde import (
    DDIM,
    EDM,
    VESDE,
    VPSDE,
    AdaptiveSDE,
    AnnealedLangevin,
    DataSpec,
    DualWeighted,
    EulerMaruyama,
    ExactDivergence,
    GaussianMixture,
    Hutchinson,
    HutchPlusPlus,
    PredictorCorrector,
    ProbabilityFlow,
    ScoreModel,
    SubVPSDE,
    UniPC,
    bits_per_dim,
    class_posterior,
    decode,
    encode,
    fit_dequantizer,
    interpolate,
    log_likelihood,
    match_moments,
    sample_with_log_prob,
    tune,
)
from score_sde.data import TensorSource
from score_sde.likelihood import continuous_bound, discrete_bound
from score_sde.networks import MLP
from score_sde.score import ClassScore, ClippedScore
from tests.oracles import SDE_CASES, mixture

MIX = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64), [0.05, 0.1])
SCORE = MIX.score(VPSDE())
SPEC = DataSpec((2,), levels=16)
MODEL = ScoreModel(MLP((2,), width=8, depth=1, classes=3), VPSDE(), SPEC)
X = torch.zeros(3, 2, dtype=torch.float64)
WHOLE = torch.zeros(3, 2, dtype=torch.long)
NAN = torch.tensor([[0.0, 0.0], [math.nan, 0.0]], dtype=torch.float64)


def sampled(**options):
    return DDIM(steps=2).sample(SCORE, **{"shape": None if "x_T" in options else (3, 2), **options})


STATES = {  # what takes a batch of states
    "log_likelihood": lambda x: log_likelihood(SCORE, x),
    "log_likelihood, dual": lambda x: log_likelihood(SCORE, x, solver=DualWeighted()),
    "class_posterior": lambda x: class_posterior(SCORE, x, 2),
    "encode": lambda x: encode(SCORE, x),
    "decode": lambda x: decode(SCORE, x),
    "interpolate": lambda x: interpolate(SCORE, x, x, [0.5]),
    "sample": lambda x: sampled(x_T=x),
    "sample_with_log_prob": lambda x: sample_with_log_prob(SCORE, tuple(x.shape), x_T=x),
    "log_prob": MIX.log_prob,
    "log_prob at t": lambda x: SCORE.log_prob(x, 0.5),
}


@pytest.mark.parametrize("entry", STATES)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (WHOLE, "must hold floating-point numbers, got torch.int64"),
        (WHOLE == 0, "must hold floating-point numbers, got torch.bool"),
        (X.to(torch.complex64), "must hold floating-point numbers, got torch.complex64"),
        (NAN, "holds NaN or infinite values"),
        (NAN.nan_to_num(nan=math.inf), "holds NaN or infinite values"),
        (X[:, :1], r"shape \(B, 2\), got \(3, 1\)|samples of shape \(2,\), got \(1,\)"),
        (X[0], r"shape \(B, 2\), got \(2,\)"),
        (X[:, None], r"shape \(B, 2\), got \(3, 1, 2\)"),
        (X[:0], "at least one sample"),
    ],
    ids=["integers", "booleans", "complex", "nan", "infinite", "narrow", "one", "deep", "empty"],
)
def test_states_are_finite_floats_of_the_shape_of_the_data(entry, x, message):
    with pytest.raises(ValueError, match=message):
        STATES[entry](x)


def test_solve_takes_no_integers_either():
    """A Runge-Kutta method gave integers back, in the dtype of what it was given."""
    for solver in (DDIM(steps=2), ProbabilityFlow(method="rk45"), AdaptiveSDE()):
        with pytest.raises(ValueError, match="floating-point"):
            solver.solve(SCORE, WHOLE, 1.0, 0.1)
        for ends in ((1.0, math.nan), (1.5, 0.1), (1.0, -0.1)):
            with pytest.raises(ValueError, match="must lie between 0 and T = 1"):
                solver.solve(SCORE, X, *ends)


@pytest.mark.parametrize("t", [1e-6, 0.0, -1.0, 1.0, 2.0, math.nan])
def test_times_lie_where_the_score_is_known(t):
    """The score is not known below the SDE's t_min: log p at 1e-6 was computed all the same."""
    for call in (
        lambda: log_likelihood(SCORE, X, t_min=t),
        lambda: sampled(t_end=t),
        lambda: tune(SCORE, (2,), [4], pilot=8, trials=10, t_end=t),
    ):
        with pytest.raises(ValueError, match="must lie between t_min = 1e-05 and T = 1"):
            call()
    if not 0 <= t <= 1:
        with pytest.raises(ValueError, match="t must lie between 0 and T = 1"):
            SCORE.log_prob(X, t)


def test_log_prob_at_a_later_time_is_that_of_the_noised_mixture():
    found = log_likelihood(SCORE, X, t_min=0.3).log_prob
    torch.testing.assert_close(found, SCORE.log_prob(X, 0.3), rtol=0, atol=1e-3)


TWO = torch.ones(2, dtype=torch.float64)


@pytest.mark.parametrize(
    "clip",
    [
        (1, -1),
        (1, 1),
        (math.nan, 1.0),
        (-1.0, math.inf),
        (1.0,),
        (TWO, -TWO),
        (-TWO, math.nan * TWO),
        (TWO,),
        (TWO, TWO),
        1.0,
        ("0", "1"),
    ],
    ids=str,
)
def test_a_clip_rises(clip):
    with pytest.raises(ValueError, match="clip must be two finite numbers, the smaller one first"):
        sampled(clip=clip)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_clipping_that_clips_nothing_changes_nothing(name):
    """(alpha x0 - x) / sigma^2 had lost its digits: under sub-VP in float32 the score at t_min was off by 5e4."""
    score = mixture(dtype=torch.float32).score(SDE_CASES[name])
    x, t = score.mixture.sample(64, seed=0), torch.full((64,), score.sde.t_min)
    torch.testing.assert_close(ClippedScore(score, -1e3, 1e3)(x, t), score(x, t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1 + 1j])
def test_a_mixture_is_made_of_finite_real_numbers(wrong):
    good = {"means": [[0.0], [1.0]], "covariances": [0.1, 0.1], "weights": [0.5, 0.5]}
    for name, bad in (("means", [[wrong], [1.0]]), ("covariances", [wrong, 0.1]), ("weights", [wrong, 0.5])):
        with pytest.raises(ValueError, match=f"{name} must be finite real numbers"):
            GaussianMixture(**{**good, name: bad})


def test_a_point_has_no_density():
    point = GaussianMixture([[0.0, 1.0]], [0.0])
    with pytest.raises(ValueError, match="a variance is zero, so the mixture has no density"):
        point.log_prob(torch.zeros(1, 2))
    assert point.score(VPSDE()).log_prob(torch.zeros(1, 2), 0.5).isfinite()


@pytest.mark.parametrize(
    "cond",
    [
        torch.tensor([0.0, 1.5, 1.0]),
        torch.tensor([True, False, True]),
        torch.tensor([0, 7, 1]),
        torch.tensor([0, -1, 1]),
        torch.tensor([0]),
        torch.tensor([0, 1]),
        torch.tensor([[0], [1], [1]]),
        torch.tensor(1),
        [0, 1, 1],
    ],
    ids=str,
)
@pytest.mark.parametrize("score", [SCORE, MODEL], ids=["mixture", "network"])
def test_a_class_is_a_whole_number_that_there_is(score, cond):
    x, wrong = X.to(score.dtype), "classes|cond must hold one condition"
    with pytest.raises(ValueError, match=wrong):
        score(x, torch.full((3,), 0.5), cond)
    for call in (
        lambda: DDIM(steps=2).sample(score, (3, 2), cond=cond),
        lambda: log_likelihood(score, x, cond=cond),
        lambda: encode(score, x, DDIM(steps=2), cond=cond),
    ):
        with pytest.raises(ValueError, match=wrong):
            call()


def test_a_network_that_only_says_its_classes_is_told_whole_ones():
    class Rounding(nn.Module):
        classes = 3

        def forward(self, x, t, cond=None):
            return x * (1 + cond.long())[:, None]

    model = ScoreModel(Rounding(), VPSDE(), SPEC)
    for cond in (torch.tensor([0.5, 1.0, 2.0]), torch.tensor([4, 0, 0]), torch.tensor([-1, 0, 0])):
        with pytest.raises(ValueError, match="classes"):
            model(X.float(), torch.full((3,), 0.5), cond)


def test_one_class_is_one_that_there_is():
    for score, known in ((SCORE, 2), (MODEL, 3)):
        for wrong in (1.5, math.nan, True, -1, known):
            with pytest.raises(ValueError, match=r"a class must be|there is no class"):
                ClassScore(score, wrong)
        ClassScore(score, np.int64(known - 1))


@pytest.mark.parametrize("classes", [0, -1, 2.0, True, 5, torch.zeros(0), torch.tensor([0.5, 1.0])])
def test_class_posterior_is_over_classes_that_there_are(classes):
    with pytest.raises(ValueError, match="class"):
        class_posterior(SCORE, X, classes)


@pytest.mark.parametrize("prior", [[math.nan, 1.0], [math.inf, 1.0], [-1.0, 2.0], [1.0]])
def test_class_posterior_has_a_prior(prior):
    with pytest.raises(ValueError, match="prior must be 2 numbers"):
        class_posterior(SCORE, X, 2, prior=prior)


def test_a_score_and_a_prior_that_would_be_broadcast_are_refused():
    class Narrow:
        sde = VPSDE()

        def __call__(self, x, t, cond=None):
            return -x[:, :1]

    for call in (lambda: DDIM(steps=2).sample(Narrow(), (3, 2)), lambda: log_likelihood(Narrow(), X)):
        with pytest.raises(ValueError, match=r"score of states \(3, 2\) must have their shape, it has \(3, 1\)"):
            call()
    with pytest.raises(ValueError, match="prior must give 3 numbers"):
        log_likelihood(SCORE, X, prior=lambda x: x.square().sum(1, keepdim=True))
    with pytest.raises(ValueError, match="prior must give 3 numbers"):
        sample_with_log_prob(SCORE, (3, 2), prior=lambda x: x.sum())
    narrow = ScoreModel(nn.Linear(2, 1), VPSDE(), SPEC)
    narrow.network.forward = lambda x, t: x[:, :1]
    with pytest.raises(ValueError, match="the network must return the shape of x"):
        narrow(X.float(), torch.full((3,), 0.5))
    with pytest.raises(ValueError, match="one time for each of 3 samples"):
        SCORE.log_prob(X, torch.full((4,), 0.5))
    with pytest.raises(ValueError, match="x0 has the shape"):
        VPSDE().perturb(X, 0.5, torch.zeros(2))


def test_a_model_does_not_round_its_score_to_integers():
    with pytest.raises(ValueError, match="floating-point"):
        MODEL(WHOLE, torch.full((3,), 0.5))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (WHOLE, {"dequantization": None}, "integers have no density without dequantization: choose one of uniform"),
        (WHOLE, {"dequantization": 3}, "dequantization must be one of uniform"),
        (WHOLE, {"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        (WHOLE, {"probes": 1.5}, "probes must be a whole number"),
        (WHOLE, {"audit": math.nan}, "audit must be a whole number"),
        (WHOLE, {"importance_samples": 2.0}, "importance_samples must be a whole number"),
        (WHOLE, {"target_error": math.nan}, "target_error must be positive"),
        (WHOLE, {"target_error": math.inf}, "target_error must be positive"),
        (WHOLE, {"cond": torch.zeros(2, dtype=torch.long)}, "one condition for each of 3 samples"),
        (WHOLE, {"cond": torch.full((3,), 1.5)}, "classes must be integers"),
        (WHOLE + 0.5, {}, "holds fractions"),
        (X.to(torch.complex64), {}, "complex"),
        (X, {"data": DataSpec((2,)), "dequantization": "unifrom"}, "unknown dequantization"),
        (WHOLE, {"data": DataSpec((2,))}, "the values are integers"),
        (X.to(torch.complex64), {"data": DataSpec((2,))}, "integers|complex"),
        (WHOLE.tolist(), {}, "the values must be a tensor"),
    ],
)
def test_bits_per_dim_is_asked_for_what_there_is(values, options, message):
    with pytest.raises(ValueError, match=message):
        bits_per_dim(SCORE, values, **{"data": SPEC, **options})


COUNTS = {
    "steps": [DDIM, UniPC, EulerMaruyama, ProbabilityFlow, EDM, DualWeighted],
    "probes": [Hutchinson, HutchPlusPlus],
    "chunk": [ExactDivergence],
    "corrections": [PredictorCorrector, AnnealedLangevin],
    "levels": [lambda levels: DataSpec((2,), levels=levels)],
    "labels": [lambda labels: ScoreModel(MLP((2,), width=8, depth=1), VPSDE(), SPEC, labels=labels)],
    "count": [lambda count: MIX.sample(count)],
    "sampled_steps": [lambda sampled_steps: discrete_bound(SCORE, WHOLE, data=SPEC, sampled_steps=sampled_steps)],
    "times": [lambda times: continuous_bound(SCORE, WHOLE, data=SPEC, times=times)],
    "draws": [lambda draws: discrete_bound(SCORE, WHOLE, data=SPEC, draws=draws)],
    "batch_size": [lambda batch_size: fit_dequantizer(SCORE, TensorSource(WHOLE, SPEC), batch_size=batch_size)],
    "pilot": [lambda pilot: tune(SCORE, (2,), [4], pilot=pilot)],
    "a number of evaluations": [lambda nfe: tune(SCORE, (2,), [nfe])],
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("wrong", [2.5, math.nan, True, "3"])
def test_counts_are_whole(name, wrong):
    for build in COUNTS[name]:
        with pytest.raises(ValueError, match=f"{name} must be a whole number, got"):
            build(wrong) if name == "a number of evaluations" or not isinstance(build, type) else build(**{name: wrong})


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(wrong):
    for build in (
        lambda: VPSDE(T=wrong),
        lambda: VPSDE(beta_max=wrong),
        lambda: SubVPSDE(beta_min=wrong),
        lambda: VESDE(sigma_max=wrong),
        lambda: VESDE(t_min=wrong),
        lambda: DataSpec((2,), data_range=(-1.0, wrong)),
        lambda: DataSpec((2,), model_range=(wrong, 1.0)),
        lambda: ProbabilityFlow(rtol=wrong),
        lambda: AdaptiveSDE(atol=wrong),
        lambda: EDM(s_churn=wrong),
        lambda: EDM(s_noise=wrong),
        lambda: ScoreModel(MLP((2,), width=8, depth=1), VPSDE(), SPEC, sigma_data=wrong),
        lambda: interpolate(SCORE, X, X, [0.5, wrong]),
    ):
        with pytest.raises(ValueError, match="finite number, got"):
            build()
    with pytest.raises(ValueError, match="NaN or infinite"):
        match_moments(torch.tensor([[0.0, wrong], [0.0, 1.0]]))


def test_whole_numbers_of_numpy_are_whole():
    assert DDIM(steps=np.int64(3)).sample(SCORE, (2, 2)).nfe == 3
    assert DataSpec((2,), levels=np.uint8(16)).levels == 16


@pytest.mark.parametrize("t", [0.5, None, torch.tensor(0.5), torch.full((1,), 0.5), torch.full((3, 1), 0.5)], ids=str)
def test_a_model_takes_a_time_for_each_sample(t):
    got = re.escape(f"one of shape {tuple(t.shape)}" if isinstance(t, torch.Tensor) else repr(t))
    with pytest.raises(ValueError, match=rf"t must be a tensor of shape \(3,\), one time for each sample, got {got}$"):
        MODEL(X.float(), t)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sde": VPSDE}, r"sde must be an instance of SDE, got the class VPSDE: pass VPSDE\(...\)"),
        ({"sde": "vp"}, "sde must be an instance of SDE, got 'vp'"),
        ({"network": MLP}, r"network must be an instance of Module, got the class MLP: pass MLP\(...\)"),
        ({"data": (2,)}, r"data must be an instance of DataSpec, got \(2,\)"),
        ({"sigma_data": "0.5"}, "sigma_data must be a finite number, got '0.5'"),
    ],
)
def test_a_model_is_made_of_instances(changed, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ScoreModel(**{"network": MODEL.network, "sde": VPSDE(), "data": SPEC, **changed})


@pytest.mark.parametrize("value", ["0.1", None, 1j, math.nan])
def test_a_number_is_no_text(value):
    for call in (lambda: VPSDE(value), lambda: VESDE(sigma_max=value), lambda: ProbabilityFlow(rtol=value)):
        with pytest.raises(ValueError, match=f"must be a finite number, got {value!r}"):
            call()


def test_what_carries_no_sde_is_no_score():
    for call in (
        lambda score: DDIM(steps=2).sample(score, (3, 2)),
        lambda score: DDIM(steps=2).solve(score, X, 1.0, 0.5),
        lambda score: log_likelihood(score, X),
    ):
        with pytest.raises(ValueError, match=r"a score carries its SDE, as .*; a MLP is no score"):
            call(MODEL.network)
        with pytest.raises(ValueError, match="the class ScoreModel is no score"):
            call(ScoreModel)


def test_a_solver_is_an_instance():
    with pytest.raises(TypeError, match=r"a solver must be an instance: DDIM\(\).sample"):
        DDIM.sample(SCORE, (3, 2))
    with pytest.raises(ValueError, match=r"solver must be an instance, ProbabilityFlow\(...\), got the class"):
        log_likelihood(SCORE, X, solver=ProbabilityFlow)


def test_a_shape_is_that_of_the_data():
    for given in (4, 4.0):
        with pytest.raises(ValueError, match=rf"shape must be \(B, 2\), where B is the number of samples, got {given}"):
            DDIM(steps=2).sample(SCORE, given)
    for shape in ((3,), (3, 4), (3, 1, 2), (0, 2), (3, 2.0)):
        with pytest.raises(ValueError, match="shape"):
            DDIM(steps=2).sample(SCORE, shape)
        with pytest.raises(ValueError, match="shape"):
            sample_with_log_prob(SCORE, shape)
    with pytest.raises(ValueError, match="shape"):
        tune(SCORE, (3,), [4])
    with pytest.raises(ValueError, match="dtype must be a floating-point type"):
        DDIM(steps=2).sample(SCORE, (3, 2), dtype=torch.int64)
