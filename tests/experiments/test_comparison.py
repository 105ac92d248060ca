"""The comparison of solvers: same latents, honest counts and clocks, distances that exact samples do not exceed."""

import csv
import dataclasses
import math
import time
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from score_sde import DDIM, VPSDE, EulerMaruyama, GaussianMixture, ProbabilityFlow
from score_sde.composition import leaves
from score_sde.experiments.comparison import CONVERGED, DATA, Clock, compare, timed
from score_sde.experiments.quantities import QUANTITIES, Measurement
from score_sde.metrics import energy_distance, precision_recall, sliced_wasserstein
from score_sde.report import comparison_table, quality_curve, sample_matrix
from score_sde.score import ClassScore
from score_sde.solvers import SOLVERS, SolverError
from tests.oracles import BrokenScore, mixture
from tests.solvers.variants import TO_DATA

SDE = VPSDE()


@dataclass(frozen=True, eq=False)
class Slow:
    """A network that takes ``seconds`` a call and remembers the states it was called with."""

    inner: object
    seconds: float
    states: list

    score_parts = ()  # it is the network, although it holds a score

    @property
    def sde(self):
        return self.inner.sde

    @property
    def dtype(self):
        return self.inner.dtype

    def __call__(self, x, t, cond=None):
        time.sleep(self.seconds)
        self.states.append(x.clone())
        return self.inner(x, t, cond)


@dataclass(frozen=True)
class Sluggish(DDIM):
    """A solver that takes 10 ms a step for itself."""

    def transition(self, score, x, t, s):
        time.sleep(0.01)
        return super().transition(score, x, t, s)


@pytest.fixture(scope="module")
def found():
    mix = mixture((2,))
    solvers = {"em": EulerMaruyama(), "ddim": DDIM(), "heun": ProbabilityFlow(method="heun2", grid="log_snr")}
    data, other = mix.sample(1000, seed=1), mix.sample(400, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return compare(mix.score(SDE), solvers, [2, 3, 40], data, other=other, samples=200)


def by(comparison, solver, budget):
    (one,) = (m for m in comparison.measurements if (m.solver, m.budget) == (solver, budget))
    return one


# what is measured


@pytest.mark.parametrize("name", TO_DATA)
@pytest.mark.quick("ddim", "pc", "ode", "euler_maruyama", "unipc", "adaptive_sde")
def test_every_solver_starts_from_the_latents_of_the_seed(name):
    """The first call of the network sees the same states for all: those of ``Solver.sample`` from this seed."""
    score = Slow(mixture((2,)).score(SDE), 0.0, [])
    try:
        solver = SOLVERS[name]().with_budget(4)
    except ValueError:
        pytest.skip(f"{name} takes no step in 4 evaluations")
    EulerMaruyama(steps=1).sample(score, (6, 2), seed=7)
    expected = score.states.pop()
    score.states.clear()
    result = compare(score, {name: solver}, [4], mixture((2,)).sample(50), samples=6, seed=7)
    assert torch.equal(score.states[0], expected)  # the converged ODE
    assert result.samples[name, 4] == pytest.approx(solver.sample(score, (6, 2), seed=7).x)
    assert result.samples[name, 4].std() > 0


def test_evaluations_are_counted_and_budgets_kept(found):
    assert [(m.solver, m.budget, m.nfe) for m in found.measurements] == [
        *(("em", n, n) for n in (2, 3, 40)),
        *(("ddim", n, n) for n in (2, 3, 40)),
        *(("heun", n, n - n % 2) for n in (2, 3, 40)),
    ]
    assert found.converged.nfe > 40
    # a budget that buys no further step is not measured again
    assert dataclasses.replace(by(found, "heun", 3), budget=2) == by(found, "heun", 2)
    assert torch.equal(found.samples["heun", 3], found.samples["heun", 2])


def test_time_is_told_apart_in_and_outside_the_network():
    score = Slow(mixture((2,)).score(SDE), 0.005, [])
    result = compare(score, {"sluggish": Sluggish(), "ddim": DDIM()}, [10], mixture((2,)).sample(50), samples=4)
    for m in result.measurements:
        assert m.seconds - m.overhead >= 0.005 * m.nfe
        assert m.seconds > m.overhead > 0
        assert (m.overhead >= 0.01 * m.nfe) == (m.solver == "sluggish")


def test_only_the_leaves_of_a_score_are_timed():
    mix = mixture((2,))
    clock, states = Clock(), []
    wrapped = timed(ClassScore(Slow(mix.score(SDE), 0.01, states), 1), clock)
    x, t = mix.sample(3), torch.full((3,), 0.5, dtype=torch.float64)
    cond = torch.ones(3, dtype=torch.long)
    assert torch.equal(wrapped(x, t), mix.score(SDE)(x, t, cond))
    assert isinstance(wrapped, ClassScore)
    assert [type(leaf) for leaf in leaves(wrapped)] == [Slow]
    assert 0.01 <= clock.seconds < 1


def test_errors_are_those_of_deterministic_solvers(found):
    converged = found.samples[CONVERGED, found.converged.nfe]
    for m in found.measurements:
        x = found.samples[m.solver, m.budget]
        assert x.shape == (200, 2)
        if m.solver == "em":
            assert math.isnan(m.error)
        else:
            assert m.error == pytest.approx((x - converged).square().mean().sqrt().item())
        assert m.distance == pytest.approx(sliced_wasserstein(x, found.data))
        assert (m.energy, m.energy_low, m.energy_high) == pytest.approx(energy_distance(x, found.data))
    assert by(found, "heun", 40).error < by(found, "heun", 2).error / 5
    assert 0 < found.converged.error < 1e-3


def test_the_converged_solution_is_converged():
    """One normal: the ODE scales x_T, so that its solution is known (std of x_t over that of x_T)."""
    mix = GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([0.25]))
    result = compare(mix.score(SDE), {"ddim": DDIM()}, [5], mix.sample(50), samples=40, seed=3)
    std = {t: math.sqrt(0.25 * float(SDE.alpha(t)) ** 2 + float(SDE.sigma(t)) ** 2) for t in (SDE.T, SDE.t_min)}
    x_T = Slow(mix.score(SDE), 0.0, [])
    EulerMaruyama(steps=1).sample(x_T, (40, 3), seed=3)
    exact = x_T.states[0] * std[SDE.t_min] / std[SDE.T]
    solution = result.samples[CONVERGED, result.converged.nfe]
    assert solution == pytest.approx(exact, abs=2e-4)
    assert result.converged.error == pytest.approx((solution - exact)[:32].square().mean().sqrt().item(), rel=0.3)
    assert result.measurements[0].error == pytest.approx(
        (result.samples["ddim", 5] - exact).square().mean().sqrt().item(), rel=0.01
    )


