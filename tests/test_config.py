"""Configs: built from signatures, overridden by type, read and saved without loss."""

import inspect
import json

import pytest
import torch

from score_sde.config import (
    ConfigError,
    chosen_only,
    config_folder,
    config_names,
    default_config,
    from_saved,
    in_full,
    override,
    read_config,
)
from score_sde.data import DATASETS, DataSpec
from score_sde.likelihood import LIKELIHOOD_SOLVERS, bits_per_dim, fit_dequantizer
from score_sde.networks import NETWORKS
from score_sde.objectives import DenoisingScoreMatching
from score_sde.run import build_model, build_objective, build_solver
from score_sde.sdes import SDES
from score_sde.solvers import SOLVERS
from score_sde.tables import build
from score_sde.time_sampling import LogSNRTimes
from score_sde.training import TrainingOptions

TABLES = {"data": DATASETS, "sde": SDES, "network": NETWORKS, "solver": SOLVERS}
SHAPES = {"two_moons": (2,), "digits": (1, 8, 8), "mnist5k": (1, 28, 28), "cifar10": (3, 32, 32)}
LEVELS = {"two_moons": None, "digits": 17, "mnist5k": 256, "cifar10": 256}


# the config files


def test_the_config_files_are_found():
    assert {"two_moons", "digits_vp", "cifar10_ve"} <= set(config_names())
    assert set(config_names()) == {path.stem for path in config_folder().glob("*.py")}


@pytest.mark.parametrize("name", config_names())
def test_every_config_file_builds(name):
    """Model, solvers and options; on the meta device, where a network has shapes but no numbers."""
    config = read_config(name)
    config.model.sigma_data = config.model.sigma_data or 0.5
    plain, data = config.to_dict(), config.data.name
    range_ = plain["data"][data].get("model_range", (-1.0, 1.0))
    spec = DataSpec(SHAPES[data], levels=LEVELS[data], model_range=range_)
    with torch.device("meta"):
        model = build_model(plain, spec)
        x = torch.empty(2, *spec.shape)
        score = model(x, torch.full((2,), 0.5))
    assert score.shape == x.shape
    assert type(model.sde) is type(SDES[config.sde.name]())
    assert model.device.type == "meta"
    TrainingOptions(**plain["training"])
    build_objective(plain)
    for solver in SOLVERS:
        build_solver({"solver": {**plain["solver"], "name": solver}})
    build(LIKELIHOOD_SOLVERS, plain["likelihood"]["solver"], kind="likelihood.solver")


