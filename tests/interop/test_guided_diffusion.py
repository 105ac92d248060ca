"""U-Nets of guided-diffusion and improved-diffusion: published answers, an oracle for all settings, and what is refused."""

import pickle

import numpy as np
import pytest
import torch

from score_sde.checkpoint import CheckpointError
from score_sde.interop import (
    classifier_from_guided_diffusion,
    from_guided_diffusion,
    from_improved_diffusion,
    guided_diffusion_config,
    improved_diffusion_config,
)
from score_sde.run import RunError, build_model
from score_sde.tables import OptionError
from tests.oracles.guided_diffusion import StateDict, answer, logits
from tests.reference.guided_diffusion import STORED as reference

CASES = {name: case for name, case in reference.cases().items() if case["flags"]}
(CLASSIFIER,) = (case for case in reference.cases().values() if not case["flags"])

SMALL = {
    "image_size": 8,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "dropout": 0.1,
    "channel_mult": [1, 2],
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "use_checkpoint": False,
    "num_heads": 2,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": True,
}
GUIDED = {"num_head_channels": -1, "resblock_updown": False, "use_new_attention_order": False, "use_fp16": False}
VARIANTS = {
    "plain": {},
    "new order": {"use_new_attention_order": True, "num_classes": 4},
    "head channels": {"num_head_channels": 16, "num_heads": 3, "num_heads_upsample": 5, "resblock_updown": True},
    "one head": {"num_heads": 1, "use_scale_shift_norm": False},
    "other heads up": {"num_heads": 4, "num_heads_upsample": 2, "use_new_attention_order": True},
    "pooled": {"conv_resample": False, "use_scale_shift_norm": False, "out_channels": 6},
    "three levels": {"channel_mult": [2, 1, 3], "image_size": 16, "num_res_blocks": 2, "attention_resolutions": [1, 4]},
    "blocks updown": {"resblock_updown": True, "channel_mult": [1, 1, 2], "attention_resolutions": [4], "conv_resample": False},
    "no attention": {"attention_resolutions": [], "num_res_blocks": 3},
    "attention everywhere": {
        "attention_resolutions": [1, 2, 3, 4, 8],
        "resblock_updown": True,
        "use_new_attention_order": True,
    },
    "one level": {"channel_mult": [3], "attention_resolutions": [1], "num_classes": 2, "out_channels": 6},
    "half a width": {"channel_mult": [0.5, 1], "model_channels": 64},
    "a signal": {"dims": 1, "in_channels": 2, "out_channels": 2},
    "one channel": {"in_channels": 1, "out_channels": 2},
}
IMPROVED = {
    "plain": {},
    "classes": {"num_classes": 4, "out_channels": 6, "use_scale_shift_norm": False},
    "heads up": {"num_heads": 4, "num_heads_upsample": 1, "channel_mult": [1, 2, 2], "attention_resolutions": [4, 2]},
}


