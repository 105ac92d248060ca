"""One scaling for training, sampling and likelihood."""

import math

import pytest
import torch

from score_sde.data import (
    DataError,
    DataSpec,
)

SPECS = {
    "continuous": DataSpec((3,), data_range=(-2.0, 5.0)),
    "continuous in [0, 1]": DataSpec((2, 2), data_range=(10.0, 11.5), model_range=(0.0, 1.0)),
    "by coordinate": DataSpec((3,), location=(10.0, 0.0, -2.0), spread=(7.0, 0.5, 50.0), limits=((-9.0, 9.0),) * 3),
    "by channel": DataSpec((2, 3, 1, 2), location=(5.0, -4.0), spread=(0.1, 3.0)),
    "dequantized": DataSpec((1, 2, 2), levels=17),
    "undequantized": DataSpec((1, 2, 2), levels=17, dequantize=False),
    "bytes in [0, 1]": DataSpec((5,), levels=256, dequantize=False, model_range=(0.0, 1.0)),
}


@pytest.fixture(params=SPECS, ids=str)
def spec(request) -> DataSpec:
    return SPECS[request.param]


def test_unscale_inverts_scale(spec):
    values = torch.randn(6, *spec.shape, dtype=torch.float64) * 3
    torch.testing.assert_close(spec.unscale(spec.scale(values)), values)
    torch.testing.assert_close(spec.scale(spec.unscale(values)), values)


def test_scale_maps_the_interval_onto_the_model_range(spec):
    if spec.spread:
        with pytest.raises(ValueError, match="an interval of its own"):
            spec.interval  # noqa: B018
        return
    ends = torch.tensor([spec.interval], dtype=torch.float64)
    torch.testing.assert_close(spec.scale(ends), torch.tensor([spec.model_range], dtype=torch.float64))


def test_log_det_is_that_of_the_jacobian(spec):
    point = torch.rand(spec.dim, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: spec.scale(v.reshape(1, *spec.shape)).flatten(), point)
    assert spec.log_det == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), rel=1e-12)


@pytest.mark.parametrize(("dequantize", "levels"), [(True, 17), (False, 16)])
def test_the_uniform_density_costs_the_logarithm_of_the_bins_it_spreads_over(dequantize, levels):
    """The density 1/2 on [-1, 1] spreads over all 17 bins where data is dequantized, over 16 widths of them where not."""
    spec = DataSpec((7,), levels=17, dequantize=dequantize)
    log_prob = -spec.dim * math.log(2)
    assert -(log_prob + spec.log_det) / (spec.dim * math.log(2)) == pytest.approx(math.log2(levels), rel=1e-12)


def test_dequantized_and_undequantized_bins_differ_on_17_levels():
    both = [DataSpec((1, 8, 8), levels=17, dequantize=flag) for flag in (False, True)]
    bits = [spec.log_det / (spec.dim * math.log(2)) for spec in both]
    assert bits[0] - bits[1] == pytest.approx(math.log2(17 / 16), rel=1e-12)
    assert round(bits[0] - bits[1], 3) == 0.087


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_quantized_inverts_dequantized(levels, dequantize):
    """For all integers, and uniforms up to where roundoff leaves a bin."""
    spec = DataSpec((1,), levels=levels, dequantize=dequantize)
    integers = torch.arange(levels)[:, None]
    for dtype, margin in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        inside = torch.cat([torch.rand(50, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)]) * (1 - 2 * margin) + margin
        for u in inside:
            x = spec.dequantized(integers, u.expand(levels, 1))
            assert x.dtype == dtype
            assert torch.equal(spec.quantized(x), integers)


@pytest.mark.parametrize("dequantize", [True, False])
def test_bins_have_the_width_of_the_slope_and_touch(dequantize):
    spec = DataSpec((1,), levels=17, dequantize=dequantize)
    integers = torch.arange(17, dtype=torch.float64)[:, None]
    low, high = (spec.dequantized(integers, torch.full_like(integers, u)) for u in (0.0, 1.0))
    torch.testing.assert_close(high - low, torch.full_like(low, spec.slope))
    torch.testing.assert_close(high[:-1], low[1:])


def test_quantized_takes_what_is_outside_to_the_nearest():
    for spec in (SPECS["dequantized"], SPECS["undequantized"]):
        assert spec.quantized(torch.tensor([-7.0, 7.0])).tolist() == [0, 16]