@pytest.mark.parametrize("name", config_names())
def test_every_config_file_can_be_saved(name):
    config = read_config(name)
    assert from_saved(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_file_given_by_its_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from score_sde.config import read_config\n"
        "def get_config():\n    config = read_config('two_moons')\n    config.sde.name = 've'\n    return config\n"
    )
    config = read_config(str(path))
    assert config.sde.name == "ve"
    config.sde.name = "vp"
    assert config == read_config("two_moons")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("def get_config():\n    return 1 / 0", "division by zero"),
        (
            "from score_sde.config import default_config\n"
            "def get_config():\n    config = default_config()\n    config.sde.vp.beta_mx = 3.0\n    return config",
            "beta_mx",
        ),
        (
            "from score_sde.config import default_config\n"
            "def get_config():\n    config = default_config()\n    config.training.steps = 'many'\n    return config",
            "steps",
        ),
        ("config = 3", "get_config"),
        ("def get_config():\n    return {'seed': 0}", "must return a ConfigDict"),
    ],
)
def test_an_error_in_a_config_file_names_the_file(tmp_path, content, message):
    path = tmp_path / "broken.py"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_config(str(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_that_does_not_exist_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"config 'digit_vp' not found, did you mean digits_vp\?; there are .*two_moons"):
        read_config("digit_vp")
    with pytest.raises(ConfigError, match=r"nowhere.py' not found"):
        read_config(str(tmp_path / "nowhere.py"))
    (tmp_path / "notes.txt").write_text("def get_config(): ...")
    with pytest.raises(ConfigError, match="is not a Python file"):
        read_config(str(tmp_path / "notes.txt"))


# the defaults


@pytest.mark.parametrize("kind", TABLES)
def test_sections_come_from_signatures(kind):
    section = default_config()[kind]
    assert set(section) == {"name", *TABLES[kind]}
    assert section.name in TABLES[kind]
    for name, builder in TABLES[kind].items():
        defaults = {p.name: p.default for p in inspect.signature(builder).parameters.values() if p.default is not p.empty}
        assert section[name].to_dict() == defaults, name


def test_a_new_choice_gets_its_section(monkeypatch):
    def slow(patience: int = 3, *, kind: str = "very"):
        """A solver that is not there."""

    monkeypatch.setitem(SOLVERS, "slow", slow)
    config = override(default_config(), ["--config.solver.slow.patience=7"])
    assert config.solver.slow.to_dict() == {"patience": 7, "kind": "very"}


def test_training_and_likelihood_sections_come_from_signatures():
    config = default_config()
    assert TrainingOptions(**config.training.to_dict()) == TrainingOptions()
    options = config.likelihood.to_dict()
    solver, dequantizer = options.pop("solver"), options.pop("dequantizer")
    assert {name: build(**solver[name]) for name, build in LIKELIHOOD_SOLVERS.items()} == {
        name: build() for name, build in LIKELIHOOD_SOLVERS.items()
    }
    assert solver["name"] in LIKELIHOOD_SOLVERS
    fitted = inspect.signature(fit_dequantizer).parameters
    assert {"steps", "width"} <= set(dequantizer)
    assert all(dequantizer[key] == fitted[key].default for key in dequantizer)
    parameters = inspect.signature(bits_per_dim).parameters
    assert {"divergence", "probes", "batch_size", "dequantization"} <= set(options) <= set(parameters)
    assert all(options[key] == parameters[key].default for key in options)


def test_the_config_is_locked():
    with pytest.raises(AttributeError, match="beta_mx"):
        default_config().sde.vp.beta_mx = 3.0


# overrides


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("--config.sde.vp.beta_max=12.5", "sde.vp.beta_max", 12.5),
        ("--config.sde.vp.beta_max=12", "sde.vp.beta_max", 12.0),
        ("--config.training.learning_rate=1e-5", "training.learning_rate", 1e-5),
        ("--config.training.steps=77", "training.steps", 77),
        ("-config.training.steps=77", "training.steps", 77),
        ("--config.training.flip=true", "training.flip", True),
        ("--config.training.flip=True", "training.flip", True),
        ("--config.training.flip=false", "training.flip", False),
        ("--config.network.unet.multipliers=(1, 2, 3)", "network.unet.multipliers", (1, 2, 3)),
        ("--config.network.unet.multipliers=(4,)", "network.unet.multipliers", (4,)),
        ("--config.network.unet.attention=()", "network.unet.attention", ()),
        ("--config.data.file.shape=(1, 28, 28)", "data.file.shape", (1, 28, 28)),
        ("--config.data.cifar10.model_range=(0.0, 1.0)", "data.cifar10.model_range", (0.0, 1.0)),
        ("--config.sde.name=subvp", "sde.name", "subvp"),
        ("--config.data.file.path=/a b/c=d.npy", "data.file.path", "/a b/c=d.npy"),
        ("--config.model.sigma_data=0.25", "model.sigma_data", 0.25),
        ("--config.seed=3", "seed", 3),
    ],
)
def test_an_override_sets_one_value_in_its_type(argument, key, value):
    config = override(default_config(), [argument])
    found, expected = config, default_config().to_dict()
    section = expected
    *path, last = key.split(".")
    for part in path:
        found, section = found[part], section[part]
    assert found[last] == value
    assert type(found[last]) is type(value)
    section[last] = value
    assert config.to_dict() == expected


