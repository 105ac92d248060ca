"""The command: what it writes on the happy paths, and one sentence with exit code 2 for every mistake."""

import csv
import html
import io
import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import score_sde
from score_sde.cli import main
from score_sde.config import config_names
from score_sde.data import read, two_moons
from score_sde.sdes import SDES
from score_sde.solvers import SOLVERS

MOONS = (
    "--config.training.steps=6",
    "--config.training.sample_every=3",
    "--config.training.checkpoint_every=3",
    "--config.training.batch_size=16",
    "--config.data.two_moons.samples=200",
)
FAST = (
    "--config.likelihood.solver.name=ode",
    "--config.likelihood.solver.ode.method=midpoint",
    "--config.likelihood.solver.ode.steps=4",
    "--config.likelihood.audit=0",
)


def less(options, *changed):
    """``options`` without those that the ``changed`` ones set anew: an option that is given twice is refused."""
    return tuple(option for option in options if option.split("=")[0] not in {other.split("=")[0] for other in changed})


def likelihoods(path):
    """The values of the single samples beside the record ``path``."""
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as saved:
        return saved["bits_per_dim"]


DIGITS = ("--config.network.unet.width=8", "--config.training.steps=4", "--config.training.batch_size=16")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """For such small networks a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on points and one on images, of a few steps each."""
    root = tmp_path_factory.mktemp("runs")
    assert main(["train", "--config=two_moons", f"--workdir={root / 'moons'}", "--quiet", *MOONS]) == 0
    assert main(["train", "--config=digits_vp", f"--workdir={root / 'digits'}", "--quiet", *DIGITS]) == 0
    return root


@pytest.fixture
def moons(trained, tmp_path):
    """A copy of the run on points, to be changed or damaged."""
    shutil.copytree(trained / "moons", tmp_path / "moons")
    return tmp_path / "moons"


@pytest.fixture
def digits(trained, tmp_path):
    shutil.copytree(trained / "digits", tmp_path / "digits")
    return tmp_path / "digits"


def run(capsys, *arguments) -> str:
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def written(said: str, what: str) -> Path:
    """The file, or the folder, that a command said it wrote."""
    return Path(re.search(rf"^{what}: +(\S+)$", said, flags=re.MULTILINE)[1])


