"""Objectives: every one of the table keeps the contract, and its minimizer is the score."""

from dataclasses import dataclass

import pytest
import torch

from score_sde import VPSDE
from score_sde.data import Batch
from score_sde.draws import Draws
from score_sde.objectives import OBJECTIVES, WEIGHTINGS, DenoisingScoreMatching, FlowMatching
from score_sde.time_sampling import TIMES
from tests.objectives.fitting import fitting
from tests.oracles import ScaledScore, mixture

CASES = {name: build() for name, build in OBJECTIVES.items()} | {
    "denoising, adaptive": DenoisingScoreMatching(times="adaptive"),
    "flow_matching, adaptive": FlowMatching(times="adaptive"),
}
SHAPES = [(2,), (1, 3), (1, 2, 2), (1, 2, 1, 2)]


@dataclass(frozen=True, eq=False)
class Shifted:
    """A score that is off by a constant."""

    inner: object
    by: float
    sigma_data: float = 0.5

    @property
    def sde(self):
        return self.inner.sde

    def __call__(self, x, t, cond=None):
        return self.inner(x, t, cond) + self.by


@dataclass(frozen=True, eq=False)
class Scaled(ScaledScore):
    """A score that is off by a factor, for data of a known size."""

    sigma_data: float = 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_an_objective_is_a_function_of_its_draws(name, shape):
    objective = CASES[name]
    score = Shifted(fitting(objective, mixture(shape, torch.float32).score), 0.0)
    batch, state = Batch(torch.randn(6, *shape)), objective.begin(score)
    terms = objective(score, batch, Draws(0, 1, 6), state)
    again = objective(score, batch, Draws(0, 1, 6), state)
    assert terms.loss.shape == (6,)
    assert terms.loss.isfinite().all()
    assert all(part.shape == (6,) for part in terms.parts.values())
    assert torch.equal(terms.loss, again.loss)
    after = objective.learn(state, terms.observed)
    assert {key: value.shape for key, value in after.items()} == {key: value.shape for key, value in state.items()}
    assert not torch.equal(terms.loss, objective(score, batch, Draws(0, 2, 6), state).loss)


@pytest.mark.parametrize("name", CASES)
def test_an_objective_takes_the_samples_of_a_process(name):
    """The losses of the rows of two processes are those of one process, and so is what is observed and learned."""
    objective = CASES[name]
    score = Shifted(fitting(objective, mixture((2,), torch.float32).score), 0.0)
    values, state = torch.randn(6, 2), objective.begin(score)
    whole = objective(score, Batch(values), Draws(0, 1, 6), state)
    parts = [objective(score, Batch(values[rows]), Draws(0, 1, 6, rows=rows), state) for rows in (slice(4), slice(4, 6))]
    torch.testing.assert_close(torch.cat([part.loss for part in parts]), whole.loss)
    gathered = {key: torch.cat([part.observed[key] for part in parts]) for key in whole.observed}
    torch.testing.assert_close(objective.learn(state, gathered), objective.learn(state, whole.observed))


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_minimizer_is_the_score(weighting, times):
    """On samples of a mixture the loss of its exact score is below that of scores beside it, on either side."""
    objective, score = DenoisingScoreMatching(weighting, times), mixture((2,), torch.float32).score(VPSDE())
    batch = Batch(mixture((2,)).sample(2000).float())
    off, state = 0.3, objective.begin(score)
    losses = {by: objective(Shifted(score, by), batch, Draws(0, 0, 2000), state).loss.mean().item() for by in (-off, 0.0, off)}
    assert losses[0.0] < min(losses[-off], losses[off])


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["likelihood", "sigma2", "edm"])
def test_adaptive_times_estimate_the_loss_most_precisely(weighting):
    """The variance between batches is below that of other rules, and the mean is the same, where a score is 10 percent off."""
    score, size, figures = Scaled(mixture((2,), torch.float32).score(VPSDE()), 0.9), 64, {}
    for times in ("adaptive", "uniform", "stratified", "log_snr"):
        objective = DenoisingScoreMatching(weighting, times)
        state, x0 = objective.begin(score), mixture((2,)).sample(400 * size).float().split(size)
        for i in range(200) if state else ():
            state = objective.learn(state, objective(score, Batch(x0[i]), Draws(0, i, size), state).observed)
        means = [objective(score, Batch(x0[i]), Draws(0, i, size), state).loss.double().mean() for i in range(200, 400)]
        figures[times] = torch.stack(means)
    best = figures.pop("adaptive")
    for means in figures.values():
        assert best.var() < means.var()
    other = figures["stratified" if weighting == "edm" else "log_snr"]  # of the others, whose tails may be heavy, the steadiest
    assert abs(best.mean() - other.mean()) < 4 * ((best.var() + other.var()) / 200).sqrt()


def test_the_times_that_are_told_are_those_of_the_loss():
    seen = []

    @dataclass(frozen=True, eq=False)
    class Spy(Shifted):
        def __call__(self, x, t, cond=None):
            seen.append(t)
            return super().__call__(x, t, cond)

    objective, score = DenoisingScoreMatching(), Spy(mixture((2,), torch.float32).score(VPSDE()), 0.0)
    terms = objective(score, Batch(torch.randn(6, 2)), Draws(0, 1, 6), {})
    assert torch.equal(terms.times, seen[0])


@pytest.mark.parametrize(("option", "known"), [("weighting", "sigma2"), ("times", "uniform")])
def test_unknown_names_are_refused(option, known):
    with pytest.raises(ValueError, match=f"unknown {option} 'none'; choose one of {known}"):
        DenoisingScoreMatching(**{option: "none"})
