"""The Gaussian reference: exact on its Gaussian, the known methods in its limits, the same in every basis."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from score_sde import DDIM, DPMSolverPP, GaussianMixture, GaussianReference, ProbabilityFlow, UniPC, match_moments
from score_sde.data import DataSpec, Moments, TensorSource, moments
from score_sde.solvers.gaussian import GaussianHistory, Reference
from score_sde.solvers.level import Level
from tests.oracles import SDE_CASES, OwnPrecision, mixture


def gaussian(shape=(3,), seed=0) -> GaussianMixture:
    return mixture(shape, components=1, seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 2), (1, 2, 1, 2)])
def test_one_step_is_exact_for_the_gaussian_itself(shape, dtype, sde):
    """The affine map between marginals, by the closed form of one dimension in the eigenbasis of the covariance."""
    data = mixture(shape, components=1, dtype=dtype)
    score = data.score(sde)
    x = float(sde.sigma(sde.T)) * torch.randn(5, *shape, dtype=dtype)
    found = GaussianReference(steps=1).solve(score, x, sde.T, sde.t_min)
    values, basis = torch.linalg.eigh(data.covariance().double())
    at = lambda t: (sde.alpha(t) ** 2 * values + sde.sigma(t) ** 2).sqrt()
    centred = (x.double() - sde.alpha(sde.T) * data.mean().double()).flatten(1) @ basis
    exact = sde.alpha(sde.t_min) * data.mean().double() + (centred * at(sde.t_min) / at(sde.T) @ basis.mT).reshape(x.shape)
    rounding = max(2e-4, 1e-6 / float(sde.alpha(sde.T)))  # in float32, of the data that x and the score imply at T
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": rounding, "atol": rounding}
    torch.testing.assert_close(found.double(), exact, **close)


def test_unknown_variances_interpolate_the_data_and_known_ones_the_noise():
    """l = 0 makes one node DDIM as any l does; with two nodes it differs from l = infinity."""
    score = mixture().score(SDE_CASES["vp"])
    x = torch.randn(4, 2, dtype=torch.float64)
    zero, huge = (Moments(torch.zeros(2), value * torch.eye(2), None) for value in (0.0, 1e14))
    plain = DDIM(steps=5, grid="log_snr").solve(score, x, 1.0, 0.1)
    for reference in (zero, huge):
        one = GaussianReference(steps=5, p=1, corrector=False, reference=reference)
        torch.testing.assert_close(one.solve(score, x, 1.0, 0.1), plain, rtol=1e-5, atol=1e-5)
    two = [GaussianReference(steps=5, p=2, reference=reference).solve(score, x, 1.0, 0.1) for reference in (zero, huge)]
    assert (two[0] - two[1]).abs().max() > 1e-3


def test_weights_where_nothing_varies_are_those_of_dpm_solver_pp_3m(sde):
    """l = 0: F is x0 and z = x / sigma, so that the weights of three nodes differ by the factor sigma_s."""
    times = torch.tensor([0.8, 0.7, 0.55, 0.35], dtype=torch.float64) * sde.T
    levels = [Level.at(sde, t) for t in times]
    history = GaussianHistory(left=3, reference=Reference(torch.zeros(2), torch.zeros(1, dtype=torch.float64)))
    ours = GaussianReference(p=3).weights(levels[:3], levels[2], levels[3], sde, history)[:, 0].numpy()
    known = DPMSolverPP(p=3).weights(levels[:3], levels[2], levels[3], sde, history)
    np.testing.assert_allclose(levels[3].sigma * ours, known, rtol=1e-9)
    assert sum(known) == pytest.approx(levels[3].alpha * -math.expm1(levels[2].half_log_snr - levels[3].half_log_snr), rel=1e-6)


def test_fourier_and_full_covariance_of_a_stationary_field_agree():
    """The covariance of a stationary field on a ring is diagonal in Fourier's basis: both references are one."""
    sde, side = SDE_CASES["vp"], 8
    distance = torch.minimum(torch.arange(side), side - torch.arange(side)).double()
    row = torch.exp(-(distance**2) / 3)
    full = torch.stack([row.roll(i) for i in range(side)])
    spectrum = torch.fft.fft(row).real[None]
    means = torch.stack([torch.full((1, side), value, dtype=torch.float64) for value in (-1.0, 1.0)])
    score = GaussianMixture(means, torch.stack([full, full]) + 1e-3 * torch.eye(side)).score(sde)
    x = torch.randn(4, 1, side, dtype=torch.float64)
    mean = torch.zeros(1, side, dtype=torch.float64)
    by_matrix, by_fourier = (
        GaussianReference(steps=8, reference=Moments(mean, covariance, values)).solve(score, x, 1.0, 0.01)
        for covariance, values in ((full, None), (None, spectrum))
    )
    torch.testing.assert_close(by_matrix, by_fourier, rtol=1e-8, atol=1e-8)