def refused(capsys, *arguments) -> str:
    """The one sentence of a command that does not: exit code 2, one line, no traceback."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    message = capsys.readouterr().err
    assert code == 2, message
    assert message.startswith("score-sde"), message
    assert message.count("\n") == 1, message
    assert message.endswith("\n")
    assert "Traceback" not in message
    return message


def latest(folder):
    return max((folder / "checkpoints").glob("*.pt"))


# train


def test_training_leaves_a_complete_run(trained):
    folder = trained / "moons"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["000000003.pt", "000000006.pt"]
    saved = json.loads((folder / "config.json").read_text())
    assert saved["config"]["training"]["steps"] == 6
    assert saved["config"]["model"]["sigma_data"] == pytest.approx(1, abs=0.05)  # measured: the data is standardized
    assert saved["data_spec"]["shape"] == [2]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert (folder / "moments.safetensors").exists()
    assert list((folder / "samples").glob("*.png"))


def test_training_says_what_it_does_and_how_to_go_on(capsys, tmp_path):
    folder = tmp_path / "run"
    said = run(capsys, "train", "--config=two_moons", f"--workdir={folder}", "--quiet", *MOONS)
    assert "160 training and 40 test samples of shape (2,), continuous" in said
    assert "vp SDE, mlp" in said
    assert f"score-sde sample --workdir={folder}" in said
    assert f"score-sde likelihood --workdir={folder}" in said


def test_a_run_is_continued_with_its_own_config(capsys, moons):
    said = run(capsys, "train", f"--workdir={moons}", "--quiet", "--config.training.steps=8")
    assert f"continuing {moons} from step 6 of 8" in said
    assert latest(moons).name == "000000008.pt"
    assert json.loads((moons / "config.json").read_text())["config"]["data"]["two_moons"]["samples"] == 200
    steps = [json.loads(line)["step"] for line in (moons / "metrics.jsonl").read_text().splitlines()]
    assert steps == [6, 8]
    before = latest(moons).read_bytes()
    assert "continuing" in run(capsys, "train", f"--workdir={moons}", "--quiet")
    assert latest(moons).read_bytes() == before


def test_a_run_is_continued_from_the_checkpoint_that_is_left(capsys, moons):
    whole = torch.load(latest(moons), weights_only=True)
    latest(moons).unlink()
    assert "from step 3 of 6" in run(capsys, "train", f"--workdir={moons}", "--quiet")
    again = torch.load(latest(moons), weights_only=True)
    assert all(torch.equal(again["ema"][key], whole["ema"][key]) for key in whole["ema"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--config=digits_vp"], "another data, network"),
        (["--config.sde.name=ve"], "another sde"),
        (["--config.data.two_moons.noise=0.5"], "another data"),
        (["--config.seed=1"], "another seed"),
        (["--config.network.mlp.width=64"], "another network"),
        (["--config.model.parameterization=v"], "another model"),
    ],
)
def test_a_run_is_not_continued_as_another(capsys, trained, arguments, part):
    before = (trained / "moons" / "config.json").read_bytes()
    message = refused(capsys, "train", f"--workdir={trained / 'moons'}", *arguments)
    assert f"was trained with {part}; only objective, training, solver, likelihood may change" in message
    assert (trained / "moons" / "config.json").read_bytes() == before


# sample


def samples(path):
    with np.load(path) as file:
        return file["samples"], json.loads(str(file["about"]))


def test_sample_writes_a_picture_and_the_values(capsys, moons):
    said = run(capsys, "sample", f"--workdir={moons}", "--solver=ode", "--nfe=8", "--n=10", "--seed=3", "--quiet")
    assert "ode cannot keep to a number of evaluations: midpoint takes its place" in said
    kept, picture = written(said, "values"), written(said, "picture")
    assert re.fullmatch(r"ode_midpoint_nfe8_seed3_[0-9a-f]{8}", kept.stem)
    assert picture == kept.with_suffix(".png")
    assert kept.parent == moons / "samples"
    assert "10 samples by ProbabilityFlow" in said
    assert f"score-sde compare --workdir={moons}" in said
    values, about = samples(kept)
    assert values.shape == (10, 2)
    assert np.isfinite(values).all()
    assert (about["seed"], about["nfe"], about["step"], about["denoised"]) == (3, 8, 6, False)
    with Image.open(picture) as drawn:
        assert drawn.convert("L").getextrema()[0] < 128


def test_samples_of_images_are_integers_within_their_levels(capsys, digits):
    said = run(capsys, "sample", f"--workdir={digits}", "--nfe=10", "--n=5", "--quiet")
    values, about = samples(written(said, "values"))
    assert values.shape == (5, 1, 8, 8)
    assert values.dtype.kind == "i"
    assert values.min() >= 0
    assert values.max() <= 16
    assert about["nfe"] == 10


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_seed_gives_the_same_samples_whatever_the_batch(capsys, moons, solver):
    drawn = []
    for size, seed in ((64, 0), (64, 0), (7, 0), (64, 1)):
        options = (f"--solver={solver}", "--nfe=12", "--n=20", f"--batch_size={size}", f"--seed={seed}", "--quiet")
        drawn.append(samples(written(run(capsys, "sample", f"--workdir={moons}", *options), "values"))[0])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_allclose(drawn[2], drawn[0], atol=1e-4)
    assert np.abs(drawn[3] - drawn[0]).max() > 0.1


def test_options_of_the_solver_and_of_sampling(capsys, moons):
    said = run(
        capsys, "sample", f"--workdir={moons}", "--config.solver.euler_maruyama.steps=9", "--denoise", "--n=3", "--quiet"
    )
    assert "EulerMaruyama(steps=9" in said
    assert "10 evaluations" in said
    assert samples(written(said, "values"))[1]["denoised"]


# likelihood


def test_likelihood_writes_its_record(capsys, moons):
    said = run(capsys, "likelihood", f"--workdir={moons}", "--n=12", "--seed=1", "--quiet")
    path = written(said, "record")
    assert re.fullmatch(r"likelihood_test_first12_seed1_[0-9a-f]{8}", path.stem)
    record, bits = json.loads(path.read_text()), likelihoods(path)
    assert len(bits) == record["samples"] == 12
    assert record["mean"] == pytest.approx(np.mean(bits), rel=1e-12)
    assert record["stderr"] == pytest.approx(np.std(bits, ddof=1) / 12**0.5, rel=1e-12)
    assert (record["seed"], record["step"], record["data"], record["levels"]) == (1, 6, "test", None)
    assert record["prior_mismatch"] >= 0
    assert record["sentence"] in said
    assert record["nats_per_dim"] == pytest.approx(record["mean"] * np.log(2))
    assert f"{record['nats_per_dim']:.4f} +- {record['stderr'] * np.log(2):.4f} nats/dim" in said
    assert "averaged weights of step 6" in said
    assert not list(moons.glob("*.parts"))


def test_likelihood_of_a_file_is_that_of_the_split_it_holds(capsys, moons, tmp_path):
    test = read(two_moons(samples=200).test, slice(5)).values
    np.save(tmp_path / "mine.npy", test.numpy())
    asked = (["--n=5"], [f"--data={tmp_path / 'mine.npy'}"], ["--split=train", "--n=5"])
    paths = [written(run(capsys, "likelihood", f"--workdir={moons}", *of, "--quiet"), "record") for of in asked]
    test, mine, train = map(likelihoods, paths)
    assert (mine == test).all()
    assert (train != test).all()
    assert json.loads(paths[1].read_text())["data"].endswith("mine.npy")


def test_likelihood_of_images_stored_without_a_channel(capsys, digits, tmp_path):
    np.save(tmp_path / "flat.npy", np.arange(2 * 64, dtype=np.uint8).reshape(2, 64) % 17)
    said = run(capsys, "likelihood", f"--workdir={digits}", f"--data={tmp_path / 'flat.npy'}", "--quiet")
    assert "64 dimensions and 17 levels, uniform dequantization" in said
    record = json.loads(written(said, "record").read_text())
    assert (record["dim"], record["levels"], record["samples"]) == (64, 17, 2)


# tune


def test_tuned_solvers_are_used_by_name(capsys, moons):
    said = run(capsys, "tune", f"--workdir={moons}", "--nfe=4,6", "--pilot=8", "--trials=10", "--quiet")
    assert "best standard" in said
    assert f"score-sde sample --workdir={moons} --solver=tuned --nfe=6" in said
    saved = json.loads((moons / "tuned.json").read_text())["choices"]
    assert [entry["nfe"] for entry in saved] == [4, 6]
    about = saved[0]["about"]
    assert about == {"pilot": 8, "trials": 10, "seed": 0, "class": None, "step": 6, "run": about["run"]}
    said = run(capsys, "sample", f"--workdir={moons}", "--solver=tuned", "--nfe=5", "--n=4", "--quiet")
    assert "4 evaluations each (of 5 allowed)" in said
    assert written(said, "picture").name.startswith("tuned_nfe4_seed0_")
    said = run(capsys, "tune", f"--workdir={moons}", "--nfe=5", "--pilot=9", "--trials=10", "--quiet")
    assert [line.split()[0] for line in said.splitlines()[:4]] == ["evaluations", "5", "best", "errors:"]  # of this run alone
    assert said.splitlines()[0].split() == ["evaluations", "10%", "median", "90%", "rms", "solver"]
    assert "on 9 latents that had no part in the search" in said
    assert "5 evaluations each" in run(capsys, "sample", f"--workdir={moons}", "--solver=tuned", "--nfe=5", "--n=4", "--quiet")
    said = run(capsys, "compare", f"--workdir={moons}", "--nfe=6", "--n=24", "--quiet")
    assert [line.split()[0] for line in said.splitlines() if line.startswith(("tuned", "unipc", "gaussian"))] == [
        "unipc",
        "gaussian",
        "tuned",
    ]
    mistaken = refused(capsys, "sample", f"--workdir={moons}", "--solver=tuned", "--config.solver.unipc.p=3")
    assert "--config.solver.unipc.p=3: solvers that were tuned have their options already" in mistaken
    small = refused(capsys, "sample", f"--workdir={moons}", "--solver=tuned", "--nfe=3")
    assert f"got 3: score-sde tune --workdir={moons} --nfe=3 adds them" in small


# compare, list, config, doctor


def test_compare_writes_a_table_and_a_page_that_needs_nothing_else(capsys, moons):
    said = run(capsys, "compare", f"--workdir={moons}", "--solvers=euler_maruyama,ode,ddim", "--nfe=8,2", "--n=24", "--quiet")
    folder = written(said, "table").parent
    assert folder.parent == moons / "compare"
    with (folder / "compare.csv").open() as file:
        table = list(csv.DictReader(file))
    *measured, converged, floor = table
    assert [(line["solver"], line["budget"]) for line in measured] == [
        (solver, nfe) for solver in ("euler_maruyama", "ode (midpoint)", "ddim") for nfe in ("2", "8")
    ]
    assert [converged["solver"], floor["solver"]] == ["converged ODE", "data against data"]
    assert all(int(line["nfe"]) <= int(line["budget"]) for line in table)
    assert all(0 < float(line["overhead"]) < float(line["seconds"]) for line in table[:-1])
    assert all(float(line["energy_low"]) < float(line["energy"]) < float(line["energy_high"]) for line in table)
    assert all(0 <= float(line[share]) <= 1 for line in table for share in ("precision", "recall"))
    assert [line["error"] == "nan" for line in measured] == [True, True, False, False, False, False]
    assert measured[5]["settings"] == "DDIM(steps=8, grid='uniform', eta=0.0)"
    assert measured[3]["settings"].startswith("ProbabilityFlow(method='midpoint'")  # in place of dopri5, which has no budget
    for name in ("compare.png", "samples.png"):
        with Image.open(folder / name) as picture:
            assert picture.convert("L").getextrema()[0] < 128
    page = (folder / "compare.html").read_text()
    sources = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'>]{0,30})", page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|<link|<script|@import|url\(", page)
    for line in table:
        assert html.escape(line["settings"]) in page
        for text in (page, said):
            assert f"{float(line['distance']):.4f}" in text
            assert f"{float(line['energy_low']):.4f} to {float(line['energy_high']):.4f}" in text
    protocol = "24 samples per setting, seed 0, from the same latents, against 40 held-out data points"
    assert protocol in said
    assert protocol in page


@pytest.mark.parametrize(("command", "option"), [("sample", "--batch_size"), ("compare", "--count"), ("tune", "--pilot")])
def test_too_little_memory_says_which_option_helps(capsys, monkeypatch, moons, command, option):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr("score_sde.model.ScoreModel.forward", fail)
    assert f"out of memory; use a smaller {option}: tried" in refused(capsys, command, f"--workdir={moons}", "--quiet")


def test_list_names_everything(capsys):
    said = run(capsys, "list")
    for names in (SDES, SOLVERS, config_names()):
        assert all(re.search(rf"\b{name}\b", said) for name in names)


def test_config_prints_what_was_chosen(capsys, trained):
    printed = json.loads(run(capsys, "config", "--config=two_moons", "--config.sde.name=ve", "--config.sde.ve.sigma_max=10"))
    assert printed["sde"]["name"] == "ve"
    assert printed["sde"]["ve"]["sigma_max"] == 10.0
    assert "vp" not in printed["sde"]
    everything = json.loads(run(capsys, "config", "--config=two_moons", "--all"))
    assert set(everything["sde"]) == {"name", *SDES}
    own = json.loads(run(capsys, "config", f"--workdir={trained / 'moons'}"))
    assert own["training"]["steps"] == 6


def test_a_model_with_classes_draws_from_one(tmp_path, capsys):
    options = ("--config.network.mlp.classes=2", *MOONS)
    run(capsys, "train", "--config=two_moons", f"--workdir={tmp_path}", "--quiet", *options)
    draw = ("sample", f"--workdir={tmp_path}", "--solver=ddim", "--nfe=5", "--n=8", "--quiet")
    files = [np.load(written(run(capsys, *draw, *of), "values")) for of in (["--class=1"], [])]
    assert json.loads(str(files[0]["about"]))["class"] == 1
    assert not np.allclose(files[0]["samples"], files[1]["samples"])
    assert "has classes 0 to 1" in refused(capsys, *draw, "--class=2")
    score = ("likelihood", f"--workdir={tmp_path}", "--n=4", "--quiet", *FAST)
    said = [run(capsys, *score, "--class=0"), run(capsys, *score)]
    assert "given class 0" in said[0]
    assert "given no class" in said[1]
    paths = [written(text, "record") for text in said]
    told, untold = (json.loads(path.read_text()) for path in paths)
    assert (told["class"], untold["class"]) == (0, None)
    assert (likelihoods(paths[0]) != likelihoods(paths[1])).any()
    said = run(capsys, "compare", f"--workdir={tmp_path}", "--solvers=ddim", "--nfe=4", "--n=8", "--quiet", "--class=1")
    page = written(said, "page").read_text()
    held_out = int((two_moons(samples=200).test.classes == 1).sum())
    assert f"against {held_out} held-out data points" in page  # of that class, not of both
    assert "class 1 alone" in page


def test_all_bounds_in_one_table(digits, moons, capsys):
    short = "--config.likelihood.dequantizer.steps=2"
    out = run(capsys, "likelihood", f"--workdir={digits}", "--bounds", "--n=4", "--quiet", short, *FAST)
    rows = re.findall(r"^(.*?)  (\d+\.\d+) \+- \d+\.\d+", out, flags=re.MULTILINE)
    names = [name.strip() for name, _ in rows]
    chains = ["chain of 1000 steps, beta_tilde", "chain of 1000 steps, beta"]
    flows = ["ODE, uniform", "ODE, uniform, truncation", "ODE, truncated normal", "ODE, variational"]
    assert names == [*flows, *chains, "continuous time"]
    saved = json.loads((written(out, "saved") / "chain_of_1000_steps_beta.json").read_text())
    assert float(rows[5][1]) == pytest.approx(saved["mean"], abs=1e-4)
    assert (digits / "dequantizer.safetensors").is_file()
    assert saved["mean"] == pytest.approx(saved["prior"] + saved["diffusion"] + saved["reconstruction"])
    assert "continuous" in refused(capsys, "likelihood", f"--workdir={moons}", "--bounds", "--n=4", "--quiet")


def test_networks_of_the_logarithm_say_what_they_need(tmp_path, capsys):
    options = ("--config.network.name=ncsnpp", "--config.network.ncsnpp.width=8", "--config.network.ncsnpp.multipliers=(1,1)")
    train = ("train", "--config=digits_vp", f"--workdir={tmp_path / 'new'}", "--quiet", *DIGITS[1:], *options)
    assert "takes the logarithm of its noise level" in refused(capsys, *train)
    assert not (tmp_path / "new").exists()
    run(capsys, *train, "--config.model.time_input=sigma")


@pytest.mark.parametrize("name", ["ddpm", "ncsnv2", "dit", "adm"])
def test_every_network_trains_from_the_digits_config(name, tmp_path, capsys):
    small = {
        "ddpm": ("width=32", "multipliers=(1,1)"),
        "ncsnv2": ("width=8",),
        "dit": ("width=16", "depth=1", "heads=2"),
        "adm": ("width=8", "multipliers=(1,)", "attention=()", "head_width=4"),
    }
    options = [f"--config.network.{name}.{option}" for option in small[name]]
    run(
        capsys,
        "train",
        "--config=digits_vp",
        f"--workdir={tmp_path}",
        "--quiet",
        *DIGITS[1:],
        f"--config.network.name={name}",
        *options,
    )
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()


def test_images_with_channels_last_are_not_taken_for_others(tmp_path, capsys):
    path = tmp_path / "images.npy"
    np.save(path, np.zeros((20, 3, 4, 4), dtype=np.uint8))
    options = ("--config.data.name=file", f"--config.data.file.path={path}", "--config.network.unet.multipliers=(1,)")
    train = ("train", "--config=digits_vp", f"--workdir={tmp_path / 'run'}", "--quiet", *DIGITS, *options)
    run(capsys, *train, "--config.network.unet.attention=()")
    np.save(path, np.zeros((20, 4, 4, 3), dtype=np.uint8))
    assert "its channels come last" in refused(capsys, "likelihood", f"--workdir={tmp_path / 'run'}", f"--data={path}")


def test_a_class_that_does_not_exist_is_refused(moons, capsys):
    assert "trained without classes" in refused(capsys, "sample", f"--workdir={moons}", "--class=0")
    for wrong in ("classes=1", "classes=-1"):
        train = ("train", "--config=two_moons", f"--workdir={moons.parent / 'new'}", "--quiet", *MOONS)
        assert "classes" in refused(capsys, *train, f"--config.network.mlp.{wrong}")


def test_an_exported_model_is_a_run_of_its_own(digits, tmp_path, capsys):
    out = run(capsys, "export", f"--workdir={digits}", f"--output={tmp_path / 'model'}")
    assert "exported" in out
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
        "moments.safetensors",
    ]
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 0.9])
    first, second = score_sde.load(digits), score_sde.load(tmp_path / "model")
    torch.testing.assert_close(first.model(x, t), second.model(x, t), rtol=0, atol=0)
    assert (first.step, first.config) == (second.step, second.config)
    # the weights can be read without this package
    weights = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    assert weights.keys() == first.model.state_dict().keys()
    assert "holds a run already" in refused(capsys, "export", f"--workdir={digits}", f"--output={tmp_path / 'model'}")
    run(capsys, "sample", f"--workdir={tmp_path / 'model'}", "--solver=ddim", "--nfe=3", "--n=2", "--quiet")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"nothing")
    assert "model.safetensors is damaged" in refused(capsys, "sample", f"--workdir={tmp_path / 'model'}")


def test_training_goes_on_from_an_exported_model(digits, tmp_path, capsys):
    """With a vanishing learning rate the weights are those that were exported; another architecture is refused."""
    run(capsys, "export", f"--workdir={digits}", f"--output={tmp_path / 'model'}")
    train = ("train", f"--workdir={tmp_path / 'model'}", "--quiet")
    assert "another network" in refused(capsys, *train, "--config.network.unet.width=16")
    assert "the data is not that" in refused(capsys, *train, "--config.data.digits.dequantize=False")
    run(capsys, *train, "--config.training.learning_rate=1e-12", "--config.training.steps=2", "--config.data.digits.seed=1")
    first, second = score_sde.load(digits), score_sde.load(tmp_path / "model")
    assert second.checkpoint.parent.name == "checkpoints"
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 0.9])
    torch.testing.assert_close(first.model(x, t), second.model(x, t), rtol=1e-5, atol=1e-5)


def test_doctor_finds_this_installation_sound(capsys):
    said = run(capsys, "doctor")
    assert "sound" in said
    assert f"torch           {torch.__version__.split('+')[0]}" in said


def test_help_is_given(capsys):
    for command in ("", "train", "sample", "likelihood", "compare", "tune", "demo", "list", "config", "doctor"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"] if command else ["--help"])
        assert stop.value.code == 0
        assert "usage: score-sde" in capsys.readouterr().out


# mistakes on the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: COMMAND"),
        (["smaple"], "did you mean sample?"),
        (["train"], "arguments are required: --workdir"),
        (["train", "--workdir=x"], "x is not a run yet: give a config"),
        (["train", "--workdir=x", "--config=two_mons"], "config 'two_mons' not found, did you mean two_moons?"),
        (["train", "--workdir=x", "--config=two_moons", "--step=3"], "unknown option --step"),
        (["train", "--workdir=x", "--config=two_moons", "--device=abacus"], "device 'abacus' cannot be used here"),
        (["sample", "--workdir=x"], "x is not a run directory: it has no config.json; train one with score-sde train"),
        (["likelihood", "--workdir=x"], "x is not a run directory"),
        (["compare", "--workdir=x"], "x is not a run directory"),
        (["likelihood", "--workdir=x", "--split=tset"], "invalid choice: 'tset'"),
        (["config"], "--config --workdir is required"),
        (["config", "--config=two_moons", "--workdir=x"], "not allowed with argument"),
        (["list", "--config.sde.name=ve"], "score-sde list takes no --config. options"),
        (["doctor", "--all"], "unknown option --all"),
    ],
)
def test_mistakes_in_a_command(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.sde.name=vpp", "unknown sde 'vpp', did you mean vp?; choose one of vp, subvp"),
        ("--config.solver.name=em", "unknown solver 'em', did you mean euler_maruyama?; choose one of euler_maruyama"),
        ("--config.network.name=resnet", "unknown network 'resnet', did you mean unet?; choose one of mlp, unet"),
        ("--config.data.name=moons", "unknown data 'moons', did you mean two_moons?; choose one of two_moons"),
        (
            "--config.model.parameterization=noise",
            "unknown parameterization 'noise', did you mean epsilon?; choose one",
        ),
        ("--config.model.time_input=hours", "unknown time_input 'hours'; choose one of label"),
        ("--config.objective.denoising.weighting=none", "objective.denoising: unknown weighting 'none'; choose one of sigma2"),
        ("--config.objective.denoising.times=late", "objective.denoising: unknown times 'late'; choose one of uniform"),
        ("--config.objective.name=noising", "unknown objective 'noising', did you mean denoising?"),
        ("--config.training.schedule=linear", "unknown training.schedule 'linear'; choose one of constant, cosine"),
        ("--config.training.stps=5", "did you mean training.steps?"),
        ("--config.sde.vp.beta_mx=5", "did you mean sde.vp.beta_max?"),
        ("--config.training.steps=many", "config.training.steps must be of type int, got 'many'"),
        ("--config.training.steps=1.5", "config.training.steps must be of type int, got '1.5'"),
        ("--config.training.flip=maybe", "config.training.flip must be of type bool, got 'maybe'"),
        ("--config.training.learning_rate=fast", "config.training.learning_rate must be of type float, got 'fast'"),
        ("--config.network.unet.multipliers=3", "config.network.unet.multipliers must be a tuple such as"),
        ("--config.training=3", "config.training is a section: set one of training."),
        ("--config.training.steps", "config.training.steps needs a value"),
        ("--config.training.steps=0", "training.steps must be at least 1, got 0"),
        ("--config.training.batch_size=-1", "training.batch_size must be at least 1, got -1"),
        ("--config.training.clip=-1", "training.clip"),
        ("--config.training.beta2=2", "training.beta2"),
        ("--config.training.ema_decay=2", "training.ema_decay"),
        ("--config.training.learning_rate=-1", "training.learning_rate must be positive, got -1"),
        ("--config.sde.vp.beta_max=-1", "sde.vp: "),
        ("--config.sde.vp.t_min=2", "sde.vp: t_min must lie"),
        ("--config.model.sigma_data=-1", "sigma_data must be positive, got -1"),
        ("--config.network.mlp.width=7", "network.mlp: the width of an embedding must be a positive even number, got 7"),
        ("--config.solver.euler_maruyama.steps=0", "solver.euler_maruyama: steps must be at least 1, got 0"),
        ("--config.solver.euler_maruyama.grid=log", "unknown time grid 'log'"),
        ("--config.data.two_moons.test_fraction=1.0", "held-out fraction must lie between 0 and 1"),
        ("--config.data.two_moons.samples=1", "too few to hold out"),
    ],
)
def test_mistakes_in_an_override(capsys, tmp_path, override, message):
    """Refused before anything is written, so that the corrected command works."""
    folder = tmp_path / "run"
    assert message in refused(capsys, "train", "--config=two_moons", f"--workdir={folder}", *less(MOONS, override), override)
    assert not folder.exists()


def test_a_negative_seed_in_the_config(capsys, tmp_path):
    folder = tmp_path / "run"
    message = refused(capsys, "train", "--config=two_moons", f"--workdir={folder}", "--quiet", *MOONS, "--config.seed=-1")
    assert "seed" in message
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--solver=em"], "unknown solver 'em', did you mean euler_maruyama?; choose one of euler_maruyama"),
        (["sample", "--solver=dddim"], "unknown solver 'dddim', did you mean ddim?"),
        (["sample", "--nfee=5"], "unknown option --nfee, did you mean --nfe?"),
        (["sample", "--nfe=abc"], "argument --nfe: a positive integer is needed, got 'abc'"),
        (["sample", "--nfe=0"], "a positive integer is needed"),
        (["sample", "--nfe=-3"], "a positive integer is needed, got '-3'"),
        (["sample", "--solver=ode", "--nfe=1"], "evaluations"),
        (["sample", "--n=0"], "argument --count/--n: a positive integer is needed, got '0'"),
        (["sample", "--n=-4"], "argument --count/--n: a positive integer is needed, got '-4'"),
        (["sample", "--n=some"], "argument --count/--n: a positive integer is needed, got 'some'"),
        (["sample", "--batch_size=0"], "batch_size"),
        (["sample", "--batch_size=-4"], "batch_size"),
        (["sample", "--seed=-1"], "argument --seed: an integer that is not negative is needed, got '-1'"),
        (["sample", "--seed=1.5"], "argument --seed: an integer that is not negative is needed, got '1.5'"),
        (["likelihood", "--seed=-1"], "argument --seed: an integer that is not negative is needed"),
        (["compare", "--seed=-1"], "argument --seed: an integer that is not negative is needed"),
        (["sample", "--config.sde.vp.beta_max=3"], "has no effect on sample: the run is trained, only solver can be set here"),
        (["sample", "--config.solver.pc.stps=3"], "did you mean solver.pc.steps?"),
        (["sample", "--config.solvr.pc.steps=3"], "config.solvr.pc.steps"),
        (["sample", "--config.solver.pc=ode"], "config.solver.pc is a section"),
        (["sample", "--config.solver.pc.steps=few"], "config.solver.pc.steps must be of type int"),
        (["sample", "--solver=pc", "--config.solver.pc.corrector=langevine"], "langevine"),
        (["likelihood", "--n=0"], "argument --count/--n: a positive integer is needed, got '0'"),
        (
            ["likelihood", "--config.likelihood.solver.name=ode", "--config.likelihood.solver.ode.method=dopri6"],
            "unknown method 'dopri6'; choose one of dopri5",
        ),
        (
            ["likelihood", "--config.likelihood.solver.name=od"],
            "unknown likelihood.solver 'od', did you mean ode?; choose one of dual_weighted, ode",
        ),
        (["likelihood", "--config.likelihood.target_error=0"], "target_error must be positive"),
        (["likelihood", "--config.likelihood.divergence=exakt"], "unknown divergence 'exakt'; choose one of exact"),
        (["likelihood", "--config.likelihood.batch_size=0"], "batch_size must be at least 1, got 0"),
        (
            ["likelihood", "--config.likelihood.solver.name=ode", "--config.likelihood.solver.ode.rtol=-1"],
            "rtol and atol must be positive",
        ),
        (["likelihood", "--data=nowhere.npy"], "nowhere.npy not found"),
        (["compare", "--solvers=ode,od"], "unknown solver 'od', did you mean ode?"),
        (["compare", "--solvers=ddim,ode,ddim"], "--solvers=ddim,ode,ddim names ddim more than once"),
        (["compare", "--config.solver.name=ddim"], "compare takes several solvers, as --solvers=pc,ddim"),
        (["sample", "--solver=tuned", "--class=9"], "there is no class 9: the model"),
        (["compare", "--nfe=ten"], "--nfe takes numbers of evaluations separated by commas, got 'ten'"),
        (["tune", "--nfe=ten"], "--nfe takes numbers of evaluations separated by commas, got 'ten'"),
        (["tune", "--nfe=1"], "give numbers of evaluations, each at least 2, got [1]"),
        (["tune", "--config.solver.name=ddim"], "tune tries solvers of its own, and takes no options of theirs"),
        (["tune", "--pilott=8"], "unknown option --pilott, did you mean --pilot?"),
        (["sample", "--solver=tuned"], "no solver was tuned for"),
        (["sample", "--solver=ancestral", "--config.solver.ancestral.variance=learned", "--quiet"], "no learned variance"),
        (["sample", "--solver=tund"], "unknown solver 'tund', did you mean tuned?"),
        (["compare", "--nfe="], "--nfe takes numbers of evaluations separated by commas, got ''"),
        (["compare", "--nfe=0,10"], "budgets must be positive numbers of evaluations, got [0, 10]"),
        (["compare", "--n=1"], "at least 2 samples"),
    ],
)
def test_mistakes_with_a_run(capsys, trained, arguments, message):
    command, *options = arguments
    assert message in refused(capsys, command, f"--workdir={trained / 'moons'}", *options)


def test_a_comparison_in_which_no_budget_suffices(capsys, moons):
    assert "evaluations" in refused(capsys, "compare", f"--workdir={moons}", "--solvers=ode", "--nfe=1", "--n=4", "--quiet")


# damaged runs


def everything_refused(capsys, folder) -> str:
    """What sample says of a run that cannot be loaded; likelihood and compare refuse it too."""
    for command in ("likelihood", "compare"):
        refused(capsys, command, f"--workdir={folder}")
    return refused(capsys, "sample", f"--workdir={folder}")


def test_a_run_without_checkpoint(capsys, moons):
    shutil.rmtree(moons / "checkpoints")
    message = everything_refused(capsys, moons)
    assert f"{moons} has no checkpoint yet: train it with score-sde train --workdir={moons}" in message
    (moons / "checkpoints").mkdir()
    assert "has no checkpoint yet" in everything_refused(capsys, moons)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_checkpoint(capsys, moons, kept):
    whole = latest(moons).read_bytes()
    latest(moons).write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    min((moons / "checkpoints").glob("*.pt")).unlink()
    message = everything_refused(capsys, moons)
    assert f"{latest(moons)} is damaged" in message
    assert "remove" not in message
    assert "damaged" in refused(capsys, "train", f"--workdir={moons}", "--quiet")


def test_where_the_newest_checkpoint_is_damaged_the_one_before_it_is_used(capsys, moons):
    sound, whole, path = (moons / "checkpoints" / "000000003.pt"), latest(moons).read_bytes(), latest(moons)
    metrics = (moons / "metrics.jsonl").read_text()
    path.write_bytes(whole[:1000] + b"\0" + whole[1001:])
    said = f"warning: {path} is damaged; {sound.name} is used instead"
    assert main(["sample", f"--workdir={moons}", "--quiet", "--n=4", "--nfe=2"]) == 0
    captured = capsys.readouterr()
    assert said in captured.err
    assert samples(written(captured.out, "values"))[1]["step"] == 3
    assert main(["train", f"--workdir={moons}", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert said in captured.err
    assert "from step 3 of 6" in captured.out
    again = torch.load(path, weights_only=True)
    assert all(torch.equal(value, again["ema"][key]) for key, value in torch.load(io.BytesIO(whole))["ema"].items())
    assert without_seconds((moons / "metrics.jsonl").read_text()) == without_seconds(metrics)
    assert path.with_suffix(".pt.damaged").read_bytes()[:1000] == whole[:1000]  # nothing is thrown away


def without_seconds(metrics: str) -> list[dict]:
    lines = [json.loads(line) for line in metrics.splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_checkpoint_of_another_program(capsys, moons):
    others = [[1, 2, 3], {"format": "another", "step": 3}, {"state_dict": {"a": torch.zeros(2)}}, torch.zeros(3)]
    for other in others:
        torch.save(other, latest(moons))
        assert f"{latest(moons)} is a file of another program or version" in everything_refused(capsys, moons)
    min((moons / "checkpoints").glob("*.pt")).unlink()
    latest(moons).write_text("this is not even a pickle")
    assert str(latest(moons)) in everything_refused(capsys, moons)
    with zipfile.ZipFile(latest(moons), "w") as archive:
        archive.writestr("readme.txt", "nor is this")
    assert str(latest(moons)) in everything_refused(capsys, moons)


class Payload:
    """Its pickle makes a directory when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_checkpoint_is_executed(capsys, moons, tmp_path):
    made, sound = tmp_path / "made", torch.load(latest(moons), weights_only=True)

    def write_plain():
        latest(moons).write_bytes(pickle.dumps(Payload(made), protocol=2))

    for write in (
        write_plain,
        lambda: torch.save(Payload(made), latest(moons)),
        lambda: torch.save({**sound, "extra": Payload(made)}, latest(moons)),
        lambda: torch.save({**sound, "extra": Payload(made)}, latest(moons), _use_new_zipfile_serialization=False),
    ):
        write()
        assert "more than tensors and plain values" in everything_refused(capsys, moons)
        refused(capsys, "train", f"--workdir={moons}", "--quiet")
        assert not made.exists()
    torch.load(latest(moons), weights_only=False)  # the payload would have worked
    assert made.exists()


