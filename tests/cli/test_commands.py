"""What the commands write, and that they agree with the library."""

import csv
import html
import json
import re

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
from tests.cli.conftest import DIGITS, FAST, MOONS, latest, likelihoods, refused, run, samples, written
from tests.solvers.variants import TO_DATA

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


@pytest.mark.parametrize(
    "solver",
    [name if name == "pc" else pytest.param(name, marks=pytest.mark.slow) for name in TO_DATA],
)
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
    paths = [written(run(capsys, "likelihood", f"--workdir={moons}", *of, "--quiet", *FAST), "record") for of in asked]
    test, mine, train = map(likelihoods, paths)
    assert (mine == test).all()
    assert (train != test).all()
    assert json.loads(paths[1].read_text())["data"].endswith("mine.npy")


def test_likelihood_of_images_stored_without_a_channel(capsys, digits, tmp_path):
    np.save(tmp_path / "flat.npy", np.arange(2 * 64, dtype=np.uint8).reshape(2, 64) % 17)
    said = run(capsys, "likelihood", f"--workdir={digits}", f"--data={tmp_path / 'flat.npy'}", "--quiet", *FAST)
    assert "64 dimensions and 17 levels, uniform dequantization" in said
    record = json.loads(written(said, "record").read_text())
    assert (record["dim"], record["levels"], record["samples"]) == (64, 17, 2)


# tune


@pytest.mark.usefixtures("undrawn")
def test_tuned_solvers_are_used_by_name(capsys, moons):
    said = run(capsys, "tune", f"--workdir={moons}", "--nfe=3,5", "--pilot=8", "--trials=10", "--quiet")
    assert "best standard" in said
    assert f"score-sde sample --workdir={moons} --solver=tuned --nfe=5" in said
    saved = json.loads((moons / "tuned.json").read_text())["choices"]
    assert [entry["nfe"] for entry in saved] == [3, 5]
    about = saved[0]["about"]
    assert about == {"pilot": 8, "trials": 10, "seed": 0, "class": None, "step": 6, "run": about["run"]}
    said = run(capsys, "sample", f"--workdir={moons}", "--solver=tuned", "--nfe=4", "--n=4", "--quiet")
    assert "3 evaluations each (of 4 allowed)" in said
    assert written(said, "picture").name.startswith("tuned_nfe3_seed0_")
    said = run(capsys, "tune", f"--workdir={moons}", "--nfe=4", "--pilot=9", "--trials=10", "--quiet")
    assert [line.split()[0] for line in said.splitlines()[:4]] == ["evaluations", "4", "best", "errors:"]  # of this run alone
    assert said.splitlines()[0].split() == ["evaluations", "10%", "median", "90%", "rms", "solver"]
    assert "on 9 latents that had no part in the search" in said
    assert "4 evaluations each" in run(capsys, "sample", f"--workdir={moons}", "--solver=tuned", "--nfe=4", "--n=4", "--quiet")
    said = run(capsys, "compare", f"--workdir={moons}", "--nfe=5", "--n=24", "--quiet")
    assert [line.split()[0] for line in said.splitlines() if line.startswith(("tuned", "unipc", "gaussian"))] == [
        "unipc",
        "gaussian",
        "tuned",
    ]
    mistaken = refused(capsys, "sample", f"--workdir={moons}", "--solver=tuned", "--config.solver.unipc.p=3")
    assert "--config.solver.unipc.p=3: solvers that were tuned have their options already" in mistaken
    small = refused(capsys, "sample", f"--workdir={moons}", "--solver=tuned", "--nfe=2")
    assert f"got 2: score-sde tune --workdir={moons} --nfe=2 adds them" in small


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


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_networks_of_the_logarithm_say_what_they_need(tmp_path, capsys):
    options = ("--config.network.name=ncsnpp", "--config.network.ncsnpp.width=8", "--config.network.ncsnpp.multipliers=(1,1)")
    train = ("train", "--config=digits_vp", f"--workdir={tmp_path / 'new'}", "--quiet", *DIGITS[1:], *options)
    assert "takes the logarithm of its noise level" in refused(capsys, *train)
    assert not (tmp_path / "new").exists()
    run(capsys, *train, "--config.model.time_input=sigma")


@pytest.mark.parametrize("name", ["ddpm", "ncsnv2", "dit", "adm"])
@pytest.mark.quick("ncsnv2", "dit")
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


@pytest.mark.slow
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
