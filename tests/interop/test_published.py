"""Checkpoints of score_sde_pytorch: answers of the published implementation, and files that are not what they should be."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import score_sde
from score_sde import ProbabilityFlow, log_likelihood
from score_sde.checkpoint import CheckpointError
from score_sde.cli import main
from score_sde.divergence import GivenProbes
from score_sde.interop import import_published, published_config, read_settings
from score_sde.networks import NCSNv2
from score_sde.run import RunError
from score_sde.tables import OptionError
from tests.reference import published

CASES = {case["name"]: case for case in published.cases()}
VP = next(name for name in CASES if "ncsnpp_vp_biggan" in name)
VE = next(name for name in CASES if "ncsnpp_ve_biggan" in name)


def written(folder, name, change=None):
    """The checkpoint and the settings of a case, as files."""
    content = published.checkpoint(CASES[name])
    if change:
        change(content)
    torch.save(content, folder / "published.pth")
    (folder / "settings.json").write_text(json.dumps(CASES[name]["settings"]))
    return str(folder / "published.pth"), str(folder / "settings.json")


def imported(folder, name, change=None):
    path, settings = written(folder, name, change)
    return import_published(path, *published_config(read_settings(settings)))


# what is computed


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_published_implementation(name, tmp_path):
    model, step = imported(tmp_path, name)
    assert step == 7
    x, t, wanted = published.answer(CASES[name])
    settings = CASES[name]["settings"]
    scales = settings["model"]["num_scales"]
    t = t.double()
    if not settings["continuous"]:  # float32 times of steps: back to the steps
        k = (t * (scales - 1)).round()
        t = (k + 1) / scales if settings["sde"] == "vpsde" else k / (scales - 1)
        first = 1 / scales if settings["sde"] == "vpsde" else 1e-5
        assert model.sde.t_min == pytest.approx(first)  # no earlier than the first step
    found = model.double()(x.double(), t)
    relative = (found - wanted).flatten(1).norm(dim=1) / wanted.double().flatten(1).norm(dim=1)
    assert relative.max() < 1e-5


@pytest.mark.parametrize("name", [VP, VE])
def test_the_command_makes_a_run_that_samples_and_scores(name, tmp_path, capsys):
    path, settings = written(tmp_path, name)
    run = str(tmp_path / "run")
    assert main(["import", path, "--format=score_sde", f"--model_config={settings}", f"--workdir={run}"]) == 0
    assert f"score-sde sample --workdir={run}" in capsys.readouterr().out
    model, _ = imported(tmp_path, name)
    loaded = score_sde.load(run)
    x, t, _ = published.answer(CASES[name])
    torch.testing.assert_close(loaded.model(x, t), model(x, t), rtol=0, atol=0)
    assert loaded.step == 7
    assert loaded.model.data.levels == 256
    assert loaded.model.data.model_range == ((-1.0, 1.0) if CASES[name]["settings"]["centered"] else (0.0, 1.0))
    assert main(["sample", f"--workdir={run}", "--solver=ddim", "--nfe=5", "--n=4", "--quiet"]) == 0
    images = np.random.RandomState(0).randint(256, size=(3, *loaded.model.data.shape)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    command = ["likelihood", f"--workdir={run}", f"--data={tmp_path / 'images.npy'}", "--quiet"]
    few = ["--config.likelihood.solver.dual_weighted.steps=4", "--config.likelihood.solver.dual_weighted.doublings=0"]
    assert main([*command, *few, "--config.likelihood.audit=0"]) == 0
    assert "bits/dim" in capsys.readouterr().out
    # a directory that holds a run is not overwritten
    assert main(["import", path, f"--model_config={settings}", f"--workdir={run}"]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_bits_per_dim_of_dequantized_data_are_those_of_the_published_formula(tmp_path):
    """-log p / (D log 2) + 7 for data in [-1, 1], + 8 for data in [0, 1] (Song et al. 2021, code), at given probes."""
    for name, offset in ((VP, 7), (VE, 8)):
        model, _ = imported(tmp_path, name)
        offset = 7 if CASES[name]["settings"]["centered"] else 8
        low, high = model.data.model_range
        x = low + (high - low) * torch.rand(2, *model.data.shape)
        probes = torch.randn(1, *x.shape).sign()
        solver = ProbabilityFlow(method="midpoint", steps=4)
        result = log_likelihood(model, x, divergence=GivenProbes(probes), solver=solver)
        bits = -(result.log_prob.double() + model.data.log_det) / (model.data.dim * math.log(2))
        torch.testing.assert_close(bits, -result.log_prob.double() / (model.data.dim * math.log(2)) + offset)
        with pytest.raises(ValueError, match="must have shape"):
            log_likelihood(model, x[:1], divergence=GivenProbes(probes), solver=solver)


def test_a_step_may_be_a_tensor(tmp_path):
    assert imported(tmp_path, VP, lambda content: content.update(step=torch.tensor(9)))[1] == 9


def test_levels_may_be_given_to_an_import(tmp_path, capsys):
    path, settings = written(tmp_path, VP)
    run = f"--workdir={tmp_path / 'run'}"
    assert main(["import", path, f"--model_config={settings}", run, "--config.data.file.levels=17"]) == 0
    assert score_sde.load(tmp_path / "run").model.data.levels == 17


def test_a_network_of_the_logarithm_needs_positive_levels(tmp_path):
    """The last level of the discrete chain is number 0."""
    settings = {**CASES[VE]["settings"], "continuous": False}
    settings["model"] = {**settings["model"], "embedding_type": "fourier"}
    path, _ = written(tmp_path, VE)
    with pytest.raises(OptionError, match="takes the logarithm of its noise level"):
        import_published(path, *published_config(settings))


def test_settings_may_be_nested_as_that_projects_configs_are(tmp_path):
    flat = CASES[VP]["settings"]
    keys = {"training": ("sde", "continuous"), "data": ("centered", "image_size", "num_channels")}
    nested = {section: {key: flat[key] for key in names} for section, names in keys.items()} | {"model": flat["model"]}
    assert published_config(nested) == published_config(flat)


def test_settings_may_come_from_one_of_our_configs(tmp_path, capsys):
    """The network of ``cifar10_vp`` made small by overrides, as weights of that project for the same settings."""
    case = CASES[next(name for name in CASES if name.startswith("27_ddpm_vp_centered"))]
    settings, model = case["settings"], case["settings"]["model"]
    path, _ = written(tmp_path, case["name"])
    size, levels = settings["image_size"], range(len(model["ch_mult"]))
    attention = tuple(i for i in levels if size // 2**i in model["attn_resolutions"])
    np.save(tmp_path / "images.npy", np.zeros((10, settings["num_channels"], size, size), dtype=np.uint8))
    options = {
        "network.name": "ddpm",
        "network.ddpm.width": model["nf"],
        "network.ddpm.multipliers": tuple(model["ch_mult"]),
        "network.ddpm.blocks": model["num_res_blocks"],
        "network.ddpm.attention": attention,
        "network.ddpm.activation": model["nonlinearity"],
        "network.ddpm.resample_with_conv": model["resamp_with_conv"],
        "data.name": "file",
        "data.file.path": tmp_path / "images.npy",
    }
    overrides = [f"--config.{key}={value}" for key, value in options.items()]
    run = str(tmp_path / "run")
    assert main(["import", path, "--config=cifar10_vp", f"--workdir={run}", *overrides]) == 0
    x, t, wanted = published.answer(case)
    torch.testing.assert_close(score_sde.load(run).model(x, t), wanted, rtol=1e-3, atol=1e-4)
    assert score_sde.load(run).model.data.dequantize  # also where the config trains without


def test_published_ncsnv2_keys_are_our_own(tmp_path):
    settings = {
        **CASES[VE]["settings"],
        "image_size": 16,
        "model": {
            "name": "ncsnv2_64",
            "nf": 8,
            "nonlinearity": "ELU",
            "normalization": "InstanceNorm++",
            "num_scales": 50,
            "sigma_min": 0.01,
            "sigma_max": 20.0,
        },
    }
    channels = settings["num_channels"]
    network = NCSNv2((channels, 16, 16), width=8, stages=4, centered=settings["centered"])
    weights = {name: torch.randn_like(value) * 0.1 for name, value in network.state_dict().items()}
    content = {
        "model": {f"module.{name}": 0.5 * value for name, value in weights.items()},
        "ema": {"shadow_params": list(weights.values())},
        "step": 3,
    }
    torch.save(content, tmp_path / "ncsnv2.pth")
    model, _ = import_published(tmp_path / "ncsnv2.pth", *published_config(settings))
    network.load_state_dict(weights)
    x, t = torch.rand(2, channels, 16, 16), torch.tensor([0.2, 0.7])
    wanted = network.eval()(x, t) / model.sde.sigma(t)[:, None, None, None]
    torch.testing.assert_close(model(x, t), wanted)


# what is refused


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_no_code_of_the_file_is_run(tmp_path, capsys):
    trace = tmp_path / "trace"
    path, settings = written(tmp_path, VP, lambda content: content.update(extra=Payload(trace)))
    command = ["import", path, f"--model_config={settings}", f"--workdir={tmp_path / 'run'}"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "nothing in it was run" in error
    assert "io.open" in error
    Path(path).write_bytes(pickle.dumps(Payload(trace)))
    assert main(command) == 2
    assert not trace.exists()
    assert not (tmp_path / "run").exists()
    pickle.loads(pickle.dumps(Payload(trace))).close()  # the payload works
    assert trace.exists()


def test_a_truncated_file_is_refused(tmp_path):
    path, settings = written(tmp_path, VP)
    whole = Path(path).read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        Path(path).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"published\.pth"):
            import_published(path, *published_config(read_settings(settings)))


def drop_a_convolution(content):
    trained = [key for key in content["model"] if key not in ("module.sigmas", "module.all_modules.0.W")]
    key = next(key for key in trained if key.endswith("Conv_0.weight"))
    content["ema"]["shadow_params"].pop(trained.index(key))
    content["model"].pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("ema"), "lacks ema: it is not a checkpoint of score_sde_pytorch"),
        (lambda c: c.pop("model"), "lacks model"),
        (drop_a_convolution, r"lacks all_modules\.\d+\.Conv_0\.weight: it is of another network"),
        (lambda c: c["model"].update({"module.all_modules.99.weight": torch.zeros(2)}), r"shadow_params has \d+ tensors"),
        (lambda c: c["ema"]["shadow_params"].pop(), r"shadow_params has \d+ tensors, but the model has \d+ trainable"),
        (lambda c: c["ema"]["shadow_params"].append(torch.zeros(1)), r"shadow_params has \d+ tensors"),
        (lambda c: c["ema"]["shadow_params"].reverse(), "ema.shadow_params has shape"),
        (lambda c: c["ema"].pop("shadow_params"), "no list shadow_params"),
        (lambda c: c.update(ema=None), "no list shadow_params"),
        (lambda c: c.update(model=[1, 2]), "not a dict of tensors"),
        (lambda c: c.update(step="late"), "its step is not a number but 'late'"),
        (lambda c: c["ema"]["shadow_params"][3].fill_(math.nan), "holds NaN or infinite values"),
        (
            lambda c: (
                c["model"].update({"module.all_modules.99.weight": torch.zeros(2)}),
                c["ema"]["shadow_params"].append(torch.zeros(2)),
            ),
            r"has all_modules\.99\.weight, for which the network of these settings has no place",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        imported(tmp_path, VP, change)


def test_a_wrong_shape_is_named(tmp_path):
    path, _ = written(tmp_path, VP)
    settings = {**CASES[VP]["settings"], "num_channels": CASES[VP]["settings"]["num_channels"] + 1}
    with pytest.raises(CheckpointError, match=r"all_modules\.\d+\.weight has shape \(.*\), these settings make it \("):
        import_published(path, *published_config(settings))


def test_the_matrix_of_a_wrong_shape_is_named_itself(tmp_path):
    """The second of three that one of our layers is made of."""

    def cut(content):
        trained = [key for key in content["model"] if key not in ("module.sigmas", "module.all_modules.0.W")]
        key = next(key for key in trained if key.endswith("NIN_1.W"))
        content["model"][key] = content["model"][key][:, 1:]
        content["ema"]["shadow_params"][trained.index(key)] = content["model"][key]

    with pytest.raises(CheckpointError, match=r"all_modules\.\d+\.NIN_1\.W has shape \(\d+, \d+\), these settings make it"):
        imported(tmp_path, VP, cut)


def changed(**model):
    settings = CASES[VP]["settings"]
    return {**settings, "model": {**settings["model"], **model}}


def without(key):
    settings = CASES[VP]["settings"]
    if key in settings:
        return {k: v for k, v in settings.items() if k != key}
    return {**settings, "model": {k: v for k, v in settings["model"].items() if k != key}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (without("sde"), "lack 'sde'"),
        (without("image_size"), "lack 'image_size'"),
        (without("nf"), "lack 'nf'"),
        (without("fir_kernel") | {}, None),
        (changed(name="resnet"), "'resnet' is not known"),
        (changed(ch_mult=2), "'ch_mult' in the settings must be of type list, got 2"),
        (changed(nf=16.0), "'nf' in the settings must be of type int"),
        (changed(fir="false"), "'fir' in the settings must be of type bool"),
        ({**changed(), "centered": "false"}, "'centered' in the settings must be of type bool"),
        ({**changed(), "centered": None}, "lack 'centered'"),
        (changed(embedding_type="fuorier"), "choose one of positional, fourier"),
        (changed(scale_by_sigma=True), "no meaning under vpsde"),
        ({**changed(), "sde": "cosine"}, "choose one of vpsde, subvpsde, vesde"),
        ({**changed(), "model": 3}, "must be of type dict"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    if message is None:  # a filter that is not used need not be given
        settings = {**settings, "model": {**settings["model"], "fir": False}}
        assert published_config(settings)[0]["network"]["ncsnpp"]["fir"] == ()
        return
    with pytest.raises(RunError, match=message):
        published_config(settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pth", "--model_config={settings}"], "nowhere.pth not found"),
        (["{path}"], "give the model's settings"),
        (["{path}", "--model_config={settings}", "--config=digits_vp"], "give the model's settings"),
        (["{path}", "--model_config=nowhere.json"], "nowhere.json cannot be read"),
        (["{path}", "--model_config={path}"], "is not a JSON file"),
        (["{path}", "--config=digits_vp"], "'unet' is not one of score_sde_pytorch's"),
        (["{path}", "--config=digits_vpp"], "did you mean digits_vp"),
        (["{path}", "--model_config={settings}", "--config.sde.vp.beta_max=3"], "the settings of the model are given"),
        (["{path}", "--model_config={settings}", "--config.data.file.levls=3"], "did you mean"),
        ([".", "--model_config={settings}"], "is a folder"),
    ],
)
def test_mistakes_on_the_command_line_end_in_one_sentence(arguments, message, tmp_path, capsys):
    path, settings = written(tmp_path, VP)
    arguments = [argument.format(path=path, settings=settings) for argument in arguments]
    assert main(["import", *arguments, f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
