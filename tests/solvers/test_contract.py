"""What every solver owes to every SDE."""

from dataclasses import dataclass

import pytest
import torch

from score_sde import AnnealedLangevin, EulerMaruyama, Langevin, PredictorCorrector, ProbabilityFlow, SolverError
from score_sde.score import draw_latents
from score_sde.solvers import SOLVERS
from score_sde.solvers.probability_flow import METHODS
from score_sde.solvers.time_grids import TIME_GRIDS, time_grid
from tests.oracles import SDE_CASES, BrokenScore, DoubleWellSDE, OwnPrecision, Recorder, mixture
from tests.solvers.variants import TO_DATA

SOLVER_CASES = {
    **{name: SOLVERS[name]().with_budget(24 if name in ("pc", "ode", "annealed_langevin") else 12) for name in TO_DATA},
    "adaptive_sde_plain": SOLVERS["adaptive_sde"](rtol=0.1, atol=0.1),
    "unipc_3": SOLVERS["unipc"](p=3, steps=12),
    "gaussian_3_isotropic": SOLVERS["gaussian"](p=3, steps=10, corrector=False, reference="isotropic", lower_order_final=True),
    "pc_unipc_first": PredictorCorrector(SOLVERS["unipc"](steps=8, grid="uniform"), Langevin(), first=True),
    "ode_dopri5": ProbabilityFlow(rtol=1e-4, atol=1e-4),
    "ode_rk45": ProbabilityFlow(method="rk45", rtol=1e-4, atol=1e-4),
    "ode_rk4": ProbabilityFlow(method="rk4", steps=6),
    "pc_ddim_norm_ratio": SOLVERS["pc"](steps=8, predictor="ddim", rule="norm_ratio", grid="log_snr"),
    "ddim_eta": SOLVERS["ddim"](steps=12, eta=0.7, grid="quadratic"),
}


@pytest.fixture(params=SOLVER_CASES, ids=str)
def solver(request):
    return SOLVER_CASES[request.param]


@pytest.mark.covering(1)
def test_ranks_and_dtypes(solver, sde):
    for dtype in (torch.float32, torch.float64):
        for shape in ((2,), (3, 2), (1, 2, 2), (2, 1, 2, 2)):
            drawn = solver.sample(mixture(shape, dtype).score(sde), (3, *shape), seed=1)
            assert drawn.x.shape == (3, *shape)
            assert drawn.x.dtype == dtype
            assert drawn.x.isfinite().all()


def test_times_stay_in_range_and_evaluations_are_counted(solver, each_sde):
    recorder = Recorder(mixture().score(each_sde), [])
    drawn = solver.sample(recorder, (4, 2), seed=0, dtype=torch.float64, denoise=True)
    assert drawn.nfe == len(recorder.times)
    assert min(recorder.times) >= each_sde.t_min * (1 - 1e-12)
    assert max(recorder.times) <= each_sde.T
    assert drawn.denoised


@pytest.mark.covering(1)
def test_a_sample_does_not_depend_on_its_batch(solver, sde):
    score = mixture().score(sde)
    together = solver.sample(score, (5, 2), seed=3).x
    later = solver.sample(score, (2, 2), seed=3, first=3).x
    adaptive = getattr(solver, "method", "") == "dopri5"  # its steps are shared by a batch
    torch.testing.assert_close(together[3:], later, rtol=1e-9 if not adaptive else 1e-2, atol=1e-9 if not adaptive else 1e-2)


@pytest.mark.covering(1)
def test_seeds(solver, sde):
    score = mixture().score(sde)
    first = solver.sample(score, (3, 2), seed=0).x
    assert torch.equal(first, solver.sample(score, (3, 2), seed=0).x)
    assert not torch.allclose(first, solver.sample(score, (3, 2), seed=1).x, atol=1e-3)


