import numpy as np
import pytest
import torch

from score_sde.networks.refinenet import InstanceNormPlus, NCSNv2, VarianceNorm

NORMALIZATIONS = ("instance++", "instance", "variance")
CASES = {
    "four_stages": ((3, 8, 12), {"stages": 4}),
    "five_stages": ((1, 12, 8), {"stages": 5}),
    "six_stages": ((1, 16, 16), {"stages": 6}),
    "instance": ((1, 8, 8), {"normalization": "instance"}),
    "variance": ((1, 8, 8), {"normalization": "variance", "activation": "swish"}),
    "learned_variance": ((2, 8, 8), {"learned_variance": True, "centered": False}),
}


def perturbed(network):
    """In float64 and away from the start, where the last layer, which is zero, would hide all others."""
    torch.manual_seed(0)
    network = network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.fixture(params=CASES, ids=str)
def network(request):
    shape, options = CASES[request.param]
    network = perturbed(NCSNv2(shape, width=4, **options)).eval()
    network.shape, network.options = shape, options
    return network


def inputs(shape, batch=3):
    return torch.randn(batch, *shape, dtype=torch.float64), torch.rand(batch, dtype=torch.float64)


def test_shape_and_dtype(network):
    channels, *sides = network.shape
    for dtype in (torch.float64, torch.float32):
        x, noise = (value.to(dtype) for value in inputs(network.shape))
        out = network.to(dtype)(x, noise)
        assert out.shape == (3, channels * (2 if network.learned_variance else 1), *sides)
        assert out.dtype == dtype


def test_samples_of_a_batch_do_not_influence_one_another(network):
    x, noise = inputs(network.shape)
    torch.testing.assert_close(network(x, noise)[1:2], network(x[1:2], noise[1:2]), rtol=1e-9, atol=1e-9)


def test_every_parameter_is_used(network):
    """But for a bias before a plain instance normalization, which takes it away again."""
    network(*inputs(network.shape)).square().mean().backward()
    unused = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12}
    plain = network.options.get("normalization") == "instance"
    assert unused == {name for name, _ in network.named_parameters() if plain and name.endswith("conv1.bias")}


def test_noise_level_changes_nothing_and_conditions_are_refused(network):
    x, noise = inputs(network.shape)
    assert torch.equal(network(x, noise), network(x, 100 * noise))
    with pytest.raises(ValueError, match="takes no condition"):
        network(x, noise, torch.zeros(3, dtype=torch.long))


def test_starts_from_zero():
    network = NCSNv2((1, 8, 8), width=16)
    assert network(torch.randn(2, 1, 8, 8), torch.rand(2)).abs().max() < 0.1


def test_begins_with_centering_where_the_data_is_not_centered():
    centered, other = perturbed(NCSNv2((1, 8, 8), width=4)), NCSNv2((1, 8, 8), width=4, centered=False).double()
    other.load_state_dict(centered.state_dict())
    x, noise = inputs((1, 8, 8))
    torch.testing.assert_close(other(x, noise), centered(2 * x - 1, noise))


@pytest.mark.parametrize(("side", "stages"), [(8, 4), (94, 4), (96, 5), (128, 5), (136, 6), (256, 6)])
def test_number_of_stages_by_side(side, stages):
    with torch.device("meta"):
        assert len(NCSNv2((3, side, side), width=2).stages) == stages


@pytest.mark.parametrize(
    ("stages", "features"),
    [
        (4, [(3, 32), (6, 16), (6, 16), (6, 16)]),
        (5, [(3, 32), (6, 16), (6, 8), (12, 8), (12, 8)]),
        (6, [(3, 32), (6, 16), (6, 8), (6, 4), (12, 4), (12, 4)]),
    ],
)
def test_channels_and_sides_of_the_stages(stages, features):
    """The dilated stages, the last two, do not halve."""
    network, seen = NCSNv2((1, 32, 32), width=3, stages=stages), []
    for stage in network.stages:
        network.get_submodule(f"res{stage.residual}").register_forward_hook(
            lambda module, given, out: seen.append((out.shape[1], out.shape[2]))
        )
    network(torch.randn(1, 1, 32, 32), torch.rand(1))
    assert seen == features


