import inspect

import numpy as np
import pytest
import scipy.signal
import torch

from score_sde import VPSDE, DataSpec, ScoreModel
from score_sde.config import read_config
from score_sde.divergence import ExactDivergence
from score_sde.networks import MLP, NETWORKS, DiT, NCSNpp, NCSNv2, UNet, adm, ddpm, vdm
from score_sde.networks.attention import SelfAttention
from score_sde.networks.embedding import FourierEmbedding, NoiseEmbedding, SinusoidalEmbedding
from score_sde.networks.resample import Resample, upfirdn
from score_sde.networks.waves import with_waves
from score_sde.run import build_model, data_spec

CASES = {
    "mlp": (MLP, (2,), {"width": 16}),
    "mlp_of_an_image": (MLP, (1, 4, 4), {"width": 16}),
    "unet_2d": (UNet, (3, 8, 8), {"width": 8, "multipliers": (1, 2), "blocks": 1}),
    "unet_1d": (UNet, (2, 16), {"width": 8, "multipliers": (1, 2), "attention": (0, 1), "blocks": 1}),
    "unet_odd": (UNet, (1, 7, 9), {"width": 8, "multipliers": (1, 2, 2), "attention": (2,), "blocks": 2}),
    "unet_one_level": (UNet, (1, 5, 5), {"width": 8, "multipliers": (1,), "attention": (), "embedding": "fourier"}),
    "unet_four_levels": (UNet, (1, 8, 8), {"width": 8, "multipliers": (1, 1, 2, 2), "attention": (3,), "blocks": 1}),
    "unet_classes": (UNet, (1, 8, 8), {"width": 8, "multipliers": (1, 2), "blocks": 1, "classes": 3}),
    "adm": (
        adm,
        (3, 9, 8),
        {"width": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (2,), "head_width": 4, "classes": 3},
    ),
    "adm_added_and_pooled": (
        adm,
        (2, 8, 6),
        {
            "width": 8,
            "multipliers": (1.5, 2),
            "blocks": 2,
            "attention": (0, 1),
            "heads": 4,
            "heads_up": 2,
            "resample": "pool",
            "modulation": "add",
            "embedding": "transformer",
            "stem": 12,
            "group_width": 2,
            "classes": 3,
            "learned_variance": True,
        },
    ),
    "vdm": (vdm, (2, 5, 6), {"width": 8, "blocks": 2, "group_width": 2, "waves": (1.5, 3), "classes": 3}),
    "vdm_1d": (vdm, (1, 9), {"width": 8, "blocks": 1, "group_width": 2, "waves": (2,), "modulation": "scale_shift"}),
    "adm_without_blocks": (
        adm,
        (2, 8, 8),
        {
            "width": 8,
            "multipliers": (2, 1),
            "blocks": 0,
            "attention": (1,),
            "head_width": 16,
            "narrow_attention": False,
            "embedding_width": 12,
        },
    ),
    "ddpm": (ddpm, (3, 8, 8), {"width": 32, "multipliers": (2, 1), "blocks": 1}),
    "ncsnpp": (NCSNpp, (3, 8, 8), {"width": 8, "multipliers": (1, 2), "blocks": 1}),
    "ncsnpp_skips": (
        NCSNpp,
        (1, 8, 16),
        {
            "width": 8,
            "multipliers": (1, 2, 2),
            "blocks": 2,
            "attention": (0, 2),
            "block": "ddpm",
            "progressive": "output_skip",
            "progressive_input": "input_skip",
            "combine": "cat",
            "fir": (),
            "resample_with_conv": False,
            "embedding": "sinusoidal",
            "classes": 3,
            "centered": False,
        },
    ),
    "ncsnpp_without_blocks": (
        NCSNpp,
        (2, 8, 8),
        {
            "width": 8,
            "multipliers": (1, 2, 1),
            "blocks": 0,
            "logarithm": False,
            "sinusoids": 6,
            "embedding_width": 12,
        },
    ),
    "ncsnpp_residual": (NCSNpp, (3, 8, 8), {"width": 8, "multipliers": (1, 2), "blocks": 1, "progressive": "residual"}),
    "dit": (DiT, (2, 8, 8), {"width": 16, "depth": 2, "heads": 2, "classes": 3}),
}
SMALL = {
    "mlp": {"width": 64},
    "unet": {"width": 8, "multipliers": (1, 2), "blocks": 1},
    "ddpm": {"width": 32, "multipliers": (2, 1), "blocks": 1},
    "ncsnpp": {"width": 8, "multipliers": (1, 2), "blocks": 1},
    "ncsnv2": {"width": 8},
    "adm": {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_width": 4},
    "vdm": {"width": 8, "blocks": 1},
    "dit": {"width": 16, "depth": 1, "heads": 2},
}
"""Options that make each of NETWORKS small."""


@pytest.fixture(params=CASES, ids=str)
def network(request):
    cls, shape, options = CASES[request.param]
    network = cls(shape, **options).double().eval()
    with torch.no_grad():  # layers that start at zero would hide what they do
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.shape = shape
    return network


def inputs(network, batch=3):
    """Points and positive noise levels, which every embedding takes."""
    return torch.randn(batch, *network.shape, dtype=torch.float64), torch.rand(batch, dtype=torch.float64) + 0.1


def test_shape_and_dtype(network):
    x, noise = inputs(network)
    out = network(x, noise)
    twice = getattr(network, "learned_variance", False)
    assert out.shape == (3, network.shape[0] * (2 if twice else 1), *network.shape[1:])
    assert out.dtype == torch.float64


def test_samples_of_a_batch_do_not_influence_one_another(network):
    x, noise = inputs(network)
    torch.testing.assert_close(network(x, noise)[1:2], network(x[1:2], noise[1:2]), rtol=1e-9, atol=1e-9)


def test_output_depends_on_every_input_and_on_the_noise_level(network):
    x = torch.randn(1, *network.shape, dtype=torch.float64, requires_grad=True)
    noise = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    slope, by_noise = torch.autograd.grad(network(x, noise).square().sum(), (x, noise))
    assert (slope != 0).all()
    assert (by_noise != 0).all()


def test_every_parameter_is_used(network):
    x, noise = inputs(network)
    network(x, noise).square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # the bias of a convolution before a normalization of single channels is the only parameter that may cancel
    assert not unused


@pytest.mark.parametrize("name", SMALL)
def test_starts_from_zero(name):
    """A new network predicts 0, its best constant."""
    shape = (1, 16, 16)
    out = NETWORKS[name](shape, **SMALL[name])(torch.randn(2, *shape), torch.rand(2) + 0.1)
    assert out.abs().max() < 0.2


@pytest.mark.parametrize("name", SMALL)
def test_a_network_states_its_shape_and_a_model_refuses_data_of_another(name):
    network = NETWORKS[name]([1, 16, 16], **SMALL[name])
    assert network.event == ScoreModel(network, VPSDE(), DataSpec((1, 16, 16))).event == (1, 16, 16)
    with pytest.raises(ValueError, match=r"built for samples of shape \(1, 16, 16\), the data has \(1, 8, 16\)"):
        ScoreModel(network, VPSDE(), DataSpec((1, 8, 16)))


@torch.no_grad()
def test_initial_weights_of_ncsnpp_have_the_published_variances():
    """scale / mean of inputs and outputs, with a scale of 1, of 0.1 for attention's q, k, v, and for ddpm's shortcuts."""
    torch.manual_seed(0)
    for network, shortcut_scale in ((ddpm((3, 8, 8), multipliers=(1, 2)), 0.1), (NCSNpp((3, 8, 8), multipliers=(1, 2)), 1.0)):
        block = network.down[1].stage.blocks[0]
        assert block.conv_1.weight.var() * 9 * (128 + 256) / 2 == pytest.approx(1, rel=0.02)
        assert block.shortcut.weight.var() * (128 + 256) / 2 == pytest.approx(shortcut_scale, rel=0.05)
        for part in network.middle[1].qkv.weight.chunk(3):
            assert part.var() * 256 == pytest.approx(0.1, rel=0.05)
        assert block.conv_2.weight.abs().max() < 1e-4
        assert network.middle[1].out.weight.abs().max() < 1e-4


PUBLISHED = {  # millions of parameters: Song et al. 2021 (their code's networks), Dhariwal and Nichol 2021 (Table 4: 296)
    "cifar10_ddpm": 35.22,
    "cifar10_vp": 61.80,
    "cifar10_subvp": 61.80,
    "cifar10_deep_vp": 106.63,
    "cifar10_deep_subvp": 106.63,
    "cifar10_ve": 62.76,
    "cifar10_deep_ve": 107.59,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_have_the_published_number_of_parameters(name):
    plain = read_config(name).to_dict()
    with torch.device("meta"):
        model = build_model(plain, data_spec(plain))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == PUBLISHED[name]


def test_adm_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = adm((3, 64, 64), classes=1000, learned_variance=True)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 296


def test_network_fits_a_known_function():
    """Some hundred steps on a smooth denoiser of one pixel: the loss falls by far."""
    torch.manual_seed(0)
    network = UNet((1, 4, 4), width=16, multipliers=(1,), blocks=1, attention=())
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(70):
        x, noise = torch.randn(32, 1, 4, 4), torch.rand(32)
        wanted = torch.tanh(2 * x) * noise[:, None, None, None]
        loss = (network(x, 999 * noise) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])


def test_sinusoidal_frequencies_are_in_equal_ratios_to_an_end_that_is_left_out_or_not():
    """Ho et al. 2020 (code): 10000^(-i / (n - 1)). Vaswani et al. 2017, Section 3.5: 10000^(-2 i / d) with d = 2 n."""
    noise = torch.tensor([1e-4, 1.0, 900.0], dtype=torch.float64)
    for open_end, lowest in ((False, 1e-4), (True, 1e-3)):
        sines, cosines = SinusoidalEmbedding(8, open_end=open_end)(noise).chunk(2, dim=1)
        frequencies = torch.from_numpy(np.geomspace(1, lowest, 4))
        torch.testing.assert_close(sines, torch.sin(noise[:, None] * frequencies))
        torch.testing.assert_close(cosines, torch.cos(noise[:, None] * frequencies))


def test_embeddings_tell_neighbouring_levels_apart():
    label = SinusoidalEmbedding(32)(torch.arange(1000.0))
    assert torch.cdist(label, label).add(torch.eye(1000) * 9).min() > 0.05
    log_snr = FourierEmbedding(32, 0.2)(torch.linspace(-10, 14, 200))
    assert torch.cdist(log_snr, log_snr).add(torch.eye(200) * 9).min() > 0.02


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UNet((3,)), "the mlp takes any"),
        (lambda: UNet((1, 4, 4), multipliers=(1, 1, 1, 1)), "4 levels are too many"),
        (lambda: UNet((1, 8, 8), multipliers=(1, 2), attention=(2,)), "names levels"),
        (lambda: UNet((1, 8, 8), width=30, multipliers=(1, 3), head_width=8), "attention heads"),
        (lambda: MLP((2,), embedding="fourrier"), "choose one of sinusoidal, transformer, fourier"),
        (lambda: MLP((2,), width=15), "even"),
        (lambda: MLP((2,), classes=-1), "classes must not be negative"),
        (lambda: UNet((1, 8, 8), resample="bloc"), "choose one of conv, block, pool"),
        (lambda: UNet((1, 8, 8), modulation="scale"), "choose one of scale_shift, add"),
        (lambda: UNet((1, 8, 8), heads_up=2), "give heads too"),
        (lambda: UNet((1, 8, 8), heads=3), "128 channels cannot be cut into 3 attention heads"),
        (lambda: UNet((1, 8, 8), stem=-1), "must not be negative"),
        (lambda: UNet((1, 8, 8), blocks=-1), "must not be negative"),
        (lambda: UNet((1, 8, 8), multipliers=(1, 0.001)), "at least 1"),
        (lambda: UNet((1, 8, 8), width=36, group_width=1), "36 channels cannot be normalized in 32 groups"),
        (lambda: UNet((1, 8, 8), width=8, multipliers=(1, 1), stem=9), "9 channels cannot be normalized"),
        (lambda: UNet((1, 8, 8), waves=(17, 0)), "waves must be positive numbers"),
        (lambda: vdm((1, 8, 8), waves=(float("inf"),)), "waves must be positive numbers"),
        (lambda: NCSNpp((2,)), "needs images"),
        (lambda: NCSNpp((3, 12, 12)), "cannot be halved 3 times"),
        (lambda: NCSNpp((3, 8, 8), block="resnet"), "choose one of ddpm, biggan"),
        (lambda: NCSNpp((3, 8, 8), width=9, embedding="sinusoidal"), "positive even"),
        (lambda: NCSNpp((3, 8, 8), width=36, group_width=1), "cannot be normalized"),
        (lambda: NCSNpp((3, 8, 8), conditional=False, classes=2), "must be conditional"),
        (lambda: NCSNpp((3, 8, 8), attention=(4,)), "names levels"),
        (lambda: NCSNpp((3, 8, 8), fir=(1,)), "at least two numbers"),
        (lambda: NCSNpp((3, 8, 8), sinusoids=-2), "must not be negative"),
        (lambda: NCSNpp((3, 8, 8), sinusoids=5), "positive even number, got 5"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# classes, recomputing, precision


@pytest.mark.parametrize("name", ["mlp", "unet", "ddpm", "ncsnpp", "adm", "dit"])
def test_classes_change_the_answer_and_no_class_is_one_more_of_them(name):
    torch.manual_seed(0)
    shape = (1, 8, 8)
    network = perturbed(NETWORKS[name](shape, **{**SMALL[name], "classes": 3}).double().eval())
    x, noise = torch.randn(2, *shape, dtype=torch.float64), torch.tensor([0.3, 0.8], dtype=torch.float64)
    outs = [network(x, noise, torch.tensor([k, k])) for k in range(4)]
    for k in range(3):
        assert (outs[k] - outs[k + 1]).abs().max() > 1e-6
    torch.testing.assert_close(network(x, noise), outs[3])
    torch.testing.assert_close(network(x, noise, torch.tensor([0, 2]))[1], outs[2][1])
    torch.testing.assert_close(network(x, noise, torch.tensor([1, 1], dtype=torch.uint8)), outs[1])
    with pytest.raises(ValueError, match="classes go from 0 to 2, and 3 is no class, got 0 to 4"):
        network(x, noise, torch.tensor([4, 0]))
    for wrong in (torch.tensor([0]), torch.tensor([0.0, 1.0]), torch.tensor([True, False])):
        with pytest.raises(ValueError, match="one per sample"):
            network(x, noise, wrong)
    with pytest.raises(ValueError, match="takes no condition"):
        NETWORKS[name](shape, **{**SMALL[name], "classes": 0})(x.float(), noise.float(), torch.tensor([0, 1]))


def test_early_classes_are_a_linear_layer_of_a_vector_of_0_and_the_root_of_their_number():
    embedding = NoiseEmbedding("sinusoidal", 6, 10, classes=4, early=True)
    noise, classes = torch.rand(5), torch.arange(5)
    linear, one_hot = embedding.classes.linear, 2 * torch.eye(5)[:, :4]
    expected = embedding.layers(embedding.features(noise) + linear(one_hot))
    torch.testing.assert_close(embedding(noise, classes), expected)
    torch.testing.assert_close(embedding(noise)[4], expected[4])


def test_the_logarithm_of_the_noise_level_is_taken_by_the_network_or_by_its_caller():
    networks = []
    for logarithm in (True, False):
        torch.manual_seed(0)
        networks.append(perturbed(NCSNpp((1, 8, 8), **SMALL["ncsnpp"], logarithm=logarithm).eval()))
    x, noise = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 7.0])
    assert [network.takes_logarithm for network in networks] == [True, False]
    torch.testing.assert_close(networks[0](x, noise), networks[1](x, noise.log()))


