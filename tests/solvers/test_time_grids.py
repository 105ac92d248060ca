"""Time grids: each is equally spaced in the variable that it is named for."""

import math

import pytest
import torch

from score_sde import DDIM, ProbabilityFlow
from score_sde.solvers.time_grids import TIME_GRIDS, CosineGrid, EDMGrid, ExplicitGrid, PowerGrid, as_grid, time_grid
from tests.oracles import SDE_CASES, mixture

VARIABLES = {
    "uniform": lambda sde, t: t,
    "quadratic": lambda sde, t: t.sqrt(),
    "log_snr": lambda sde, t: sde.log_snr(t),
    "edm": lambda sde, t: (sde.sigma(t) / sde.alpha(t)) ** (1 / 7),
    "cosine": lambda sde, t: torch.atan2(sde.sigma(t), sde.alpha(t)),
}


@pytest.mark.parametrize("grid", TIME_GRIDS)
def test_steps_are_equal_in_the_grids_own_variable(grid, sde):
    t_from, t_to = 0.95 * sde.T, 0.05 * sde.T
    steps = VARIABLES[grid](sde, time_grid(grid, sde, t_from, t_to, 9)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(9), rtol=1e-5, atol=1e-9)


def test_every_grid_is_tested():
    assert set(VARIABLES) == set(TIME_GRIDS)


def test_edm_on_its_own_process():
    """sigma_i of Karras et al. 2022, Eq. 5, for their sigma from 80 to 0.002 in 18 levels."""
    from score_sde import VESDE

    sde = VESDE(sigma_min=0.002, sigma_max=80.0)
    times = time_grid("edm", sde, sde.T, sde.t_min, 17)
    low = float(sde.sigma(sde.t_min))
    i = torch.arange(18, dtype=torch.float64)
    expected = (80 ** (1 / 7) + i / 17 * (low ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(sde.sigma(times), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("grid", TIME_GRIDS)
def test_grids_run_forwards_too(grid, sde):
    back, forth = (time_grid(grid, sde, *ends, 7) for ends in ((sde.T, 0.1 * sde.T), (0.1 * sde.T, sde.T)))
    torch.testing.assert_close(forth, back.flip(0), rtol=1e-9, atol=1e-12)


def test_an_explicit_list_is_used_as_it_is():
    score = mixture().score(SDE_CASES["vp"])
    for grid in (ExplicitGrid((1.0, 0.6, 0.3, 0.1)), "1,0.6,0.3,0.1"):
        solver = DDIM(grid=grid)
        assert solver.steps == 3
        drawn = solver.sample(score, (2, 2), t_end=0.1, trajectory=True)
        assert drawn.times == (1.0, 0.6, 0.3, 0.1)
        assert drawn.nfe == 3


def test_an_explicit_list_is_cut_at_the_end_of_sampling():
    score = mixture().score(SDE_CASES["vp"])
    drawn = DDIM(grid="1,0.6,0.3,0.1").sample(score, (2, 2), t_end=0.2, trajectory=True)
    assert drawn.times == (1.0, 0.6, 0.3, 0.2)


def test_an_explicit_list_has_its_own_number_of_steps():
    solver = DDIM(grid="1,0.6,0.3,0.1")
    assert solver.with_budget(3) == solver
    with pytest.raises(ValueError, match="explicit list of 3 steps, and 5 evaluations are not theirs"):
        solver.with_budget(5)


def test_fixed_steps_of_the_ode_take_lists_too():
    solver = ProbabilityFlow(method="euler", grid="1,0.6,0.3,0.1")
    assert solver.steps == 3
    assert solver.sample(mixture().score(SDE_CASES["vp"]), (2, 2), t_end=0.1).nfe == 3
    with pytest.raises(ValueError, match="explicit list of 3 steps, and 2 evaluations are not theirs"):
        solver.with_budget(2)


def test_a_list_that_does_not_reach_the_end_is_refused():
    with pytest.raises(ValueError, match=r"from 1 to 0.1, which does not reach from 1 to 1e-05: give times that do"):
        DDIM(grid="1,0.6,0.3,0.1").sample(mixture().score(SDE_CASES["vp"]), (2, 2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: as_grid("log-snr"), "unknown time grid 'log-snr', did you mean log_snr"),
        (lambda: as_grid("1,0.5,x"), "numbers separated by commas, in falling order"),
        (lambda: as_grid("0.1,0.5"), "at least two times in falling order"),
        (lambda: as_grid("inf,0.5"), "in falling order"),
        (lambda: as_grid("1,-0.5"), "in falling order"),
        (lambda: ExplicitGrid((1.0,)), "at least two times in falling order"),
        (lambda: ExplicitGrid((1.0, math.nan, 0.5)), "in falling order"),
        (lambda: PowerGrid(0.0), "power must be positive"),
        (lambda: EDMGrid(-1.0), "rho must be positive"),
    ],
)
def test_bad_grids_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_grid_object_of_ones_own_works():
    score = mixture().score(SDE_CASES["ve"])
    assert DDIM(steps=6, grid=EDMGrid(rho=3.0)).sample(score, (2, 2)).nfe == 6
    assert DDIM(steps=6, grid=CosineGrid()).with_budget(4).steps == 4