def test_the_noise_of_steps_is_not_that_of_the_latents(solver):
    """Without a score a VE sample is its latent and noise: where noise is added, it does not go with the latent."""

    @dataclass
    class NoPull:
        sde: object

        def __call__(self, x, t, cond=None):
            return torch.zeros_like(x)

    score, count = NoPull(SDE_CASES["ve"]), 1000
    x_T = draw_latents(score, (count, 1), seed=0, dtype=torch.float64)
    first, other = (solver.sample(score, x_T=x_T, seed=seed, dtype=torch.float64).x for seed in (0, 1))
    if not torch.equal(first, other):
        together = torch.stack([x_T[:, 0], (first - x_T)[:, 0]]).corrcoef()[0, 1]
        assert abs(together) < 4 / count**0.5


@pytest.mark.covering(1)
def test_nan_is_a_named_error(solver, sde):
    score = BrokenScore(mixture().score(sde), lambda t: t < 0.6 * sde.T)
    with pytest.raises(SolverError, match=r"not finite at t = 0\.[0-6].*(step|evaluation) \d+"):
        solver.sample(score, (2, 2), dtype=torch.float64)


def test_trajectory_starts_at_the_prior_and_ends_at_the_sample(solver, each_sde):
    score = mixture().score(each_sde)
    drawn = solver.sample(score, (200, 2), seed=0, trajectory=True)
    assert drawn.trajectory.shape == (len(drawn.times), 200, 2)
    assert drawn.times[0] == each_sde.T
    assert drawn.times[-1] == pytest.approx(each_sde.t_min)
    assert all(later < earlier for earlier, later in zip(drawn.times[:-1], drawn.times[1:], strict=True))
    assert torch.equal(drawn.trajectory[-1], drawn.x)
    assert drawn.trajectory[0].std().item() == pytest.approx(float(each_sde.sigma(each_sde.T)), rel=4 / 800**0.5)


@pytest.mark.covering(1)
def test_given_latents(solver, sde):
    score = mixture().score(sde)
    own = solver.sample(score, (3, 2), seed=5, trajectory=True)
    given = solver.sample(score, x_T=own.trajectory[0], seed=5)
    assert torch.equal(own.x, given.x)
    moved = solver.sample(score, x_T=2 * own.trajectory[0], seed=5, trajectory=True)
    assert torch.equal(moved.trajectory[0], 2 * own.trajectory[0])
    assert not torch.allclose(own.trajectory[1], moved.trajectory[1])


def test_denoising_replaces_the_last_state_by_the_posterior_mean(solver, each_sde):
    score = mixture().score(each_sde)
    t_end = 0.3 * each_sde.T
    plain = solver.sample(score, (3, 2), seed=0, t_end=t_end)
    denoised = solver.sample(score, (3, 2), seed=0, t_end=t_end, denoise=True)
    t = torch.full((3,), t_end, dtype=torch.float64)
    expected = (plain.x + each_sde.sigma(t_end) ** 2 * score(plain.x, t)) / each_sde.alpha(t_end)
    torch.testing.assert_close(denoised.x, expected)
    assert denoised.nfe == plain.nfe + 1
    assert not plain.denoised


def test_clipping_bounds_x0(solver, each_sde):
    """All data lies far outside the clipped interval, so every implied x0 is moved to its end."""
    score = mixture().score(each_sde)
    drawn = solver.sample(score, (3, 2), seed=0, clip=(5.0, 5.5), denoise=True)
    assert drawn.x.min() >= 5.0 - 1e-6
    assert drawn.x.max() <= 5.5 + 1e-6


def test_condition_reaches_the_score(solver, each_sde):
    """A component far from the other: conditional samples lie around it alone."""
    far = mixture(components=2)
    far.means[:] = torch.tensor([[-4.0, -4.0], [4.0, 4.0]])
    cond = torch.tensor([0, 1, 1, 0])
    drawn = solver.sample(far.score(each_sde), (4, 2), seed=0, cond=cond, denoise=True)
    expected = torch.where(cond[:, None] == 1, 4.0, -4.0).expand(4, 2)
    assert (drawn.x - expected).abs().max() < 2.0, (drawn.x - expected).abs().max()


def test_progress_bar_is_shown_when_asked(solver, capsys):
    score = mixture().score(SDE_CASES["vp"])
    solver.sample(score, (1, 2))
    assert capsys.readouterr().err == ""
    solver.sample(score, (1, 2), progress=True)
    assert "%" in capsys.readouterr().err