def test_narrow_levels_may_do_without_attention():
    """Of 8 and 16 channels with heads of 16, also in the middle."""
    options = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (0, 1), "head_width": 16}
    counts = [
        sum(isinstance(part, SelfAttention) for part in UNet((1, 8, 8), **options, narrow_attention=narrow).modules())
        for narrow in (True, False)
    ]
    assert counts == [7, 4]


def test_a_network_without_a_vector_for_no_class_needs_a_class():
    network = adm((1, 8, 8), **{**SMALL["adm"], "classes": 3, "no_class": False})
    assert not network.knows_no_class
    x, noise = torch.randn(2, 1, 8, 8), torch.rand(2)
    network(x, noise, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="needs one of its 3 classes for every sample"):
        network(x, noise)
    with pytest.raises(ValueError, match="classes go from 0 to 2, got 0 to 3"):
        network(x, noise, torch.tensor([0, 3]))


IMAGE_NETWORKS = ["unet", "ddpm", "ncsnpp", "ncsnv2", "adm", "vdm", "dit"]


def perturbed(network):
    """Weights away from the initial zeros, which would hide what a layer does."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def gradients(network, x, noise, seed=0, autocast=False):
    """Output and gradients of a training step, dropout drawn from ``seed``."""
    network.zero_grad()
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = network(x, noise)
    out.float().square().mean().backward()
    return out.detach().float(), torch.cat([p.grad.flatten().float() for p in network.parameters()])


def build(name, shape=(3, 16, 16), **options):
    torch.manual_seed(0)
    if "dropout" in inspect.signature(NETWORKS[name]).parameters:
        options = {"dropout": 0.2, **options}
    return perturbed(NETWORKS[name](shape, **{**SMALL[name], **options})).train()


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_recomputing_changes_nothing_but_memory(name):
    x, noise = torch.randn(2, 3, 16, 16), torch.rand(2) + 0.1
    kept, recomputed = build(name), build(name, recompute=True)
    saved = []
    for network in (kept, recomputed):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            torch.manual_seed(1)
            network(x, noise)
        saved.append(total)
    for ours, theirs in zip(gradients(kept, x, noise), gradients(recomputed, x, noise), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert saved[1] < 0.6 * saved[0]


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_bfloat16_autocast_agrees_to_its_precision(name):
    """2^-8 per operation, which adds up to some per cent over a network; maxima may also be taken at other pixels."""
    bound = 0.1 if name == "ncsnv2" else 0.05
    x, noise = torch.randn(4, 3, 16, 16), torch.rand(4) + 0.1
    network = build(name, **({} if name == "ncsnv2" else {"dropout": 0.0}))
    full, half = gradients(network, x, noise), gradients(network, x, noise, autocast=True)
    for exact, rough in zip(full, half, strict=True):
        assert rough.isfinite().all()
        assert 0 < (exact - rough).norm() / exact.norm() < bound


@pytest.mark.parametrize("embedding", ["sinusoidal", "fourier"])
@pytest.mark.parametrize("label", [30.0, 700.0, 999.0])
def test_half_precision_networks_are_told_the_time_exactly(embedding, label):
    """A bfloat16 label near 999 is off by up to 2, and so would be the answer."""
    sde = VPSDE()
    network = perturbed(UNet((1, 8, 8), width=16, multipliers=(1,), blocks=1, attention=(), embedding=embedding))
    model = ScoreModel(network, sde, DataSpec((1, 8, 8))).eval()
    x, t = torch.randn(8, 1, 8, 8).bfloat16().float(), torch.full((8,), label / 999)
    exact = model(x, t)
    half = model.bfloat16()(x, t)
    assert (half - exact).norm() / exact.norm() < 0.03
    seen = []
    network.embedding.features.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(x, t)
    torch.testing.assert_close(seen[0], network.embedding.features(t * 999), rtol=0, atol=1e-3)
    assert seen[0].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "vdm", "ncsnpp", "ncsnv2", "dit"])  # adm is a unet, ddpm an ncsnpp
def test_compiled_networks_agree(name):
    """Captured whole, forward and backward: the same output and gradients up to the order of sums, the same names of weights.

    What the compiler makes of a captured graph takes a minute for each; the trainer's test has one of them compiled.
    """
    x, noise = torch.randn(2, 3, 16, 16), torch.rand(2) + 0.1
    network = build(name, **({} if name == "ncsnv2" else {"dropout": 0.0}))
    names = list(network.state_dict())
    eager = gradients(network, x, noise)
    network.compile(backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(gradients(network, x, noise), eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())
    assert list(network.state_dict()) == names


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_the_exact_divergence_goes_through_every_network(name):
    """Attention kernels and normalizations are differentiated in batches of directions."""
    network = build(name, shape=(1, 16, 8)).double().eval()
    x, noise = torch.randn(2, 1, 16, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64) + 0.1
    _, divergence, _ = ExactDivergence()(lambda point: network(point, noise), x)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda point: network(point[None], noise[i : i + 1])[0], x[i])  # noqa: B023
        torch.testing.assert_close(divergence[0, i], jacobian.reshape(128, 128).trace())


# Fourier features of the input


@pytest.mark.parametrize("shape", [(2, 9), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_waves_of_the_input_are_further_channels(shape, dtype):
    """Real and imaginary part of exp(i pi k x), by numpy in float64."""
    x, counts = 3 * torch.randn(4, *shape, dtype=dtype), (8.5, 17.0)
    features = with_waves(x, counts)
    assert features.dtype == dtype
    waves = np.exp(1j * np.pi * np.concatenate([count * x.double().numpy() for count in counts], 1))
    wanted = np.concatenate([x.double().numpy(), waves.imag, waves.real], 1)
    np.testing.assert_allclose(features.double().numpy(), wanted, atol=1e-4 if dtype == torch.float32 else 1e-12)


def test_a_wave_for_each_level_repeats_from_bin_to_bin():
    spec, u = DataSpec((1, 17), levels=17), torch.rand(1, dtype=torch.float64)
    in_bins = spec.dequantized(torch.arange(17)[None, None], u)
    features = with_waves(in_bins, (17, 8.5))[0, 1:]  # sines, then cosines
    torch.testing.assert_close(features[::2], features[::2, :1].expand(2, 17))
    torch.testing.assert_close(features[1::2, ::2], features[1::2, :1].expand(2, 9))
    torch.testing.assert_close(features[1::2, 1::2], -features[1::2, :1].expand(2, 8))


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True)])
def test_half_precision_networks_see_waves_of_exact_points(dtype, autocast):
    """In bfloat16 a point near 1 is off by up to a quarter of a wave of 2^-7."""
    network = vdm((1, 8, 8), width=8, blocks=1)
    model = ScoreModel(network, VPSDE(), DataSpec((1, 8, 8), levels=256)).to(dtype).eval()
    x, seen = torch.rand(4, 1, 8, 8) * 2 - 1, []
    network.first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(x, torch.full((4,), 0.3))
    torch.testing.assert_close(seen[0].double(), with_waves(x.double(), (128, 256)), rtol=0, atol=5e-3)


def test_half_precision_networks_without_waves_take_half_precision_points():
    seen = []
    network = UNet((1, 8, 8), width=8, multipliers=(1,), blocks=1, attention=())
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    ScoreModel(network, VPSDE(), DataSpec((1, 8, 8))).bfloat16().eval()(torch.randn(2, 1, 8, 8), torch.rand(2))
    assert seen == [torch.bfloat16]


def test_vdm_keeps_the_sides_and_attends_in_the_middle_alone():
    network, shapes = vdm((1, 6, 5), width=8, blocks=3).eval(), []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[2:]))
    network(torch.randn(2, 1, 6, 5), torch.rand(2))
    assert set(shapes) == {(6, 5)}
    assert len(shapes) == 1 + 2 * (3 + 2 + 4) + 4 + 1  # four shortcuts, where a result of the way down joins
    attending = [name for name, module in network.named_modules() if isinstance(module, SelfAttention)]
    assert attending == ["middle.0.attention"]


# resampling


@pytest.mark.parametrize("kernel", [(1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0), (1.0, 2.0, 3.0, 4.0)])
@pytest.mark.parametrize(
    ("up", "down", "padding"), [(1, 1, (2, 1)), (2, 1, (2, 1)), (1, 2, (1, 1)), (2, 1, (1, -1)), (3, 2, (4, 2))]
)
def test_upfirdn_is_scipys(kernel, up, down, padding):
    """scipy.signal.upfirdn inserts zeros between samples and convolves; padding moves the window over its result."""
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    taps = torch.tensor(kernel, dtype=torch.float64)
    found = upfirdn(x, torch.outer(taps, taps), padding, up=up, down=down)
    wanted = x.numpy()
    for axis in (2, 3):
        full = scipy.signal.upfirdn(kernel, wanted, up=up, axis=axis)
        start = len(kernel) - 1 - padding[0]
        length = up * 6 + sum(padding) - len(kernel) + 1
        index = np.arange(start, start + length)[::down]
        inside = (index >= 0) & (index < full.shape[axis])
        wanted = np.take(full, index.clip(0, full.shape[axis] - 1), axis) * np.expand_dims(
            inside, tuple(i for i in range(4) if i != axis)
        )
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("kernel", [(), (1.0, 1.0), (1.0, 3.0, 3.0, 1.0)])
def test_resampling_keeps_a_constant_and_halves_or_doubles(kernel):
    x = torch.ones(1, 2, 8, 8)
    for direction, side in (("up", 16), ("down", 4)):
        out = Resample(direction, kernel)(x)
        assert out.shape == (1, 2, side, side)
        torch.testing.assert_close(out[..., 2:-2, 2:-2], torch.ones(1, 2, side - 4, side - 4))
        assert Resample(direction, kernel, conv=(2, 5))(x).shape == (1, 5, side, side)


def test_odd_sides_survive_the_unets():
    for resample in ("conv", "block", "pool"):
        network = perturbed(UNet((1, 7, 11), width=8, multipliers=(1, 2, 2), blocks=1, resample=resample))
        assert network(torch.randn(2, 1, 7, 11), torch.rand(2)).shape == (2, 1, 7, 11)


def test_uncentered_networks_are_the_centered_ones_of_2x_minus_1():
    for build_ in (ddpm, NCSNpp, NCSNv2):
        options = SMALL[{ddpm: "ddpm", NCSNpp: "ncsnpp", NCSNv2: "ncsnv2"}[build_]]
        torch.manual_seed(0)
        centered = perturbed(build_((1, 16, 16), **options)).eval()
        uncentered = build_((1, 16, 16), **options, centered=False).eval()
        uncentered.load_state_dict(centered.state_dict())
        x, noise = torch.rand(2, 1, 16, 16), torch.rand(2) + 0.1
        torch.testing.assert_close(uncentered(x, noise), centered(2 * x - 1, noise))
