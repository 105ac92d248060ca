"""Every objective of the table is trained, and goes on bit for bit."""

from functools import partial

import pytest
import torch

from score_sde import VPSDE, DataSpec, ScoreModel
from score_sde.config import override, read_config
from score_sde.data import Dataset, TensorSource
from score_sde.networks import UNet
from score_sde.objectives import DDPM, OBJECTIVES, DenoisingScoreMatching, FlowMatching
from score_sde.run import build_data, build_model, build_objective
from score_sde.sdes import FixedNoise
from score_sde.training import STANDARD_HOOKS, Trainer, TrainingOptions, TrainStep, begin, resume
from tests.objectives.fitting import fitting

SPEC = DataSpec((1, 4, 4), levels=9, dequantize=False)
OPTIONS = TrainingOptions(steps=10, batch_size=16, log_every=3, sample_every=10, checkpoint_every=4, warmup=2)


def small(objective):
    """Model, data and objective."""
    torch.manual_seed(0)
    network = UNet((1, 4, 4), width=8, multipliers=(1,), attention=(), learned_variance=objective.trains_variance, dropout=0.1)
    values = torch.randint(0, 9, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    data = Dataset(TensorSource(values, SPEC), TensorSource(values[:8], SPEC))

    def model(sde):
        return ScoreModel(network, sde, SPEC, time_input="none" if isinstance(sde, FixedNoise) else "label")

    return fitting(objective, model), data, objective


def of_config(name):
    """The same of a config, with a small network and few steps of the chain."""
    options = ("network.unet.width=8", "network.unet.multipliers=(1,)", "network.unet.attention=()", "sde.ddpm.steps=9")
    config = override(read_config(name), [f"--config.{option}" for option in (*options, "model.labels=9")]).to_dict()
    data = build_data(config)
    return build_model(config, data.spec), data, build_objective(config)


CASES = {name: partial(small, objective()) for name, objective in OBJECTIVES.items()} | {
    "ddpm, learned": partial(small, DDPM("hybrid", "learned_range", "loss_aware", steps=5)),
    "denoising, adaptive": partial(small, DenoisingScoreMatching(times="adaptive")),
    "flow_matching, adaptive": partial(small, FlowMatching(times="adaptive")),
    "digits_ddpm": partial(of_config, "digits_ddpm"),
}
SLOW = {"implicit": pytest.mark.slow}
"""The exact trace of a U-Net takes many products; sliced goes the same way by one."""


class Crash(Exception):
    pass


class Crashing(TrainStep):
    def __call__(self, state, batch):
        super().__call__(state, batch)
        if state.step == 7:
            raise Crash


def trainer(folder, name):
    """The training of a case that goes on in a folder, or begins there."""
    model, data, objective = CASES[name]()
    folder.mkdir(exist_ok=True)
    state = resume(folder, begin(model, objective, OPTIONS))
    return Trainer(state, data, folder, OPTIONS, objective, hooks=STANDARD_HOOKS[:2], seed=0)


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in CASES])
def test_a_crashed_run_equals_an_uninterrupted_one(tmp_path, name):
    whole = trainer(tmp_path / "whole", name)
    whole.train(progress=False)
    crashed = trainer(tmp_path / "parts", name)
    crashed.take = Crashing(crashed.take.objective, OPTIONS, crashed.data.spec, seed=0)
    with pytest.raises(Crash):
        crashed.train(progress=False)
    again = trainer(tmp_path / "parts", name)
    assert again.state.step == 4
    again.train(progress=False)
    for found, expected in ((again.state.model, whole.state.model), (again.state.ema.model, whole.state.ema.model)):
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))
    assert again.state.objective.keys() == whole.state.objective.keys()
    assert all(torch.equal(value, whole.state.objective[key]) for key, value in again.state.objective.items())


def test_loss_aware_steps_are_learned_and_saved(tmp_path):
    """160 losses at five steps: all are known, and those of a run that went on are all of them."""
    done = trainer(tmp_path, "ddpm, learned")
    done.train(progress=False)
    assert (done.state.objective["counts"] == 10).all()
    assert (done.state.objective["losses"] > 0).all()
    found = trainer(tmp_path, "ddpm, learned").state.objective
    assert torch.equal(found["losses"], done.state.objective["losses"])


def test_a_learned_variance_that_the_objective_does_not_train_is_refused(tmp_path):
    network = UNet((1, 4, 4), width=8, multipliers=(1,), attention=(), learned_variance=True)
    for objective in (OBJECTIVES["denoising"](), DDPM(), DDPM("vlb", "beta")):
        with pytest.raises(ValueError, match="leaves a learned variance at its initial value"):
            begin(ScoreModel(network, VPSDE(), SPEC), objective, OPTIONS)