def test_exact_samples_are_as_good_as_data(found):
    """What solves the ODE with the exact score draws from the mixture: every distance is that of data, within its noise."""
    best, floor = by(found, "heun", 40), found.floor
    assert floor.solver == DATA
    for m in (best, found.converged, floor):
        assert m.energy_low < 0 < m.energy_high
        assert min(m.precision, m.recall) > 0.85
    assert best.distance < 3 * floor.distance
    worst = by(found, "em", 2)
    assert worst.distance > 5 * floor.distance
    assert worst.energy_low > floor.energy_high
    assert worst.precision < 0.3


@pytest.mark.slow
def test_the_floor_has_as_many_points_as_there_are_samples(found):
    mix = mixture((2,))
    data, other = mix.sample(1000, seed=1), mix.sample(400, seed=2)
    assert found.floor.distance == pytest.approx(sliced_wasserstein(other[:200], data))
    split = compare(mix.score(SDE), {"ddim": DDIM()}, [2], data, samples=200)
    assert split.floor.distance == pytest.approx(sliced_wasserstein(data[:200], data[200:]))
    assert split.floor.energy == pytest.approx(energy_distance(data[:200], data[200:]).value)
    assert "200 of the held-out data points, judged by the other 800" in split.protocol
    half = compare(mix.score(SDE), {"ddim": DDIM()}, [2], data[:30], samples=200)
    assert half.floor.distance == pytest.approx(sliced_wasserstein(data[:15], data[15:30]))


