"""Writes the runs beside it and what they gave: the code of version 0.1.0 (commit 56b43cc), not that of today.

    git worktree add ../first 56b43cc && PYTHONPATH=../first python write.py FOLDER

Every run is as a user of that version made it, by the commands. ``expected.npz`` beside it holds points, times, scores there,
log-densities, and samples by several solvers; ``tests/run/test_runs_of_before.py`` asks today's code for the same.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from score_sde import DataSpec, load, log_likelihood
from score_sde.checkpoint import FORMAT
from score_sde.cli import main
from score_sde.files import write_json
from score_sde.run import build_model, build_solver, load_tuned, save_model
from score_sde.solvers import ProbabilityFlow

SOLVERS = json.loads(Path(__file__).with_name("solvers.json").read_text())
SHORT = (
    "--config.training.batch_size=8",
    "--config.training.learning_rate=0.02",
    "--config.training.warmup=2",
    "--config.training.log_every=4",
    "--config.training.checkpoint_every=6",
    "--config.training.sample_every=0",
    "--quiet",
)
MLP = ("--config.network.name=mlp", "--config.network.mlp.width=8", "--config.network.mlp.depth=1")
UNET = (
    "--config.network.name=unet",
    "--config.network.unet.width=4",
    "--config.network.unet.blocks=1",
    "--config.network.unet.attention=()",
)
FAST = (
    "--quiet",
    "--config.likelihood.solver.name=ode",
    "--config.likelihood.solver.ode.method=midpoint",
    "--config.likelihood.solver.ode.steps=4",
    "--config.likelihood.audit=0",
)


def command(*arguments: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(list(arguments)) == 0, arguments


def write_data() -> None:
    random = np.random.default_rng(0)
    np.save("points.npy", (random.normal(size=(60, 3)) @ random.normal(size=(3, 3)) + 2).astype("f4"))
    classes = random.integers(0, 2, 60)
    values = (random.integers(0, 3, (60, 4)) + classes[:, None]).astype("u1")
    np.savez("integers.npz", values=values, kind=classes)
    for name in ("cat", "Dog"):
        Path("pictures", name).mkdir(parents=True)
        for i in range(8):
            picture = random.integers(0, 256, (4, 4)).astype("u1")
            Image.fromarray(picture).resize((8, 8)).save(f"pictures/{name}/{i}.png")


def train(name: str, config: str, *options: str, kept: int = 12) -> Path:
    """A run of 12 steps, of whose checkpoints one is kept; one at 6 is what is left where the process was killed after it."""
    command("train", f"--config={config}", f"--workdir={name}", *SHORT, *options, "--config.training.steps=12")
    for path in Path(name, "checkpoints").glob("*.pt"):
        if int(path.stem) != kept:
            path.unlink()
    return Path(name)


def relative(folder: Path) -> None:
    """The path of the data as an early version wrote it, as it was typed: the run is read on other machines."""
    path = folder / "config.json"
    saved = json.loads(path.read_text())
    if "sha256" not in saved:  # an early one, which has none
        return
    del saved["sha256"]
    section = saved["config"]["data"]
    options = section[section["name"]]
    if options.get("path"):
        options["path"] = Path(options["path"]).name
    write_json(path, saved)


def early(source: Path, target: Path) -> None:
    """A run as versions before 0.1.0 wrote it: no digests, no identity, no options that came later, one scale for all data."""
    saved = json.loads((source / "config.json").read_text())
    for key in ("sha256", "run", "data"):
        del saved[key]
    spec = saved["data_spec"]
    saved["data_spec"] = {name: spec[name] for name in ("shape", "levels", "dequantize")}
    if not spec["levels"]:
        values = np.load("points.npy")
        mean, std = float(values.mean()), float(values.std(ddof=1))
        saved["data_spec"]["data_range"] = [mean - std, mean + std]
    config = saved["config"]
    del config["likelihood"], config["training"]["precision"], config["training"]["compile"]
    for name in ("layout", "held_out_by", "limits"):
        config["data"]["file"].pop(name)
    for name in ("classes", "held_out_by", "as_before", "background"):
        config["data"]["folder"].pop(name)
    section = config["data"][config["data"]["name"]]
    section["path"] = Path(section["path"]).name
    (target / "checkpoints").mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(saved, indent=2))
    (path,) = (source / "checkpoints").glob("*.pt")
    state = torch.load(path, weights_only=True)
    del state["run"]
    assert state["format"] == FORMAT
    torch.save(state, target / "checkpoints" / path.name)


def imported() -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    from tests.reference import published

    case = next(case for case in published.cases() if case["name"].startswith("06_ncsnpp_ve"))
    torch.save(published.checkpoint(case), "published.pth")
    Path("settings.json").write_text(json.dumps(case["settings"]))
    command("import", "published.pth", "--model_config=settings.json", "--workdir=imported")
    options = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "num_class_embeds": 2}
    unet = UNet2DModel(sample_size=8, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, **options)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained("theirs")
    command("import", "theirs", "--format=diffusers", "--workdir=imported_diffusers")


def learned_variance() -> None:
    """What cannot be trained yet: a network that has learned its variance."""
    adm = {"width": 4, "multipliers": [1, 1], "blocks": 1, "attention": [], "learned_variance": True}
    config = {
        "seed": 3,
        "data": {"name": "digits", "digits": {}},
        "sde": {"name": "ddpm", "ddpm": {"steps": 50, "schedule": "cosine"}},
        "network": {"name": "unet", "unet": adm},
        "model": {"parameterization": "epsilon", "time_input": "step", "labels": 50, "sigma_data": 0.5},
    }
    model = build_model(config, DataSpec((1, 8, 8), levels=17))
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
    save_model(Path("learned_variance"), config, model, step=5)


def expect(folder: Path) -> None:
    run = load(folder)
    model, shape = run.model, run.model.data.shape
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(7))
    span = model.sde.T - model.sde.t_min
    times = [model.sde.t_min + share * span for share in (0.01, 0.4, 1.0)]
    classes = torch.tensor([0, 1, 1]) if model.classes else None
    found = {"x": x, "t": torch.tensor(times, dtype=torch.float64)}
    with torch.no_grad():
        for i, t in enumerate(times):
            found[f"score_{i}"] = model(x, torch.full((3,), t), classes)
    if model.classes and folder.name != "imported_diffusers":
        found["score_of_no_class"] = model(x, torch.full((3,), times[1]))
    if model.learned_variance:
        ends = torch.tensor(0.0), torch.tensor(1.0)
        found["variance"] = model.score_and_variance(x, torch.full((3,), times[1]), ends)[1]
    for name, options in SOLVERS.items():
        solver = build_solver({"solver": {"name": name, name: options}})
        found[f"sample_{name}"] = solver.sample(model, (3, *shape), seed=3, cond=classes).x
    if (folder / "tuned.json").is_file():
        for class_ in (None, 1):
            tuned = load_tuned(folder, class_=class_)
            told = classes if class_ is None or classes is None else torch.full((3,), class_)
            found[f"tuned_{class_}"] = tuned.with_budget(5).sample(model, (3, *shape), seed=3, cond=told).x
    found["log_prob"] = log_likelihood(model, x, solver=ProbabilityFlow(method="midpoint", steps=3), cond=classes).log_prob
    np.savez_compressed(folder / "expected.npz", **{key: value.numpy() for key, value in found.items()})


def write() -> None:
    write_data()
    few = ("--pilot=8", "--trials=10", "--nfe=3,5", "--quiet")
    moons = train("two_moons", "two_moons", *MLP)
    command("likelihood", f"--workdir={moons}", "--n=4", "--quiet")
    command("tune", f"--workdir={moons}", *few)

    options = ("--config.network.unet.multipliers=(1, 1)", "--config.network.unet.classes=10")
    options += ("--config.model.parameterization=v", "--config.training.weighting=sigma2")
    digits = train("digits", "digits_vp", *UNET, *options, "--config.training.times=stratified")
    command("likelihood", f"--workdir={digits}", "--class=3", "--n=3", *FAST)
    command("tune", f"--workdir={digits}", *few)
    command("tune", f"--workdir={digits}", "--class=1", *few)
    command("export", f"--workdir={digits}", "--output=exported")

    file = ("--config.data.name=file", "--config.data.file.path=points.npy", "--config.sde.name=ve")
    edm = ("--config.model.parameterization=edm", "--config.model.time_input=edm", "--config.training.weighting=edm")
    edm += ("--config.training.times=uniform", "--config.training.schedule=cosine", "--config.network.mlp.dropout=0.1")
    stopped = train("stopped", "two_moons", *MLP, *file, *edm, kept=6)
    early(stopped, Path("early"))

    file = ("--config.data.name=file", "--config.data.file.path=integers.npz", "--config.data.file.key=values")
    file += ("--config.data.file.classes=kind", "--config.data.file.levels=4", "--config.sde.name=subvp")
    integers = train("integers", "two_moons", *MLP, *file, "--config.network.mlp.classes=2")
    variational = ("--config.likelihood.dequantization=variational", "--config.likelihood.dequantizer.steps=2")
    command("likelihood", f"--workdir={integers}", "--n=3", *FAST, *variational, "--config.likelihood.dequantizer.width=4")

    folder = ("--config.data.name=folder", "--config.data.folder.path=pictures", "--config.data.folder.channels=1")
    folder += ("--config.sde.name=ddpm", "--config.network.unet.multipliers=(1,)", "--config.network.unet.classes=2")
    pictures = train("pictures", "digits_vp", *UNET, *folder, "--config.training.flip=true")
    early(pictures, Path("early_pictures"))

    learned_variance()
    imported()
    for config in Path().glob("*/config.json"):
        if config.parent.name != "theirs":
            relative(config.parent)
            expect(config.parent)
    for spare in (Path("published.pth"), Path("settings.json"), *Path("theirs").rglob("*"), *Path().glob("*/train.lock")):
        if spare.is_file():
            spare.unlink()
    shutil.rmtree("theirs")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    write()
