"""The contract of an SDE, over every SDE and every way of defining one."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from score_sde import DDIM, SDE, VESDE, VPSDE, SubVPSDE, TabulatedSDE
from score_sde.sdes import SDES, CosineSDE, FixedNoise, LogSNRSDE, StraightSDE, ddpm_schedule
from score_sde.solvers.level import Level
from score_sde.tensors import as_time, batch_time, expand
from tests.oracles import SDE_CASES, DoubleWellSDE, OrnsteinUhlenbeckSDE, QuarterCircleSDE, mixture


def times(sde, count=13):
    return torch.logspace(math.log10(sde.t_min), math.log10(sde.T), count, dtype=torch.float64).clamp(sde.t_min, sde.T)


def test_every_registered_sde_is_tested():
    built = {type(build()) for build in SDES.values()} - {FixedNoise}  # tests/solvers/test_langevin.py
    assert built <= {type(sde) for sde in SDE_CASES.values()}


def test_moment_equations_hold(sde):
    """alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2, integrated by scipy from t_min."""
    t = times(sde)

    def slope(time, y):
        f, g = float(sde.drift_coefficient(time)), float(sde.diffusion(time))
        return [f * y[0], 2 * f * y[1] + g**2]

    start = [float(sde.alpha(sde.t_min)), float(sde.sigma(sde.t_min)) ** 2]
    solved = solve_ivp(
        slope, (sde.t_min, sde.T), start, t_eval=t.numpy(), rtol=1e-9, atol=1e-14, method="DOP853", max_step=0.03
    )
    np.testing.assert_allclose(sde.alpha(t).numpy(), solved.y[0], rtol=2e-6)
    np.testing.assert_allclose(sde.sigma(t).numpy() ** 2, solved.y[1], rtol=2e-5)


def test_moments_agree_with_simulation(sde):
    """Euler-Maruyama on the forward SDE from a point: mean and standard deviation near T within four standard errors.

    Not at T itself, where the drift of some SDEs is too strong for equal steps.
    """
    count, steps, end = 4000, 1000, 0.95 * sde.T
    random = torch.Generator().manual_seed(0)
    x0 = 0.7
    x = sde.alpha(0.0) * x0 + sde.sigma(0.0) * torch.randn(count, 1, generator=random, dtype=torch.float64)
    grid = torch.linspace(0, end, steps + 1, dtype=torch.float64)
    for t, s in itertools.pairwise(grid):
        middle = (t + s) / 2  # midpoint coefficients: the scheme's own bias is then far below the noise
        z = torch.randn(count, 1, generator=random, dtype=torch.float64)
        x = x + sde.drift(x, middle) * (s - t) + sde.diffusion(middle) * (s - t).sqrt() * z
    std = float(sde.sigma(end))
    assert abs(x.mean() - x0 * float(sde.alpha(end))) < 4 * std / count**0.5
    assert abs(x.std() / std - 1) < 4 / (2 * count) ** 0.5 + 2e-3


def test_drift_and_diffusion_agree_with_autograd(sde):
    """f = (log alpha)' and g^2 = (sigma^2)' - 2 f sigma^2, differentiated here, for SDEs that write both in closed form."""
    t = times(sde)[1:-1].requires_grad_()
    if type(sde).__name__ == "NoisyStartSDE":
        slope = torch.zeros_like(t)
    else:
        (slope,) = torch.autograd.grad(sde.alpha(t).log().sum() + 0 * t.sum(), t)
    (growth,) = torch.autograd.grad((sde.sigma(t) ** 2).sum(), t)
    g2 = growth - 2 * slope * sde.sigma(t) ** 2
    torch.testing.assert_close(sde.drift_coefficient(t.detach()), slope, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sde.diffusion(t.detach()) ** 2, g2.detach(), rtol=1e-6, atol=1e-9)


def test_float32_agrees_with_float64_down_to_t_min(sde):
    t = times(sde)
    for name in ("alpha", "sigma", "diffusion", "drift_coefficient"):
        exact, single = getattr(sde, name)(t.float().double()), getattr(sde, name)(t.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), exact, rtol=5e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(sde.log_snr(t.float()).double(), sde.log_snr(t.float().double()), rtol=1e-5, atol=1e-5)


def test_log_snr_is_finite_falls_and_has_its_inverse(sde):
    t = times(sde, 50)
    log_snr = sde.log_snr(t)
    assert log_snr.isfinite().all()
    assert (log_snr.diff() < 0).all()
    torch.testing.assert_close(log_snr, 2 * (sde.alpha(t) / sde.sigma(t)).log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sde.inverse_log_snr(log_snr), t, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(sde.inverse_log_snr(log_snr.float()).double(), t, rtol=2e-4, atol=1e-6)


def test_log_snr_falls_at_the_rate_of_the_likelihood_weight(sde):
    """-d log-SNR / dt = g^2 / sigma^2, by quadrature of the right-hand side."""
    rate = lambda t: float((sde.diffusion(t) / sde.sigma(t)) ** 2)
    for t, s in ((0.1, 0.3), (0.5, sde.T)):
        fallen, _ = quad(rate, t, s, limit=200, epsrel=1e-8)
        assert float(sde.log_snr(t) - sde.log_snr(s)) == pytest.approx(fallen, rel=1e-5)


def test_shapes_and_numbers(sde):
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    t = torch.rand(4, dtype=torch.float64) * 0.9 + 0.05
    assert sde.alpha(t).shape == sde.sigma(t).shape == sde.diffusion(t).shape == t.shape
    assert sde.alpha(0.5).shape == sde.sigma(0.5).shape == sde.diffusion(0.5).shape == ()
    assert sde.drift(x, t).shape == x.shape
    torch.testing.assert_close(sde.drift(x, t), expand(sde.drift_coefficient(t), x) * x)
    torch.testing.assert_close(sde.drift(x, 0.5), sde.drift_coefficient(0.5) * x)
    epsilon = torch.randn_like(x)
    perturbed = sde.perturb(x, t, epsilon)
    for i in range(4):
        torch.testing.assert_close(perturbed[i], sde.alpha(t[i]) * x[i] + sde.sigma(t[i]) * epsilon[i])


def test_prior_has_the_standard_deviation_of_sigma_at_T(sde):
    z = torch.randn(20000, 3, dtype=torch.float64)
    drawn = sde.prior_noise(z)
    std = float(sde.sigma(sde.T))
    assert drawn.std().item() == pytest.approx(std, rel=4 / (2 * 60000) ** 0.5)
    normal = torch.distributions.Normal(0.0, std)
    torch.testing.assert_close(sde.prior_log_prob(drawn), normal.log_prob(drawn).sum(1))


def test_reverse_drift_and_probability_flow(sde):
    """Both leave p_t of a Gaussian invariant: their drifts follow from Fokker-Planck for N(0, v), score = -x / v."""
    x = torch.tensor([[0.3], [-1.2]], dtype=torch.float64)
    t = 0.4
    v = float(sde.alpha(t)) ** 2 * 0.5 + float(sde.sigma(t)) ** 2
    f, g2 = float(sde.drift_coefficient(t)), float(sde.diffusion(t)) ** 2
    # dv/dt = 2 f v + g^2, and the flow of a Gaussian scales x by sqrt(v)
    torch.testing.assert_close(sde.probability_flow(x, t, -x / v), x * (2 * f * v + g2) / (2 * v))
    torch.testing.assert_close(sde.reverse_drift(x, t, -x / v), f * x + g2 * x / v)


def test_equality_and_hash_are_those_of_the_values():
    assert VPSDE() == VPSDE(beta_min=0.1)
    assert VPSDE() != VPSDE(beta_max=10.0)
    assert len({VESDE(), VESDE(), SubVPSDE()}) == 2


def test_tabulated_sde_agrees_with_its_table_at_every_node():
    betas = np.linspace(1e-4, 0.02, 1000)
    sde = ddpm_schedule()
    nodes = torch.arange(1, 1001, dtype=torch.float64) / 1000
    np.testing.assert_allclose(sde.alpha(nodes).numpy() ** 2, np.cumprod(1 - betas), rtol=1e-12)
    # DDPM's table is the discretization of VPSDE(0.1, 20)
    np.testing.assert_allclose(sde.log_snr(nodes[5:]).numpy(), VPSDE().log_snr(nodes[5:]).numpy(), rtol=0.02, atol=0.15)


def test_cosine_is_the_published_schedule():
    """Nichol and Dhariwal 2021, Eq. 17; their table of betas has it at k / N, but for the last, whose beta is cut."""
    t = torch.tensor([1e-3, 0.1, 0.4, 0.6, 0.99], dtype=torch.float64)
    f = lambda t: torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(CosineSDE().alpha(t) ** 2, f(t) / f(torch.zeros_like(t)), rtol=1e-12, atol=0)
    nodes = torch.arange(1, 1000, dtype=torch.float64) / 1000
    table = ddpm_schedule(schedule="cosine")
    torch.testing.assert_close(CosineSDE().log_snr(nodes), table.log_snr(nodes), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosine_loses_no_digits_at_its_ends(dtype):
    """Without shift it is a quarter of a circle; with it, sigma^2 = 2 w tan(theta_0) t and alpha = w (1 - t) / cos(theta_0)."""
    rtol, atol = (1e-6, 0.0) if dtype == torch.float32 else (1e-12, 0.0)
    t = torch.tensor([1e-6, 1e-3, 0.3, 0.7, 0.999], dtype=dtype)
    circle, angle = CosineSDE(shift=0.0), t.double() * math.pi / 2
    torch.testing.assert_close(circle.sigma(t).double(), angle.sin(), rtol=rtol, atol=atol)
    torch.testing.assert_close(circle.alpha(t).double(), ((1 - t.double()) * math.pi / 2).sin(), rtol=rtol, atol=atol)
    torch.testing.assert_close(circle.diffusion(t).double() ** 2, math.pi * angle.tan(), rtol=5 * rtol, atol=atol)
    early, late = torch.tensor(1e-9, dtype=dtype), torch.tensor(1 - 2.0**-20, dtype=dtype)
    rate = math.pi / 2 / 1.008
    assert float(CosineSDE().sigma(early)) ** 2 == pytest.approx(2 * rate * math.tan(0.008 * rate) * 1e-9, rel=1e-6)
    assert float(CosineSDE().alpha(late)) == pytest.approx(rate * 2.0**-20 / math.cos(0.008 * rate), rel=1e-6)


def test_straight_is_a_line_from_the_data_to_the_noise():
    """Its velocity, the drift of the probability-flow ODE for a single point, is epsilon - x0 at every time."""
    sde, t = StraightSDE(), torch.tensor([1e-3, 0.2, 0.9, 0.999], dtype=torch.float64)
    x0, epsilon = torch.randn(2, 4, 3, dtype=torch.float64)
    x = sde.perturb(x0, t, epsilon)
    torch.testing.assert_close(x, x0 + expand(t, x0) * (epsilon - x0))
    velocity = sde.probability_flow(x, t, -epsilon / expand(sde.sigma(t), x))
    torch.testing.assert_close(velocity, epsilon - x0, rtol=1e-9, atol=1e-9)
    early = torch.tensor(1e-5, dtype=torch.float32)
    assert float(sde.log_alpha(early)) == pytest.approx(math.log1p(-float(early)), rel=1e-6)


def test_a_log_snr_is_met_at_its_times_and_falls_between_them():
    times, given = (0.0, 0.1, 0.5, 0.9, 1.0), (12.0, 11.9, 4.0, 3.9, -10.0)
    sde = LogSNRSDE(times=times, log_snrs=given)
    np.testing.assert_allclose(sde.log_snr(torch.tensor(times, dtype=torch.float64)), given, rtol=1e-12)
    axis = torch.linspace(0, 1, 2001, dtype=torch.float64)
    assert (sde.log_snr(axis).diff() < 0).all()
    assert (sde.diffusion(axis) > 0).all()
    torch.testing.assert_close(sde.alpha(axis) ** 2 + sde.sigma(axis) ** 2, torch.ones_like(axis))


def test_a_log_snr_at_many_times_is_that_of_the_sde_it_was_taken_from():
    times = torch.linspace(0, 1, 401, dtype=torch.float64)
    log_snrs = VPSDE().log_snr(times.clamp_min(1e-3))
    log_snrs[0] += 1.0
    sde = LogSNRSDE(times=tuple(times.tolist()), log_snrs=tuple(log_snrs.tolist()))
    t = torch.linspace(0.1, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(sde.log_snr(t), VPSDE().log_snr(t), rtol=0, atol=1e-4)
    torch.testing.assert_close(sde.diffusion(t), VPSDE().diffusion(t), rtol=1e-3, atol=0)


def test_the_log_snr_is_a_line_by_default():
    """The likelihood weighting g^2 / sigma^2 is then 24 at all times."""
    sde, t = LogSNRSDE(), torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(sde.log_snr(t), 14 - 24 * t)
    torch.testing.assert_close((sde.diffusion(t) / sde.sigma(t)) ** 2, torch.full_like(t, 24))


def test_ornstein_uhlenbeck_in_closed_form():
    sde, t = OrnsteinUhlenbeckSDE(t_min=1e-3), torch.tensor([1e-3, 0.01, 0.3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(sde.alpha(t), torch.exp(-3 * t), rtol=1e-12, atol=0)
    torch.testing.assert_close(sde.sigma(t) ** 2, -torch.expm1(-6 * t) * 2 / 3, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", [float, torch.tensor, lambda t: torch.tensor([t])], ids=["number", "0-dimensional", "of one"])
def test_one_time_for_a_whole_batch_is_integrated_once(form, monkeypatch):
    """In every form in which a solver has it: the closed form, at the cost of a single time."""
    x, asked, drift = torch.zeros(500, 2, dtype=torch.float64), [], OrnsteinUhlenbeckSDE.drift
    monkeypatch.setattr(OrnsteinUhlenbeckSDE, "drift", lambda self, x, t: (asked.append(t.numel()), drift(self, x, t))[1])
    found = OrnsteinUhlenbeckSDE(t_min=1e-3).log_snr(batch_time(form(0.375), x))
    assert max(asked) < len(x)
    exact = -6 * 0.375 - math.log(2 / 3 * -math.expm1(-6 * 0.375))
    torch.testing.assert_close(found, torch.full((500,), exact, dtype=torch.float64), rtol=1e-12, atol=0)


def test_one_time_for_a_whole_batch_has_its_gradient():
    """d log-SNR / dt = -g^2 / sigma^2 for each of the batch."""
    t = torch.tensor([0.375], dtype=torch.float64, requires_grad=True)
    found = OrnsteinUhlenbeckSDE(t_min=1e-3).log_snr(t.expand(500))
    (slope,) = torch.autograd.grad(found.sum(), t)
    assert slope.item() == pytest.approx(500 * -4 / (2 / 3 * -math.expm1(-6 * 0.375)), rel=1e-9)


def test_works_in_inference_mode():
    with torch.inference_mode():
        t = torch.tensor([0.5])
        assert QuarterCircleSDE(t_min=1e-3).diffusion(t).isfinite().all()


def test_what_is_known_of_an_sde_is_not_taken_for_another():
    """No dataclass of its own, a field that is a list, a tensor that changes in place: each has its own coefficients."""

    class Scaled(SDE):
        def __init__(self, rate):
            super().__init__(t_min=1e-3)
            object.__setattr__(self, "rate", rate)

        def drift(self, x, t):
            return -self.rate * x

        def diffusion(self, t):
            return torch.full_like(as_time(t), 1.0)

    for sde in (Scaled(1.0), Scaled(2.0)):
        assert float(sde.alpha(0.5)) == pytest.approx(math.exp(-0.5 * sde.rate))
        level = Level.at(sde, torch.tensor(0.5, dtype=torch.float64))
        assert level.alpha == pytest.approx(math.exp(-0.5 * sde.rate))
        assert level is Level.at(sde, torch.tensor(0.5, dtype=torch.float64))

    @dataclass(frozen=True, slots=True)
    class Slotted(SDE):
        rate: float = 1.0

        def alpha(self, t):
            return (-self.rate * as_time(t)).exp()

        def sigma(self, t):
            return (-torch.expm1(-2 * self.rate * as_time(t))).sqrt()

    for rate in (1.0, 2.0):
        level = Level.at(Slotted(rate), torch.tensor(0.5, dtype=torch.float64))
        assert level.alpha == pytest.approx(math.exp(-0.5 * rate))

    @dataclass(frozen=True)
    class Learned(SDE):
        rates: object = None

        def alpha(self, t):
            return (-self.rates[0] * as_time(t)).exp()

        def sigma(self, t):
            return (-torch.expm1(-2 * self.rates[0] * as_time(t))).sqrt()

    rates = torch.tensor([1.0], dtype=torch.float64)
    for sde in (Learned(rates=[1.0]), Learned(rates=rates)):
        for rate in (1.0, 3.0):
            sde.rates[0] = rate
            assert Level.at(sde, torch.tensor(0.5, dtype=torch.float64)).alpha == pytest.approx(math.exp(-0.5 * rate))
            assert float(sde.inverse_log_snr(sde.log_snr(0.5))) == pytest.approx(0.5)
            assert DDIM(steps=5).sample(mixture().score(sde), (2, 2)).x.isfinite().all()


def test_an_sde_needs_one_pair_of_methods():
    @dataclass(frozen=True)
    class Half(SDE):
        def alpha(self, t):
            return t

    with pytest.raises(TypeError, match="alpha and sigma, or drift and diffusion"):
        Half()


def test_nonlinear_drift_says_what_it_cannot_do():
    sde = DoubleWellSDE()
    x = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(sde.reverse_drift(x, 0.5, x), x - x**3 - x)
    for call in (sde.alpha, sde.sigma, sde.log_snr, sde.drift_coefficient):
        with pytest.raises(TypeError, match="not linear in x"):
            call(0.5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VPSDE(t_min=2.0), "t_min must lie"),
        (lambda: VPSDE(beta_min=3.0, beta_max=2.0), "beta_min <= beta_max"),
        (lambda: VESDE(sigma_min=0.0), "sigma_min < sigma_max"),
        (lambda: TabulatedSDE(betas=(0.1,)), "at least two"),
        (lambda: TabulatedSDE(betas=(0.1, 1.5)), "below 1"),
        (lambda: CosineSDE(T=1.0), "T must be below 1"),
        (lambda: CosineSDE(shift=-0.1), "shift must be 0 or more"),
        (lambda: StraightSDE(T=1.0), "T must be below 1"),
        (lambda: LogSNRSDE(times=(0.0, 0.5, 1.0)), "a log_snr for each of two or more times, got 2 for 3"),
        (lambda: LogSNRSDE(times=(0.1, 1.0)), "must rise from 0 to T = 1"),
        (lambda: LogSNRSDE(T=2.0), "must rise from 0 to T = 2"),
        (lambda: LogSNRSDE(times=(0.0, 0.6, 0.6, 1.0), log_snrs=(3.0, 2.0, 1.0, 0.0)), "must rise"),
        (lambda: LogSNRSDE(log_snrs=(-10.0, 14.0)), "log_snrs must fall"),
        (lambda: LogSNRSDE(log_snrs=(math.nan, 14.0)), r"log_snrs\[0\] must be a finite number"),
    ],
)
def test_bad_values_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_noise_level_and_log_snr_say_the_same(sde):
    t = torch.tensor([sde.t_min, 0.3 * sde.T, sde.T], dtype=torch.float64)
    torch.testing.assert_close(-2 * sde.noise_level(t).log(), sde.log_snr(t), rtol=1e-6, atol=1e-6)