def test_spectra_of_images_are_taken_as_stored():
    """Moments too large for a matrix: the run's own function, in three dimensions, and a real state back."""
    values = torch.randn(50, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    stored = moments(TensorSource(values, DataSpec((2, 6, 6))), full_up_to=10)
    assert stored.covariance is None
    score = mixture((2, 6, 6), torch.float32).score(SDE_CASES["vp"])
    fourier, exact = GaussianReference(steps=30, reference=stored), ProbabilityFlow(rtol=1e-6, atol=1e-6)
    x = torch.randn(3, 2, 6, 6)
    found = fourier.solve(score, x, 1.0, 0.05)
    assert found.dtype == torch.float32
    assert (found - exact.solve(score, x, 1.0, 0.05)).abs().max() < 0.05


def test_its_own_moments_beat_the_others_on_nearly_gaussian_data():
    """A mixture that is close to one Gaussian: what is interpolated is small."""
    means = 0.1 * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    score = GaussianMixture(means, torch.diag_embed(torch.tensor([[2.0, 0.5, 0.1, 0.01]] * 3).double())).score(SDE_CASES["vp"])
    x = torch.randn(50, 4, dtype=torch.float64)
    exact = ProbabilityFlow(rtol=1e-9, atol=1e-9).solve(score, x, 1.0, 1e-3)
    errors = [
        float((GaussianReference(steps=6, reference=name).solve(score, x, 1.0, 1e-3) - exact).norm())
        for name in ("data", "isotropic", "unit")
    ]
    assert errors[0] < 0.2 * min(errors[1:]), errors


def test_the_fallback_is_isotropic_with_the_scores_sigma_data():
    @dataclass(frozen=True, eq=False)
    class Plain:
        score_parts = ()  # a leaf, without the moments of what it holds
        inner: object
        sigma_data: float

        @property
        def sde(self):
            return self.inner.sde

        def __call__(self, x, t, cond=None):
            return self.inner(x, t, cond)

    inner = mixture().score(SDE_CASES["vp"])
    x = torch.randn(3, 2, dtype=torch.float64)
    of = lambda score, **options: GaussianReference(steps=6, **options).solve(score, x, 1.0, 0.1)
    same = Moments(torch.zeros(2), 0.81 * torch.eye(2), None)
    torch.testing.assert_close(of(Plain(inner, 0.9)), of(inner, reference=same))
    torch.testing.assert_close(
        of(Plain(inner, 0.9), reference="unit"), of(inner, reference=Moments(torch.zeros(2), torch.eye(2), None))
    )
    assert not torch.allclose(of(Plain(inner, 0.9)), of(Plain(inner, 0.3)), atol=1e-4)


def test_a_run_hands_its_moments_to_the_solver(tmp_path):
    from score_sde import load
    from score_sde.config import default_config
    from score_sde.run import build_model, save_model

    config = default_config()
    config.network.name = "mlp"
    spec = DataSpec((2,))
    model = build_model(config.to_dict(), spec)
    stored = Moments(torch.zeros(2).double(), torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double(), None)
    save_model(tmp_path / "run", config.to_dict(), model, step=0, moments=stored)
    loaded = load(tmp_path / "run").model
    solver = GaussianReference(steps=5)
    with_, without = (solver.sample(score, (4, 2), seed=0).x for score in (loaded, model.eval()))
    assert not torch.allclose(with_, without, atol=1e-3)
    torch.testing.assert_close(with_, replace(solver, reference=stored).sample(model, (4, 2), seed=0).x)


def test_moments_matched_to_the_model_itself_do_almost_as_well():
    """Two hundred samples of the model in place of its data, on correlated data: close to the true moments, far from none."""
    factor = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    means = 0.2 * torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    covariance = factor @ torch.diag(torch.tensor([2.0, 1.0, 0.5, 0.1, 0.02, 0.01]).double()) @ factor.mT / 6
    score = GaussianMixture(means, torch.stack([covariance, covariance])).score(SDE_CASES["vp"])
    matched = match_moments(UniPC(steps=20).sample(score, (200, 6), seed=5).x)
    x = torch.randn(100, 6, dtype=torch.float64)
    exact = ProbabilityFlow(rtol=1e-9, atol=1e-9).solve(score, x, 1.0, 1e-3)
    true, own, none = (
        float((GaussianReference(steps=6, reference=reference).solve(score, x, 1.0, 1e-3) - exact).norm())
        for reference in ("data", matched, "isotropic")
    )
    assert own < 0.5 * none, (true, own, none)
    assert own == pytest.approx(true, rel=0.25)


def test_few_samples_are_shrunk():
    """Fewer samples than coordinates: the plain covariance is singular, this one is not."""
    found = match_moments(torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0)))
    assert found.mean.shape == (2, 4)
    assert torch.linalg.eigvalsh(found.covariance).min() > 0.05


