"""The scaling of continuous data: each coordinate or channel by its own, whatever its unit, and what is drawn and clipped."""

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from score_sde import DDIM, VESDE, VPSDE, GaussianMixture, bits_per_dim, load
from score_sde.cli import main
from score_sde.data import (
    DataError,
    Dataset,
    DataSpec,
    TensorSource,
    array_file,
    root_mean_square,
    scaled_alike,
    standardized,
    two_moons,
    warn_of_fine_structure,
)
from score_sde.images import picture
from score_sde.model import ScoreModel
from score_sde.objectives import WEIGHTINGS, denoising_score_matching
from tests.data.reading import continuous, every

COUNT = 4000


def normal(seed: int = 0) -> torch.Tensor:
    return torch.randn(COUNT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def modes(width: float, seed: int = 1) -> torch.Tensor:
    """Two modes at -1 and 1."""
    return normal(seed).sign() + width * normal(seed + 1)


def spoilt(values: torch.Tensor, count: int, by: float) -> torch.Tensor:
    return torch.cat([torch.full((count,), by, dtype=values.dtype), values[count:]])


# location and spread

PLAIN = {
    "normal": normal(),
    "uniform": torch.rand(COUNT, dtype=torch.float64),
    "two modes": modes(0.01),
    "far from 0": 5e6 + 2 * normal(),
    "very far": 1.7e9 + 1e-3 * normal(),
    "tiny": 1e-200 * normal(),
    "huge": 1e200 * normal(),
    "zeros and ones": (normal() > 0).double(),
    "few ones": (normal() > 2.5).double(),  # 25 of 4000
    "mostly zero": normal() * (normal(3) > 2.6),
    "a moon": every(two_moons().train)[:COUNT, 0].double(),
}


@pytest.mark.parametrize("name", PLAIN)
def test_location_and_spread_are_mean_and_standard_deviation(name):
    values = PLAIN[name]
    spec = standardized(continuous(values[:, None]))
    x = spec.scale(values[:, None])
    tolerance = 1e-9 + 1e-16 * abs(spec.location[0]) / spec.spread[0]  # of float64, far from 0
    assert abs(x.mean().item()) < tolerance
    assert x.square().mean().sqrt().item() == pytest.approx(1, abs=tolerance)
    assert spec.limits == ((values.min().item(), values.max().item()),)


@pytest.mark.parametrize("count", [1, 5, 80])
@pytest.mark.parametrize("by", [30.0, 1e3, -1e12])
def test_a_few_outliers_change_neither(count, by):
    for clean in (normal(), modes(0.05), torch.rand(COUNT, dtype=torch.float64)):
        one, other = (standardized(continuous(values[:, None])) for values in (clean, spoilt(clean, count, by)))
        assert other.location[0] == pytest.approx(one.location[0], abs=0.05)
        assert other.spread[0] == pytest.approx(one.spread[0], rel=0.03)
        assert root_mean_square(TensorSource(spoilt(clean, count, by)[:, None], other)) == pytest.approx(1, abs=1e-9)


def test_outliers_are_found_among_more_values_than_are_sorted():
    values = torch.randn(100_000, 1, 4, generator=torch.Generator().manual_seed(0))
    values[:300, 0] = 1e6
    spec = standardized(continuous(values))
    assert spec.spread[0] == pytest.approx(1, rel=0.01)
    assert abs(spec.location[0]) < 0.01


def test_a_constant_coordinate_keeps_its_value_through_the_noise_of_sampling():
    zero = torch.zeros(COUNT, dtype=torch.float64)
    values = torch.stack([300 * normal(), zero + 7.3, zero, 1e-9 * normal()], 1)
    spec = standardized(continuous(values))
    assert torch.equal(spec.unscale(spec.scale(values))[:, 1:3], values[:, 1:3])
    drawn = spec.decode(torch.full((1, 4), 0.05))
    assert drawn[0, 1].item() == pytest.approx(7.3, rel=1e-5)
    assert abs(drawn[0, 2].item()) < 1e-13
    assert root_mean_square(TensorSource(values, spec)) == pytest.approx(1, abs=1e-9)
    with pytest.raises(DataError, match="constant"):
        standardized(continuous(values[:, 1:3]))


@pytest.mark.parametrize("sides", [(), (7,), (4, 3), (2, 3, 4)], ids=str)
def test_channels_of_different_units_are_scaled_each_by_its_own(sides):
    """A spread for every channel, the same over its sides; for vectors, channels are coordinates."""
    units = torch.tensor([1e5, 1e-3, 2.0], dtype=torch.float64).reshape(3, *[1] * len(sides))
    values = units * (torch.randn(500, 3, *sides, dtype=torch.float64) + 4)
    spec = standardized(continuous(values))
    assert len(spec.spread) == 3
    x = spec.scale(values).transpose(0, 1).flatten(1)
    torch.testing.assert_close(x.mean(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(x.std(1, correction=0), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(spec.unscale(x.reshape(3, 500, *sides).transpose(0, 1)), values)


# likelihood


UNITS, OFFSETS = (1e4, 1e-3, 2.0), (5e6, 0.0, -3.0)
"""Of the three channels."""


def over(numbers: tuple[float, ...], shape: tuple[int, ...]) -> torch.Tensor:
    """A number for each channel, over all of an event."""
    return torch.tensor(numbers, dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def units_mixture(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two Gaussians whose channels have very different units and offsets: means, covariances ``(2, dim, dim)``, values."""
    random, dim = torch.Generator().manual_seed(seed), math.prod(shape)
    draw = lambda *sides: torch.randn(*sides, generator=random, dtype=torch.float64)
    factor = draw(2, dim, dim) / dim**0.5 / 2 + 0.3 * torch.eye(dim)
    means, unit, which = draw(2, dim), over(UNITS, shape).flatten(), torch.arange(300) % 10 < 3
    values = torch.where(which[:, None], means[0] + draw(300, dim) @ factor[0].mT, means[1] + draw(300, dim) @ factor[1].mT)
    place = lambda points: (points * unit).reshape(-1, *shape) + over(OFFSETS, shape)
    return place(means), unit[:, None] * factor @ factor.mT * unit, place(values)


def inside(shape: tuple[int, ...], spec: DataSpec, means: torch.Tensor, covariances: torch.Tensor) -> GaussianMixture:
    """The mixture in the coordinates of ``spec``."""
    spread = over(spec.spread, shape).flatten()
    return GaussianMixture(spec.scale(means), covariances / spread[:, None] / spread, [0.3, 0.7])


def log_density(means: torch.Tensor, covariances: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """log p in the units of the data, in nats, by torch's own distribution."""
    single = torch.distributions.MultivariateNormal(means.flatten(1), covariances)
    return (single.log_prob(values.flatten(1)[:, None]) + torch.tensor([0.3, 0.7]).log()).logsumexp(1)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2), (3, 1, 2, 2)], ids=str)
def test_log_p_in_nats_is_that_of_the_data_whatever_its_units(shape):
    """log p of the values = log p of the model coordinates + log_det, by the change of variables, at ranks 2 to 5."""
    means, covariances, values = units_mixture(shape)
    spec = standardized(continuous(values))
    found = inside(shape, spec, means, covariances).log_prob(spec.scale(values)) + spec.log_det
    torch.testing.assert_close(found, log_density(means, covariances, values), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sde", [VPSDE(t_min=1e-6), VESDE(sigma_min=1e-4)], ids=["vp", "ve"])
def test_bits_per_dim_is_that_of_the_data_whatever_its_units(sde):
    means, covariances, values = units_mixture((3,))
    spec, values = standardized(continuous(values)), values[:32]
    record = bits_per_dim(inside((3,), spec, means, covariances).score(sde), values, data=spec, divergence="exact", audit=0)
    expected = -log_density(means, covariances, values).mean().item() / 3 / math.log(2)
    assert record.mean == pytest.approx(expected, abs=5e-3)


# precision


def test_data_far_from_zero_is_decoded_with_its_digits():
    """float32 has a resolution of 0.5 at 5e6."""
    values = torch.stack([4e6 + normal(0), 5e6 + 2 * normal(1)], 1)
    spec = standardized(continuous(values))
    x = spec.encode(values, torch.zeros(COUNT, 2))
    assert x.dtype == torch.float32
    decoded = spec.decode(x)
    assert decoded.dtype == torch.float64
    torch.testing.assert_close(decoded, values, rtol=0, atol=1e-5)
    assert standardized(continuous(normal()[:, None])).decode(torch.zeros(2, 1)).dtype == torch.float32


# sigma_data


@pytest.mark.parametrize(
    "values",
    [
        torch.stack([4e6 + normal(0), 5e6 + 2 * normal(1)], 1),
        torch.stack([300 * normal(0), modes(0.01)], 1).reshape(COUNT, 1, 2),
        torch.randint(0, 4, (500, 1, 4, 4), dtype=torch.uint8),  # dark pictures
    ],
    ids=["metres", "signals", "dark"],
)
def test_what_edm_gives_the_network_has_unit_mean_square(values):
    """c_in x at every noise level; and with the loss's weight, the ideal output of 0 information costs 1 at all of them."""
    spec = DataSpec(values.shape[1:], levels=256) if values.dtype == torch.uint8 else standardized(continuous(values))
    model = ScoreModel(
        _Silent(), VPSDE(), spec, parameterization="edm", sigma_data=root_mean_square(TensorSource(values, spec))
    )
    x0 = spec.encode(values, torch.rand(values.shape, dtype=torch.float64))
    epsilon = torch.randn(x0.shape, dtype=torch.float64)
    for t in (1e-4, 0.05, 0.3, 0.7, 1.0):
        times = torch.full((len(x0),), t, dtype=torch.float64)
        x = model.sde.perturb(x0, times, epsilon)
        c_in = model.coefficients(times).c_in[0]
        assert (c_in * x).square().mean().item() == pytest.approx(1, abs=0.05)
        loss = denoising_score_matching(model, x0, times, epsilon, weighting=WEIGHTINGS["edm"]())
        assert loss.mean().item() == pytest.approx(1, abs=0.1)


class _Silent(torch.nn.Module):
    """A network that says 0: then edm's loss is the mean square of its target."""

    def forward(self, x, c_noise, cond=None):
        return torch.zeros_like(x)


# warnings


def warned(values: torch.Tensor, noise_level: float = 1e-3) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_fine_structure(TensorSource(values, standardized(continuous(values))), noise_level)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_data_gives_no_warning(name):
    assert not warned(torch.stack([PLAIN[name], normal(5)], 1))


@pytest.mark.parametrize("count", [5, 30, 200, 2000])
def test_small_sets_give_no_warning_by_chance(count):
    for seed in range(20):
        values = torch.randn(count, 1, generator=torch.Generator().manual_seed(seed))
        assert not warned(values, noise_level=0.01)


@pytest.mark.parametrize(
    "column",
    [
        modes(1e-4),
        spoilt(1e-6 + 1e-9 * normal(), 400, 1.0),  # too many for outliers
        torch.cat([(normal()[:3500] > 0).double(), torch.full((500,), 1e9, dtype=torch.float64)]),
    ],
    ids=["narrow modes", "spoilt", "ones beside 1e9"],
)
def test_what_the_noise_erases_is_warned_of_with_its_coordinate(column):
    (message,) = warned(torch.stack([normal(7), column], 1))
    assert message.startswith("coordinate 1 (scale ")
    assert "noise at t_min" in message
    assert not warned(torch.stack([normal(7), column], 1), noise_level=1e-12)


def test_the_warning_begins_where_a_mode_is_about_twice_as_wide_as_the_noise():
    assert warned(modes(0.0015)[:, None])
    assert not warned(modes(0.003)[:, None])


def test_constant_coordinates_are_warned_of():
    (message,) = warned(torch.stack([normal(), torch.full((COUNT,), 7.0)], 1))
    assert message.startswith("coordinate 1 (7) never varies")


def test_values_far_outside_are_warned_of_with_their_number():
    (message,) = warned(torch.stack([normal(), spoilt(normal(1), 5, -1e6)], 1))
    assert message.startswith("coordinate 1 (5 from -1e+06 to ")


# pictures and clipping


def test_float_pictures_are_drawn_from_black_to_white(tmp_path):
    np.save(tmp_path / "a.npy", (load_digits().images / 16).astype(np.float32)[:, None])
    data = array_file(str(tmp_path / "a.npy"))
    values = every(data.train)
    drawn = data.spec.displayed(data.spec.scale(values))
    torch.testing.assert_close(drawn, values, rtol=0, atol=1e-6)
    own = array_file(str(tmp_path / "a.npy"), limits=(-1.0, 3.0)).spec
    torch.testing.assert_close(own.displayed(own.scale(values)), (values + 1) / 4, rtol=0, atol=1e-6)
    assert own.spread == data.spec.spread
    for limits in ((1.0, 0.0), (0.0,), (0.0, 1.0, 2.0)):
        with pytest.raises(DataError, match="limits are the smallest and the largest value"):
            array_file(str(tmp_path / "a.npy"), limits=limits)


def test_each_channel_is_drawn_in_its_own_range_and_a_constant_one_in_that_of_all():
    values = torch.rand(50, 3, 4, 4, dtype=torch.float64)
    values[0, :, 0, 0], values[0, :, 0, 1] = 0.0, 1.0
    fields = values * torch.tensor([1e5, 1e-3, 2.0]).reshape(3, 1, 1)
    spec = standardized(continuous(fields))
    torch.testing.assert_close(spec.displayed(spec.scale(fields)), values)
    red = torch.cat([torch.ones(50, 1, 4, 4), torch.zeros(50, 1, 4, 4), torch.rand(50, 1, 4, 4)], 1)
    spec = standardized(continuous(red))
    torch.testing.assert_close(spec.displayed(spec.scale(red))[:, :2], red[:, :2])


@pytest.mark.parametrize("sides", [(), (7,), (4, 3), (2, 3, 4)], ids=str)
def test_clipping_to_the_limits_changes_no_value_of_the_data(sides):
    units = torch.tensor([1e5, 1e-3, 2.0], dtype=torch.float64).reshape(3, *[1] * len(sides))
    values = units * (torch.randn(500, 3, *sides, dtype=torch.float64) + 4)
    spec = standardized(continuous(values))
    low, high = spec.model_limits(dtype=torch.float64)
    x = spec.scale(values)
    torch.testing.assert_close(x.clamp(low, high), x)
    assert ((1.5 * x).clamp(low, high) != 1.5 * x).any()


def test_clipped_samples_keep_the_standard_deviation_of_the_data():
    """They lost a third of it while the range was taken for mean -+ standard deviation."""
    spec = standardized(continuous(torch.stack([1e5 * modes(0.3), 1e-3 * torch.rand(COUNT, dtype=torch.float64)], 1)))
    score = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), [0.2, 0.2]).score(VPSDE())
    free, clipped, cut = (
        DDIM(steps=20).sample(score, (500, 2), clip=clip).x.std(0) for clip in (None, spec.model_limits(), (-1.0, 1.0))
    )
    torch.testing.assert_close(clipped[0], free[0], rtol=0.03, atol=0)
    assert cut[0] < 0.85 * free[0]


def test_points_of_different_units_fill_the_picture():
    points = torch.stack([0.01 * normal(), 300 * normal(1)], 1)
    dark = np.asarray(picture(points).convert("L"))[20:-30, 60:-20] < 200
    rows, columns = dark.any(1), dark.any(0)
    assert rows.mean() > 0.5
    assert columns.mean() > 0.5


def test_limits_of_integers_and_of_data_without_a_known_range():
    assert DataSpec((2,), levels=4, model_range=(0.0, 1.0)).model_limits() == (0.0, 1.0)
    with pytest.raises(DataError, match="the range of the data is not known"):
        DataSpec((2,)).model_limits()
    low, high = DataSpec((2,), data_range=(10.0, 20.0), limits=((10.0, 15.0),)).model_limits()
    assert (low.item(), high.item()) == (-1.0, 0.0)


# what is stored


def test_a_description_survives_json():
    for spec in (
        standardized(continuous(torch.stack([normal(), 5e6 + 1e-3 * normal(1)], 1))),
        DataSpec((2, 3), data_range=(0.1, 0.7)),
    ):
        assert DataSpec(**json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def test_descriptions_of_before_compute_what_they_did():
    """As config.json had them: one interval for all coordinates. The formula of then, to the last bit."""
    old = {"shape": [2], "levels": None, "dequantize": True, "data_range": [-0.3685, 1.3639], "model_range": [-1.0, 1.0]}
    spec, values = DataSpec(**old), every(two_moons().test)
    slope = 2.0 / (1.3639 - -0.3685)
    x = -1.0 + (values - -0.3685) * slope
    assert torch.equal(spec.scale(values), x)
    assert torch.equal(spec.decode(x), -0.3685 + (x - -1.0) / slope)
    assert spec.log_det == 2 * math.log(slope)
    picture = DataSpec(**old | {"shape": [1, 2, 2]})
    image = torch.rand(3, 1, 2, 2)
    assert torch.equal(picture.displayed(image), (image + 1) / 2)


def test_the_same_data_is_recognized_under_either_scaling():
    data = two_moons(samples=500)
    both = torch.cat([*map(every, data[:2])]).double()
    mean, std = both.mean().item(), both.std().item()
    old, other = DataSpec((2,), data_range=(mean - std, mean + std)), two_moons(samples=500, noise=0.07)
    assert scaled_alike(data, old)
    assert scaled_alike(data, data.spec)
    assert not scaled_alike(other, old)
    assert not scaled_alike(other, data.spec)
    assert not scaled_alike(Dataset(continuous(every(data.train) + 1e-3), data.test).standardized(), data.spec)


# runs

QUICK = (
    "--config.training.steps=4",
    "--config.training.batch_size=16",
    "--config.training.sample_every=0",
    "--config.network.mlp.width=16",
    "--quiet",
)


@pytest.fixture(scope="module")
def metres(tmp_path_factory):
    """A run of a few steps on two coordinates in metres and a constant one."""
    folder = tmp_path_factory.mktemp("metres")
    values = torch.stack([4e6 + normal(0), 5e6 + 2 * normal(1), torch.full((COUNT,), 7.0)], 1)
    np.save(folder / "a.npy", values[:500].numpy())
    data = ("--config.data.name=file", f"--config.data.file.path={folder / 'a.npy'}")
    assert main(["train", "--config=two_moons", f"--workdir={folder / 'run'}", *data, *QUICK]) == 0
    return folder / "run"


def samples(folder) -> np.ndarray:
    (file,) = (folder / "samples").glob("*.npz")
    with np.load(file) as saved:
        values = saved["samples"]
    file.unlink()
    return values


def test_training_warns_once_when_it_begins(tmp_path, capsys):
    np.save(tmp_path / "a.npy", torch.stack([normal(), modes(1e-5)], 1).numpy())
    data = ("--config.data.name=file", f"--config.data.file.path={tmp_path / 'a.npy'}")
    assert main(["train", "--config=two_moons", f"--workdir={tmp_path / 'run'}", *data, *QUICK]) == 0
    assert capsys.readouterr().err.count("warning: coordinate 1 (scale ") == 1
    assert main(["train", f"--workdir={tmp_path / 'run'}", "--config.training.steps=6", "--quiet"]) == 0
    assert "coordinate 1" not in capsys.readouterr().err


def test_samples_in_metres_keep_their_digits(metres, capsys):
    saved = json.loads((metres / "config.json").read_text())
    assert saved["config"]["model"]["sigma_data"] == pytest.approx(1, abs=1e-6)
    (low, high), *_ = saved["data_spec"]["limits"]
    assert 4e6 - 5 < low < 4e6 - 2 < 4e6 + 2 < high < 4e6 + 5
    assert main(["sample", f"--workdir={metres}", "--n=100", "--nfe=5", "--solver=ddim", "--clip", "--quiet"]) == 0
    drawn = samples(metres)
    assert drawn.dtype == np.float64
    assert low - 1e-3 <= drawn[:, 0].min() <= drawn[:, 0].max() <= high + 1e-3
    assert len(np.unique(drawn[:, 0] % 0.5)) > 50
    np.testing.assert_allclose(drawn[:, 2], 7.0, rtol=1e-5)


@pytest.mark.slow
def test_columns_of_different_units_are_learned_side_by_side(tmp_path):
    """Two narrow modes in the first column beside a second of 500 -+ 300: the samples had 19.6 for 0.0102."""
    random = np.random.default_rng(0)
    narrow = random.choice([-0.01, 0.01], COUNT) + 0.002 * random.normal(size=COUNT)
    np.save(tmp_path / "a.npy", np.c_[narrow, 500 + 300 * random.normal(size=COUNT)])
    data = ("--config.data.name=file", f"--config.data.file.path={tmp_path / 'a.npy'}", "--config.training.steps=700")
    small = ("--config.training.batch_size=256", "--config.training.sample_every=0", "--config.network.mlp.width=64", "--quiet")
    folder = tmp_path / "run"
    assert main(["train", "--config=two_moons", f"--workdir={folder}", *data, *small]) == 0
    assert main(["sample", f"--workdir={folder}", "--n=1000", "--solver=unipc", "--nfe=30", "--quiet"]) == 0
    drawn = samples(folder)
    assert drawn[:, 0].std() == pytest.approx(narrow.std(), rel=0.05)
    assert drawn[:, 1].std() == pytest.approx(300, rel=0.05)
    between = np.abs(drawn[:, 0]) < 0.004
    assert between.mean() < 0.05


def test_a_run_of_before_keeps_its_scaling(metres, tmp_path, capsys):
    """config.json as it was: one interval for all coordinates, mean and standard deviation of everything, and no limits."""
    folder, data = tmp_path / "old", ["--config.data.two_moons.samples=500"]
    assert main(["train", "--config=two_moons", f"--workdir={folder}", *data, *QUICK]) == 0
    saved = json.loads((folder / "config.json").read_text())
    found = two_moons(samples=500)
    both = torch.cat([*map(every, found[:2])]).double()
    mean, std = both.mean().item(), both.std().item()
    old = {"shape": [2], "levels": None, "dequantize": True, "data_range": [mean - std, mean + std], "model_range": [-1.0, 1.0]}
    (folder / "config.json").write_text(json.dumps({"config": saved["config"], "data_spec": old}))

    draw = ["sample", f"--workdir={folder}", "--n=50", "--nfe=5", "--solver=ddim", "--quiet"]
    assert main(draw) == 0
    model = load(folder).model
    x = model.data.scale(torch.from_numpy(samples(folder)).double())
    low, high = mean - std, mean + std
    torch.testing.assert_close(model.data.unscale(x), low + (x + 1) / (2 / (high - low)))
    capsys.readouterr()
    assert main([*draw, "--clip"]) == 2
    assert "does not know the range of its data: give it in the data's units, --clip=LOW,HIGH" in capsys.readouterr().err
    assert main([*draw, "--clip=-0.25,0.5"]) == 0
    drawn = samples(folder)
    assert -0.26 < drawn.min() < -0.2 < 0.4 < drawn.max() < 0.51

    assert main(["train", f"--workdir={folder}", "--config.training.steps=6", "--quiet"]) == 0
    assert DataSpec(**json.loads((folder / "config.json").read_text())["data_spec"]) == DataSpec(**old)
    for ends in ("1,0", "0", "a,b", "0,inf"):
        with pytest.raises(SystemExit):
            main([*draw, f"--clip={ends}"])
