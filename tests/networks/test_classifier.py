"""The classifier of noisy data."""

import pytest
import torch

from score_sde.networks.classifier import AttentionPool, UNetClassifier

CASES = {
    "image": ((3, 8, 8), {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_width": 4}),
    "signal": ((2, 11), {"width": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (), "head_width": 8, "pool": "mean"}),
    "odd sides": (
        (1, 7, 9),
        {"width": 8, "multipliers": (1, 1, 2), "blocks": 2, "attention": (0,), "resample": "conv", "heads": 2},
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    """A classifier of 5 classes with weights away from zero, points, and noise levels."""
    torch.manual_seed(0)
    shape, options = CASES[request.param]
    network = UNetClassifier(shape, 5, **options).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network, torch.randn(3, *shape, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 0.1


def test_logits_depend_on_every_input_and_parameter_of_their_own_sample(case):
    network, x, noise = case
    x.requires_grad_()
    noise.requires_grad_()
    logits = network(x, noise)
    assert logits.shape == (3, 5)
    logits[1].square().sum().backward()
    for gradient in (x.grad, noise.grad):
        assert (gradient[1] != 0).all()
        assert (gradient[::2] == 0).all()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_a_new_classifier_prefers_no_class():
    shape, options = CASES["image"]
    assert (UNetClassifier(shape, 5, **options)(torch.randn(2, *shape), torch.rand(2)) == 0).all()


def test_attention_pool_is_attention_of_the_mean():
    """One head, values and keys that are the tokens: a softmax over their products with the mean."""
    pool = AttentionPool(2, 3, heads=1).double()
    with torch.no_grad():
        pool.qkv.weight.copy_(torch.eye(2).repeat(3, 1))
        pool.qkv.bias.zero_()
    x = torch.randn(1, 2, 3, dtype=torch.float64)
    tokens = torch.cat([x.mean(dim=2, keepdim=True), x], dim=2)[0].T + pool.position
    weights = torch.softmax(tokens @ tokens[0] / 2**0.5, dim=0)
    torch.testing.assert_close(pool(x)[0], weights @ tokens)


def test_recomputing_changes_no_gradient():
    shape, options = CASES["image"]
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = UNetClassifier(shape, 5, **options, dropout=0.2, recompute=recompute)
        torch.nn.init.normal_(network.last.weight)
        torch.manual_seed(1)
        network(torch.ones(2, *shape), torch.rand(2)).square().sum().backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("shape", "classes", "options", "message"),
    [
        ((3,), 2, {}, "the mlp takes any"),
        ((3, 8, 8), 1, {}, "at least two classes"),
        ((3, 8, 8), 2, {"pool": "max"}, "choose one of attention, mean"),
        ((3, 8, 8), 2, {"multipliers": (1, 1), "width": 30, "attention": (), "head_width": 7}, "attention heads"),
        ((3, 2, 2), 2, {}, "4 levels are too many"),
    ],
)
def test_bad_options_are_refused(shape, classes, options, message):
    with pytest.raises(ValueError, match=message):
        UNetClassifier(shape, classes, **options)