def test_a_checkpoint_of_another_model_or_with_parts_missing(capsys, moons, digits):
    sound = torch.load(latest(moons), weights_only=True)
    shutil.copy(latest(digits), latest(moons))
    assert "says that it is of step 4" in everything_refused(capsys, moons)
    other = torch.load(latest(digits), weights_only=True)
    torch.save({**other, "step": 6}, latest(moons))
    assert "is a checkpoint of another run" in everything_refused(capsys, moons)
    assert "is a checkpoint of another run" in refused(capsys, "train", f"--workdir={moons}", "--quiet")
    torch.save({**other, "step": 6, "run": None}, latest(moons))  # as an early version wrote it
    assert "does not fit the model of this run's config.json" in everything_refused(capsys, moons)
    torch.save({key: value for key, value in sound.items() if key != "ema"}, latest(moons))
    assert "lacks ema" in everything_refused(capsys, moons)
    torch.save({**sound, "ema": {**sound["ema"], "unknown": torch.zeros(1)}}, latest(moons))
    assert "does not fit" in everything_refused(capsys, moons)
    del sound["optimizer"]
    torch.save(sound, latest(moons))
    assert "optimizer" in refused(capsys, "train", f"--workdir={moons}", "--quiet")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text[: len(text) // 2], id="truncated"),
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: "\0\udcff", id="binary"),
        pytest.param(lambda text: "[1, 2]", id="list"),
        pytest.param(lambda text: "{}", id="nothing inside"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "config": {}}), id="config empty"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "config": 3}), id="config a number"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "data_spec": {}}), id="data_spec empty"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "data_spec": {"shape": 3}}), id="shape a number"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "data_spec": {"shape": []}}), id="shape empty"),
        pytest.param(lambda text: text.replace('"beta_max"', '"beta_mx"'), id="unknown key"),
        pytest.param(lambda text: text.replace('"depth": 4', '"depth": "four"'), id="wrong type"),
    ],
)
def test_a_damaged_config(capsys, moons, damage):
    path = moons / "config.json"
    path.write_bytes(damage(path.read_text()).encode(errors="surrogateescape"))
    everything_refused(capsys, moons)
    refused(capsys, "train", f"--workdir={moons}", "--quiet")