@pytest.mark.parametrize("spelling", ["constructor", "flags"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_networks_answer_as_the_published_ones(name, spelling):
    case, found = CASES[name], reference.answers(CASES[name])
    network = from_guided_diffusion(reference.weights(case), case[spelling]).network
    for time, out in (("t", "out"), ("t_fractional", "out_fractional")):
        exact, rounded = found[f"{out}_f64"], found[f"{out}_f32"]
        scale, classes = exact.abs().max(), found.get("y")
        ours = network.double()(found["x"].double(), found[time].double(), classes)
        assert (ours - exact).abs().max() < 1e-10 * scale
        ours = network.float()(found["x"], found[time].float(), classes)
        assert (ours - rounded).abs().max() < 10 * (rounded - exact).abs().max()


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_answers_as_the_published_networks(name):
    case, found = CASES[name], reference.answers(CASES[name])
    ours = answer(StateDict(reference.weights(case)), case["constructor"], found["x"], found["t"], found.get("y"))
    torch.testing.assert_close(ours, found["out_f64"], rtol=1e-10, atol=1e-10)


def drawn(arguments, improved):
    """A state dict of these settings, inputs, and the answer there."""
    torch.manual_seed(0)
    shape = (arguments["in_channels"], *[arguments["image_size"]] * arguments["dims"])
    x, t = torch.randn(2, *shape, dtype=torch.float64), torch.tensor([3.0, 871.5], dtype=torch.float64)
    y = torch.tensor([1, 0]) if arguments["num_classes"] else None
    weights = StateDict()
    return weights, (x, t, y), answer(weights, arguments, x, t, y, improved=improved)


@pytest.mark.parametrize(("project", "name"), [("guided", n) for n in VARIANTS] + [("improved", n) for n in IMPROVED])
@torch.no_grad()
def test_every_setting_does_what_it_does_there(project, name):
    improved = project == "improved"
    arguments = {**SMALL, **(IMPROVED[name] if improved else {**GUIDED, **VARIANTS[name]})}
    weights, (x, t, y), wanted = drawn(arguments, improved)
    model = (from_improved_diffusion if improved else from_guided_diffusion)(weights, arguments)
    rounded = {key: value.float().double() for key, value in weights.items()}
    wanted = answer(StateDict(rounded), arguments, x, t, y, improved=improved)
    assert not model.training
    torch.testing.assert_close(model.double().network(x, t, y), wanted, rtol=1e-9, atol=1e-9)
    assert model.classes == (arguments["num_classes"] or 0)
    assert model.learned_variance == (arguments["out_channels"] == 2 * arguments["in_channels"])
    assert model.knows_no_class == (not model.classes)


FLAGS = {"image_size": 16, "num_channels": 32, "channel_mult": "1,2,2", "num_res_blocks": 1}


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ({"attention_resolutions": "8"}, {"attention_resolutions": [2]}),
        ({"attention_resolutions": "16,4"}, {"attention_resolutions": [1, 4]}),
        ({"attention_resolutions": "32,5"}, {"attention_resolutions": [3]}),  # 16 // 32 and 16 // 5 are of no level
        ({"attention_resolutions": "9"}, {"attention_resolutions": [1]}),  # 16 // 9
        ({"learn_sigma": True, "num_heads": 2}, {"out_channels": 6, "num_heads": 2, "attention_resolutions": [1, 2]}),
        ({"class_cond": True, "dropout": 0.3}, {"num_classes": 7, "dropout": 0.3, "attention_resolutions": [1, 2]}),
        ({"num_head_channels": 32}, {"num_head_channels": 32, "attention_resolutions": [1, 2]}),
    ],
)
def test_flags_and_arguments_say_the_same(flags, arguments):
    common = {"use_scale_shift_norm": True, "num_heads": 4, "channel_mult": [1, 2, 2], "image_size": 16, "dropout": 0.0}
    by_arguments = guided_diffusion_config({**SMALL, **common, **arguments})
    assert guided_diffusion_config({**FLAGS, **flags}, 7) == by_arguments


@pytest.mark.parametrize(
    ("config", "flags", "millions"),
    [  # Dhariwal and Nichol 2021, Table 4; Nichol and Dhariwal 2021, Section 6, to two digits
        (guided_diffusion_config, {"num_channels": 192, "num_res_blocks": 3, "attention_resolutions": "32,16,8"}, 296),
        (guided_diffusion_config, {"image_size": 128, "num_channels": 256, "attention_resolutions": "32,16,8"}, 422),
        (guided_diffusion_config, {"image_size": 256, "num_channels": 256, "attention_resolutions": "32,16,8"}, 554),
        (guided_diffusion_config, {"image_size": 512, "num_channels": 256, "attention_resolutions": "32,16,8"}, 559),
        (improved_diffusion_config, {"num_channels": 64, "num_res_blocks": 3}, 30),
        (improved_diffusion_config, {"num_channels": 96, "num_res_blocks": 3}, 68),
        (improved_diffusion_config, {"num_channels": 128, "num_res_blocks": 3}, 120),
        (improved_diffusion_config, {"num_channels": 192, "num_res_blocks": 3}, 270),
    ],
)
def test_networks_of_the_papers_have_the_published_number_of_parameters(config, flags, millions):
    adm = {"class_cond": True, "resblock_updown": True, "num_head_channels": 64} if config is guided_diffusion_config else {}
    with torch.device("meta"):
        model = build_model(*config({"learn_sigma": True, **adm, **flags}))
    digits = 3 if config is guided_diffusion_config else 2
    assert float(f"{sum(p.numel() for p in model.parameters()) / 1e6:.{digits}g}") == millions


# classifiers


def test_a_classifier_answers_as_the_published_one():
    found = reference.answers(CLASSIFIER)
    network = classifier_from_guided_diffusion(reference.weights(CLASSIFIER), CLASSIFIER["constructor"])
    for dtype in (torch.float64, torch.float32):
        x = found["x"].to(dtype).requires_grad_()
        given = network.to(dtype)(x, found["t"].to(dtype))
        log_prob = given.log_softmax(dim=1).gather(1, found["y"][:, None])[:, 0]
        (grad,) = torch.autograd.grad(log_prob.sum(), x)
        for name, ours in (("logits", given), ("logp_y", log_prob), ("grad", grad)):
            exact, rounded = found[f"{name}_f64"], found[f"{name}_f32"]
            bound = 1e-10 * exact.abs().max() if dtype == torch.float64 else 10 * (rounded - exact).abs().max()
            assert (ours - exact).abs().max() < bound


