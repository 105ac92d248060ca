"""diffusers' U-Nets as models of ours, and ours as theirs, against what diffusers itself makes of them."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import score_sde
from score_sde import DDIM, VESDE, VPSDE, DataSpec, ProbabilityFlow, ScoreModel, bits_per_dim, log_likelihood
from score_sde.divergence import ExactDivergence
from score_sde.interop import from_diffusers, import_diffusers, to_diffusers
from score_sde.networks import MLP, NCSNpp, UNet, adm, ddpm
from score_sde.networks.diffusers_unet import DiffusersUNet
from score_sde.run import RunError, build_model, save_model
from score_sde.score import BoundScore, posterior_mean
from score_sde.sdes import ddpm_schedule
from score_sde.tensors import expand
from tests.oracles import DoubleWellSDE

diffusers = pytest.importorskip("diffusers")

UNIT = torch.tensor(0.0), torch.tensor(1.0)
"""Ends between which the logarithm of a learned variance is its share of the way."""

UNETS = {
    "plain": {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    },
    "classes": {
        "sample_size": (8, 4),
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": 4,
    },
    "learned variance": {
        "sample_size": 8,
        "in_channels": 2,
        "out_channels": 4,
        "block_out_channels": (16, 16),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "attention_head_dim": None,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
    },
}


def theirs(name="plain", **changes):
    """A small ``UNet2DModel`` with the weights that diffusers draws."""
    return diffusers.UNet2DModel(**{"norm_num_groups": 8, **UNETS[name], **changes}).eval()


def inputs(unet, batch=3):
    """States and, where the U-Net has them, classes."""
    size = unet.config.sample_size
    x = torch.randn(batch, unet.config.in_channels, *(size if isinstance(size, list | tuple) else (size, size)))
    return x, None if unet.class_embedding is None else torch.arange(batch)


def answered(unet, monkeypatch, output):
    """``unet``, with ``output`` in place of what it would answer."""
    monkeypatch.setattr(unet, "forward", lambda *args, **kwargs: SimpleNamespace(sample=output))
    return unet


# in


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("table", [{}, {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}], ids=str)
@torch.no_grad()
def test_the_same_epsilon(name, table):
    unet, scheduler = theirs(name), diffusers.DDPMScheduler(**table)
    model, steps = from_diffusers(unet, scheduler), len(scheduler)
    (x, cond), labels = inputs(unet), torch.tensor([0, steps // 3, steps - 1])
    t = (labels.double() + 1) / steps
    # in float64, where t gives back the label to the last bit: at 1000 t = 900 float32 would be off by 3e-5 of a step
    epsilon = (-expand(model.sde.sigma(t), x) * model(x.double(), t, cond)).float()
    expected = unet(x, labels, class_labels=cond).sample
    torch.testing.assert_close(epsilon, expected[:, : x.shape[1]], rtol=1e-5, atol=1e-6)
    assert torch.equal(model.network.unet.conv_in.weight, unet.conv_in.weight)
    assert model.learned_variance == (name == "learned variance")
    if model.learned_variance:
        variance = model.score_and_variance(x.double(), t, UNIT, cond)[1].float()
        torch.testing.assert_close(variance, expected[:, x.shape[1] :] / 2 + 0.5, rtol=1e-5, atol=1e-6)
    # and in float32, to what the rounding of t leaves
    single = -expand(model.sde.sigma(t.float()), x) * model(x, t.float(), cond)
    torch.testing.assert_close(single, expected[:, : x.shape[1]], rtol=1e-4, atol=1e-4)


def test_fractions_of_a_step_lie_in_between():
    model = from_diffusers(theirs(), diffusers.DDPMScheduler())
    x = torch.randn(1, 3, 8, 8)
    low, middle, high = (model.network(x, torch.tensor([step])) for step in (40.0, 40.5, 41.0))
    assert (middle - (low + high) / 2).norm() < 0.2 * (high - low).norm()
    assert (middle - low).norm() > 0.3 * (high - low).norm() > 0


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_each_prediction_gives_the_score(prediction, monkeypatch):
    """Outputs that describe the same x0 and epsilon, by diffusers' own definition of each, give -epsilon / sigma."""
    unet, scheduler = theirs(), diffusers.DDPMScheduler(prediction_type=prediction)
    x0, epsilon = torch.randn(2, 3, 3, 8, 8)
    labels = torch.tensor([10, 400, 999])
    output = {"epsilon": epsilon, "sample": x0, "v_prediction": scheduler.get_velocity(x0, epsilon, labels)}[prediction]
    x = scheduler.add_noise(x0, epsilon, labels)
    model = from_diffusers(answered(unet, monkeypatch, output), scheduler)
    sigma = expand((1 - scheduler.alphas_cumprod[labels]).sqrt(), x)
    t = (labels + 1) / 1000
    torch.testing.assert_close(model(x, t) * sigma, -epsilon, rtol=1e-3, atol=1e-3)
    mean = (x + sigma**2 * model(x, t)) / expand(scheduler.alphas_cumprod[labels].sqrt(), x)
    torch.testing.assert_close(mean[:2], x0[:2], rtol=1e-3, atol=1e-3)  # at the last, x says next to nothing of x0


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("steps", "of"), [(10, 1000), (20, 20)])
@torch.no_grad()
def test_the_same_ddim_samples(prediction, steps, of):
    """Their last step goes to alpha = 1, which is the posterior mean."""
    options = {"prediction_type": prediction, "clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "leading"}
    unet, scheduler = theirs(), diffusers.DDIMScheduler(num_train_timesteps=of, **options)
    model, (latents, _) = from_diffusers(unet, scheduler), inputs(unet)
    scheduler.set_timesteps(steps)
    expected = latents
    for label in scheduler.timesteps:
        expected = scheduler.step(unet(expected, label).sample, label, expected).prev_sample
    start, end = (int(scheduler.timesteps[0]) + 1) / of, 1 / of
    x = DDIM(steps=steps - 1).solve(model, latents, start, end)
    x = posterior_mean(BoundScore(model), x, end)
    assert (x - expected).abs().max() < 1e-4 * max(1, expected.abs().max())


@pytest.mark.parametrize("saved", [False, True], ids=["object", "folder"])
def test_the_same_images_as_the_pipeline(saved, tmp_path):
    pipeline = diffusers.DDIMPipeline(theirs(), diffusers.DDIMScheduler(num_train_timesteps=20, clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(2, generator=torch.Generator().manual_seed(0), num_inference_steps=20, output_type="pt").images
    source = pipeline
    if saved:
        pipeline.save_pretrained(tmp_path)
        source = str(tmp_path)
    model = from_diffusers(source)
    x_T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sample = DDIM(steps=19).sample(model, x_T=x_T, denoise=True)
    shown = model.data.unit(sample.x).clamp(0, 1)
    torch.testing.assert_close(shown, images, rtol=0, atol=1e-4)
    assert sample.nfe == 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the noise at t_min")  # a table of betas begins with more noise than 256 levels would like
def test_likelihood_of_an_imported_model():
    solver = ProbabilityFlow(rtol=1e-2, atol=1e-2)
    model = from_diffusers(theirs("learned variance"), diffusers.DDPMScheduler(variance_type="learned_range"))
    record = bits_per_dim(model, torch.randint(0, 256, (2, 2, 8, 8)), solver=solver, probes=2)
    assert 0 < record.mean < 100
    model, x = from_diffusers(theirs("classes"), diffusers.DDPMScheduler()), torch.randn(1, 1, 8, 4)
    found = [
        log_likelihood(model, x, solver=solver, divergence="hutchinson", cond=torch.tensor([label])).log_prob
        for label in (1, 3)
    ]
    assert torch.cat(found).isfinite().all()
    assert found[0] != found[1]


@pytest.mark.parametrize("name", UNETS)
def test_an_import_is_a_run(name, tmp_path):
    unet, scheduler = theirs(name), diffusers.DDPMScheduler(num_train_timesteps=50, prediction_type="v_prediction")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "theirs")
    config, model = import_diffusers(tmp_path / "theirs")
    save_model(tmp_path / "run", config, model, step=0)
    run = score_sde.load(tmp_path / "run")
    assert not run.model.training
    assert run.model.sde == model.sde
    assert run.model.data == DataSpec(tuple(inputs(unet)[0].shape[1:]), levels=256)
    (x, cond), t = inputs(unet), torch.tensor([0.02, 0.313, 1.0])
    assert torch.equal(run.model(x, t, cond), model(x, t, cond))
    assert torch.equal(run.model(x, t, cond), from_diffusers(unet, scheduler)(x, t, cond))
    for name, tensor in unet.state_dict().items():
        assert torch.equal(run.model.network.unet.state_dict()[name], tensor), name
    rebuilt = build_model(config, model.data)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt.eval()(x, t, cond), model(x, t, cond))


def test_a_unet_and_its_scheduler_from_two_folders(tmp_path):
    unet, scheduler = theirs(), diffusers.PNDMScheduler(num_train_timesteps=40)
    unet.save_pretrained(tmp_path / "a")
    scheduler.save_pretrained(tmp_path / "b")
    model = from_diffusers(tmp_path / "a", tmp_path / "b")
    assert model.labels == 40
    assert model.sde.betas == tuple(scheduler.betas.double().tolist())
    assert model.sde.t_min == 1 / 40
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([0.5])
    assert torch.equal(model(x, t), from_diffusers(unet, scheduler)(x, t))
    assert torch.equal(import_diffusers(str(tmp_path / "a"), str(tmp_path / "b"))[1](x, t), model(x, t))


def test_several_files_half_precision_and_old_names(tmp_path):
    unet = theirs()
    unet.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = {}
    for name, tensor in load_file(file).items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{old}.")
        tensors[name] = tensor.half()
    names = sorted(tensors)
    for part, chosen in enumerate((names[:40], names[40:]), start=1):
        save_file(
            {name: tensors[name] for name in chosen}, tmp_path / f"diffusion_pytorch_model-0000{part}-of-00002.safetensors"
        )
    file.unlink()
    model = from_diffusers(tmp_path, diffusers.DDPMScheduler())
    for name, tensor in model.network.unet.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, unet.state_dict()[name].half().float()), name
    save_file({names[0]: tensors[names[0]]}, tmp_path / "more.safetensors")
    with pytest.raises(RunError, match="in several files"):
        from_diffusers(tmp_path, diffusers.DDPMScheduler())