@pytest.mark.parametrize("name", ["matrix", "spectrum", "unit"])
def test_half_precision_states_are_combined_in_single(name):
    score = mixture((1, 4), torch.float32).score(SDE_CASES["vp"])
    mean = torch.zeros(1, 4)
    table = {
        "matrix": Moments(mean, 0.5 * torch.eye(4), None),
        "spectrum": Moments(mean, None, 0.5 * torch.ones(1, 4)),
        "unit": "unit",
    }
    solver = GaussianReference(steps=8, reference=table[name])
    x = torch.randn(6, 1, 4)
    half = solver.solve(score, x.bfloat16(), 1.0, 0.1)
    assert half.dtype == torch.bfloat16
    assert (half.float() - solver.solve(score, x, 1.0, 0.1)).abs().max() < 0.1


@pytest.mark.parametrize("name", ["matrix", "spectrum"])
def test_the_basis_is_not_touched_by_autocast(name):
    score = mixture((1, 4), torch.float32).score(SDE_CASES["vp"])
    mean = torch.zeros(1, 4)
    moments = {"matrix": Moments(mean, torch.diag(torch.arange(1.0, 5)), None), "spectrum": Moments(mean, None, mean + 0.5)}
    solver, x = GaussianReference(steps=1, reference=moments[name]), torch.randn(6, 1, 4)
    exact = solver.solve(OwnPrecision(score), x, 1.0, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(solver.solve(OwnPrecision(score), x, 1.0, 0.1), exact)


def test_references_can_be_compared_and_shown():
    one, other = (GaussianReference(reference=Moments(torch.zeros(2), torch.eye(2), None)) for _ in range(2))
    assert one != other
    assert one == replace(one)
    assert "reference=Moments(of events (2,))" in repr(one)


def test_a_reference_of_another_shape_is_refused():
    score = mixture().score(SDE_CASES["vp"])
    wrong = Moments(torch.zeros(3), torch.eye(3), None)
    with pytest.raises(ValueError, match=r"the reference is of events \(3,\), and these are \(2,\)"):
        GaussianReference(steps=3, reference=wrong).sample(score, (2, 2))
    with pytest.raises(ValueError, match="choose one of data, isotropic, unit"):
        GaussianReference(reference="dataa")


def test_levels_say_what_the_sde_says(sde):
    level = Level.at(sde, torch.tensor(0.4 * sde.T, dtype=torch.float64))
    assert level.half_log_snr == pytest.approx(float((sde.alpha(0.4 * sde.T) / sde.sigma(0.4 * sde.T)).log()), rel=1e-6)
    ends = [Level.at(sde, torch.tensor(share * sde.T, dtype=torch.float64)) for share in (0.8, 0.2)]
    middle = Level.between(sde, *ends, 0.5)
    assert middle.half_log_snr == pytest.approx((ends[0].half_log_snr + ends[1].half_log_snr) / 2, rel=1e-6)