CLASSIFIERS = {
    "attention": {"pool": "attention", "num_head_channels": 16, "use_new_attention_order": True},
    "attention, other blocks": {
        "pool": "attention",
        "num_head_channels": 32,
        "image_size": 16,
        "channel_mult": [1, 1, 2],
        "resblock_updown": True,
        "attention_resolutions": [1, 4],
    },
    "adaptive": {"pool": "adaptive", "num_heads_upsample": 3, "conv_resample": False, "use_scale_shift_norm": False},
    "adaptive of a signal": {"dims": 1, "in_channels": 1, "num_res_blocks": 2},
}


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_every_setting_of_a_classifier_does_what_it_does_there(name):
    arguments = {**SMALL, **GUIDED, "out_channels": 5, "pool": "adaptive", **CLASSIFIERS[name]}
    del arguments["num_classes"]
    torch.manual_seed(0)
    x = torch.randn(2, arguments["in_channels"], *[arguments["image_size"]] * arguments["dims"], dtype=torch.float64)
    t, weights = torch.tensor([3.0, 871.5], dtype=torch.float64), StateDict()
    logits(weights, arguments, x, t)
    network = classifier_from_guided_diffusion(weights, arguments)
    rounded = StateDict({name: tensor.float() for name, tensor in weights.items()})
    torch.testing.assert_close(network.double()(x, t), logits(rounded, arguments, x, t), rtol=1e-9, atol=1e-9)


def test_flags_of_a_classifier_are_its_arguments():
    """Of 64 x 64: four levels, attention at 32, 16 and 8, heads of 64 channels."""
    arguments = {**SMALL, **GUIDED, "image_size": 64, "channel_mult": [1, 2, 3, 4], "num_head_channels": 64, "num_heads": 1}
    arguments |= {"attention_resolutions": [2, 4, 8], "resblock_updown": True, "pool": "attention", "out_channels": 7}
    arguments |= {"model_channels": 64, "num_res_blocks": 1}
    del arguments["num_classes"]
    flags, weights = {"classifier_width": 64, "classifier_depth": 1}, StateDict()
    x, t = torch.randn(1, 3, 64, 64), torch.tensor([5.0])
    with torch.no_grad():
        logits(weights, arguments, x, t)
        ours, theirs = (classifier_from_guided_diffusion(weights, given)(x, t) for given in (flags, arguments))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# the chain


def chain_of(**settings):
    config, _ = guided_diffusion_config({**SMALL, **settings})
    return config["sde"]["ddpm"], config["model"]


@pytest.mark.parametrize(
    ("settings", "betas"),
    [
        ({}, np.linspace(1e-4, 0.02, 1000)),
        ({"diffusion_steps": 4000}, np.linspace(2.5e-5, 0.005, 4000)),
        ({"diffusion_steps": 50}, np.linspace(0.002, 0.4, 50)),
        ({"betas": [0.1, 0.2, 0.5], "diffusion_steps": None, "noise_schedule": None}, np.array([0.1, 0.2, 0.5])),
    ],
)
@torch.no_grad()
def test_chains_have_the_betas_of_their_settings(settings, betas):
    model = from_guided_diffusion(drawn(SMALL, improved=False)[0], {**SMALL, **settings})
    np.testing.assert_allclose(model.sde.betas, betas, rtol=1e-12)
    assert model.sde.t_min == pytest.approx(1 / len(betas))
    assert model.labels == len(betas)