def test_data_of_ones_own():
    spec = DataSpec((3, 16, 8), data_range=(0.0, 5.0))
    model = from_diffusers(theirs(sample_size=None), diffusers.DDPMScheduler(), data=spec)
    assert model.data == spec
    assert model(torch.randn(1, 3, 16, 8), torch.tensor([0.5])).shape == (1, 3, 16, 8)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_pickle_is_opened(tmp_path):
    unet, mark = theirs(), tmp_path / "mark"
    unet.save_pretrained(tmp_path / "unet")
    torch.save(Payload(mark), tmp_path / "unet" / "diffusion_pytorch_model.bin")
    from_diffusers(tmp_path / "unet", diffusers.DDPMScheduler())
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(RunError, match=r"is a pickle.*safe_serialization=True"):
        from_diffusers(tmp_path / "unet", diffusers.DDPMScheduler())
    index = {"weight_map": dict.fromkeys(unet.state_dict(), "diffusion_pytorch_model.bin")}
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RunError, match="is a pickle"):
        from_diffusers(tmp_path / "unet", diffusers.DDPMScheduler())
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").rename(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(RunError, match="damaged or not a safetensors file"):
        from_diffusers(tmp_path / "unet", diffusers.DDPMScheduler())
    assert not mark.exists()


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _without(path, name):
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path)


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _edit(f / "model_index.json", vae=["diffusers", "AutoencoderKL"]), "has vae too"),
        (lambda f: (f / "model_index.json").write_text("{}"), "has no U-Net"),
        (lambda f: (f / "model_index.json").write_text("[]"), "must hold an object"),
        (lambda f: (f / "unet/config.json").unlink(), "cannot be read"),
        (lambda f: (f / "unet/config.json").write_text("{"), "is not JSON"),
        (lambda f: _edit(f / "unet/config.json", _class_name="UNet2DConditionModel"), "not a UNet2DModel"),
        (lambda f: _edit(f / "unet/config.json", colour=1), "no setting colour"),
        (lambda f: _edit(f / "unet/config.json", norm_num_groups=7), "refuses the settings"),
        (lambda f: _edit(f / "unet/config.json", sample_size=9), "halves the sides 1 times"),
        (lambda f: _edit(f / "unet/config.json", sample_size=None), "sample_size is not set"),
        (lambda f: _edit(f / "unet/config.json", sample_size="8"), "a side, or height and width"),
        (lambda f: _edit(f / "unet/config.json", layers_per_block=1), "weights do not fit"),
        (lambda f: _without(f / WEIGHTS, "conv_out.bias"), r"weights do not fit.*conv_out\.bias"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "damaged"),
        (lambda f: (f / WEIGHTS).unlink(), "has no diffusion_pytorch_model.safetensors"),
        (lambda f: _edit(f / "scheduler/scheduler_config.json", _class_name="UNet2DModel"), "not one of diffusers' schedulers"),
        (lambda f: _edit(f / "scheduler/scheduler_config.json", _class_name=3), "not one of diffusers' schedulers"),
        (lambda f: _edit(f / "scheduler/scheduler_config.json", beta_schedule="odd"), "refuses its settings"),
        (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "cannot be read"),
    ],
)
def test_damaged_folders(damage, message, tmp_path):
    diffusers.DDPMPipeline(theirs(), diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    from_diffusers(tmp_path)
    damage(tmp_path)
    with pytest.raises(RunError, match=message):
        import_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("unet", "scheduler", "message"),
    [
        ("plain", None, "give its scheduler too"),
        ("plain", nn.Linear(1, 1), "must be one of diffusers'"),
        ("plain", "nowhere", "nowhere not found"),
        ("nowhere", None, "nothing is downloaded"),
        (nn.Linear(1, 1), None, "got a Linear"),
        ("plain", {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ("plain", {"trained_betas": [0.1, -0.1, 0.2], "num_train_timesteps": 3}, "between 0 and 1"),
        ("plain", {"prediction_type": "flow"}, "prediction_type 'flow'"),
        ("learned variance", {"variance_type": "learned"}, "learned_range"),
        ({"time_embedding_type": "fourier"}, {}, "of a VE model"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 9}, {}, "whole time steps only"),
        ({"out_channels": 4}, {}, "out_channels is 4"),
        ({"sample_size": None}, {}, "sample_size is not set"),
        ({"sample_size": 7}, {}, "halves the sides"),
    ],
    ids=str,
)
def test_what_cannot_be_used(unet, scheduler, message):
    if isinstance(unet, dict):
        unet = theirs(**unet)
    elif unet in UNETS:
        unet = theirs(unet)
    if isinstance(scheduler, dict):
        scheduler = diffusers.DDPMScheduler(**scheduler)
    with pytest.raises(RunError, match=message):
        from_diffusers(unet, scheduler)


def test_a_scheduler_or_data_of_another_kind():
    with pytest.raises(RunError, match="has no table of betas"):
        from_diffusers(theirs(), diffusers.EDMEulerScheduler(prediction_type="epsilon"))
    with pytest.raises(RunError, match="takes images of 3 channels"):
        from_diffusers(theirs(), diffusers.DDPMScheduler(), data=DataSpec((1, 8, 8)))


def test_classes_are_asked_for():
    with_classes = from_diffusers(theirs("classes"), diffusers.DDPMScheduler())
    without = from_diffusers(theirs(), diffusers.DDPMScheduler())
    t = torch.tensor([0.5])
    with pytest.raises(ValueError, match="needs a class"):
        with_classes(torch.randn(1, 1, 8, 4), t)
    with pytest.raises(ValueError, match="takes no condition"):
        without(torch.randn(1, 3, 8, 8), t, torch.tensor([1]))


def test_without_diffusers(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for use in (
        lambda: from_diffusers(tmp_path),
        lambda: to_diffusers(None, tmp_path),
        lambda: DiffusersUNet((3, 8, 8), settings="{}"),
    ):
        with pytest.raises(ValueError, match=r"diffusers is needed: pip install 'score_sde\[diffusers\]'"):
            use()


# the network by itself


def test_settings_follow_the_shape():
    small = {"block_out_channels": [8, 8], "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    network = DiffusersUNet((5, 4, 6), settings=json.dumps({**small, "norm_num_groups": 4, "attention_head_dim": 4}))
    x, noise = torch.randn(2, 5, 4, 6), torch.tensor([0.0, 3.5])
    assert network(x, noise).shape == x.shape
    assert network.unet.config.sample_size == [4, 6]
    again = DiffusersUNet((5, 4, 6), settings=network.settings)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x, noise), network(x, noise))


SMALL = {"block_out_channels": [8], "norm_num_groups": 2, "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((3, 8, 8), "", "must be the JSON text"),
        ((3, 8, 8), "[]", "must be a JSON object"),
        ((3, 8), "{}", "needs images"),
        ((3, 8, 8), json.dumps({"in_channels": 1, **SMALL}), "takes images of 1 channels"),
        ((3, 8, 8), '{"block_out_channel": 1}', "no setting block_out_channel"),
    ],
)
def test_settings_that_are_refused(shape, settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusersUNet(shape, settings=settings)


# out

NETWORKS = {
    "unet": lambda: UNet((3, 8, 8), width=16, multipliers=(1, 2), head_width=8),
    "unet with classes": lambda: UNet(
        (2, 8, 4), width=16, multipliers=(1, 2, 2), blocks=1, attention=(0, 2), head_width=16, classes=3, learned_variance=True
    ),
    "unet of one level": lambda: UNet((1, 5, 7), width=8, multipliers=(1,), attention=(0,), head_width=32),
    "adm": lambda: adm((3, 8, 8), width=16, multipliers=(1, 2), blocks=2, attention=(1,), head_width=8, classes=2),
    "adm without attention": lambda: adm((3, 8, 8), width=16, multipliers=(1, 1, 2), blocks=1, attention=(), head_width=8),
    "adm that adds its embedding": lambda: adm(
        (3, 8, 8),
        width=16,
        multipliers=(1, 1.5),
        blocks=1,
        attention=(1,),
        head_width=8,
        resample="conv",
        modulation="add",
        embedding="transformer",
    ),
    "ddpm": lambda: ddpm((3, 8, 8), width=32, multipliers=(1, 2), blocks=2),
    "ddpm with classes": lambda: ddpm((1, 8, 8), width=32, multipliers=(1, 1, 2), blocks=1, attention=(0, 1), classes=4),
    "ddpm in [0, 1]": lambda: ddpm(
        (1, 8, 8), width=32, multipliers=(1,), attention=(0,), centered=False, learned_variance=True
    ),
}
SHAPES = {
    "unet with classes": (2, 8, 4),
    "unet of one level": (1, 5, 7),
    "ddpm with classes": (1, 8, 8),
    "ddpm in [0, 1]": (1, 8, 8),
}


def ours(name, sde=None, **options):
    """A model of ours with random weights everywhere."""
    network = NETWORKS[name]() if isinstance(name, str) else name
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.15)
    return ScoreModel(network, sde or VPSDE(), DataSpec(SHAPES.get(name, (3, 8, 8)), levels=256), **options).eval()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_exported_networks_answer_as_ours(name, tmp_path):
    model = ours(name)
    to_diffusers(model, tmp_path / "new")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "new", local_files_only=True)
    x, labels = torch.randn(3, *model.data.shape), torch.tensor([0.0, 40.5, 999.0])
    classes = model.network.embedding.classes
    cond = None if classes is None else torch.tensor([0, 1, classes.num_embeddings - 1])
    expected = model.network(x, labels, cond)
    torch.testing.assert_close(pipeline.unet(x, labels, class_labels=cond).sample, expected, rtol=1e-5, atol=1e-5)
    if classes is not None:  # the last class is none at all
        torch.testing.assert_close(model.network(x[2:], labels[2:]), expected[2:])
    back = from_diffusers(tmp_path / "new")
    assert back.learned_variance == model.learned_variance
    for label in (1, 500, 999):
        t, s = torch.full((3,), label / 999), torch.full((3,), (label + 1) / 1000)
        expected = model(x, t, cond)
        assert (back(x, s, cond) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("parameterization", ["epsilon", "v", "x0"])
@pytest.mark.parametrize(
    ("sde", "time", "labels"),
    [(VPSDE(), "label", 100), (ddpm_schedule(50), "step", 50), (VPSDE(T=2.0, t_min=0.3), "label", 30)],
)
@torch.no_grad()
def test_exported_schedules_are_the_sde(parameterization, sde, time, labels, tmp_path):
    model = ours("unet", sde, parameterization=parameterization, time_input=time, labels=labels)
    to_diffusers(model, tmp_path)
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path, local_files_only=True)
    steps = torch.arange(labels, dtype=torch.float64)
    t = (steps + 1) * sde.T / labels if time == "step" else steps * sde.T / (labels - 1)
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod.double()[1:], sde.alpha(t)[1:] ** 2, rtol=1e-4, atol=1e-6)
    assert 1 > pipeline.scheduler.alphas_cumprod[0] > pipeline.scheduler.alphas_cumprod[1]
    # one step of their DDIM, and one of ours
    x = torch.randn(2, 3, 8, 8)
    pipeline.scheduler.set_timesteps(labels)
    label = labels // 2
    output = pipeline.unet(x, label).sample
    expected = pipeline.scheduler.step(output, label, x).prev_sample
    found = DDIM(steps=1).solve(model, x, float(t[label]), float(t[label - 1]))
    assert (found - expected).abs().max() < 1e-4 * max(1, expected.abs().max())


