"""Steps by hand, their history, and the Gaussian from which a step is drawn."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

from score_sde.score import BoundScore
from score_sde.solvers import DEIS, DPMSolverPP, EulerMaruyama, GaussianReference, SDEDPMSolverPP, UniPC
from score_sde.solvers.fixed_steps import TransitionSolver
from score_sde.tensors import SampleNoise
from tests.oracles import SDE_CASES, Around, gaussian, mixture
from tests.solvers.variants import FIXED_STEPS, TO_DATA, variants, with_steps

TRANSITIONS = {words: solver for words, solver in FIXED_STEPS.items() if isinstance(solver, TransitionSolver)}

KEEPING = {
    "unipc": UniPC(p=3, steps=6),
    "unipc final": UniPC(p=3, steps=6, lower_order_final=True),
    "dpm_solver_pp": DPMSolverPP(p=3, steps=6, lower_order_final=True),
    "deis": DEIS(p=3, steps=6, lower_order_first=True),
    "gaussian": GaussianReference(p=3, steps=6, lower_order_final=True),
    "gaussian unit": GaussianReference(p=2, steps=6, reference="unit", corrector=False),
    "sde_dpm_solver_pp": SDEDPMSolverPP(steps=6),
}
"""Methods that keep something from step to step."""


def states(count=3, seed=0):
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noise(x, seed=0):
    return SampleNoise(seed, x.shape, purpose="steps", dtype=x.dtype)


def by_hand(solver, score, x, t_from, t_to):
    """The state after each step: a generator, so that others can take steps in between."""
    bound, random, times = BoundScore(score), noise(x), solver.times(score.sde, t_from, t_to)
    history = solver.begin(bound, x, len(times) - 1)
    for t, s in pairwise(times):
        x, history = solver.step(bound, x, t, s, random, history)
        yield x
    assert history.left == 0


@pytest.mark.parametrize("name", TO_DATA)
def test_steps_by_hand_are_those_of_solve(name):
    """Every variant of every fixed-step solver, to the last bit."""
    score, x = mixture().score(SDE_CASES["vp"]), states()
    for words in variants(name).keys() & FIXED_STEPS:
        solver = with_steps(FIXED_STEPS[words], 6)
        *_, found = by_hand(solver, score, x, 0.9, 0.1)
        assert torch.equal(found, solver.solve(score, x, 0.9, 0.1)), words


@pytest.mark.parametrize("other", KEEPING)
@pytest.mark.parametrize("one", KEEPING)
def test_two_methods_take_turns_on_one_score(one, other):
    score = BoundScore(mixture().score(SDE_CASES["vp"]))
    paths = [(KEEPING[name], states(seed=seed), noise(states())) for seed, name in enumerate((one, other))]
    times = KEEPING[one].times(score.sde, 0.9, 0.1)
    found = [x for _, x, _ in paths]
    histories = [solver.begin(score, x, 6) for solver, x, _ in paths]
    for t, s in pairwise(times):
        for i, (solver, _, random) in enumerate(paths):
            found[i], histories[i] = solver.step(score, found[i], t, s, random, histories[i])
    for (solver, x, _), end in zip(paths, found, strict=True):
        expected = replace(solver, grid=KEEPING[one].grid).solve(score.score, x, 0.9, 0.1)
        assert torch.equal(end, expected)


@pytest.mark.parametrize("name", KEEPING)
def test_a_score_may_solve_by_the_same_method(name):
    @dataclass(frozen=True, eq=False)
    class Solving(Around):
        def __call__(self, x, t, cond=None):
            KEEPING[name].solve(self.inner, 2 * x, 0.8, 0.3)
            return self.inner(x, t, cond)

    score, x = mixture().score(SDE_CASES["vp"]), states()
    expected = KEEPING[name].solve(Around(score), x, 0.9, 0.1)
    assert torch.equal(KEEPING[name].solve(Solving(score), x, 0.9, 0.1), expected)


@pytest.mark.parametrize("name", KEEPING)
def test_a_step_leaves_the_history_that_it_was_given(name):
    """Two steps from one history, with a step elsewhere in between, are the same."""
    solver, score = KEEPING[name], BoundScore(mixture().score(SDE_CASES["vp"]))
    t, s, r = solver.times(score.sde, 0.9, 0.1)[:3]
    x, history = solver.step(score, states(), t, s, noise(states()), solver.begin(score, states(), 6))
    first, _ = solver.step(score, x, s, r, noise(x), history)
    solver.step(score, -x, s, r, noise(x), history)
    again, _ = solver.step(score, x, s, r, noise(x), history)
    assert torch.equal(first, again)


# the Gaussian of a step


def test_who_states_a_transition():
    assert {words.split()[0] for words in TRANSITIONS} == {"euler_maruyama", "reverse_diffusion", "ancestral", "ddim"}


@pytest.mark.parametrize("words", TRANSITIONS)
def test_a_step_is_a_draw_from_its_transition(words, sde):
    solver, score = TRANSITIONS[words], BoundScore(mixture((3, 1)).score(sde))
    x = states(6).reshape(4, 3, 1)
    t, s = torch.tensor([0.7, 0.5], dtype=torch.float64) * sde.T
    mean, std = solver.transition(score, x, t, s)
    assert mean.shape == x.shape
    assert torch.broadcast_shapes(std.shape, x.shape) == x.shape
    z = noise(x).normal()
    moved, _ = solver.step(score, x, t, s, noise(x), solver.begin(score, x, 1))
    assert torch.equal(moved, mean + std * z)
    assert bool(std > 0) == solver.stochastic
    if solver.stochastic:
        torch.testing.assert_close((moved - mean) / std, z)


@pytest.mark.parametrize("words", TRANSITIONS)
def test_a_transition_carries_a_gaussian_along_its_marginals(words, sde):
    """From the law at t to that at s, both known in closed form: the error of a step falls as its square."""
    solver = TRANSITIONS[words]
    score = BoundScore(gaussian(0.4, 0.3).score(sde))
    law = lambda t: (float(sde.alpha(t)) * 0.4, float(sde.alpha(t)) ** 2 * 0.3 + float(sde.sigma(t)) ** 2)
    t = torch.tensor(0.5 * sde.T, dtype=torch.float64)

    def errors(step):
        s = t - step * sde.T
        mean, std = solver.transition(score, torch.tensor([[0.0], [1.0]], dtype=torch.float64), t, s)
        shift, gain = float(mean[0]), float(mean[1] - mean[0])
        (m, v), (expected_m, expected_v) = law(t), law(s)
        return abs(gain * m + shift - expected_m), abs(gain**2 * v + float(std) ** 2 - expected_v)

    coarse, fine = errors(1e-3), errors(5e-4)
    for error, finer in zip(coarse, fine, strict=True):
        assert finer < 0.3 * error + 1e-10


def test_the_noise_of_steps_is_not_that_of_the_start():
    """A solver whose state is its noise: no draw is correlated with another, nor with x_T."""

    @dataclass(frozen=True)
    class Noise(EulerMaruyama):
        def transition(self, score, x, t, s):
            return torch.zeros_like(x), torch.ones_like(t)

    count = 20000
    drawn = Noise(steps=3).sample(mixture().score(SDE_CASES["vp"]), (count // 2, 2), seed=4, trajectory=True)
    correlation = drawn.trajectory.reshape(4, count).corrcoef() - torch.eye(4)
    assert correlation.abs().max() < 5 / count**0.5