def test_undequantized_bytes_are_mapped_onto_both_ends_of_the_unit_interval():
    spec = SPECS["bytes in [0, 1]"]
    x = spec.encode(torch.tensor([[0, 51, 102, 204, 255]], dtype=torch.uint8), torch.rand(1, 5))
    torch.testing.assert_close(x, torch.tensor([[0.0, 0.2, 0.4, 0.8, 1.0]]))


def test_decode_inverts_encode(spec):
    values = torch.randint(0, spec.levels or 9, (20, *spec.shape))
    values = values.float() if spec.levels is None else values
    decoded = spec.decode(spec.encode(values, torch.rand(values.shape) * 0.99 + 0.005))
    torch.testing.assert_close(decoded, values)


def test_displayed_images_fill_the_unit_interval():
    for dequantize in (True, False):
        spec = DataSpec((1, 1, 3), levels=17, dequantize=dequantize)
        x = spec.encode(torch.tensor([[[[0, 8, 16]]]]), torch.full((1, 1, 1, 3), 0.5))
        assert spec.displayed(x).flatten().tolist() == [0.0, 0.5, 1.0]
    continuous = DataSpec((1, 1, 2), data_range=(3.0, 4.0), model_range=(-2.0, 2.0))
    torch.testing.assert_close(continuous.displayed(torch.tensor([[[[-2.0, 1.0]]]])).flatten(), torch.tensor([0.0, 0.75]))
    torch.testing.assert_close(SPECS["continuous"].displayed(torch.zeros(1, 3)), torch.full((1, 3), 1.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": ()}, "shape must be positive"),
        ({"shape": (3, 0)}, "shape must be positive"),
        ({"shape": 2}, r"shape must be a tuple, such as \(3, 32, 32\), got 2"),
        ({"shape": "2"}, r"shape must be a tuple, such as \(3, 32, 32\), got '2'"),
        ({"shape": (2.5,)}, "a side of the shape must be a whole number, got 2.5"),
        ({"shape": (3,), "data_range": 1.0}, r"data_range must be a tuple, such as \(0.0, 1.0\), got 1.0"),
        ({"shape": (3,), "levels": 1}, "levels must be at least 2"),
        ({"shape": (3,), "data_range": (1.0, 1.0)}, "data_range must rise"),
        ({"shape": (3,), "model_range": (1.0, 0.0)}, "model_range must rise"),
        ({"shape": (3,), "location": (0.0, 0.0), "spread": (1.0, 1.0)}, "a number for each of 3, got 2 and 2"),
        ({"shape": (2,), "location": (0.0, 0.0)}, "a number for each of 2, got 2 and 0"),
        ({"shape": (1,), "location": (0.0,), "spread": (0.0,)}, "spread positive and finite"),
        ({"shape": (1,), "location": (math.nan,), "spread": (1.0,)}, "location must be finite"),
        ({"shape": (3,), "limits": ((0.0, 1.0), (0.0, 1.0))}, "a pair for each of 3, got 2"),
        ({"shape": (3,), "limits": ((1.0, 0.0),)}, "limits must be pairs"),
        ({"shape": (3,), "levels": 4, "limits": ((0.0, 1.0),)}, "location, spread and limits are for continuous data"),
    ],
)
def test_bad_descriptions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataSpec(**options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(3, 4), r"mine has samples of shape \(4,\), the model expects \(2,\)"),
        (torch.zeros(0, 2), "mine is empty"),
        (torch.tensor([[0.0, math.nan]]), "mine holds NaN or infinite"),
        (torch.tensor([[0.0, math.inf]]), "mine holds NaN or infinite"),
        (torch.tensor([[0.0, 0.5]]), "mine holds fractions, the model expects integers from 0 to 16"),
        (torch.tensor([[0, 17]]), "mine has values from 0 to 17, the model expects 0 to 16"),
        (torch.tensor([[-1, 3]]), "mine has values from -1 to 3"),
    ],
)
def test_check_refuses_other_data(values, message):
    spec = DataSpec((2,), levels=17)
    spec.check(torch.tensor([[0, 16], [3.0, 4.0]]))
    with pytest.raises(DataError, match=message):
        spec.check(values, "mine")


def test_data_far_from_zero_keeps_its_digits():
    """Temperatures around 300 K that vary by 1e-4 K: scaled before they are rounded to float32."""
    fine = torch.randn(50, 2, dtype=torch.float64)
    spec = DataSpec((2,), data_range=(300 - 1e-4, 300 + 1e-4))
    x = spec.encode(300 + 1e-4 * fine, torch.zeros(50, 2))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, fine.float(), rtol=1e-5, atol=1e-5)