def test_negative_log_density_under_the_mixture():
    """One normal, stopped where there is noise to be seen: its entropy is known, and so is the density of anything else."""
    mix, sde = GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([0.25])), VPSDE(t_min=0.1)
    result = compare(mix.score(sde), {"ddim": DDIM()}, [1, 50], mix.sample(50), samples=500)
    variance = 0.25 * float(sde.alpha(sde.t_min)) ** 2 + float(sde.sigma(sde.t_min)) ** 2
    entropy = 0.5 * math.log(2 * math.pi * math.e * variance)
    assert result.floor.nll == pytest.approx(entropy, abs=4 * math.sqrt(0.5 / 3 / 4096))
    assert result.converged.nll == pytest.approx(entropy, abs=4 * math.sqrt(0.5 / 3 / 500))
    x = result.samples["ddim", 1]
    by_hand = 0.5 * math.log(2 * math.pi * variance) + x.square().mean().item() / (2 * variance)
    assert by(result, "ddim", 1).nll == pytest.approx(by_hand, rel=1e-6)
    unknown = compare(Slow(mix.score(sde), 0.0, []), {"ddim": DDIM()}, [2], mix.sample(50), samples=5)
    assert all(math.isnan(m.nll) for m in unknown.rows)


def test_precision_and_recall_are_of_equally_many():
    mix = mixture((2,))
    data = mix.sample(60, seed=1)
    for samples, count in ((200, 60), (40, 40)):
        result = compare(mix.score(SDE), {"ddim": DDIM()}, [5], data, samples=samples)
        m, x = result.measurements[0], result.samples["ddim", 5]
        assert (m.precision, m.recall) == precision_recall(x[:count], data[:count])
        assert f"{count} points of each" in result.protocol


def test_few_samples_have_no_precision():
    mix = mixture((2,))
    for samples, known in ((19, False), (20, True)):
        m = compare(mix.score(SDE), {"ddim": DDIM()}, [2], mix.sample(50), samples=samples).measurements[0]
        assert math.isfinite(m.precision) == math.isfinite(m.recall) == known
        assert math.isfinite(m.energy_high)


# what cannot be measured


@dataclass(frozen=True)
class Exploding(DDIM):
    """A solver whose state overflows in few steps."""

    def transition(self, score, x, t, s):
        mean, std = super().transition(score, x, t, s)
        return mean * math.inf if self.steps < 10 else mean, std


def test_what_takes_no_step_or_explodes_is_left_out_with_a_warning():
    mix = mixture((2,))
    solvers = {"ddim": DDIM(), "rk4": ProbabilityFlow(method="rk4"), "exploding": Exploding()}
    with pytest.warns(UserWarning, match="is left out at 2 evaluations") as seen:
        result = compare(mix.score(SDE), solvers, [2, 20], mix.sample(50), samples=4)
    assert [(m.solver, m.budget) for m in result.measurements] == [("ddim", 2), ("ddim", 20), ("rk4", 20), ("exploding", 20)]
    said = sorted(str(warning.message) for warning in seen)
    assert said[0].startswith("exploding is left out at 2 evaluations: Exploding: the state is not finite")
    assert said[1].startswith("rk4 is left out at 2 evaluations")
    assert sample_matrix(result, lambda x: x).size[0] > 100
    with pytest.raises(ValueError, match="none of rk4 got through within 3 evaluations: rk4 is left out at 2 evaluations"):
        compare(mix.score(SDE), {"rk4": ProbabilityFlow(method="rk4")}, [2, 3], mix.sample(50), samples=4)


def test_a_broken_score_is_an_error():
    mix = mixture((2,))
    with pytest.raises(SolverError, match="not finite"):
        compare(BrokenScore(mix.score(SDE), lambda t: t < 0.5), {"ddim": DDIM()}, [2], mix.sample(50), samples=4)


@pytest.mark.parametrize(
    ("samples", "data", "budgets", "message"),
    [(1, 50, [2], "at least 2 samples"), (4, 3, [2], "4 data points"), (4, 50, [0, 2], "positive"), (4, 50, [], "positive")],
)
def test_mistakes_are_refused(samples, data, budgets, message):
    mix = mixture((2,))
    with pytest.raises(ValueError, match=message):
        compare(mix.score(SDE), {"ddim": DDIM()}, budgets, mix.sample(data), samples=samples)


# what is written


def test_every_number_of_a_measurement_is_a_quantity():
    """So that a new one comes into the table, the CSV, the page and, if it has a panel, the figure."""
    keys = [key for quantity in QUANTITIES for key in quantity.keys]
    names = [field.name for field in dataclasses.fields(Measurement)]
    assert sorted(keys) == sorted(set(names) - {"solver", "budget", "settings"})
    assert len({quantity.heading for quantity in QUANTITIES}) == len(QUANTITIES)