def test_several_overrides_and_the_last_one_wins():
    config = override(default_config(), ["--config.seed=3", "--config.sde.name=ve", "--config.seed=4"])
    assert (config.seed, config.sde.name) == (4, "ve")
    assert override(default_config(), []) == default_config()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.sde.vp.beta_mx=3", r"no config.sde.vp.beta_mx, did you mean sde.vp.beta_max\?"),
        ("--config.traning.steps=3", r"did you mean training.steps\?"),
        ("--config.learning_rate=3", r"did you mean training.learning_rate\?"),
        ("--config.sed=3", r"did you mean seed\?"),
        ("--config.qqqqqqqq=3", r"there is no config.qqqqqqqq; score-sde config lists"),
        ("--config.solver.unipc.qqq=3", "no config.solver.unipc.qqq: config.solver.unipc has grid, lower_order_final, "),
        ("--config.solver.unipc.order=3", r"no config.solver.unipc.order, did you mean solver.unipc.p\?"),
        ("--config.solver.ddim.num_inference_steps=3", r"did you mean solver.ddim.steps\?"),
        ("--config.training.lr=3", r"did you mean training.learning_rate\?"),
        ("--config.seed.deeper=3", r"there is no config.seed.deeper"),
        ("--config.objective.weighting=edm", r"did you mean objective.denoising.weighting\?"),
        ("--config.objective.denoising.wieghting=edm", r"did you mean objective.denoising.weighting\?"),
        ("--config.objective.denoising.times.log_snr.stratifid=0", r"did you mean objective.denoising.times.log_snr.strat"),
        (
            "--config.objective.denoising.weighting.edm=3",
            "config.objective.denoising.weighting.edm has no options: choose it by --config.objective.denoising.weighting=edm",
        ),
        ("--config.=3", r"there is no config\."),
    ],
)
def test_a_misspelt_key_names_the_nearest(argument, message):
    with pytest.raises(ConfigError, match=message):
        override(default_config(), [argument])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.training.steps=many", "config.training.steps must be of type int, got 'many'"),
        ("--config.training.steps=1.5", "config.training.steps must be of type int, got '1.5'"),
        ("--config.training.steps=", "config.training.steps must be of type int, got ''"),
        ("--config.training.steps", "config.training.steps needs a value: --config.training.steps=2000"),
        ("--config.sde.vp.beta_max=big", "config.sde.vp.beta_max must be of type float, got 'big'"),
        ("--config.training.flip=perhaps", "config.training.flip must be of type bool, got 'perhaps'"),
        ("--config.training.flip", "config.training.flip needs a value"),
        ("--config.model.sigma_data=x", "config.model.sigma_data must be of type float, got 'x'"),
        ("--config.network.unet.multipliers=3", r"unet.multipliers must be a tuple such as \(1, 2, 2\), got '3'"),
        ("--config.network.unet.multipliers=(1, 'a')", "config.network.unet.multipliers must be a tuple"),
        ("--config.network.unet.multipliers='abc'", "config.network.unet.multipliers must be a tuple"),
        ("--config.network.unet.multipliers=(1,", "config.network.unet.multipliers must be a tuple"),
        ("--config.network.unet.multipliers=__import__('os')", "config.network.unet.multipliers must be a tuple"),
        ("--config.training=3", r"config.training is a section: set one of training."),
        ("--config.sde.vp=3", r"config.sde.vp is a section: set one of .*sde.vp.beta_max"),
    ],
)
def test_a_value_of_another_type_is_refused(argument, message):
    with pytest.raises(ConfigError, match=message) as caught:
        override(default_config(), [argument])
    assert "\n" not in str(caught.value)


# saved configs


