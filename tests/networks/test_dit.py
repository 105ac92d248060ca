import copy

import pytest
import torch
from torch import nn

from score_sde.networks.dit import DiT, position_features

CASES = {
    "image": ((3, 8, 4), {"patch": 2, "width": 8, "depth": 2, "heads": 2}),
    "image_of_pixels": ((1, 3, 5), {"patch": 1, "width": 4, "depth": 1, "heads": 1, "embedding": "fourier"}),
    "signal": ((2, 12), {"patch": 3, "width": 6, "depth": 2, "heads": 3}),
    "classes": ((1, 4, 4), {"patch": 2, "width": 8, "depth": 2, "heads": 4, "classes": 5}),
    "published": (
        (2, 4, 6),
        {"patch": 1, "width": 8, "depth": 1, "heads": 2, "mlp_ratio": 1.5, "columns_first": True, "embedding": "transformer"},
    ),
    "learned_variance": ((3, 4, 6), {"patch": 2, "width": 8, "depth": 1, "heads": 2, "learned_variance": True}),
}


def perturbed(network):
    """In float64 and away from the start, where layers that are zero would hide what they do."""
    torch.manual_seed(0)
    network = network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.fixture(params=CASES, ids=str)
def network(request):
    shape, options = CASES[request.param]
    network = perturbed(DiT(shape, **options)).eval()
    network.shape = shape
    return network


def inputs(shape, batch=3):
    return torch.randn(batch, *shape, dtype=torch.float64), 10 * torch.rand(batch, dtype=torch.float64)


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


def test_output_depends_on_every_input_and_on_the_noise_level(network):
    x, noise = (value.requires_grad_() for value in inputs(network.shape, batch=1))
    slope, by_noise = torch.autograd.grad(network(x, noise).square().sum(), (x, noise))
    assert (slope != 0).all()
    assert (by_noise != 0).all()


def test_every_parameter_is_used(network):
    network(*inputs(network.shape)).square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12]
    assert not unused


def test_starts_from_zero_and_its_blocks_as_the_identity():
    network = DiT((1, 8, 8), width=16, depth=2, heads=2)
    tokens, embedding = torch.randn(2, 16, 16), torch.randn(2, 16)
    for block in network.blocks:
        assert torch.equal(block(tokens, embedding), tokens)
    assert not network(torch.randn(2, 1, 8, 8), torch.rand(2)).any()


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"), [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)]
)
def test_parameter_counts_are_those_of_the_paper(width, depth, heads, millions):
    """Peebles and Xie 2023, Table 4: S/2, B/2, L/2 and XL/2 on latents of ImageNet 256 x 256."""
    with torch.device("meta"):
        network = DiT((4, 32, 32), width=width, depth=depth, heads=heads, patch=2, classes=1000, learned_variance=True)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize(("shape", "patch"), [((2, 4, 6), 2), ((1, 6, 9), 3), ((2, 8), 4)], ids=str)
