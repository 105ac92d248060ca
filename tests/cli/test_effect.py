"""Options without effect are refused, with what was chosen; those with one are not."""

import numpy as np
import pytest

from score_sde.cli import main
from score_sde.cli.effect import refuse_without_effect
from score_sde.config import ConfigError, default_config, override
from score_sde.divergence import ExactDivergence, as_divergence
from tests.cli.conftest import refused, run

pytestmark = pytest.mark.usefixtures("undrawn")

# whatever the command


def check(*options, **how):
    overrides = [f"--config.{option}" for option in options]
    refuse_without_effect(overrides, override(default_config(), overrides), **how)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["solver.name=ddim", "solver.unipc.p=3"], "it is an option of the solver unipc, and ddim is chosen"),
        (["data.file.levels=3"], "it is an option of the data file, and digits is chosen"),
        (["network.mlp.width=8"], "it is an option of the network mlp, and unet is chosen"),
        (["sde.ve.sigma_max=9"], "it is an option of the sde ve, and vp is chosen"),
        (
            ["objective.denoising.times=uniform", "objective.denoising.times.log_snr.stratified=false"],
            "it is an option of the objective.denoising.times log_snr, and uniform is chosen",
        ),
        (["likelihood.solver.ode.method=rk45"], "an option of the likelihood.solver ode, and dual_weighted is chosen"),
        (["solver.name=ode", "solver.ode.steps=9"], "method is dopri5, which works to rtol and atol"),
        (["solver.name=ode", "solver.ode.grid=edm"], "method is dopri5, which works to rtol and atol"),
        (["solver.name=ode", "solver.ode.method=rk4", "solver.ode.rtol=1e-3"], "method is rk4, which has fixed steps"),
        (["likelihood.solver.name=ode", "likelihood.solver.ode.method=euler", "likelihood.solver.ode.atol=1"], "euler"),
        (["solver.name=ddim", "solver.ddim.grid=1,0.5,1e-5", "solver.ddim.steps=2"], "grid is a list of times"),
        (["solver.name=pc", "solver.pc.cap=3"], "rule is sigma, and only norm_ratio has a cap"),
        (["solver.name=edm", "solver.edm.s_churn=0", "solver.edm.s_noise=1.1"], "s_churn is 0"),
        (["solver.name=unipc", "solver.unipc.lower_order_first=true"], "p is 2"),
        (["solver.name=unipc", "solver.unipc.p=1", "solver.unipc.lower_order_final=true"], "p is 1"),
        (["likelihood.target_error=0.1", "likelihood.solver.dual_weighted.steps=9"], "target_error = 0.1 chooses"),
        (["likelihood.target_error=0.1", "likelihood.solver.name=ode"], "target_error = 0.1 chooses the solver"),
        (["likelihood.divergence=exact", "likelihood.probes=8"], "the divergence is exact"),
        (["likelihood.dequantizer.steps=9"], "the dequantization is uniform"),
        (["network.unet.fourier_scale=2"], "the embedding is sinusoidal"),
        (["network.unet.heads=2", "network.unet.head_width=16"], "heads = 2 says how many"),
        (["network.unet.heads=2", "network.unet.narrow_attention=false"], "heads = 2 says how many"),
        (["network.unet.classes=0", "network.unet.no_class=false"], "the network has no classes"),
        (["network.name=ncsnpp", "network.ncsnpp.early_classes=true"], "the network has no classes"),
        (
            ["network.name=ncsnpp", "network.ncsnpp.embedding=sinusoidal", "network.ncsnpp.logarithm=false"],
            "the embedding is sinusoidal",
        ),
        (["network.name=ncsnpp", "network.ncsnpp.conditional=false", "network.ncsnpp.sinusoids=8"], "conditional is False"),
        (["network.name=ncsnpp", "network.ncsnpp.conditional=false", "network.ncsnpp.embedding=sinusoidal"], "conditional"),
        (["network.name=ncsnpp", "network.ncsnpp.combine=cat"], "progressive_input is residual"),
        (["network.name=ncsnpp", "network.ncsnpp.resample_with_conv=false"], "biggan"),
        (["model.sigma_data=2"], "the parameterization is epsilon and the weighting likelihood, and only edm uses it"),
        (["model.time_input=time", "model.labels=9"], "the time_input is time"),
        (["model.variance=learned"], "the network has no learned_variance"),
        (["sde.name=ddpm", "sde.ddpm.schedule=cosine", "sde.ddpm.beta_end=0.1"], "sde.ddpm.schedule is cosine"),
        (["sde.name=ddpm", "sde.ddpm.betas=(0.1,0.2)", "sde.ddpm.steps=2"], "betas is a table of its own"),
        (["objective.name=ddpm", "sde.name=ddpm", "objective.ddpm.steps=9"], "those of the table"),
        (["objective.name=ddpm", "objective.ddpm.variance=beta"], "objective.ddpm.loss is simple"),
        (["training.class_dropout=0.3"], "the network has no classes"),
        (["data.name=file", "data.file.path=a.npy", "data.file.key=x"], "a.npy holds one array"),
    ],
)
def test_an_option_without_effect_is_refused(options, reason):
    with pytest.raises(ConfigError) as caught:
        check(*options)
    assert str(caught.value).startswith(f"--config.{options[-1]} has no effect: ")
    assert reason in str(caught.value)
    check(*options[:-1])  # the others have one


