"""Networks of EDM: published answers, an oracle for all settings, their sampler, and what is refused."""

import math

import pytest
import torch

from score_sde import Heun
from score_sde.checkpoint import CheckpointError
from score_sde.interop import edm_config, from_edm
from score_sde.run import RunError, build_model
from score_sde.score import BoundScore, posterior_mean
from score_sde.solvers.time_grids import ExplicitGrid
from score_sde.tables import OptionError
from score_sde.tensors import expand
from tests.oracles.edm import EDMStateDict, denoiser
from tests.reference.edm import STORED

CASES = STORED.cases()
SETTINGS = {name: {"class": case["class"], **case["constructor"]} for name, case in CASES.items()}
SIZES = {"img_resolution": 8, "img_channels": 2, "label_dim": 0, "use_fp16": False}
PRECONDITIONINGS = {
    "EDMPrecond": {"sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": 0.5},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100.0},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000},
}
SHARED = {"augment_dim": 0, "channel_mult_emb": 4, "dropout": 0.1, "label_dropout": 0.0}
NETWORKS = {
    "SongUNet": {
        **SHARED,
        "model_channels": 8,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [4],
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": [1, 1],
    },
    "DhariwalUNet": {
        **SHARED,
        "model_channels": 8,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [8, 4],
    },
}
TWO_LEVELS = {"img_resolution": 4, "num_blocks": 0}
VARIANTS = [
    ("EDMPrecond", "SongUNet", {}),
    ("EDMPrecond", "SongUNet", {"label_dim": 3, "augment_dim": 4, "sigma_data": 0.7, "embedding_type": "fourier"}),
    ("VEPrecond", "SongUNet", {"encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]}),
    ("VEPrecond", "SongUNet", {"encoder_type": "residual", "decoder_type": "skip", "channel_mult_emb": 1}),
    ("VPPrecond", "SongUNet", {"encoder_type": "skip", "channel_mult_noise": 3, "beta_d": 5.0, "beta_min": 0.3, "M": 100}),
    ("VPPrecond", "SongUNet", {"encoder_type": "residual", "resample_filter": [1, 1, 2, 2, 1, 1], "channel_mult_noise": 2}),
    ("iDDPMPrecond", "SongUNet", {"label_dim": 2, "C_1": 0.01, "C_2": 0.02, "M": 50, "decoder_type": "skip"}),
    ("EDMPrecond", "SongUNet", {"channel_mult": [2, 1, 3], "num_blocks": 2, "attn_resolutions": [8, 2], "img_channels": 1}),
    (
        "EDMPrecond",
        "SongUNet",
        {"channel_mult": [1, 2, 2], "num_blocks": 0, "encoder_type": "residual", "attn_resolutions": []},
    ),
    (
        "EDMPrecond",
        "SongUNet",
        {"channel_mult": [3], "attn_resolutions": [8, 4], "encoder_type": "skip", "decoder_type": "skip"},
    ),
    ("iDDPMPrecond", "DhariwalUNet", {"M": 20}),
    ("EDMPrecond", "DhariwalUNet", {"label_dim": 3, "augment_dim": 4, "channel_mult_emb": 2}),
    ("EDMPrecond", "DhariwalUNet", {"channel_mult": [2, 1, 3], "num_blocks": 2, "attn_resolutions": [2]}),
    ("VEPrecond", "DhariwalUNet", {**TWO_LEVELS, "channel_mult": [8, 16], "attn_resolutions": [4, 2]}),  # one head, and two
    ("VPPrecond", "DhariwalUNet", {**TWO_LEVELS, "channel_mult": [16], "attn_resolutions": [], "label_dim": 1}),
]


def denoised(model, x, sigma, cond=None):
    """D(x, sigma) of a model: its posterior mean of the data, where x is alpha times that."""
    sde = model.sde
    t = sde.inverse_log_snr(-2 * sigma.double().log())
    alpha, state = expand(sde.alpha(t), x), expand(sde.alpha(t), x) * x.double()
    return (state + expand(sde.sigma(t) ** 2, x) * model(state, t, cond)) / alpha


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_denoisers_answer_as_the_published_ones(name):
    found, model = STORED.answers(CASES[name]), from_edm(STORED.weights(CASES[name]), SETTINGS[name]).double()
    told = {"D": found["class_labels"].argmax(1), "D_no_labels": None} if model.classes else {"D": None}
    for out, cond in told.items():
        exact = found[f"{out}_f64"]
        assert (denoised(model, found["x"], found["sigma"], cond) - exact).abs().max() < 1e-10 * exact.abs().max()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_denoisers_answer_as_the_published_ones_in_float32(name):
    """Where the states are float64: at sigma = 80 the score of a float32 state has lost two digits of D."""
    case, found = CASES[name], STORED.answers(CASES[name])
    exact, rounded = found["D_f64"], found["D_f32"]
    cond = found["class_labels"].argmax(1) if "class_labels" in found else None
    ours = denoised(from_edm(STORED.weights(case), SETTINGS[name]), found["x"], found["sigma"], cond)
    assert (ours - rounded).abs().max() < 10 * (rounded - exact).abs().max()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_networks_answer_as_the_published_ones_in_float32(name):
    case, found = CASES[name], STORED.answers(CASES[name])
    model, rounded = from_edm(STORED.weights(case), SETTINGS[name]), found["F_f32"]
    t = model.sde.inverse_log_snr(-2 * found["sigma"].double().log())
    c_in = model.coefficients(t).c_in if model.scale_input else model.sde.alpha(t)
    inputs = (expand(c_in, found["x"]) * found["x"].double()).float(), found["c_noise_f32"].flatten()
    ours = model.network(*inputs, *([found["class_labels"].argmax(1)] if model.classes else []))
    assert (ours - rounded).abs().max() < 10 * (rounded - found["F_f64"]).abs().max()


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_answers_as_the_published_networks(name):
    case, found = CASES[name], STORED.answers(CASES[name])
    settings = {**PRECONDITIONINGS[case["class"]], **SHARED, "label_dim": 0, **SETTINGS[name]}
    ours = denoiser(EDMStateDict(STORED.weights(case)), settings, found["x"], found["sigma"], found.get("class_labels"))
    torch.testing.assert_close(ours, found["D_f64"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["E1", pytest.param("E2", marks=pytest.mark.slow), "E5"])
@torch.no_grad()
def test_heuns_method_samples_as_the_published_sampler(name):
    """18 steps, of which the last is one to the denoised state. By default it runs from 80 to 0.002."""
    found, model = STORED.answers(CASES[name]), from_edm(STORED.weights(CASES[name]), SETTINGS[name]).double()
    levels, sde, wanted = found["sampler_t_steps_f64"][:-1], model.sde, found["sampler_heun18_f64"]
    cond = found["sampler_labels"].argmax(1) if model.classes else None
    times = sde.inverse_log_snr(-2 * levels.log()).clamp(0, sde.T)
    x = sde.alpha(times[0]) * levels[0] * found["latents"].double()
    end = Heun(grid=ExplicitGrid(tuple(times.tolist()))).solve(model, x, float(times[0]), float(times[-1]), cond=cond)
    ours = posterior_mean(BoundScore(model, cond), end, float(times[-1]))
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)
    if CASES[name]["class"] == "EDMPrecond":
        ours = Heun(steps=17).sample(model, x_T=x, cond=cond, denoise=True).x
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


def drawn(settings):
    """A state dict of these settings, float32, inputs, and the answers there."""
    torch.manual_seed(0)
    x = torch.randn(2, settings["img_channels"], *[settings["img_resolution"]] * 2, dtype=torch.float64)
    sigma, weights = torch.tensor([0.3, 7.0], dtype=torch.float64), EDMStateDict()
    denoiser(weights, settings, x, sigma)
    return {name: tensor.float() for name, tensor in weights.items()}, x, sigma


@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: "-".join(map(str, case[2].values())))
@torch.no_grad()
def test_every_setting_does_what_it_does_there(case):
    kind, network, options = case
    settings = {"class": kind, "model_type": network, **SIZES, **PRECONDITIONINGS[kind], **NETWORKS[network], **options}
    weights, x, sigma = drawn(settings)
    model = from_edm(weights, settings).double()
    assert not model.training
    assert (model.classes, model.learned_variance) == (settings["label_dim"], kind == "iDDPMPrecond")
    for cond in [None] + [torch.tensor([settings["label_dim"] - 1, 0])] * (model.classes > 0):
        labels = None if cond is None else torch.eye(model.classes)[cond]
        wanted = denoiser(EDMStateDict(weights), settings, x, sigma, labels)
        torch.testing.assert_close(denoised(model, x, sigma, cond), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "millions"),
    [  # Karras et al. 2022, Table 1: of CIFAR-10 and of ImageNet 64 x 64
        ({"class": "VPPrecond", "img_resolution": 32}, 56),
        (
            {
                "class": "VEPrecond",
                "img_resolution": 32,
                "embedding_type": "fourier",
                "encoder_type": "residual",
                "channel_mult_noise": 2,
                "resample_filter": [1, 3, 3, 1],
            },
            56,
        ),
        ({"class": "EDMPrecond", "img_resolution": 64, "label_dim": 1000}, 296),
    ],
)
@pytest.mark.slow
def test_networks_of_the_paper_have_the_published_number_of_parameters(settings, millions):
    if settings["class"] != "EDMPrecond":
        settings = settings | {"channel_mult": [2, 2, 2], "num_blocks": 4}
    with torch.device("meta"):
        model = build_model(*edm_config({"img_channels": 3, **settings}))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_data_is_trained_as_whole_levels():
    _, spec = edm_config({"class": "EDMPrecond", **SIZES})
    levels = torch.tensor([0.0, 100.0, 255.0]).expand(1, 2, 8, 8, 3).movedim(-1, 0).reshape(3, 2, 8, 8)
    torch.testing.assert_close(spec.scale(levels), levels / 127.5 - 1)