def test_a_saved_config_comes_back():
    arguments = [
        "--config.sde.name=ve",
        "--config.model.sigma_data=0.3",
        "--config.network.unet.multipliers=(1,)",
        "--config.training.flip=true",
        "--config.data.file.shape=(2, 3)",
        "--config.training.learning_rate=1e-7",
    ]
    config = override(default_config(), arguments)
    back = from_saved(json.loads(json.dumps(config.to_dict())))
    assert back == config
    assert back.to_dict() == config.to_dict() != default_config().to_dict()
    assert back.network.unet.multipliers == (1,)
    assert back.model.get_type("sigma_data") is float
    assert override(back, ["--config.seed=5"]).seed == 5


def test_a_config_saved_before_an_option_existed_gets_its_default():
    saved = default_config().to_dict()
    del saved["training"]["flip"], saved["likelihood"]
    assert from_saved(saved) == default_config()


def test_a_config_saved_when_the_objective_was_part_of_training():
    saved = default_config().to_dict()
    del saved["objective"]
    saved["training"] |= {"weighting": "sigma2", "times": "stratified", "steps": 7}
    config = from_saved(saved)
    assert build_objective(config.to_dict()) == DenoisingScoreMatching("sigma2", "stratified")
    assert config.training.steps == 7
    assert "weighting" not in config.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved["sde"]["vp"].update(beta_mx=1.0), "unknown key sde.vp.beta_mx"),
        (lambda saved: saved.update(extra=1), "unknown key extra"),
        (lambda saved: saved["training"].update(steps="many"), "wrong type for training.steps: 'many'"),
        (lambda saved: saved.update(sde=3), "wrong type for sde: 3"),
        (lambda saved: saved.update(seed={"a": 1}), "wrong type for seed"),
    ],
)
def test_a_saved_config_of_another_make_is_refused(change, message):
    saved = default_config().to_dict()
    change(saved)
    with pytest.raises(ConfigError, match=message):
        from_saved(saved)


@pytest.mark.parametrize("saved", [3, None, "text", [1, 2]])
def test_what_is_no_config_at_all_is_refused(saved):
    with pytest.raises(ConfigError, match=r"config.json"):
        from_saved(saved)


def test_chosen_only_leaves_out_what_was_not_chosen():
    config = read_config("digits_ve").to_dict()
    brief = chosen_only(config)
    assert set(brief) == set(config)
    assert set(brief["sde"]) == {"name", "ve"}
    assert brief["sde"]["ve"]["sigma_max"] == 20.0
    assert brief["training"] == config["training"]


def test_a_choice_within_a_choice_is_overridden_saved_and_left_out_like_others():
    arguments = ["--config.objective.denoising.times.log_snr.stratified=false", "--config.objective.denoising.weighting=edm"]
    config = override(default_config(), arguments)
    made = build_objective(config.to_dict())
    assert made == DenoisingScoreMatching("edm", LogSNRTimes(stratified=False))
    back = from_saved(json.loads(json.dumps(config.to_dict())))
    assert back == config
    brief = chosen_only(back.to_dict())["objective"]["denoising"]
    assert brief == {"times": {"name": "log_snr", "log_snr": {"stratified": False}}, "weighting": {"name": "edm", "edm": {}}}


def test_a_saved_word_is_the_name_of_a_choice():
    """A choice may get options, and its word a section, after a run was written."""
    saved = default_config().to_dict()
    saved["objective"]["denoising"] = {"weighting": "edm"}
    config = from_saved(saved)
    assert config.objective.denoising.weighting.name == "edm"
    assert config.objective.denoising.times == default_config().objective.denoising.times
    saved["objective"]["denoising"] = {"weighting": 3}
    with pytest.raises(ConfigError, match=r"wrong type for objective\.denoising\.weighting: 3"):
        from_saved(saved)


def test_a_section_that_is_given_a_value_is_given_its_name():
    config = override(default_config(), ["--config.sde=ve", "--config.likelihood.solver=ode"])
    assert (config.sde.name, config.likelihood.solver.name) == ("ve", "ode")
    assert in_full(["-config.sde=ve", "--config.seed=3"], default_config()) == ["--config.sde.name=ve", "--config.seed=3"]