@pytest.mark.parametrize(
    "options",
    [
        ["solver.name=unipc", "solver.unipc.p=3", "solver.unipc.lower_order_first=true"],
        ["solver.name=ode", "solver.ode.method=implicit_adams", "solver.ode.rtol=1e-3", "solver.ode.steps=9"],
        ["solver.name=ode", "solver.ode.method=scipy_solver", "solver.ode.rtol=1e-3"],
        ["solver.name=pc", "solver.pc.rule=norm_ratio", "solver.pc.cap=3"],
        ["network.name=mlp", "network.mlp.fourier_scale=3", "network.mlp.classes=2", "training.class_dropout=0.3"],
        ["model.parameterization=edm", "model.sigma_data=2"],
        ["objective.denoising.weighting=edm", "model.sigma_data=2"],
        ["likelihood.dequantization=variational", "likelihood.dequantizer.steps=9"],
        ["likelihood.divergence=hutch++", "likelihood.probes=6"],
        ["seed=3", "training.steps=9", "data.digits.seed=3"],
    ],
)
def test_an_option_with_an_effect_is_not(options):
    check(*options)


def test_several_may_be_chosen():
    check("solver.ddim.eta=1", "solver.unipc.p=3", chosen={"solver": ["ddim", "unipc"]})
    with pytest.raises(ConfigError, match="option of the solver pc, and ddim, unipc is chosen"):
        check("solver.pc.snr=0.1", chosen={"solver": ["ddim", "unipc"]})


def test_the_exact_divergence_takes_no_probes():
    with pytest.raises(ValueError, match="probes = 8 has no effect: the divergence is exact"):
        as_divergence("exact", 8)
    with pytest.raises(ValueError, match="probes = 2 has no effect: the divergence is an object"):
        as_divergence(ExactDivergence(), 2)


# what a command reads


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["sample", "--config.likelihood.audit=0"], "the run is trained, only solver can be set here"),
        (["sample", "--config.training.steps=9"], "the run is trained, only solver can be set here"),
        (["sample", "--config.data.two_moons.seed=3"], "the run is trained, only solver can be set here"),
        (["sample", "--solver=ddim", "--config.solver.unipc.p=3"], "option of the solver unipc, and ddim is chosen"),
        (["sample", "--solver=ddim", "--config.solver.name=unipc"], "choose two: give one"),
        (["sample", "--solver=ddim", "--nfe=8", "--config.solver.ddim.steps=3"], "--nfe says how many steps"),
        (["sample", "--solver=ode", "--nfe=8", "--config.solver.ode.rtol=1e-9"], "midpoint takes the place of dopri5"),
        (["sample", "--solver=ode", "--nfe=8", "--config.solver.ode.method=rk45"], "midpoint takes the place of rk45"),
        (["sample", "--solver=adaptive_sde", "--nfe=8", "--config.solver.adaptive_sde.rtol=1"], "stochastic_heun takes"),
        (["likelihood", "--config.solver.ddim.steps=3"], "only likelihood and data can be set here"),
        (["likelihood", "--config.training.steps=9"], "only likelihood and data can be set here"),
        (["likelihood", "--config.likelihood.solver.dual_weighted.steps=9"], "dual_weighted, and ode is chosen"),
        (["likelihood", "--config.likelihood.dequantization=variational"], "the data is continuous"),
        (["likelihood", "--key=x"], "it names an array of a .npz file"),
        (["likelihood", "--data=a.npy", "--key=x"], "it names an array of a .npz file"),
        (["likelihood", "--data=a.npy", "--split=train"], "takes the place of the run's data"),
        (["likelihood", "--data=a.npy", "--config.data.two_moons.seed=3"], "takes the place of the run's data"),
        (["likelihood", "--bounds", "--config.likelihood.truncation=true"], "--bounds takes"),
        (["compare", "--config.likelihood.audit=0"], "only solver and data can be set here"),
        (["compare", "--solvers=ddim,unipc", "--config.solver.pc.snr=0.2"], "of the solver pc, and ddim, unipc is chosen"),
        (["compare", "--solvers=ddim,unipc", "--config.solver.ddim.steps=3"], "--nfe says how many steps"),
        (["compare", "--solvers=ode", "--config.solver.ode.rtol=1e-3"], "midpoint takes the place of dopri5"),
        (["export", "--output=x", "--config.sde.name=ve"], "export takes no --config. options"),
        (["train", "--config.sde.ve.sigma_max=3"], "an option of the sde ve, and vp is chosen"),
        (["train", "--config.training.learning_rate=3"], "trained for all of its 6 steps"),
        (["train", "--config.training.steps=4"], "trained for 6 steps already, and training.steps is 4"),
        (["sample", "--config.solver.euler_maruyama.steps=3", "--config.solver.euler_maruyama.steps=4"], "more than once"),
        (["sample", "--config.solver=ddim", "--config.solver.name", "ddim"], "config.solver.name is given more than once"),
        (["sample", "--config.solver.ddim.steps", "--quiet"], "config.solver.ddim.steps needs a value"),
        (["sample", "--seed=1", "--seed=2"], "--seed is given more than once"),
        (["sample", "--n=1", "--count=2"], "--count/--n is given more than once"),
        (["config", "--config.sde.ve.sigma_max=3"], "an option of the sde ve"),
        (["demo", "--config.data.name=two_moons"], "the demo is of digits"),
    ],
)
def test_a_command_refuses_what_it_does_not_use(capsys, trained, arguments, reason):
    before = (trained / "moons" / "config.json").read_bytes()
    command, *options = arguments
    assert reason in refused(capsys, command, f"--workdir={trained / 'moons'}", *options)
    assert (trained / "moons" / "config.json").read_bytes() == before