SMALL = {"class": "EDMPrecond", "model_type": "SongUNet", **SIZES, **PRECONDITIONINGS["EDMPrecond"], **NETWORKS["SongUNet"]}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"class": "EDMprecond"}, RunError, "unknown class 'EDMprecond' in the settings, did you mean EDMPrecond"),
        ({"model_type": "UNet"}, RunError, "choose one of SongUNet, DhariwalUNet"),
        ({"model_type": "DhariwalUNet"}, RunError, "EDMPrecond of a DhariwalUNet has no setting '"),
        ({"M": 1000}, RunError, "EDMPrecond of a SongUNet has no setting 'M'"),
        ({"img_resolution": None}, RunError, "the settings lack 'img_resolution'"),
        ({"img_resolution": 7}, OptionError, "cannot be halved 1 times"),
        ({"model_channels": 0}, RunError, "model_channels must be at least 1, got 0"),
        ({"num_blocks": -1}, RunError, "num_blocks must not be negative, got -1"),
        ({"channel_mult": [1, 0.5]}, RunError, "channel_mult must be whole numbers above 0"),
        ({"embedding_type": "sinusoidal"}, RunError, "choose one of positional, fourier"),
        ({"encoder_type": "cat"}, RunError, "choose one of standard, skip, residual"),
        ({"decoder_type": "residual"}, RunError, "choose one of standard, skip"),
        ({"resample_filter": [1, 2, 1]}, RunError, "an even number of numbers, the same backwards"),
        ({"resample_filter": [1, 3]}, RunError, "an even number of numbers, the same backwards"),
        ({"channel_mult_noise": 0}, RunError, "channel_mult_noise must be at least 1"),
        ({"sigma_min": 90.0}, RunError, "within 0.002 and 80 in EDMPrecond, got 90 to 80"),
        ({"dropout": "0.1"}, RunError, "must be of type float"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        from_edm({}, {**SMALL, **settings})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.map_label.weight"), "the state dict lacks model.map_label.weight"),
        (lambda w: w.pop("model.map_augment.weight"), "lacks model.map_augment.weight"),
        (
            lambda w: w.update({"model.map_augment.weight": torch.zeros(8, 9)}),
            r"shape \(8, 9\), these settings make it \(8, 4\)",
        ),
        (lambda w: w.pop("model.enc.4x4_down.skip.resample_filter"), "lacks model.enc.4x4_down.skip.resample_filter"),
        (lambda w: w["model.dec.8x8_up.conv0.resample_filter"].mul_(2), "up.conv0.resample_filter holds other values than"),
        (lambda w: w.update(u=torch.zeros(3)), "has u, for which the network of these settings has no place"),
        (
            lambda w: w.update({"model.dec.4x4_in0.qkv.weight": torch.zeros(48, 16)}),
            r"in0.qkv.weight has shape \(48, 16\), these settings make it \(48, 16, 1, 1\)",
        ),
        (lambda w: w["model.map_layer0.bias"].fill_(torch.nan), "model.map_layer0.bias holds NaN or infinite values"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    settings = {**SMALL, "label_dim": 3, "augment_dim": 4}
    weights, _, _ = drawn(settings)
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        from_edm(weights, settings)


def test_a_table_of_noise_levels_that_others_made_is_refused():
    settings = {**SIZES, **PRECONDITIONINGS["iDDPMPrecond"], **NETWORKS["DhariwalUNet"], "M": 20}
    settings |= {"class": "iDDPMPrecond", "model_type": "DhariwalUNet"}
    weights, _, _ = drawn(settings)
    with pytest.raises(CheckpointError, match="u holds other values than those that follow from the settings"):
        from_edm(weights, {**settings, "C_2": 0.1})
    with pytest.raises(CheckpointError, match=r"u has shape \(21,\), these settings make it \(31,\)"):
        from_edm(weights, {**settings, "M": 30})


def test_files_are_read(tmp_path):
    weights, x, sigma = drawn(SMALL)
    torch.save(weights, tmp_path / "edm.pt")
    read, given = (denoised(from_edm(source, SMALL), x, sigma) for source in (tmp_path / "edm.pt", weights))
    torch.testing.assert_close(read, given, rtol=0, atol=0)