@pytest.mark.parametrize("stages", [4, 5, 6])
def test_names_are_those_of_the_published_weights(stages):
    shapes = {name: tuple(p.shape) for name, p in NCSNv2((3, 16, 16), width=8, stages=stages).named_parameters()}
    for name, shape in {
        "begin_conv.weight": (8, 3, 3, 3),
        "normalizer.alpha": (8,),
        "normalizer.gamma": (8,),
        "normalizer.beta": (8,),
        "end_conv.bias": (3,),
        "res1.0.conv1.weight": (8, 8, 3, 3),
        "res1.0.normalize1.alpha": (8,),
        "res2.0.conv2.conv.weight": (16, 8, 3, 3),
        "res2.0.shortcut.conv.weight": (16, 8, 1, 1),
        "refine1.adapt_convs.0.1_1_conv.weight": ((16 if stages == 4 else 32,) * 2 + (3, 3)),
        "refine1.crp.convs.0.weight": ((16 if stages == 4 else 32,) * 2 + (3, 3)),
        "refine2.adapt_convs.1.2_2_conv.weight": ((16 if stages == 4 else 32,) * 2 + (3, 3)),
        "refine2.msf.convs.1.bias": (16,),
    }.items():
        assert shapes.pop(name) == shape, name
    last = {4: "refine4", 5: "refine5", 6: "refine5"}[stages]
    assert shapes[f"{last}.output_convs.3_2_conv.weight"] == (8, 8, 3, 3)
    assert f"{last}.output_convs.4_1_conv.weight" not in shapes
    assert f"{last}.output_convs.1_1_conv.bias" not in shapes
    assert shapes["res4.0.shortcut.weight"][2:] == (3, 3)
    assert "res4.1.shortcut.weight" not in shapes
    assert "refine1.msf.convs.0.weight" not in shapes
    assert any(name.startswith("refine31.") for name in shapes) == (stages == 6)
    parts = list(dict.fromkeys(name.split(".")[0] for name in shapes))
    numbers = {4: "1 2 3 4", 5: "1 2 3 4 5", 6: "1 2 3 31 4 5"}[stages].split()
    assert [part for part in parts if part.startswith("res")] == [f"res{number}" for number in numbers]
    assert [part for part in parts if part.startswith("refine")] == [f"refine{number}" for number in numbers]


def test_instance_normalization_plus_is_the_papers():
    """Song and Ermon 2019, Appendix A, channel by channel; the paper's alpha is the product gamma alpha here."""
    norm = perturbed(InstanceNormPlus(5))
    x = torch.randn(2, 5, 3, 4).double() * 2 + torch.randn(2, 5, 1, 1).double()
    alpha, gamma, beta = (p.detach().numpy() for p in (norm.alpha, norm.gamma, norm.beta))
    for image, out in zip(x.numpy(), norm(x).detach().numpy(), strict=True):
        means = [channel.mean() for channel in image]
        spread = np.sqrt(np.var(means, ddof=1) + 1e-5)
        for k, channel in enumerate(image):
            own = (channel - means[k]) / np.sqrt(np.mean((channel - means[k]) ** 2) + 1e-5)
            among = (means[k] - np.mean(means)) / spread
            np.testing.assert_allclose(out[k], gamma[k] * own + beta[k] + gamma[k] * alpha[k] * among, rtol=1e-10, atol=1e-12)


def test_what_shifts_do_to_normalizations():
    """A shift of all channels is forgotten, a shift of one is not: it moves the means of the outputs, but no contrast."""
    x = torch.randn(2, 6, 4, 4).double()
    one = x + 3 * torch.eye(6)[2, :, None, None]
    plus, plain = perturbed(InstanceNormPlus(6)), torch.nn.InstanceNorm2d(6)
    torch.testing.assert_close(plus(x + 3), plus(x))
    torch.testing.assert_close(plain(one), plain(x))
    moved = plus(one) - plus(x)
    assert (moved.mean(dim=(2, 3)).abs() > 1e-3).all()
    torch.testing.assert_close(moved, moved.mean(dim=(2, 3), keepdim=True).expand_as(moved))


def test_variance_normalization_keeps_the_ratio_of_mean_to_deviation():
    norm = perturbed(VarianceNorm(3))
    x = 5 * torch.randn(2, 3, 8, 8).double() + 7
    out = norm(x).detach()
    torch.testing.assert_close(out.std(dim=(2, 3)), norm.alpha.detach().abs().expand(2, 3), rtol=1e-5, atol=0)
    torch.testing.assert_close(out.mean(dim=(2, 3)) / out.std(dim=(2, 3)), norm.alpha.sign() * x.mean((2, 3)) / x.std((2, 3)))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_recomputing_changes_nothing_but_the_work(normalization):
    kept = perturbed(NCSNv2((1, 8, 8), width=4, normalization=normalization)).train()
    again = NCSNv2((1, 8, 8), width=4, normalization=normalization, recompute=True).double().train()
    again.load_state_dict(kept.state_dict())
    x, noise = inputs((1, 8, 8))
    results, passes = [], []
    for network in (kept, again):
        for part in (network.res2[0].conv1, network.refine2.crp):
            part.register_forward_hook(lambda *_, network=network: passes.append(network))
        out = network(x, noise)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in network.parameters())])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert [passes.count(network) for network in (kept, again)] == [2, 4]


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 8), {}, "needs images"),
        ((1, 8, 9), {}, "multiples of 2"),
        ((1, 2, 2), {}, "larger than it"),
        ((1, 12, 12), {"stages": 6}, "multiples of 8"),
        ((1, 512, 512), {}, "choose stages"),
        ((1, 8, 8), {"stages": 3}, "choose one of 0, 4, 5, 6"),
        ((1, 8, 8), {"normalization": "batch"}, r"choose one of instance\+\+, instance, variance"),
        ((1, 8, 8), {"activation": "tanh"}, "choose one of swish, elu, relu, lrelu"),
        ((1, 8, 8), {"width": 1}, "at least 2"),
    ],
)
def test_bad_options_are_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        NCSNv2(shape, **options)
