"""Orders of the deterministic solvers, moments of all, on mixtures whose answers are known."""

import math
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch

from score_sde import DDIM, EulerMaruyama, GaussianMixture, Langevin, PredictorCorrector, ProbabilityFlow
from score_sde.score import BoundScore
from score_sde.solvers import (
    EDM,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    DPMSolverPP,
    ReverseDiffusion,
    SDEDPMSolverPP,
    StochasticHeun,
    UniPC,
    predictor_corrector,
)
from score_sde.solvers.probability_flow import FIXED, METHODS
from score_sde.tensors import SampleNoise
from tests.oracles import PUBLISHED, SDE_CASES, Given, ScaledScore, check_moments, mixture
from tests.solvers.variants import ALL, DECLARED, with_steps

LOWERED = {
    words: solver
    for words, solver in DECLARED.items()
    if getattr(solver, "lower_order_first", False) or getattr(solver, "lower_order_final", False)
}
FULL = {words: solver for words, solver in DECLARED.items() if words not in LOWERED}


@lru_cache
def converged(name):
    """Four states at t = 0.8 of a mixture, and at 0.5."""
    score = mixture().score(SDE_CASES[name])
    random = torch.Generator().manual_seed(0)
    x = score.sde.sigma(0.8) * torch.randn(4, 2, generator=random, dtype=torch.float64) + score.sde.alpha(0.8)
    return score, x, ProbabilityFlow(method="dopri8", rtol=1e-12, atol=1e-12).solve(score, x, 0.8, 0.5)


def measured_order(solver, name):
    """Slope of the error against the number of steps, between t = 0.8 and 0.5 on a mixture, against a converged solution."""
    score, x, exact = converged(name)
    cost = FIXED[solver.method][1] if isinstance(solver, ProbabilityFlow) else solver.evaluations
    with torch.no_grad():
        found = [with_steps(solver, evaluations // cost).solve(score, x, 0.8, 0.5) for evaluations in (48, 96)]
    errors = [float((end - exact).square().mean().sqrt()) for end in found]
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("case", FULL)
@pytest.mark.covering(1)
def test_measured_order_is_the_declared_one(case, name):
    assert measured_order(FULL[case], name) == pytest.approx(FULL[case].order, abs=0.2)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("case", LOWERED)
@pytest.mark.covering(1)
def test_measured_order_is_at_least_the_declared_one(case, name):
    """Where the ends are of lower order: at these numbers of steps, one step of lower order may not yet be seen."""
    assert measured_order(LOWERED[case], name) > LOWERED[case].order - 0.2


def test_an_order_that_is_not_reached_is_noticed():
    @dataclass(frozen=True)
    class Boasting(DPMSolverPP):
        order = 3

    assert measured_order(Boasting(p=3), "vp") > 2.8
    assert measured_order(Boasting(p=2), "vp") < 2.2


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_ode_reaches_the_converged_solution(method):
    sde = SDE_CASES["vp"]
    score = mixture().score(sde)
    x = float(sde.sigma(0.9)) * torch.randn(4, 2, dtype=torch.float64)
    exact = ProbabilityFlow(method="dopri8", rtol=1e-10, atol=1e-10).solve(score, x, 0.9, 0.3)
    found = ProbabilityFlow(method=method, rtol=1e-6, atol=1e-6, steps=300).solve(score, x, 0.9, 0.3)
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-2 if method == "euler" else 1e-3)


def test_an_easy_batch_does_not_hide_a_hard_sample():
    """One fast oscillation among 63 samples that stand still: its steps, and so its value, are those it takes alone."""
    rates = torch.tensor([40.0] + [0.0] * 63, dtype=torch.float64)[:, None]
    solver, sde = ProbabilityFlow(rtol=1e-4, atol=1e-4), SDE_CASES["vp"]

    def solve(rates):
        return solver.integrate(lambda t, y: rates * torch.cos(rates * t), torch.zeros_like(rates), 0.1, 0.9, sde)

    together, alone = solve(rates), solve(rates[:1])
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-12)
    exact = math.sin(40 * 0.9) - math.sin(40 * 0.1)
    assert abs(float(alone) - exact) < 1e-3


MOMENT_CASES = {
    "euler_maruyama": EulerMaruyama(steps=250),
    "euler_maruyama_log_snr": EulerMaruyama(steps=500, grid="log_snr"),
    "reverse_diffusion": ReverseDiffusion(steps=500),
    "ancestral_beta": Ancestral(steps=400, grid="log_snr", variance="beta"),
    "ancestral_beta_tilde": Ancestral(steps=400, grid="log_snr"),
    "stochastic_heun": StochasticHeun(steps=60),
    "adaptive_sde": AdaptiveSDE(),
    "pc": predictor_corrector(steps=300, snr=0.1),
    "ode": ProbabilityFlow(rtol=1e-5, atol=1e-5),
    "ddim": DDIM(steps=400, grid="log_snr"),
    "ddim_eta": DDIM(steps=400, grid="log_snr", eta=1.0),
    "sde_dpm_solver_pp": SDEDPMSolverPP(steps=200),
    "edm": EDM(steps=150, s_churn=20.0, s_noise=1.0),
    "pc_unipc": PredictorCorrector(UniPC(steps=150, grid="log_snr"), Langevin(snr=0.1)),
    "pc_first": PredictorCorrector(SDEDPMSolverPP(steps=150), Langevin(snr=0.1), corrections=2, first=True),
}

QUICK_MOMENTS = ("euler_maruyama", "ancestral_beta_tilde", "stochastic_heun", "adaptive_sde", "pc", "sde_dpm_solver_pp", "edm")
"""Without those whose step or order is measured elsewhere, or that differ by their grid."""


