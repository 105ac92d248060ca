"""One sentence with exit code 2 for every mistake on the command line, and for data that does not fit."""

import numpy as np
import pytest

from score_sde.cli import main
from score_sde.cli.parser import CONFIGURED
from score_sde.config import default_config, flat
from tests.cli.conftest import MOONS, less, refused, run

pytestmark = pytest.mark.usefixtures("undrawn")

# mistakes on the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: COMMAND"),
        (["smaple"], "did you mean sample?"),
        (["train"], "arguments are required: --workdir"),
        (["train", "--workdir=x"], "x is not a run yet: give a config"),
        (["train", "--workdir=x", "--config=two_mons"], "config 'two_mons' not found, did you mean two_moons?"),
        (["train", "--workdir=x", "--step=3"], "unknown option --step, did you mean --config.training.steps=VALUE?"),
        (["train", "--workdir=x", "--lr=3"], "unknown option --lr, did you mean --config.training.learning_rate=VALUE?"),
        (["train", "--workdir=x", "--seed", "3"], "unknown option --seed, did you mean --config.seed=VALUE?"),
        (["likelihood", "--workdir=x", "--solver="], "unknown option --solver, did you mean --config.likelihood.solver=VALUE?"),
        (["sample", "--workdir=x", "--nstep"], "unknown option --nstep, did you mean --nfe?"),
        (["compare", "--workdir=x", "--steps=3"], "unknown option --steps, did you mean --nfe?"),
        (["sample", "--workdir=x", "--qqqqqqqq"], "unknown option --qqqqqqqq; score-sde sample --help shows what it takes"),
        (["train", "--workdir=x", "--config=two_moons", "--device=abacus"], "device 'abacus' cannot be used here"),
        (["sample", "--workdir=x"], "x is not a run directory: it has no config.json; train one with score-sde train"),
        (["likelihood", "--workdir=x"], "x is not a run directory"),
        (["compare", "--workdir=x"], "x is not a run directory"),
        (["likelihood", "--workdir=x", "--split=tset"], "invalid choice: 'tset'"),
        (["config"], "--config --workdir is required"),
        (["config", "--config=two_moons", "--workdir=x"], "not allowed with argument"),
        (["config", "--config=two_moons", "--config.sde.name=vpp"], "unknown sde 'vpp', did you mean vp?"),
        (
            ["config", "--config=two_moons", "--config.likelihood.solver.name=odd"],
            "unknown likelihood.solver 'odd', did you mean ode?",
        ),
        (["config", "--config=two_moons", "--config.sde.beta_max=9"], "did you mean sde.vp.beta_max?"),
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
            "unknown method 'dopri6', did you mean dopri8?; choose one of dopri5",
        ),
        (
            ["likelihood", "--config.likelihood.solver.name=od"],
            "unknown likelihood.solver 'od', did you mean ode?; choose one of dual_weighted, ode",
        ),
        (["likelihood", "--config.likelihood.target_error=0"], "target_error must be positive"),
        (
            ["likelihood", "--config.likelihood.divergence=exakt"],
            "unknown divergence 'exakt', did you mean exact?; choose one of exact",
        ),
        (["likelihood", "--config.likelihood.batch_size=0"], "batch_size must be at least 1, got 0"),
        (
            ["likelihood", "--config.likelihood.solver.name=ode", "--config.likelihood.solver.ode.rtol=-1"],
            "rtol and atol must be positive",
        ),
        (["likelihood", "--data=nowhere.npy"], "nowhere.npy not found"),
        (["compare", "--solvers=ode,od"], "unknown solver 'od', did you mean ode?"),
        (["compare", "--solvers=ddim,ode,ddim"], "--solvers=ddim,ode,ddim names ddim more than once"),
        (["compare", "--config.solver.name=ddim"], "compare takes several solvers, as --solvers=pc,ddim"),
        (["sample", "--solver=tuned", "--class=9"], "there is no class 9: the model was trained without classes"),
        (["sample", "--class=cat"], "there is no class 'cat' in this run: its model was trained without classes"),
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


def test_what_is_meant_to_be_set_in_the_config_is_there():
    config = default_config()
    known = {known for key in flat(config) for known in (key, key.removesuffix(".name"))}
    for keys in CONFIGURED.values():
        assert set(keys.values()) <= known


def test_a_comparison_in_which_no_budget_suffices(capsys, moons):
    assert "evaluations" in refused(capsys, "compare", f"--workdir={moons}", "--solvers=ode", "--nfe=1", "--n=4", "--quiet")


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


def test_a_file_is_no_run(capsys, tmp_path):
    (tmp_path / "file").write_text("something")
    for command in (["train", "--config=two_moons"], ["sample"], ["likelihood"]):
        message = refused(capsys, *command, f"--workdir={tmp_path / 'file'}")
        assert str(tmp_path / "file") in message
        assert "Errno" not in message
    assert (tmp_path / "file").read_text() == "something"


def test_weights_without_a_config_are_not_continued(capsys, moons):
    (moons / "config.json").unlink()
    message = refused(capsys, "train", f"--workdir={moons}", "--quiet")
    assert f"{moons} has weights, but no config.json that says of what model: restore it" in message
    assert "has weights, but no config.json" in refused(capsys, "train", f"--workdir={moons}", "--config=two_moons")


def test_a_folder_in_the_place_of_a_file_is_named(capsys, moons):
    (moons / "metrics.jsonl").unlink()
    (moons / "metrics.jsonl").mkdir()
    message = refused(capsys, "train", f"--workdir={moons}", "--quiet", "--config.training.steps=8")
    assert message.endswith(f"{moons / 'metrics.jsonl'} is a folder, where a file is expected: move it away\n")


def test_a_run_of_our_own_is_not_imported(capsys, moons, tmp_path):
    for how in ([], ["--format=diffusers"]):
        message = refused(capsys, "import", str(moons), f"--workdir={tmp_path / 'new'}", *how)
        assert f"{moons} is a run of score_sde already: use it as it is, --workdir={moons}" in message


def test_one_sample_is_no_plural(capsys, moons):
    said = run(capsys, "sample", f"--workdir={moons}", "--count=1", "--solver=ddim", "--nfe=2", "--quiet")
    assert said.startswith("1 sample by DDIM")