def test_damaged_moments(capsys, moons):
    path = moons / "moments.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    assert f"{path} is damaged: remove it" in everything_refused(capsys, moons)


# data


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 3)), "has samples of shape (3,), the model expects (2,)"),
        (np.zeros((4, 2, 2)), "has samples of shape (2, 2), the model expects (2,)"),
        (np.zeros(4), "at least one more is needed"),
        (np.array([[0.0, np.nan]]), "holds NaN or infinite values"),
        (np.array([[0.0, np.inf]]), "holds NaN or infinite values"),
        (np.zeros((0, 2)), "is empty"),
        (np.array([["a", "b"]]), "real numbers or integers are needed"),
        (b"1.0, 2.0\n", "is not a .npy or .npz file of numbers"),
        (b"", "is not a .npy or .npz file of numbers"),
        (b"PK\3\4 and nothing", "is not a .npy or .npz file of numbers"),
    ],
)
def test_data_that_does_not_fit(capsys, trained, tmp_path, array, message):
    path = tmp_path / "mine.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    else:
        np.save(path, array)
    said = refused(capsys, "likelihood", f"--workdir={trained / 'moons'}", f"--data={path}")
    assert str(path) in said
    assert message in said


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 8, 8), 17), "has values from 17 to 17, the model expects 0 to 16"),
        (np.full((2, 8, 8), -1), "has values from -1 to -1, the model expects 0 to 16"),
        (np.full((2, 8, 8), 0.5), "holds fractions, the model expects integers from 0 to 16"),
        (np.zeros((2, 3, 8, 8)), "has samples of shape (3, 8, 8), the model expects (1, 8, 8)"),
    ],
)
def test_images_that_do_not_fit(capsys, trained, tmp_path, array, message):
    path = tmp_path / "mine.npy"
    np.save(path, array)
    assert message in refused(capsys, "likelihood", f"--workdir={trained / 'digits'}", f"--data={path}")


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((40, 64), np.int64), [], "say how many levels"),
        (np.full((40, 64), 9), ["levels=5"], "has values from 9 to 9, the model expects 0 to 4"),
        (np.zeros((40, 64), np.uint8), ["shape=(1,9,9)"], "does not fill (1, 9, 9)"),
        (np.full((40, 64), np.nan), [], "holds NaN"),
        (np.zeros((40, 64), np.uint8), [], "a U-Net needs an event"),
    ],
)
def test_training_on_data_that_does_not_fit(capsys, tmp_path, array, options, message):
    np.save(tmp_path / "mine.npy", array)
    chosen = ["--config.data.name=file", f"--config.data.file.path={tmp_path / 'mine.npy'}"]
    chosen += [f"--config.data.file.{option}" for option in options]
    assert message in refused(capsys, "train", "--config=digits_vp", f"--workdir={tmp_path / 'run'}", *chosen)
    assert not (tmp_path / "run").exists()