def test_the_moments_of_every_stochastic_solver_are_checked():
    """Those of annealed Langevin dynamics, which widens its samples, in a test of their own."""
    stochastic = {type(solver) for solver in ALL.values() if solver.stochastic}
    assert stochastic - {AnnealedLangevin} <= {type(solver) for solver in MOMENT_CASES.values() if solver.stochastic}


@pytest.mark.parametrize("case", QUICK_MOMENTS)
def test_mean_and_covariance_of_samples_under_vp(case):
    check_moments(MOMENT_CASES[case], SDE_CASES["vp"])


@pytest.mark.slow
@pytest.mark.parametrize("case", MOMENT_CASES)
def test_mean_and_covariance_of_samples(case, sde):
    check_moments(MOMENT_CASES[case], sde)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_mean_and_covariance_by_the_norm_ratio(name):
    """In 64 dimensions: the rule is biased in few."""
    check_moments(predictor_corrector(steps=150, snr=0.1, rule="norm_ratio"), SDE_CASES[name], mixture((64,)))


def test_ddim_is_exact_for_a_point_mass(sde):
    """All data at one point: epsilon is constant along the flow, and any number of steps gives the point (plus its noise)."""
    point = GaussianMixture(torch.tensor([[0.4, -0.7]], dtype=torch.float64), [0.0])
    score = point.score(sde)
    drawn = DDIM(steps=3).sample(score, (5, 2), seed=0, trajectory=True)
    epsilon = (drawn.trajectory[0] - sde.alpha(sde.T) * point.means) / sde.sigma(sde.T)
    torch.testing.assert_close(drawn.x, sde.alpha(sde.t_min) * point.means + sde.sigma(sde.t_min) * epsilon)


def test_ddim_at_eta_1_draws_from_the_posterior():
    """One step on a point mass with eta = 1: mean and spread of p(x_s | x_t, x0) by Gaussian conditioning."""
    sde = SDE_CASES["subvp"]
    point = GaussianMixture(torch.tensor([[0.5]], dtype=torch.float64), [0.0])
    t, s = (torch.tensor(value, dtype=torch.float64) for value in (0.6, 0.35))
    x_t, z = torch.full((4, 1), 1.1, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    x_s = DDIM(eta=1.0).move(BoundScore(point.score(sde)), x_t, t, s, Given(z))
    # joint Gaussian of (x_s, x_t) given x0: conditioning on x_t
    ratio = sde.alpha(t) / sde.alpha(s)
    gain = ratio * sde.sigma(s) ** 2 / sde.sigma(t) ** 2
    mean = sde.alpha(s) * 0.5 + gain * (1.1 - sde.alpha(t) * 0.5)
    variance = sde.sigma(s) ** 2 - gain * ratio * sde.sigma(s) ** 2
    torch.testing.assert_close(x_s, mean + variance.sqrt() * z)


@pytest.mark.parametrize("rule", ["sigma", "norm_ratio"])
def test_langevin_leaves_a_gaussian_invariant(rule):
    """Iterated on N(0, sigma^2) in many dimensions, the variance settles at sigma^2 / (1 - snr^2), the step's own bias."""
    sde = SDE_CASES["ve"]
    score = BoundScore(GaussianMixture(torch.zeros(1, 400, dtype=torch.float64), [0.0]).score(sde))
    corrector, t = Langevin(snr=0.3, rule=rule), torch.tensor(0.5, dtype=torch.float64)
    sigma = float(sde.sigma(t))
    noise = SampleNoise(0, (50, 400), dtype=torch.float64)
    x = 1.3 * sigma * noise.normal()
    variances = []
    for i in range(200):
        x = corrector.correct(score, x, t, noise)
        if i >= 50:
            variances.append(float(x.var()) / sigma**2)
    assert sum(variances) / len(variances) == pytest.approx(1 / (1 - 0.09), rel=0.01 if rule == "sigma" else 0.03)


def test_norm_ratio_is_capped_where_the_score_vanishes():
    sde = SDE_CASES["ve"]
    score = BoundScore(GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), [0.0]).score(sde))
    t = torch.tensor(0.5, dtype=torch.float64)
    x = torch.zeros(1000, 2, dtype=torch.float64)
    moved = Langevin(snr=0.16, rule="norm_ratio", cap=4.0).correct(score, x, t, SampleNoise(0, x.shape, dtype=torch.float64))
    largest = 4 * 2 * (0.16 * float(sde.sigma(t))) ** 2
    assert moved.var().item() == pytest.approx(2 * largest, rel=0.15)
    uncapped = Langevin(snr=0.16, rule="norm_ratio", cap=1e9)
    assert uncapped.correct(score, x, t, SampleNoise(0, x.shape, dtype=torch.float64)).var() > 1e3 * moved.var()


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_correction_repairs_a_score_that_is_wrong_by_a_factor(name):
    """At equal evaluations, with the score multiplied by 0.8: the covariance of the samples is nearer to the truth."""
    truth = mixture()
    score = ScaledScore(truth.score(SDE_CASES[name]), 0.8)

    def error(solver):
        x = solver.sample(score, (3000, 2), seed=0, denoise=True, dtype=torch.float64).x
        return float((x.T.cov() - truth.covariance()).norm() / truth.covariance().norm())

    corrected = PredictorCorrector(EulerMaruyama(steps=50), Langevin(snr=0.3), corrections=3)
    assert error(corrected) < 0.75 * error(EulerMaruyama(steps=200))
