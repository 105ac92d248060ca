"""What is left of a score in float32, and the warning where that is little."""

import warnings

import pytest
import torch
from torch import nn

from score_sde import DataSpec, ScoreModel
from score_sde.parameterization import PARAMETERIZATIONS
from score_sde.sdes import TabulatedSDE
from tests.oracles import SDE_CASES

SPEC = DataSpec((1,))


class Exact(nn.Module):
    """The output for which the score is exact, rounded to ``dtype`` as a network's is."""

    def __init__(self, sde, name, epsilon, dtype):
        super().__init__()
        self.register_buffer("anchor", torch.zeros((), dtype=dtype))
        self.sde, self.name, self.epsilon = sde, name, epsilon

    def forward(self, x, t):
        t = torch.tensor(self.sde.t_min, dtype=torch.float64)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        a, b, _ = PARAMETERIZATIONS[self.name](self.sde, t, 0.5)
        x0 = torch.linspace(-1, 1, len(self.epsilon), dtype=torch.float64)[:, None]
        state = alpha * x0 + sigma * self.epsilon
        return ((-self.epsilon / sigma - a * state) / b).to(self.anchor.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_score_has_its_digits_or_a_warning(name, dtype, sde):
    """x0 under sub-VP at t_min = 1e-5 in float32 was wrong by 5e4 beside 1e6, and silent; all others have four digits."""
    epsilon = torch.randn(512, 1, dtype=torch.float64)
    if name.startswith("mu") and not isinstance(sde, TabulatedSDE):
        with pytest.raises(ValueError, match=f"{type(sde).__name__} has none"):
            ScoreModel(Exact(sde, name, epsilon, dtype), sde, SPEC, parameterization=name)
        return
    model = ScoreModel(Exact(sde, name, epsilon, dtype), sde, SPEC, parameterization=name, time_input="time")
    t = torch.tensor(sde.t_min, dtype=torch.float64)
    x0 = torch.linspace(-1, 1, 512, dtype=torch.float64)[:, None]
    x = (sde.alpha(t) * x0 + sde.sigma(t) * epsilon).to(dtype)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            score = model(x, t.expand(512))
    error = ((score.double() * sde.sigma(t) + epsilon).square().mean().sqrt()).item()
    lost = name == "x0" and dtype == torch.float32 and sde == SDE_CASES["subvp"]
    assert len(warned) == lost
    if lost:
        assert 0.02 < error < 0.1
        assert 0.5 < model.rounding_error(dtype, dtype) / error < 3
        assert "wrong by about 0.06 of their size at t_min = 1e-05" in str(warned[0].message)
    else:
        assert error < 2e-4


def test_half_precision_is_judged_by_what_the_network_gives():
    epsilon = torch.zeros(2, 1, dtype=torch.float64)
    for name, warns in (("x0", True), ("epsilon", False), ("v", False), ("edm", False)):
        sde = SDE_CASES["vp"]
        model = ScoreModel(Exact(sde, name, epsilon, torch.bfloat16), sde, SPEC, parameterization=name, time_input="time")
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            model(torch.zeros(2, 1), torch.full((2,), 0.5))
        assert len(warned) == warns, name