@torch.no_grad()
def test_scores_are_those_of_the_predicted_noise_at_whole_steps():
    """score = -epsilon / sigma, with sigma^2 = 1 - prod (1 - beta); for a predicted x0, (alpha x0 - x) / sigma^2."""
    weights, (x, _, _), _ = drawn(SMALL, improved=False)
    steps = torch.tensor([0, 37])
    angle = (torch.arange(51, dtype=torch.float64) / 50 + 0.008) / 1.008 * torch.pi / 2
    bar = torch.cumprod(1 - (1 - angle.cos()[1:] ** 2 / angle.cos()[:-1] ** 2).clamp_max(0.999), 0)[steps]
    alpha, sigma = (value.sqrt()[:, None, None, None] for value in (bar, 1 - bar))
    chain = {"diffusion_steps": 50, "noise_schedule": "cosine"}
    for settings, told in (({}, steps), ({"rescale_timesteps": True}, 20 * steps), ({"predict_xstart": True}, steps)):
        model = from_guided_diffusion(weights, {**SMALL, **chain, **settings}).double()
        out = model.network(x, told.double())
        wanted = (alpha * out - x) / sigma**2 if "predict_xstart" in settings else -out / sigma
        torch.testing.assert_close(model(x, (steps + 1).double() / 50), wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_respaced_chain_keeps_the_times_of_the_original():
    """Of 100 steps it keeps 0, 33, 66 and 99, and the network is told these."""
    weights, (x, _, _), _ = drawn(SMALL, improved=False)
    whole, short = (
        from_guided_diffusion(weights, {**SMALL, "diffusion_steps": 100, "timestep_respacing": respacing}).double()
        for respacing in ("", "4")
    )
    steps = torch.tensor([0, 33, 66, 99])
    torch.testing.assert_close(short.sde.nodes(), (steps + 1).double() / 100)
    bar = torch.cumprod(1 - torch.tensor(whole.sde.betas, dtype=torch.float64), 0)[steps]
    torch.testing.assert_close(torch.cumprod(1 - torch.tensor(short.sde.betas, dtype=torch.float64), 0), bar)
    for node in short.sde.nodes():
        t = node.expand(len(x))
        torch.testing.assert_close(short(x, t), whole(x, t), rtol=1e-9, atol=1e-9)
        wanted = -whole.network(x, 100 * t - 1) / whole.sde.sigma(node)
        torch.testing.assert_close(short(x, t), wanted, rtol=1e-9, atol=1e-9)


def test_what_belongs_to_the_loss_changes_no_model():
    plain = guided_diffusion_config(FLAGS)
    others = {"use_kl": True, "rescale_learned_sigmas": True, "sigma_small": True, "use_fp16": True, "use_checkpoint": True}
    assert guided_diffusion_config({**FLAGS, **others, "rescale_timesteps": True}) == plain


def test_improved_diffusion_rescales_its_times_by_default():
    """So do its published models of 4000 steps; at 1000 steps it is the same."""
    flags = {"image_size": 32, "num_res_blocks": 1}
    assert improved_diffusion_config(flags)[0]["model"]["time_input"] == "step"
    assert improved_diffusion_config({**flags, "diffusion_steps": 4000})[0]["model"]["time_input"] == "rescaled_step"
    assert chain_of(diffusion_steps=4000)[1]["time_input"] == "step"


def test_data_is_trained_as_whole_levels():
    config, spec = guided_diffusion_config(SMALL)
    assert config["data"]["file"] == {"levels": spec.levels, "dequantize": spec.dequantize}
    levels = torch.tensor([0.0, 100.0, 255.0]).expand(1, 3, 8, 8, 3).movedim(-1, 0).reshape(3, 3, 8, 8)
    torch.testing.assert_close(spec.scale(levels), levels / 127.5 - 1)


# what is refused


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (guided_diffusion_config, {**SMALL, "num_channels": 32}, "arguments have no 'num_channels'"),
        (guided_diffusion_config, {**FLAGS, "num_res_block": 2}, "flags have no 'num_res_block', did you mean num_res_blocks"),
        (guided_diffusion_config, {**FLAGS, "conv_resample": True}, "flags have no 'conv_resample'"),
        (improved_diffusion_config, {**SMALL, "resblock_updown": True}, "improved-diffusion's arguments have no"),
        (improved_diffusion_config, {**FLAGS}, "improved-diffusion's flags have no 'channel_mult'"),
        (improved_diffusion_config, {"image_size": 128}, "no channel_mult of its own for image_size 128"),
        (guided_diffusion_config, {"image_size": 32}, "no channel_mult of its own for image_size 32"),
        (guided_diffusion_config, {**FLAGS, "channel_mult": "1,b"}, "numbers with commas"),
        (guided_diffusion_config, {**FLAGS, "channel_mult": "1,-2"}, "must be numbers above 0"),
        (guided_diffusion_config, {**FLAGS, "channel_mult": [1, 2]}, "must be of type str"),
        (guided_diffusion_config, {**FLAGS, "attention_resolutions": ""}, "numbers with commas"),
        (guided_diffusion_config, {**FLAGS, "attention_resolutions": "0"}, "at least 1"),
        (guided_diffusion_config, {**SMALL, "attention_resolutions": "2"}, "must be of type list"),
        (guided_diffusion_config, {k: v for k, v in SMALL.items() if k != "image_size"}, "lack 'image_size'"),
        (guided_diffusion_config, {**SMALL, "image_size": 0}, "image_size above 0"),
        (guided_diffusion_config, {**SMALL, "dims": 3}, "dims 1 and 2"),
        (guided_diffusion_config, {**SMALL, "out_channels": 4}, "out_channels is 4; it must be 3, or twice that"),
        (guided_diffusion_config, {**SMALL, "num_head_channels": 24}, "does not divide the 64 channels"),
        (guided_diffusion_config, {**SMALL, "num_heads": 0}, "must be at least 1"),
        (guided_diffusion_config, {**SMALL, "num_heads": -1}, "must be at least 1"),
        (guided_diffusion_config, {**SMALL, "use_scale_shift_norm": "True"}, "must be of type bool"),
        (guided_diffusion_config, {**SMALL, "diffusion_steps": 20}, "more than 20"),
        (guided_diffusion_config, {**SMALL, "diffusion_steps": 1, "noise_schedule": "cosine"}, "at least 2"),
        (guided_diffusion_config, {**SMALL, "noise_schedule": "sqrt"}, "linear and cosine are known"),
        (guided_diffusion_config, {**SMALL, "noise_schedule": None}, "lack 'noise_schedule'"),
        (guided_diffusion_config, {**SMALL, "use_kl": 1}, "must be of type bool"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(config, settings, message):
    with pytest.raises(RunError, match=message):
        config(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_channels": 33}, "positive even number, got 33"),
        ({"channel_mult": [1, 1.5]}, "48 channels cannot be normalized in 32 groups"),
        ({"num_heads": 3}, "64 channels cannot be cut into 3"),
        ({"betas": [0.1, 1.0]}, "below 1"),
        ({"timestep_respacing": "ddim999"}, "no stride takes exactly 999 of 1000 steps"),
        ({"image_size": 2, "channel_mult": [1, 1, 1]}, "3 levels are too many"),
    ],
)
def test_networks_that_cannot_be_are_refused(settings, message):
    with pytest.raises(OptionError, match=message):
        from_guided_diffusion({}, {**SMALL, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 3}, "arguments have no 'num_classes'"),
        ({"pool": "spatial"}, "attention and adaptive can be read"),
        ({"pool": "attention"}, "needs num_head_channels"),
        ({"pool": "attention", "num_head_channels": 24}, "does not divide the 64 channels"),
        ({"out_channels": 1}, "at least two classes"),
        ({}, "lacks time_embed.0.weight"),
    ],
)
def test_classifiers_that_cannot_be_read_are_refused(settings, message):
    arguments = {key: value for key, value in SMALL.items() if key != "num_classes"}
    with pytest.raises((RunError, CheckpointError), match=message):
        classifier_from_guided_diffusion({}, {**arguments, **settings})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("middle_block.1.qkv.bias"), "the state dict lacks middle_block.1.qkv.bias"),
        (lambda w: w.update(ema=torch.zeros(1)), "has ema, for which the network of these settings has no place"),
        (lambda w: w.update({"label_emb.weight": torch.zeros(4, 128)}), "has label_emb.weight, for which"),
        (lambda w: w.update({"out.2.weight": torch.zeros(6, 32, 3, 3)}), r"out.2.weight has shape \(6, 32, 3, 3\)"),
        (
            lambda w: w.update({"middle_block.1.qkv.weight": torch.zeros(192, 64)}),
            r"qkv.weight has shape \(192, 64\), these settings make it \(192, 64, 1\)",
        ),
        (lambda w: w["time_embed.0.weight"].fill_(torch.nan), "time_embed.0.weight holds NaN or infinite values"),
        (lambda w: w.update(model={}), "'model' is a dict"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    weights = dict(drawn(SMALL, improved=False)[0])
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        from_guided_diffusion(weights, SMALL)


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_files_are_read_and_nothing_in_them_is_run(tmp_path):
    weights, (x, t, _), _ = drawn(SMALL, improved=False)
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    halves = {name: tensor.half() for name, tensor in weights.items()}
    torch.save(halves, path)
    read, given = (from_guided_diffusion(each, SMALL).network(x.float(), t.float()) for each in (path, halves))
    torch.testing.assert_close(read, given, rtol=0, atol=0)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", pickle.dumps(Payload(trace), protocol=2)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.pt"):
            from_guided_diffusion(path, SMALL)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list, not a state dict"):
        from_guided_diffusion(path, SMALL)
    with pytest.raises(CheckpointError, match=r"nowhere\.pt not found"):
        from_guided_diffusion(tmp_path / "nowhere.pt", SMALL)
    assert not trace.exists()