def test_traceback_is_there_for_who_asks(trained):
    with pytest.raises(ValueError, match="unknown solver 'em'"):
        main(["sample", f"--workdir={trained / 'moons'}", "--solver=em", "--traceback"])


def test_data_that_changed_under_a_run_is_refused(capsys, tmp_path):
    """The scaling is measured on the data: other data would silently give the model other coordinates."""
    path, folder = tmp_path / "d.npy", tmp_path / "run"
    random = np.random.default_rng(0)
    np.save(path, random.normal(size=(60, 2)))
    options = [f"--config.data.file.path={path}", "--config.data.name=file", "--config.training.steps=3"]
    options += ["--config.training.sample_every=0", "--config.network.mlp.width=8", "--quiet"]
    run(capsys, "train", "--config=two_moons", f"--workdir={folder}", *options)
    before = (folder / "config.json").read_text()
    np.save(path, 100 + 7 * random.normal(size=(60, 2)))
    assert "not that which" in refused(capsys, "train", f"--workdir={folder}", "--config.training.steps=5", "--quiet")
    assert (folder / "config.json").read_text() == before


def test_a_run_without_a_checkpoint_can_be_corrected(capsys, tmp_path):
    folder = tmp_path / "run"
    tiny = ["--config.data.two_moons.samples=100", "--config.training.steps=2", "--config.training.sample_every=0", "--quiet"]
    refused(capsys, "train", "--config=two_moons", f"--workdir={folder}", "--config.seed=-1", *tiny)
    refused(capsys, "train", "--config=two_moons", f"--workdir={folder}", "--device=abacus", *tiny)
    assert "trained for 2 steps" in run(capsys, "train", "--config=two_moons", f"--workdir={folder}", *tiny)


def test_demo_refuses_a_run_on_other_data(capsys, moons):
    assert "a directory of its own" in refused(capsys, "demo", f"--workdir={moons}", "--quiet")


@pytest.mark.parametrize("key", ["sde", "seed", "network"])
def test_config_json_with_nonsense_in_it_is_refused(capsys, moons, key):
    saved = json.loads((moons / "config.json").read_text())
    saved["config"][key] = "nonsense"
    (moons / "config.json").write_text(json.dumps(saved))
    assert "damaged" in refused(capsys, "sample", f"--workdir={moons}", "--quiet")