def test_the_csv_holds_what_was_measured(found, tmp_path):
    found.save_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 11
    assert list(lines[0])[:3] == ["solver", "budget", "nfe"]
    for line, m in zip(lines, found.rows, strict=True):
        assert line["solver"] == m.solver
        for name in ("nfe", "seconds", "overhead", "distance", "energy", "energy_low", "recall", "error", "nll"):
            assert float(line[name]) == pytest.approx(getattr(m, name), nan_ok=True)


def test_the_table_leaves_out_what_nothing_has(found):
    lines = found.table().splitlines()
    assert len(lines) == 12
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) < 128
    assert "NLL/dim" in lines[0]
    unknown = [dataclasses.replace(m, nll=math.nan, precision=math.nan, distance=3e7) for m in found.measurements]
    bare = {"nll": math.nan, "precision": math.nan}
    other = dataclasses.replace(
        found,
        measurements=tuple(unknown),
        converged=dataclasses.replace(found.converged, **bare),
        floor=dataclasses.replace(found.floor, **bare),
    )
    assert not {"nll", "precision"} & {key for quantity in other.quantities for key in quantity.keys}
    assert not {"NLL/dim", "precision"} & set(other.table().split())
    assert "3.0e+07" in other.table().splitlines()[1]
    assert "nan" not in other.table()


def test_the_best_of_each_budget_is_bold(found):
    table = comparison_table(found)
    headings = ["solver", *(quantity.heading for quantity in found.quantities)]
    cells = [line.split("<td>")[1:] for line in table.split("<tr>")[2:]]
    assert len(cells) == 11
    column = headings.index("sliced W2")
    for budget in (2, 3, 40):
        rivals = [i for i, m in enumerate(found.measurements) if m.budget == budget]
        best = min(found.measurements[i].distance for i in rivals)
        assert {i for i in rivals if "<b>" in cells[i][column]} == {
            i for i in rivals if f"{found.measurements[i].distance:.4f}" == f"{best:.4f}"
        }
    assert "<b>" not in "".join(cells[-1] + cells[-2])
    assert not any("<b>" in cells[i][headings.index("seconds")] for i in range(11))


def test_where_all_solvers_are_alike_none_is_bold(found):
    alike = dataclasses.replace(found, measurements=tuple(dataclasses.replace(m, precision=0.0) for m in found.measurements))
    column = 1 + [quantity.heading for quantity in found.quantities].index("precision")
    cells = [line.split("<td>")[1:] for line in comparison_table(alike).split("<tr>")[2:]]
    assert not any("<b>" in row[column] for row in cells)
    assert any("<b>" in "".join(row) for row in cells)


@pytest.mark.parametrize(
    "shape",
    [(2,), (2, 6), (3, 4, 4), *(pytest.param(s, marks=pytest.mark.slow) for s in ((1,), (7,), (1, 4, 4), (1, 3, 4, 4)))],
)
def test_pictures_of_samples_of_every_shape(found, shape):
    """Other samples in one cell change the picture there and nowhere else."""
    drawn = {case: torch.rand(24, *shape) for case in found.samples}
    some = [m for m in found.measurements if m.solver != "heun" and m.budget != 3]
    first = dataclasses.replace(found, measurements=tuple(some), samples=drawn, data=torch.rand(30, *shape))
    second = dataclasses.replace(first, samples={**drawn, ("ddim", 40): torch.rand(24, *shape)})
    pictures = [np.asarray(sample_matrix(comparison, lambda x: x).convert("L")) for comparison in (first, second)]
    changed = np.argwhere(pictures[0] != pictures[1])
    assert len(changed) > 50
    assert (changed >= np.divide(pictures[0].shape, (2, 2))).all()  # the last row and column


def test_points_outside_the_picture_are_counted(found, monkeypatch):
    said = []
    monkeypatch.setattr("matplotlib.axes.Axes.text", lambda self, x, y, text, **_: said.append(text))
    sample_matrix(found, lambda x: x)
    low, high = found.data[:200].min().item(), found.data[:200].max().item()
    reach = 0.15 * (high - low)
    x = found.samples["em", 2]
    outside = ((x < low - reach) | (x > high + reach)).any(1).sum().item()
    assert outside > 10
    assert said[0] == f"{outside} outside"


def test_many_solvers_share_one_legend(found):
    many = tuple(dataclasses.replace(m, solver=f"{m.solver} {i}") for i in range(5) for m in found.measurements)
    picture = quality_curve(dataclasses.replace(found, measurements=many))
    assert picture.size[0] < 1700
    assert np.asarray(picture.convert("L"))[-60:].min() < 128  # below the panels