def test_what_training_writes_down_is_used_later(capsys, tmp_path):
    """So it is no option without effect, although another solver is the run's own."""
    small = ["--config.training.steps=1", "--config.training.sample_every=0", "--config.data.two_moons.samples=50"]
    how = ["--config=two_moons", "--config.network.mlp.width=8", "--config.solver.unipc.p=3", "--quiet"]
    run(capsys, "train", f"--workdir={tmp_path}", *small, *how)
    assert "p=3" in run(capsys, "sample", f"--workdir={tmp_path}", "--solver=unipc", "--n=2", "--quiet")


def test_compare_takes_options_of_each_solver_and_names_the_one_that_stands_in(capsys, moons):
    how = ["--nfe=7", "--n=4", "--quiet", "--config.solver.ddim.eta=1", "--config.solver.heun.grid=uniform"]
    said = run(capsys, "compare", f"--workdir={moons}", "--solvers=ddim,heun,ode", *how)
    assert [line.split()[:2] for line in said.splitlines()[1:4]] == [["ddim", "7"], ["heun", "6"], ["ode", "(midpoint)"]]


def test_a_config_file_may_set_everything(tmp_path, capsys):
    lines = ["config = default_config()", "config.solver.unipc.p = 3", "config.likelihood.probes = 4", "return config"]
    source = "from score_sde.config import default_config\n\ndef get_config():\n    " + "\n    ".join(lines) + "\n"
    (tmp_path / "mine.py").write_text(source)
    assert main(["config", f"--config={tmp_path / 'mine.py'}"]) == 0
    capsys.readouterr()


def test_options_of_integers_have_no_effect_on_continuous_data(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 2)))
    how = ["--config=two_moons", "--config.data.name=file", f"--config.data.file.path={tmp_path / 'x.npy'}"]
    for option in ("dequantize=false", "model_range=(0.0,1.0)"):
        message = refused(capsys, "train", f"--workdir={tmp_path / 'run'}", *how, f"--config.data.file.{option}")
        assert f"data.file.{option} has no effect: the data is continuous" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["sample", "compare", "tune"])
def test_torchrun_is_for_likelihoods(capsys, trained, monkeypatch, command):
    """Every process would do the same, and write the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "works in one process: start it without torchrun" in refused(capsys, command, f"--workdir={trained / 'moons'}")


def test_a_value_may_follow_a_blank_and_a_section_may_be_given_its_name(capsys, moons):
    spellings = (
        ["--config.solver.name=ddim", "--config.solver.ddim.steps=3"],
        ["--config.solver.name", "ddim", "--config.solver.ddim.steps", "3"],
        ["--config.solver", "ddim", "-config.solver.ddim.steps=3"],
        ["--config.solver=ddim", "--config.solver.ddim.steps", "3", "--denoise"],
    )
    said = [run(capsys, "sample", f"--workdir={moons}", "--n=2", "--quiet", *options) for options in spellings]

    assert len({text.splitlines()[0].partition(":")[0] for text in said}) == 1
    assert "DDIM(steps=3" in said[0]