@pytest.mark.covering(1)
def test_budget_is_kept(solver, sde):
    score = mixture().score(sde)
    for budget in (8, 21):
        spent = solver.with_budget(budget).sample(score, (2, 2)).nfe
        assert budget - 4 < spent <= budget


def test_one_step_works(solver):
    smallest = next(solver.with_budget(n) for n in range(1, 5) if _accepts(solver, n))
    assert smallest.sample(mixture().score(SDE_CASES["vp"]), (1, 2)).x.isfinite().all()


def test_ends_of_the_interval(solver, each_sde):
    """t_end = t_min is the default, and a hair's breadth from T next to nothing happens."""
    score = mixture().score(each_sde)
    assert torch.equal(solver.sample(score, (1, 2), t_end=each_sde.t_min).x, solver.sample(score, (1, 2)).x)
    short = solver.sample(score, (1, 2), t_end=each_sde.T * (1 - 1e-9), trajectory=True)
    moves = isinstance(solver, PredictorCorrector | AnnealedLangevin)  # Langevin steps move whatever the time does
    near = 10.0 if moves else 0.05
    torch.testing.assert_close(short.x, short.trajectory[0], rtol=0, atol=near * float(each_sde.sigma(each_sde.T)))


def _accepts(solver, budget):
    try:
        solver.with_budget(budget)
    except ValueError:
        return False
    return True


def test_deterministic_solvers_invert_themselves():
    """Encoding and decoding again returns the data, to the solver's accuracy."""
    score = mixture().score(SDE_CASES["vp"])
    x = mixture().sample(4, seed=1)
    sde = score.sde
    for solver, tolerance in (
        (ProbabilityFlow(rtol=1e-7, atol=1e-7), 1e-5),
        (SOLVERS["ddim"](steps=1000, grid="log_snr"), 2e-2),
    ):
        latent = solver.solve(score, x, sde.t_min, sde.T)
        torch.testing.assert_close(solver.solve(score, latent, sde.T, sde.t_min), x, rtol=0, atol=tolerance)


def test_stochastic_solvers_refuse_to_run_forwards():
    score = mixture().score(SDE_CASES["vp"])
    with pytest.raises(ValueError, match="from noise to data only"):
        EulerMaruyama(steps=5).solve(score, torch.zeros(1, 2, dtype=torch.float64), 0.1, 0.9)


def test_nonlinear_sde_can_be_sampled_from_its_score():
    """A stationary double well: p_t is exp(2 (x^2/2 - x^4/4)) at all times, and the reverse SDE keeps it."""

    @dataclass(frozen=True)
    class Stationary:
        sde: DoubleWellSDE

        def __call__(self, x, t, cond=None):
            return 2 * (x - x**3)

    density = lambda x: torch.exp(x**2 - x**4 / 2)
    axis = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    second = float((axis**2 * density(axis)).sum() / density(axis).sum())
    # start from the stationary law itself, by inversion of its distribution function
    cdf = density(axis).cumsum(0) / density(axis).sum()
    start = axis[torch.searchsorted(cdf, torch.rand(4000, dtype=torch.float64)).clamp_max(4000)][:, None]
    drawn = EulerMaruyama(steps=400).sample(Stationary(DoubleWellSDE()), x_T=start, seed=0)
    assert drawn.x.square().mean().item() == pytest.approx(second, abs=4 * float(drawn.x.square().std()) / 4000**0.5 + 0.01)


@pytest.mark.parametrize("grid", TIME_GRIDS)
def test_grids_end_where_they_should_and_fall(grid, sde):
    times = time_grid(grid, sde, sde.T, sde.t_min, 17)
    assert times.dtype == torch.float64
    assert times[0] == sde.T
    assert times[-1] == sde.t_min
    assert len(times) == 18
    assert (times.diff() < 0).all()
    if grid == "log_snr":
        steps = sde.log_snr(times).diff()
        torch.testing.assert_close(steps, steps.mean().expand(17), rtol=1e-5, atol=1e-8)