@torch.no_grad()
def test_an_imported_model_is_exported_again(tmp_path):
    unet, scheduler = theirs(), diffusers.DDIMScheduler(num_train_timesteps=50, prediction_type="v_prediction")
    model = from_diffusers(unet, scheduler)
    to_diffusers(model, tmp_path)
    back, x, t = from_diffusers(tmp_path), torch.randn(2, 3, 8, 8), torch.tensor([0.1, 0.9])
    torch.testing.assert_close(back(x, t), model(x, t), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_learned_variance_is_sampled_with(tmp_path):
    to_diffusers(ours("ddpm in [0, 1]", labels=20), tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert pipeline.scheduler.config.variance_type == "learned_range"
    assert pipeline(1, num_inference_steps=20, output_type="np").images.shape == (1, 8, 8, 1)


@torch.no_grad()
def test_double_precision_is_kept(tmp_path):
    model = ours("unet").double()
    to_diffusers(model, tmp_path)
    assert load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.float64


SMALL = {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": ()}


@pytest.mark.parametrize(
    ("network", "options", "reason"),
    [
        ("unet", {"parameterization": "edm"}, "parameterization is edm"),
        ("unet", {"parameterization": "score"}, "parameterization is score"),
        ("unet", {"time_input": "log_snr"}, "time_input is log_snr"),
        ("unet", {"sde": VESDE()}, "VESDE does not preserve the variance"),
        ("unet", {"sde": DoubleWellSDE()}, "not linear"),
        (UNet((3, 8, 8), **SMALL, learned_variance=True), {"variance": "learned"}, "learned variance is learned"),
        (UNet((3, 8, 8), **SMALL, embedding="fourier"), {}, "not sinusoidal"),
        (UNet((3, 8, 8), width=16, multipliers=(2, 2), attention=()), {}, "multipliers must begin with 1"),
        (UNet((3, 8, 8), width=16, multipliers=(2, 2), stem=32, attention=()), {}, "embeds the noise level by 16 numbers"),
        (UNet((3, 8, 8), width=16, multipliers=(1, 3), attention=(0, 1), head_width=20), {}, "different widths"),
        (UNet((3, 8, 8), width=16, multipliers=(1, 2), attention=(0, 1), heads=2), {}, "different widths, 8, 16"),
        (UNet((3, 8, 8), **SMALL, resample="pool"), {}, "no convolution"),
        (UNet((3, 8, 8), **{**SMALL, "blocks": 0}), {}, "no blocks on the way down"),
        (UNet((3, 8, 8), **SMALL, embedding_width=20), {}, "its embedding is 20 wide, where four times the first level, 64"),
        (UNet((3, 8, 8), **SMALL, head_width=64, narrow_attention=False), {}, "its middle has no attention"),
        (
            NCSNpp(
                (3, 8, 8),
                **SMALL,
                block="ddpm",
                skip_rescale=False,
                fir=(),
                progressive_input="none",
                embedding="sinusoidal",
                classes=2,
                early_classes=True,
            ),
            {},
            "added before the layers of the embedding",
        ),
        (ddpm((3, 8, 8), width=16, multipliers=(1, 1)), {}, "different numbers of groups, 16, 32"),
        (ddpm((3, 8, 8), width=32, multipliers=(1, 1), resample_with_conv=False), {}, "no convolution"),
        (ddpm((3, 8, 8), width=32, multipliers=(1, 1), activation="elu"), {}, "not swish"),
        (NCSNpp((3, 8, 8), **SMALL), {}, "biggan"),
        (NCSNpp((3, 8, 8), **SMALL, block="ddpm"), {}, "divided by sqrt"),
        (NCSNpp((3, 8, 8), **SMALL, block="ddpm", skip_rescale=False), {}, "filtered"),
        (NCSNpp((3, 8, 8), **SMALL, block="ddpm", skip_rescale=False, fir=()), {}, "by levels"),
        (
            NCSNpp((3, 8, 8), **SMALL, block="ddpm", skip_rescale=False, fir=(), progressive_input="none", conditional=False),
            {},
            "not told the noise level",
        ),
        (
            NCSNpp((3, 8, 8), **SMALL, block="ddpm", skip_rescale=False, fir=(), progressive_input="none"),
            {},
            "not sinusoidal",
        ),
        (MLP((3, 8, 8)), {}, "its network is a MLP"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_diffusers_cannot_express(network, options, reason, tmp_path):
    with pytest.raises(RunError, match=reason):
        to_diffusers(ours(network, **options), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_shapes_and_folders_that_do_not_go(tmp_path):
    for shape, reason in (((3, 8), "images"), ((3, 9, 8), "cannot be halved 1 times")):
        model = ScoreModel(UNet(shape, **SMALL), VPSDE(), DataSpec(shape))
        with pytest.raises(RunError, match=reason):
            to_diffusers(model, tmp_path / "new")
    model = ScoreModel(UNet((3, 8, 8), **SMALL), VPSDE(), DataSpec((3, 8, 8), model_range=(0.0, 1.0)))
    with pytest.raises(RunError, match="its data lies in"):
        to_diffusers(model, tmp_path / "new")
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(RunError, match="not an empty folder"):
            to_diffusers(ours("unet"), taken)


@pytest.mark.slow
def test_the_exact_divergence_goes_through_their_attention():
    """Which cannot be differentiated in batches of directions."""
    model = from_diffusers(theirs("learned variance"), diffusers.DDPMScheduler()).double()
    model.requires_grad_(False)
    x, t = torch.randn(1, 2, 8, 8, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    _, divergence, _ = ExactDivergence()(lambda point: model(point, t), x)
    jacobian = torch.autograd.functional.jacobian(lambda point: model(point, t), x)
    torch.testing.assert_close(divergence[0, 0], jacobian.reshape(128, 128).trace())


def test_a_moving_average_is_a_network(tmp_path):
    """What diffusers' training script saves: the average's own settings are in the config, and diffusers leaves them out."""
    from diffusers.training_utils import EMAModel

    unet = theirs()
    average = EMAModel(unet.parameters(), model_cls=diffusers.UNet2DModel, model_config=unet.config)
    average.step(unet.parameters())
    average.save_pretrained(tmp_path / "unet_ema")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    saved = json.loads((tmp_path / "unet_ema" / "config.json").read_text())
    assert {"decay", "optimization_step", "power"} <= saved.keys()
    config, model = import_diffusers(tmp_path / "unet_ema", tmp_path / "scheduler")
    assert "decay" not in config["network"]["diffusers"]["settings"]
    x, steps = inputs(unet)[0], torch.tensor([3.0, 10.0, 900.0])
    with torch.no_grad():
        expected = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet_ema")(x, steps).sample
        torch.testing.assert_close(model.network(x, steps), expected)


def test_settings_that_diffusers_does_not_read_are_not_read(tmp_path):
    theirs().save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    _edit(tmp_path / "unet" / "config.json", _use_default_values=["act_fn"], act_fn="mish", _note="mine")
    _, model = import_diffusers(tmp_path / "unet", tmp_path / "scheduler")
    assert model.network.unet.config.act_fn == diffusers.UNet2DModel.from_pretrained(tmp_path / "unet").config.act_fn == "silu"
    _edit(tmp_path / "unet" / "config.json", new_kind_of_block=True)
    with pytest.raises(RunError, match="has no setting new_kind_of_block"):
        import_diffusers(tmp_path / "unet", tmp_path / "scheduler")


def test_a_unet_that_takes_a_logarithm_says_so():
    settings = json.dumps({**UNETS["plain"], "norm_num_groups": 8, "time_embedding_type": "fourier"})
    network = DiffusersUNet((3, 8, 8), settings=settings)
    with pytest.raises(ValueError, match="takes the logarithm"):
        ScoreModel(network, VESDE(), DataSpec((3, 8, 8)), time_input="reversed")
