import pytest
import torch

from score_sde.networks import MLP, NETWORKS, UNet
from score_sde.networks.embedding import FourierEmbedding, SinusoidalEmbedding

CASES = {
    "mlp": (MLP, (2,), {"width": 16}),
    "mlp_of_an_image": (MLP, (1, 4, 4), {"width": 16}),
    "unet_2d": (UNet, (3, 8, 8), {"width": 8, "multipliers": (1, 2), "blocks": 1}),
    "unet_1d": (UNet, (2, 16), {"width": 8, "multipliers": (1, 2), "attention": (0, 1), "blocks": 1}),
    "unet_odd": (UNet, (1, 7, 9), {"width": 8, "multipliers": (1, 2, 2), "attention": (2,), "blocks": 2}),
    "unet_one_level": (UNet, (1, 5, 5), {"width": 8, "multipliers": (1,), "attention": (), "embedding": "fourier"}),
    "unet_four_levels": (UNet, (1, 8, 8), {"width": 8, "multipliers": (1, 1, 2, 2), "attention": (3,), "blocks": 1}),
}


@pytest.fixture(params=CASES, ids=str)
def network(request):
    cls, shape, options = CASES[request.param]
    network = cls(shape, **options).double().eval()
    with torch.no_grad():  # layers that start at zero would hide what they do
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.shape = shape
    return network


def test_shape_and_dtype(network):
    x, noise = torch.randn(3, *network.shape, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    out = network(x, noise)
    assert out.shape == x.shape
    assert out.dtype == torch.float64


def test_samples_of_a_batch_do_not_influence_one_another(network):
    x, noise = torch.randn(3, *network.shape, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    torch.testing.assert_close(network(x, noise)[1:2], network(x[1:2], noise[1:2]), rtol=1e-9, atol=1e-9)


def test_output_depends_on_every_input_and_on_the_noise_level(network):
    x = torch.randn(1, *network.shape, dtype=torch.float64, requires_grad=True)
    noise = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    slope, by_noise = torch.autograd.grad(network(x, noise).square().sum(), (x, noise))
    assert (slope != 0).all()
    assert (by_noise != 0).all()


def test_every_parameter_is_used(network):
    x, noise = torch.randn(3, *network.shape, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    network(x, noise).square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # the bias of a convolution before a normalization of single channels is the only parameter that may cancel
    assert not unused


def test_starts_from_zero():
    """A new network predicts 0, its best constant."""
    for name, cls in NETWORKS.items():
        shape = (1, 8, 8)
        out = cls(shape)(torch.randn(2, *shape), torch.rand(2))
        assert out.abs().max() < 0.2, name


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
        (lambda: MLP((2,), embedding="fourrier"), "choose one of sinusoidal, fourier"),
        (lambda: MLP((2,), width=15), "even"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