def test_without_attention_a_pixel_influences_its_own_patch_alone(shape, patch):
    """At the start the blocks are the identity: with a last layer that is not zero, patches are apart."""
    network = DiT(shape, width=8, depth=1, heads=1, patch=patch).double()
    nn.init.normal_(network.last.weight)
    x, noise = inputs(shape, batch=1)
    slopes = torch.autograd.functional.jacobian(lambda x: network(x, noise)[0], x).squeeze(len(shape))
    channels, *sides = shape
    places = torch.cartesian_prod(*(torch.arange(side) // patch for side in sides)).reshape(-1, len(sides))
    together = (places[:, None] == places).all(-1)
    influence = (slopes.abs() > 1e-9).reshape(channels, len(places), channels, len(places)).transpose(1, 2)
    assert torch.equal(influence, together.expand_as(influence))


def test_features_of_a_patch_are_its_rows_columns_and_channels():
    """Channels last: a bias that counts shows where each feature goes."""
    network = DiT((2, 4, 6), width=8, depth=1, heads=1, patch=2)
    with torch.no_grad():
        network.last.bias.copy_(torch.arange(8.0))
    out = network(torch.randn(1, 2, 4, 6), torch.rand(1))[0]
    for channel, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(6)):
        assert out[channel, row, column] == 4 * (row % 2) + 2 * (column % 2) + channel


def test_only_the_positions_tell_patches_apart():
    """Attention sees a set: patches that swap places carry their outputs along, unless positions are added."""
    network = perturbed(DiT((1, 4, 4), width=8, depth=2, heads=2, patch=2))
    x, noise = inputs((1, 4, 4))

    def swapped(x):
        return x.roll(2, dims=-1)

    assert (network(swapped(x), noise) - swapped(network(x, noise))).abs().max() > 1e-3
    network.position.zero_()
    torch.testing.assert_close(network(swapped(x), noise), swapped(network(x, noise)))


@pytest.mark.parametrize("grid", [(7,), (4, 5)], ids=str)
def test_products_of_positions_depend_on_their_difference_alone(grid):
    """sin a sin b + cos a cos b = cos(a - b), summed over frequencies; every position has a place of its own."""
    features = position_features(grid, 16).double()
    places = torch.cartesian_prod(*(torch.arange(side) for side in grid)).reshape(-1, len(grid))
    products = features @ features.T
    seen = {}
    for i, j in torch.cartesian_prod(*[torch.arange(len(places))] * 2).tolist():
        seen.setdefault(tuple((places[i] - places[j]).abs().tolist()), []).append(products[i, j].item())
    for values in seen.values():
        assert values == pytest.approx([values[0]] * len(values), rel=1e-5)
    assert products.diagonal().tolist() == pytest.approx([8] * len(places), rel=1e-5)
    assert (torch.cdist(features, features) + 9 * torch.eye(len(places))).min() > 0.5


def test_positions_may_begin_with_the_column():
    rows, columns = (position_features((2, 3), 8, columns_first=first).reshape(2, 3, 8) for first in (False, True))
    assert torch.equal(columns, torch.cat(rows.chunk(2, dim=2)[::-1], dim=2))


def test_a_block_agrees_with_torchs_attention():
    """The same weights in ``nn.MultiheadAttention``, with the modulation of the paper's Figure 3 written out."""
    network = perturbed(DiT((1, 8), width=12, depth=1, heads=3, patch=2))
    block, tokens, embedding = network.blocks[0], torch.randn(2, 4, 12).double(), torch.randn(2, 12).double()
    attention = nn.MultiheadAttention(12, 3, batch_first=True).double()
    norm = nn.LayerNorm(12, eps=1e-6, elementwise_affine=False)
    attention.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.out[0].weight,
            "out_proj.bias": block.out[0].bias,
        }
    )
    beta_1, gamma_1, alpha_1, beta_2, gamma_2, alpha_2 = block.modulation(embedding).reshape(2, 6, 1, 12).unbind(1)
    hidden = (1 + gamma_1) * norm(tokens) + beta_1
    expected = tokens + alpha_1 * attention(hidden, hidden, hidden, need_weights=False)[0]
    expected = expected + alpha_2 * block.mlp((1 + gamma_2) * norm(expected) + beta_2)
    torch.testing.assert_close(block(tokens, embedding), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_changes_nothing_but_the_work(dropout):
    kept = perturbed(DiT((1, 4, 4), width=8, depth=2, heads=2, dropout=dropout, classes=3)).train()
    again = DiT((1, 4, 4), width=8, depth=2, heads=2, dropout=dropout, classes=3, recompute=True).double().train()
    again.load_state_dict(kept.state_dict())
    x, noise = inputs((1, 4, 4))
    results, passes = [], []
    for network in (kept, again):
        network.blocks[0].qkv.register_forward_hook(lambda *_, network=network: passes.append(network))
        torch.manual_seed(3)
        out = network(x, noise, torch.tensor([0, 1, 2]))
        out.square().sum().backward()
        results.append([out, *(p.grad for p in network.parameters())])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert [passes.count(network) for network in (kept, again)] == [1, 2]


def test_dropout_acts_in_training_alone():
    network = perturbed(DiT((1, 4, 4), width=8, depth=1, heads=2, dropout=0.5))
    x, noise = inputs((1, 4, 4))
    assert not torch.equal(network(x, noise), network(x, noise))
    network.eval()
    assert torch.equal(network(x, noise), network(x, noise))


def test_classes():
    """No class is the class of the last index; every class has an answer of its own."""
    network = perturbed(DiT((1, 4, 4), width=8, depth=1, heads=2, classes=3)).eval()
    x, noise = (value.expand(4, *value.shape[1:]) for value in inputs((1, 4, 4), batch=1))
    out = network(x, noise, torch.arange(4))
    torch.testing.assert_close(network(x[3:], noise[3:]), out[3:])
    assert (torch.cdist(out.flatten(1), out.flatten(1)) + 9 * torch.eye(4)).min() > 1e-4
    with pytest.raises(ValueError, match="takes no condition"):
        DiT((1, 4, 4), width=8, depth=1, heads=2)(x.float(), noise.float(), torch.arange(4))


def test_positions_are_not_saved():
    network = DiT((1, 4, 4), width=8, depth=1, heads=2)
    assert "position" not in network.state_dict()
    assert copy.deepcopy(network).double().position.dtype == torch.float64


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3,), {}, "the mlp takes any"),
        ((1, 4, 4, 4), {}, "the mlp takes any"),
        ((1, 4, 5), {}, "patches of side 2"),
        ((1, 4, 4), {"heads": 5}, "5 attention heads"),
        ((1, 4, 4), {"width": 6, "heads": 3}, "multiple of 4"),
        ((1, 4), {"width": 5, "heads": 1}, "multiple of 2"),
        ((1, 4, 4), {"depth": 0}, "must be at least 1"),
        ((1, 4, 4), {"patch": 0}, "must be at least 1"),
        ((1, 4, 4), {"width": 8, "heads": 1, "mlp_ratio": 0.1}, "mlp_ratio leaves no feature of a width of 8, got 0.1"),
        ((1, 4, 4), {"embedding": "fourrier"}, "choose one of sinusoidal, transformer, fourier"),
        ((1, 4, 4), {"classes": -1}, "must not be negative"),
    ],
)
def test_bad_options_are_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        DiT(shape, **options)
