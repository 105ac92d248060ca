"""Networks from elsewhere, in one line."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from score_sde import DDIM, VESDE, VPSDE, GaussianMixture, bits_per_dim
from score_sde.interop import adapt
from score_sde.networks import MLP, UNet
from score_sde.networks.contract import STATED, Network
from score_sde.networks.ncsnpp import NCSNpp
from score_sde.parameterization import PARAMETERIZATIONS
from score_sde.score import ClassScore
from score_sde.sdes import ddpm_schedule
from score_sde.tensors import expand
from tests.oracles import mixture


@dataclass
class Answer:
    """What some libraries return in place of a tensor."""

    sample: torch.Tensor


class Foreign(nn.Module):
    """The exact answer of a mixture in another program's convention: noise level first, data scaled to [0, 1]."""

    def __init__(self, score, predicts):
        super().__init__()
        self.score, self.predicts = score, predicts

    def forward(self, level, x):
        t = level / 500
        sde, score = self.score.sde, self.score(x, t)
        a, b, _ = PARAMETERIZATIONS[self.predicts](sde, t, 0.5)
        return Answer((score - expand(a, x) * x) / expand(b, x))


CONVENTIONS = [
    (name, sde)
    for name in PARAMETERIZATIONS
    for sde in ([ddpm_schedule()] if name.startswith("mu") else [VPSDE(), VESDE(sigma_max=10.0)])
]


@pytest.mark.parametrize(
    ("predicts", "sde"), CONVENTIONS, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
def test_a_network_of_another_convention_is_the_same_score(predicts, sde):
    score = mixture((2,)).score(sde)
    model = adapt(
        Foreign(score, predicts),
        (2,),
        sde,
        predicts=predicts,
        time=lambda t: 500 * t,
        call=lambda module, x, time, cond: module(time, x).sample,
    )
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.linspace(0.01, 1, 5, dtype=torch.float64)
    model.network.register_buffer("precision", torch.zeros((), dtype=torch.float64))  # networks run in their own dtype
    torch.testing.assert_close(model(x, t), score(x, t))
    ours, theirs = (DDIM(steps=10).sample(s, (4, 2), seed=0).x for s in (model, score))
    torch.testing.assert_close(ours, theirs)


def test_levels_and_range_describe_the_data():
    """A Gaussian of images in [0, 1]: bits/dim are those of the same model made by hand."""
    truth = GaussianMixture(torch.full((1, 1, 2, 2), 0.5), [0.04])
    score = truth.score(VESDE(sigma_min=1e-3, sigma_max=5.0))
    model = adapt(
        nn.Identity(),
        (1, 2, 2),
        score.sde,
        predicts="score",
        time="time",
        levels=8,
        data_range=(0.0, 1.0),
        call=lambda module, x, time, cond: score(x, time),
    )
    images = torch.randint(8, (3, 1, 2, 2))
    record = bits_per_dim(model, images, divergence="exact")
    by_hand = bits_per_dim(score, images, data=model.data, divergence="exact")
    assert record.per_sample == pytest.approx(by_hand.per_sample, abs=1e-6)
    x = model.data.dequantized(images.double(), torch.full(images.shape, 0.5))
    assert ((x > 0) & (x < 1)).all()


def test_classes_are_handed_on():
    network = UNet((1, 8, 8), width=8, multipliers=(1,), blocks=1, attention=(), classes=3)
    model = adapt(network, (1, 8, 8), VPSDE())
    assert model.classes == 3
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7])
    told = ClassScore(model, 2)
    torch.testing.assert_close(told(x, t), model(x, t, torch.tensor([2, 2])))
    assert DDIM(steps=4).sample(told, (2, 1, 8, 8), seed=0).nfe == 4


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="unknown parameterization 'noise'"):
        adapt(nn.Identity(), (2,), VPSDE(), predicts="noise")
    with pytest.raises(ValueError, match="unknown time_input 'seconds'"):
        adapt(nn.Identity(), (2,), VPSDE(), time="seconds")


def ncsnpp(**options):
    return NCSNpp((1, 8, 8), width=8, multipliers=(1,), blocks=1, attention=(), embedding="fourier", **options)