def test_evaluations_are_counted_where_they_happen():
    """A wrapper that evaluates its score twice costs two."""

    @dataclass(frozen=True, eq=False)
    class Twice:
        score: object

        @property
        def sde(self):
            return self.score.sde

        def __call__(self, x, t, cond=None):
            return (self.score(x, t) + self.score(x, t)) / 2

    drawn = EulerMaruyama(steps=7).sample(Twice(mixture().score(SDE_CASES["vp"])), (2, 2), dtype=torch.float64)
    assert drawn.nfe == 14


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EulerMaruyama(steps=0), "steps must be at least 1"),
        (lambda: EulerMaruyama(grid="unifrom"), "choose one of uniform"),
        (lambda: ProbabilityFlow(method="rk5"), "choose one of dopri5"),
        (lambda: ProbabilityFlow(rtol=0.0), "must be positive"),
        (lambda: Langevin(snr=0.0), "snr must lie"),
        (lambda: Langevin(rule="norm"), "choose one of sigma"),
        (lambda: PredictorCorrector(corrections=0), "at least 1"),
        (lambda: PredictorCorrector(predictor=ProbabilityFlow()), "must be a fixed-step solver"),
        (lambda: SOLVERS["pc"](predictor="euler"), "choose one of euler_maruyama"),
        (lambda: SOLVERS["ddim"](eta=1.5), "eta must lie"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_calls_are_refused():
    score = mixture().score(SDE_CASES["vp"])
    with pytest.raises(ValueError, match="give the shape"):
        EulerMaruyama().sample(score)
    with pytest.raises(ValueError, match="x_T has shape"):
        EulerMaruyama().sample(score, (2, 2), x_T=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="t_end must lie between t_min = 1e-05 and T"):
        EulerMaruyama().sample(score, (2, 2), t_end=1.5)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_of_the_ode_exceeds_its_budget(method):
    score = mixture().score(SDE_CASES["vp"])
    for budget in (8, 20):
        assert ProbabilityFlow(method=method).with_budget(budget).sample(score, (2, 2)).nfe <= budget


def test_scipy_giving_up_is_an_error(monkeypatch):
    """torchdiffeq returns the start alone when scipy fails: that must not pass for the result."""
    monkeypatch.setattr("torchdiffeq.odeint", lambda function, y, t, **options: y[None])
    with pytest.raises(SolverError, match="did not reach the end"):
        ProbabilityFlow(method="scipy_solver").sample(mixture().score(SDE_CASES["vp"]), (2, 2))


@pytest.fixture
def elsewhere():
    """Another device is the default, on which values cannot be computed."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.covering(1)
def test_the_default_device_is_nobody_s_business(solver, sde, elsewhere):
    score = mixture_on_cpu().score(sde)
    steps = solver.sample(score, (3, 2), seed=0, device="cpu")
    assert steps.x.device.type == "cpu"
    assert steps.x.isfinite().all()


def mixture_on_cpu():
    with torch.device("cpu"):
        return mixture()


def test_a_lower_precision_around_a_solver_is_for_the_network_alone(solver):
    """A network computes in bfloat16 under autocast; the coefficients of the solver do not."""
    score = OwnPrecision(mixture(dtype=torch.float32).score(SDE_CASES["vp"]))
    exact = solver.sample(score, (4, 2), seed=0).x
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(solver.sample(score, (4, 2), seed=0).x, exact)


def test_a_state_keeps_its_precision(solver):
    score = mixture(dtype=torch.float32).score(SDE_CASES["vp"])
    drawn = solver.sample(score, (4, 2), seed=0, dtype=torch.bfloat16, clip=(-2.0, 2.0), t_end=0.1)
    assert drawn.x.dtype == torch.bfloat16
    assert drawn.x.isfinite().all()


def test_no_samples_are_no_error(solver):
    score = mixture().score(SDE_CASES["vp"])
    if not solver.stochastic and getattr(solver, "method", "") not in ("dopri5", "rk45"):
        assert solver.solve(score, torch.zeros(0, 2, dtype=torch.float64), 1.0, 0.1).shape == (0, 2)
    with pytest.raises(ValueError, match="at least one sample"):
        solver.sample(score, (0, 2))
