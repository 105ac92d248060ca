"""Dropout: the masks come from where they are told to, and repeat when a layer is computed again."""

import pytest
import torch
from torch import nn

from score_sde.draws import Draws
from score_sde.networks import MLP, UNet
from score_sde.networks.dropout import Dropout, dropout_layers, masks_from


def test_masks_come_from_the_draws_and_not_from_torch():
    layers = {"a": Dropout(0.5), "b": Dropout(0.5)}
    x, found = torch.ones(4, 64), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with masks_from(Draws(0, 3, 4).uniform, layers):
            before = torch.get_rng_state()
            found.append([layer(x) for layer in layers.values()])
            assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[0][1])  # each layer drops its own
    with masks_from(Draws(0, 4, 4).uniform, layers):
        assert not torch.equal(layers["a"](x), found[0][0])  # each step too


def test_outside_it_is_torchs_dropout():
    x = torch.randn(5, 7)
    torch.manual_seed(3)
    expected = nn.Dropout(0.3)(x)
    torch.manual_seed(3)
    layer = Dropout(0.3)
    with masks_from(Draws(0, 0, 5).uniform, {"a": layer}):
        pass
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
def test_the_mean_is_kept(p):
    layer, x = Dropout(p), torch.full((100, 200), 2.0, requires_grad=True)
    with masks_from(Draws(0, 0, 100).uniform, {"a": layer}):
        dropped = layer(x)
    share = (dropped == 0).float().mean().item()
    assert abs(share - p) < 0.02
    assert dropped.mean().item() == pytest.approx(2.0 if p < 1 else 0.0, abs=0.1)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach() / 2)


def test_a_process_drops_what_the_one_process_drops_in_its_rows():
    layer, x = Dropout(0.5), torch.ones(6, 2, 5)
    with masks_from(Draws(0, 0, 6).uniform, {"a": layer}):
        whole = layer(x)
    with masks_from(Draws(0, 0, 6, rows=slice(2, 5)).uniform, {"a": layer}):
        assert torch.equal(layer(x[2:5]), whole[2:5])


def test_recomputed_blocks_drop_the_same():
    """Whatever happens to the global generator between the forward and the backward pass."""
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = UNet((1, 8, 8), width=8, multipliers=(1,), blocks=1, attention=(), dropout=0.5, recompute=recompute)
        nn.init.normal_(network.last[-1].weight)
        x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
        with masks_from(Draws(0, 0, 3).uniform, dropout_layers(network)):
            loss = network(x, t).square().sum()
            torch.manual_seed(recompute)
            loss.backward()
        gradients.append([p.grad for p in network.parameters()])
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_only_layers_that_drop_are_found():
    assert not dropout_layers(MLP((2,), width=8, depth=2))
    assert list(dropout_layers(MLP((2,), width=8, depth=2, dropout=0.1))) == ["blocks.0.layers.2", "blocks.1.layers.2"]


def test_a_compiled_network_takes_the_same_masks():
    network = nn.Sequential(nn.Linear(4, 8), Dropout(0.5), nn.Linear(8, 4))
    layers, x = dropout_layers(network), torch.randn(3, 4)
    compiled = torch.compile(network, backend="eager")

    def masks(seed):
        return lambda purpose, shape: torch.rand(shape, generator=torch.Generator().manual_seed(seed))

    for seed in (0, 1):
        with masks_from(masks(seed), layers):
            assert torch.equal(compiled(x), network(x))
    torch.manual_seed(5)
    expected = network(x)
    torch.manual_seed(5)
    assert torch.equal(compiled(x), expected)  # of torch's own generator again