def test_a_network_that_takes_a_logarithm_is_not_given_zero():
    """NCSN++ with Fourier features: at T the label of a falling chain is 0, and its logarithm made the scores NaN."""
    network, shape = ncsnpp(), (1, 8, 8)
    with pytest.raises(ValueError, match="the network takes the logarithm of its noise level, and time_input 'reversed'"):
        adapt(network, shape, VESDE(), time="reversed")
    with pytest.raises(ValueError, match="the network takes the logarithm of its time, which this function lets fall to 0"):
        adapt(network, shape, VESDE(), time=lambda t: 1 - t)
    for time in ("sigma", lambda t: 1 + t):
        model = adapt(network, shape, VESDE(), time=time)
        assert model(torch.randn(2, *shape), torch.tensor([1e-5, 1.0])).isfinite().all()
    own = adapt(network, shape, VESDE(), time="reversed", call=lambda module, x, time, cond: module(x, time + 1))
    assert own(torch.randn(2, *shape), torch.tensor([1e-5, 1.0])).isfinite().all()


def test_all_that_a_network_says_of_itself_is_handed_on():
    network = nn.Identity()
    said = {"event": (2, 4, 4), "classes": 3, "learned_variance": True, "knows_no_class": False}
    said |= {"takes_logarithm": True, "cond_shape": (), "takes_float32": True}
    assert tuple(said) == STATED
    for name, value in said.items():
        setattr(network, name, value)
    model = adapt(network, (2, 4, 4), VESDE(), time="sigma")
    for stating in (model.network, model):
        assert {name: getattr(stating, name) for name in STATED} == said


def test_a_learned_variance_is_read_as_the_network_was_trained():
    class Doubled(nn.Module):
        learned_variance = True

        def forward(self, x, time):
            return torch.cat([x, torch.full_like(x, -3.0)], 1)

    x, t, ends = torch.randn(2, 3), torch.full((2,), 0.5), (torch.tensor(-4.0), torch.tensor(-2.0))
    for variance, expected in (("learned", -3.0), ("learned_range", -6.0)):  # v = -3 is one range below the lower end
        model = adapt(Doubled(), (3,), VPSDE(), variance=variance)
        torch.testing.assert_close(model.score_and_variance(x, t, ends)[1], torch.full_like(x, expected))


def test_a_network_that_says_nothing_of_itself_is_one_of_ours_that_says_nothing():
    model, ours = adapt(nn.Identity(), (2, 4, 4), VESDE()), Network()
    defaults = dict(zip(STATED, (None, 0, False, True, False, None, False), strict=True))
    for stating in (model.network, ours):
        assert {name: getattr(stating, name) for name in STATED} == defaults
    assert {name: getattr(model, name) for name in STATED} == {**defaults, "event": (2, 4, 4)}


def test_a_network_whose_inputs_a_call_makes_states_no_shape():
    flat = MLP((12,), width=8)
    model = adapt(flat, (3, 4), VPSDE(), call=lambda module, x, time, cond: module(x.flatten(1), time).reshape(x.shape))
    assert model(torch.randn(2, 3, 4), torch.full((2,), 0.5)).shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"built for samples of shape \(12,\), the data has \(3, 4\)"):
        adapt(flat, (3, 4), VPSDE())


def test_no_class_is_told_to_a_network_that_knows_it_alone():
    network = nn.Identity()
    network.classes = 3
    x, t, no_class = torch.randn(2, 4), torch.full((2,), 0.5), torch.tensor([3, 3])
    told = lambda: adapt(network, (4,), VPSDE(), call=lambda module, x, time, cond: module(x))(x, t, no_class)
    assert told().shape == x.shape
    network.knows_no_class = False
    with pytest.raises(ValueError, match="classes go from 0 to 2, got 3 to 3"):
        told()


def test_a_condition_must_have_the_shape_that_the_network_states():
    network = UNet((1, 8, 8), width=8, multipliers=(1,), blocks=1, attention=())
    network.cond_shape = (3, 2)
    model, x, t = (
        adapt(network, (1, 8, 8), VPSDE(), call=lambda module, x, t, cond: module(x, t)),
        torch.randn(2, 1, 8, 8),
        torch.full((2,), 0.5),
    )
    assert model(x, t, torch.zeros(2, 3, 2)).shape == model(x, t).shape
    with pytest.raises(ValueError, match=r"cond must have the shape \(2, 3, 2\), got \(2, 3\)"):
        model(x, t, torch.zeros(2, 3))
