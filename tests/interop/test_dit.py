"""Transformers of DiT: published answers, an oracle for all settings, and what is refused."""

import argparse

import pytest
import torch

from score_sde import Ancestral
from score_sde.checkpoint import CheckpointError
from score_sde.interop import dit_config, from_dit
from score_sde.run import RunError, build_model
from score_sde.tables import OptionError
from tests.oracles.dit import answer
from tests.oracles.guided_diffusion import StateDict
from tests.reference.dit import STORED

(CASE,) = STORED.cases().values()
SMALL = {"input_size": 4, "in_channels": 2, "hidden_size": 8, "depth": 1, "num_heads": 2, "num_classes": 3}
FULL = {**SMALL, "patch_size": 2, "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "learn_sigma": True}
VARIANTS = {
    "plain": {},
    "no null class": {"class_dropout_prob": 0.0},
    "no learned variance": {"learn_sigma": False},
    "one head, pixels": {"num_heads": 1, "patch_size": 1, "in_channels": 1},
    "other sizes": {"input_size": 12, "patch_size": 4, "hidden_size": 12, "depth": 3, "num_heads": 3, "num_classes": 1},
    "half an mlp": {"mlp_ratio": 0.5, "in_channels": 4},
    "a broken mlp": {"mlp_ratio": 1.7, "num_heads": 8},
}


@torch.no_grad()
def test_networks_answer_as_the_published_ones():
    found = STORED.answers(CASE)
    network = from_dit(STORED.weights(CASE), CASE["constructor"]).network
    for time, out in (("t", "out"), ("t_fractional", "out_fractional")):
        exact, rounded = found[f"{out}_f64"], found[f"{out}_f32"]
        ours = network.double()(found["x"].double(), found[time].double(), found["y"])
        assert (ours - exact).abs().max() < 1e-10 * exact.abs().max()
        ours = network.float()(found["x"], found[time].float(), found["y"])
        assert (ours - rounded).abs().max() < 10 * (rounded - exact).abs().max()


def test_the_oracle_answers_as_the_published_network():
    found = STORED.answers(CASE)
    ours = answer(StateDict(STORED.weights(CASE)), CASE["constructor"], found["x"], found["t"], found["y"])
    torch.testing.assert_close(ours, found["out_f64"], rtol=1e-10, atol=1e-10)


def drawn(arguments):
    """A state dict of these settings, float32, inputs, and the answer there."""
    torch.manual_seed(0)
    x = torch.randn(2, arguments["in_channels"], *[arguments["input_size"]] * 2, dtype=torch.float64)
    t, y = torch.tensor([3.0, 871.5], dtype=torch.float64), torch.tensor([arguments["num_classes"] - 1, 0])
    weights = StateDict()
    answer(weights, arguments, x, t, y)
    weights = {name: tensor.float() for name, tensor in weights.items()}
    return weights, (x, t, y), answer(StateDict(weights), arguments, x, t, y)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_every_setting_does_what_it_does_there(name):
    arguments = {**FULL, **VARIANTS[name]}
    weights, (x, t, y), wanted = drawn(arguments)
    model = from_dit(weights, arguments)
    assert not model.training
    torch.testing.assert_close(model.double().network(x, t, y), wanted, rtol=1e-9, atol=1e-9)
    assert model.classes == arguments["num_classes"]
    assert model.learned_variance == arguments["learn_sigma"]
    assert model.knows_no_class == (arguments["class_dropout_prob"] > 0)
    if model.knows_no_class:
        nothing = torch.full_like(y, model.classes)
        wanted = answer(StateDict(weights), arguments, x, t, nothing)
        torch.testing.assert_close(model.network(x, t), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_defaults_are_those_of_the_largest_model_of_the_paper():
    """Peebles and Xie 2023, Table 4: DiT-XL has 675 million parameters."""
    with torch.device("meta"):
        model = build_model(*dit_config({}))
    assert model.event == (4, 32, 32)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(675e6, rel=1e-3)


@torch.no_grad()
def test_scores_are_those_of_the_predicted_noise_at_the_steps_of_the_chain():
    weights, (x, _, y), _ = drawn(FULL)
    model = from_dit(weights, SMALL).double()
    steps = torch.tensor([0, 499])
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[steps]
    noise = model.network(x, steps.double(), y)[:, :2]
    wanted = -noise / (1 - alpha_bar).sqrt()[:, None, None, None]
    torch.testing.assert_close(model(x, (steps + 1).double() / 1000, y), wanted, rtol=1e-9, atol=1e-9)


def test_a_respaced_chain_samples_at_some_of_the_steps():
    weights, (_, _, y), _ = drawn(FULL)
    model = from_dit(weights, {**SMALL, "timestep_respacing": "4"})
    torch.testing.assert_close(model.sde.nodes() * 1000, torch.tensor([1.0, 334.0, 667.0, 1000.0], dtype=torch.float64))
    grid = tuple(model.sde.nodes().flip(0).tolist())
    assert Ancestral(grid=",".join(map(str, grid)), variance="learned").sample(model, (2, 2, 4, 4), cond=y).nfe == 3


def test_files_are_read_and_nothing_in_them_is_run(tmp_path):
    """A plain state dict, and what the training script writes, of which the averaged weights are taken."""
    weights, (x, t, y), _ = drawn(FULL)
    path, others = tmp_path / "0000100.pt", {name: tensor + 1 for name, tensor in weights.items()}
    torch.save(weights, path)
    wanted = from_dit(path, SMALL).network(x.float(), t.float(), y)
    flags = argparse.Namespace(model="DiT-XL/2", image_size=256)
    torch.save({"model": others, "ema": weights, "opt": {"state": {}, "param_groups": []}, "args": flags}, path)
    torch.testing.assert_close(from_dit(path, SMALL).network(x.float(), t.float(), y), wanted, rtol=0, atol=0)
    torch.save({"ema": weights, "args": Unknown()}, path)
    with pytest.raises(CheckpointError, match=r"was not read, and nothing in it was run: .*Unknown"):
        from_dit(path, SMALL)
    torch.save({"model": weights}, path)
    with pytest.raises(CheckpointError, match="'model' is a dict"):
        from_dit(path, SMALL)


class Unknown:
    """A class that is not allowed in a file."""


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_class": 10}, RunError, "DiT has no setting 'num_class', did you mean num_classes"),
        ({"depth": 2.0}, RunError, "must be of type int"),
        ({"learn_sigma": 1}, RunError, "must be of type bool"),
        ({"in_channels": 0}, RunError, "must be at least 1, got 4, 0 and 3"),
        ({"patch_size": 3}, OptionError, "cannot be cut into patches of side 3"),
        ({"num_heads": 3}, OptionError, "3 attention heads"),
        ({"mlp_ratio": 0.0}, OptionError, "mlp_ratio leaves no feature of a width of 8, got 0"),
        ({"timestep_respacing": "1001"}, OptionError, "1001"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        from_dit({}, {**SMALL, **settings})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("pos_embed"), "the state dict lacks pos_embed"),
        (lambda w: w["pos_embed"].add_(0.1), "pos_embed holds other values than those that follow from the settings"),
        (
            lambda w: w.update(pos_embed=torch.zeros(1, 4, 6)),
            r"pos_embed has shape \(1, 4, 6\), these settings make it \(1, 4, 8\)",
        ),
        (lambda w: w.pop("blocks.0.mlp.fc1.bias"), "lacks blocks.0.mlp.fc1.bias"),
        (lambda w: w.update({"blocks.1.mlp.fc1.bias": torch.zeros(1)}), "has blocks.1.mlp.fc1.bias, for which"),
        (
            lambda w: w.update({"y_embedder.embedding_table.weight": torch.zeros(3, 8)}),
            r"embedding_table.weight has shape \(3, 8\), these settings make it \(4, 8\)",
        ),
        (lambda w: w["t_embedder.mlp.0.weight"].fill_(torch.inf), "t_embedder.mlp.0.weight holds NaN or infinite values"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    weights, _, _ = drawn(FULL)
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        from_dit(weights, SMALL)
