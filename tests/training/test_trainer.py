"""Training: it learns, it resumes bit for bit, it stops with a sentence and without losses."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from score_sde import DDIM, VPSDE, DataSpec, GaussianMixture, ScoreModel, load
from score_sde.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from score_sde.config import default_config
from score_sde.data import Batch, Dataset, TensorSource, View, moments, read, two_moons
from score_sde.draws import Draws
from score_sde.ema import EMA
from score_sde.networks import MLP, UNet
from score_sde.objectives import DenoisingScoreMatching, Objective, Terms
from score_sde.run import RunError
from score_sde.tensors import generator
from score_sde.training import (
    STANDARD_HOOKS,
    Log,
    Trainer,
    TrainingError,
    TrainingOptions,
    TrainStep,
    begin,
    held_out_loss,
    prepare,
    resume,
    write_run,
)

OPTIONS = TrainingOptions(steps=12, batch_size=16, log_every=4, sample_every=6, checkpoint_every=5, warmup=2)


def build(folder, options=OPTIONS, *, dropout=0.2, seed=0, samples=100, width=16):
    torch.manual_seed(5)
    data = two_moons(samples=samples)
    model = ScoreModel(
        MLP((2,), width=width, depth=2, dropout=dropout), VPSDE(), data.spec, parameterization="edm", time_input="edm"
    )
    return trainer_of(model, data, folder, options, seed=seed)


def trainer_of(model, data, folder, options, objective=DenoisingScoreMatching(), *, pretrained=False, seed=0):
    """The training that goes on in a folder, or begins there."""
    folder.mkdir(exist_ok=True)
    state = resume(folder, begin(model, objective, options, pretrained=pretrained))
    return Trainer(state, data, folder, options, objective, hooks=STANDARD_HOOKS, seed=seed)


def take_steps(trainer, count=1):
    """Take steps, each on the first samples of the data, without what is done between them."""
    for _ in range(count):
        trainer.take(trainer.state, trainer.data.train.batch(torch.arange(trainer.options.batch_size)))


def in_each_step(trainer, act):
    """Have ``act(state)`` done in each step, when it is taken and nothing else is done yet."""

    class Acting(TrainStep):
        def __call__(self, state, batch):
            super().__call__(state, batch)
            act(state)

    trainer.take = Acting(trainer.take.objective, trainer.options, trainer.data.spec, seed=trainer.seed)


class Act:
    """A hook that does something after a step."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def begin(self, trainer):
        pass

    def after_step(self, trainer):
        if trainer.state.step == self.step:
            self.act()


def kill(number):
    os.kill(os.getpid(), number)


def crash():
    raise KeyboardInterrupt("crash")


def end_state(trainer):
    """Everything that an interrupted run must share with one that was not."""
    metrics = [json.loads(line) for line in (trainer.folder / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        line.pop("seconds")
    return {**trainer.state.model.state_dict()}, {**trainer.state.ema.model.state_dict()}, metrics


def assert_same(first, second):
    for a, b in zip(first[:2], second[:2], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert first[2] == second[2]


def test_it_learns(tmp_path):
    """It ends below the loss of the best Gaussian, whose score is exact and linear."""
    options = TrainingOptions(
        steps=500,
        batch_size=64,
        log_every=10,
        sample_every=250,
        learning_rate=3e-3,
        warmup=20,
        schedule="cosine",
        ema_decay=0.99,
    )
    trainer = build(tmp_path, options, dropout=0.0, samples=4000, width=64)
    assert trainer.train(progress=False) is None
    _, _, metrics = end_state(trainer)
    first_two = moments(trainer.data.train)
    gaussian = (
        GaussianMixture(first_two.mean[None], first_two.covariance[None]).to(torch.float32).score(trainer.state.model.sde)
    )
    batch = Batch(read(trainer.data.test, slice(None)).values.repeat(5, 1))
    draws = Draws(1, 0, len(batch.values))
    scores = (trainer.state.ema.model, gaussian)
    losses = [trainer.take.measure(score, batch, draws, {}).loss.mean().item() for score in scores]
    assert losses[0] < losses[1] - 0.1
    assert [line["step"] for line in metrics] == list(range(10, 501, 10))
    assert {"gradient_norm", "learning_rate", "loss"} <= metrics[0].keys()
    assert (tmp_path / "samples" / "step_000000500.png").stat().st_size > 500


@pytest.mark.parametrize("stops", [(1,), (4, 5), (3, 6, 11)])
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, stops):
    """Stopped by a signal after any step, mid-way between logs and checkpoints, with dropout: the same bits."""
    whole = build(tmp_path / "whole")
    whole.train(progress=False)
    for stop in stops:
        trainer = build(tmp_path / "parts")
        in_each_step(trainer, lambda state, stop=stop: kill(signal.SIGTERM) if state.step == stop else None)
        said = []
        assert trainer.train(progress=False, announce=said.append) == signal.SIGTERM
        assert f"stopped at step {stop} of 12" in said[0]
    trainer = build(tmp_path / "parts")
    assert trainer.state.step == stops[-1]
    trainer.train(progress=False)
    assert_same(end_state(trainer), end_state(whole))


def test_a_crash_loses_the_steps_since_the_last_checkpoint_and_no_more(tmp_path):
    whole = build(tmp_path / "whole")
    whole.train(progress=False)
    trainer = build(tmp_path / "parts")
    trainer.hooks = (*trainer.hooks, Act(6, crash))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(progress=False)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # a line cut off by the crash
    trainer = build(tmp_path / "parts")
    assert trainer.state.step == 5
    trainer.train(progress=False)
    assert_same(end_state(trainer), end_state(whole))


@pytest.mark.parametrize("place", range(4))
def test_a_signal_at_any_moment_is_followed_by_a_checkpoint(tmp_path, place):
    """Whatever the loop is doing when Ctrl-C comes, the step it says it stopped at is the step that is saved."""
    trainer = build(tmp_path, replace(OPTIONS, checkpoint_every=6, log_every=6))
    trainer.hooks = (*trainer.hooks[:place], Act(6, lambda: kill(signal.SIGINT)), *trainer.hooks[place:])
    said = []
    assert trainer.train(progress=False, announce=said.append) == signal.SIGINT
    state = load_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))
    assert f"stopped at step {state['step']} of 12" in said[0]


def test_dropout_draws_anew_in_every_step(tmp_path):
    """The same input, step after step: what is dropped differs, and a second trainer drops the same."""
    trainers = [build(tmp_path / name, dropout=0.5) for name in ("a", "b")]
    masks = []
    for trainer in trainers:
        seen = []
        layer = next(module for module in trainer.state.model.modules() if isinstance(module, nn.Dropout))
        layer.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output == 0))
        for _ in range(3):
            torch.seed()  # what others draw from the global generator does not matter
            take_steps(trainer)
        masks.append(seen)
    assert not torch.equal(masks[0][0], masks[0][1])
    assert not torch.equal(masks[0][1], masks[0][2])
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_the_test_loss_is_that_of_the_averaged_weights(tmp_path):
    trainer = build(tmp_path)
    trainer.train(progress=False)
    logged = end_state(trainer)[2][-1]["test_loss"]
    for p in trainer.state.model.parameters():
        p.data.zero_()
    assert held_out_loss(trainer) == logged
    for p in trainer.state.ema.model.parameters():
        p.data.zero_()
    assert held_out_loss(trainer) != logged


def test_the_test_loss_is_the_mean_over_samples(tmp_path):
    """20 held-out samples are taken 16 and 4 at a time, and each counts the same."""
    losses = []
    for name, size in (("whole", 20), ("uneven", 16)):
        trainer = build(tmp_path / name, replace(OPTIONS, batch_size=size))
        assert len(trainer.data.test) == 20
        losses.append(held_out_loss(trainer))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_without_a_log_the_figures_of_steps_do_not_pile_up(tmp_path):
    """No more than those of ``log_every`` steps are kept, and a loss that is not finite is seen nonetheless."""
    trainer, kept = build(tmp_path), []
    trainer.hooks = tuple(Act(step, lambda: kept.append(len(trainer.state.pending))) for step in range(13))
    trainer.train(progress=False)
    assert kept == [1, 2, 3, 0] * 3
    assert len(trainer.state.times) == 0
    assert trainer.figures["loss"] > 0
    trainer = build(tmp_path / "not finite")
    trainer.hooks = ()
    next(trainer.state.model.parameters()).data.fill_(math.nan)
    with pytest.raises(TrainingError, match="in step 1, with t from"):
        trainer.train(progress=False)
    assert trainer.state.step == OPTIONS.log_every


def test_a_network_may_be_wrapped(tmp_path):
    """Steps evaluate ``model.network`` as a whole, so that a parallel wrapper may stand around it."""

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *given):
            self.calls += 1
            return self.module(*given)

    plain, wrapped = build(tmp_path / "plain"), build(tmp_path / "wrapped")
    wrapped.state.model.network = wrapper = Wrapper(wrapped.state.model.network)
    for trainer in (plain, wrapped):
        take_steps(trainer, 2)
    assert wrapper.calls == 2
    for model in ("model", "ema"):
        first, second = (getattr(trainer.state, model) for trainer in (plain, wrapped))
        for a, b in zip(*((m.model if model == "ema" else m).parameters() for m in (first, second)), strict=True):
            assert torch.equal(a, b)


def test_weight_decay_shrinks_the_weights(tmp_path):
    """Decoupled: after one step the weights differ by the learning rate times the decay, whatever the gradient."""
    weights = []
    for decay in (0.0, 0.3):
        trainer = build(tmp_path, replace(OPTIONS, weight_decay=decay, learning_rate=0.1, warmup=0))
        before = trainer.state.model.network.first.weight.detach().clone()
        take_steps(trainer)
        weights.append(trainer.state.model.network.first.weight.detach())
    torch.testing.assert_close(weights[1] - weights[0], -0.1 * 0.3 * before, rtol=1e-4, atol=1e-7)


def test_a_hook_of_ones_own_and_a_measure(tmp_path):
    trainer, seen = build(tmp_path), []
    log = Log({"step_again": lambda trainer: trainer.state.step})
    trainer.hooks = (log, *trainer.hooks[1:], Act(3, lambda: seen.append(trainer.state.step)))
    trainer.train(progress=False)
    assert seen == [3]
    assert [line.get("step_again") for line in end_state(trainer)[2]] == [None, None, 12]


@dataclass(frozen=True)
class LearnsOnTheWay(DenoisingScoreMatching):
    """Denoising score matching that counts the samples it has seen, and logs a part of its loss."""

    def begin(self, model):
        return {"seen": torch.zeros(())}

    def __call__(self, model, batch, draws, state):
        terms = super().__call__(model, batch, draws, state)
        return replace(terms, parts={"half": terms.loss / 2}, observed={"loss": terms.loss})

    def learn(self, state, observed):
        assert not observed["loss"].requires_grad
        return {"seen": state["seen"] + len(observed["loss"])}


def test_what_an_objective_learns_is_saved_and_its_parts_are_logged(tmp_path):
    """Stopped between two lines of the log, it goes on as if it had not been."""
    states = []
    for name, stops in (("whole", ()), ("parts", (3, 10))):
        for stop in (*stops, None):
            model = build(tmp_path / "other").state.model
            trainer = trainer_of(model, two_moons(samples=100), tmp_path / name, OPTIONS, LearnsOnTheWay())
            in_each_step(trainer, lambda state, stop=stop: kill(signal.SIGTERM) if state.step == stop else None)
            trainer.train(progress=False, announce=lambda said: None)
        assert trainer.state.objective["seen"] == 12 * 16
        states.append(end_state(trainer))
    assert_same(*states)
    for line in states[0][2]:
        assert line["half"] == pytest.approx(line["loss"] / 2)
    with pytest.raises(CheckpointError, match="holds what another objective has learned: seen"):
        trainer_of(model, two_moons(samples=100), tmp_path / "whole", OPTIONS)


def test_options_changed_on_resuming_are_used(tmp_path):
    build(tmp_path).train(progress=False)
    trainer = build(tmp_path, replace(OPTIONS, steps=20, beta2=0.5, weight_decay=0.3))
    (group,) = trainer.state.optimizer.param_groups
    assert group["betas"] == (0.9, 0.5)
    assert group["weight_decay"] == 0.3


def test_ctrl_c_in_the_last_step_finishes(tmp_path):
    trainer = build(tmp_path)
    in_each_step(trainer, lambda state: kill(signal.SIGINT) if state.step == 12 else None)
    assert trainer.train(progress=False) is None


def test_the_state_of_the_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    trainer = build(tmp_path)
    torch.manual_seed(3)
    trainer.train(progress=False)
    assert torch.equal(torch.rand(4), expected)


def test_seed_decides(tmp_path):
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer = build(tmp_path / name, seed=seed)
        trainer.train(progress=False)
        states.append(end_state(trainer))
    assert_same(states[0], states[1])
    assert states[0][2] != states[2][2]


def test_nan_stops_with_a_sentence_and_the_last_checkpoint_stays_sound(tmp_path):
    trainer = build(tmp_path)

    @torch.no_grad()
    def poison(state):
        if state.step == 7:
            next(state.model.parameters()).fill_(math.nan)

    in_each_step(trainer, poison)
    with pytest.raises(TrainingError, match=r"step 8, with t from .* to .*000000005.pt, is sound") as caught:
        trainer.train(progress=False)
    assert "lower training.learning_rate" in str(caught.value)
    assert trainer.state.step == 8  # seen at the next line of the log, before anything was written
    state = load_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))
    assert state["step"] == 5
    assert all(value.isfinite().all() for value in state["model"].values())


def test_the_t_range_named_is_that_of_the_step(tmp_path):
    trainer = build(tmp_path)
    times = []
    forward = trainer.state.model.forward
    trainer.state.model.forward = lambda x, t, cond=None: (times.append(t), forward(x, t, cond))[1]
    take_steps(trainer)
    trainer.state.pending[-1][0] = math.nan
    with pytest.raises(TrainingError, match=f"from {times[0].min().item():.3g} to {times[0].max().item():.3g}"):
        trainer.save()


@dataclass(frozen=True)
class ExactSize(Objective):
    """An objective that draws no times."""

    def __call__(self, model, batch, draws, state):
        return Terms(sum(weight.square().sum() for weight in model.parameters()).expand(len(batch.values)))


def test_an_objective_without_times_names_none(tmp_path):
    trainer = build(tmp_path)
    trainer = trainer_of(trainer.state.model, trainer.data, tmp_path, OPTIONS, ExactSize())
    take_steps(trainer)
    assert trainer.save().exists()
    trainer.state.pending[-1][0] = math.nan
    with pytest.raises(TrainingError, match=r"in step 1; the last checkpoint, \S+, is sound: lower"):
        trainer.save()


def test_learning_rate_rises_and_falls():
    options = replace(OPTIONS, steps=100, warmup=10, schedule="cosine", learning_rate=1.0)
    rates = [options.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9])
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] < 1e-3


class Counting(View):
    """A source that counts the rows that are read."""

    def batch(self, rows):
        counts.append(len(rows))
        return super().batch(rows)


counts: list[int] = []


def test_a_run_that_goes_on_reads_its_data_once_before_it_trains(tmp_path):
    """For the fingerprint, which is checked and then written. Of integers, nothing is measured anew."""
    values = torch.randint(4, (50, 2), generator=generator(0))
    source = TensorSource(values, DataSpec((2,), levels=4))
    config = default_config().to_dict()
    config["network"] = {"name": "mlp", "mlp": {"width": 8}}
    config["training"] |= {"steps": 2, "batch_size": 4, "sample_every": 0}
    trainer, known = prepare(tmp_path, config, Dataset(source, source), device="cpu")
    write_run(trainer, config, known)
    trainer.train(progress=False)
    counts.clear()
    counted = Dataset(Counting(source), Counting(source))
    trainer, known = prepare(tmp_path, {**config, "training": {**config["training"], "steps": 4}}, counted, device="cpu")
    write_run(trainer, config, known)
    assert sum(count for count in counts if count > 1) == 100
    with pytest.raises(RunError, match="samples, classes or what is held out have changed"):
        prepare(tmp_path, config, Dataset(TensorSource(values + (values < 3), source.spec), source), device="cpu")


@pytest.mark.slow
def test_bfloat16_and_compiled_training_stay_near_float32(tmp_path):
    """The same steps: the losses agree to the precision, the weights stay float32, and a run may change its mind."""
    losses = {}
    for name, changes in {"float32": {}, "bfloat16": {"precision": "bfloat16"}, "compiled": {"compile": True}}.items():
        trainer = build(tmp_path / name, replace(OPTIONS, steps=8, log_every=1, **changes), dropout=0.0)
        trainer.train(progress=False)
        losses[name] = [line["loss"] for line in end_state(trainer)[2]]
        assert {p.dtype for p in trainer.state.model.parameters()} == {torch.float32}
    assert losses["compiled"] == pytest.approx(losses["float32"], rel=1e-4)
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bfloat16"] != losses["float32"]
    continued = build(tmp_path / "compiled", replace(OPTIONS, steps=10), dropout=0.0)
    continued.train(progress=False)
    assert continued.state.step == 10


def test_the_average_of_pretrained_weights_begins_with_them(tmp_path):
    """One step moves it by 1 - decay of the way, where the average of new weights moves by most of it."""
    for pretrained, share in ((True, 1 - OPTIONS.ema_decay), (False, 1 - 2 / 11)):
        trainer = build(tmp_path / str(pretrained))
        trainer = trainer_of(trainer.state.model, trainer.data, trainer.folder, OPTIONS, pretrained=pretrained)
        before = trainer.state.model.network.first.weight.detach().clone()
        take_steps(trainer)
        after, average = (model.network.first.weight for model in (trainer.state.model, trainer.state.ema.model))
        torch.testing.assert_close(average - before, share * (after.detach() - before), rtol=1e-2, atol=1e-7)


@pytest.mark.slow
def test_classes_are_learned_and_left_out(tmp_path):
    """Two points, one a class: each class gives its own point, no class both."""
    classes = torch.arange(400) % 2
    points = (4.0 * classes[:, None] - 2) + 0.1 * torch.randn(400, 1, generator=generator(0))
    source = TensorSource(points, DataSpec((1,)), classes)
    data = Dataset(source, source)
    torch.manual_seed(0)
    model = ScoreModel(MLP((1,), width=32, depth=2, classes=2), VPSDE(), data.spec, parameterization="edm", time_input="edm")
    options = replace(
        OPTIONS, steps=300, batch_size=64, learning_rate=5e-3, ema_decay=0.97, sample_every=300, class_dropout=0.2
    )
    trainer_of(model, data, tmp_path, options).train(progress=False)
    draw = lambda cond: DDIM(steps=20).sample(model.eval(), (64, 1), seed=0, cond=cond).x[:, 0]
    for k in range(2):
        assert ((draw(torch.full((64,), k)) > 0) == k).float().mean() > 0.95
    assert 0.2 < (draw(None) > 0).float().mean() < 0.8


def test_a_non_finite_loss_names_the_times_of_its_step_with_classes_too(tmp_path):
    moons, seen = two_moons(samples=50), []
    model = ScoreModel(MLP((2,), width=8, classes=2), VPSDE(), moons.spec, time_input="time")
    model.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    trainer = trainer_of(model, moons, tmp_path, OPTIONS)
    take_steps(trainer)
    trainer.state.pending[0] *= math.nan
    with pytest.raises(TrainingError, match=f"t from {seen[0].min():.3g} to {seen[0].max():.3g}"):
        trainer.take.check_finite(trainer.state)


def test_classes_that_do_not_fit_the_data_are_refused(tmp_path):
    moons = two_moons(samples=50)
    plain = moons._replace(train=TensorSource(read(moons.train, slice(None)).values, moons.spec))
    for data, classes, message in ((moons, 1, "the data has 2"), (plain, 2, "the data has none")):
        model = ScoreModel(MLP((2,), width=8, classes=classes), VPSDE(), data.spec)
        with pytest.raises(ValueError, match=message):
            trainer_of(model, data, tmp_path, OPTIONS)
    network = UNet((1, 4, 4), width=8, multipliers=(1,), attention=(), learned_variance=True)
    model = ScoreModel(network, VPSDE(), DataSpec((1, 4, 4)))
    with pytest.raises(ValueError, match="learned_variance"):
        trainer_of(model, moons, tmp_path, OPTIONS)


class Told:
    """A source whose samples come with conditions that they determine."""

    def __init__(self, tell, count=40):
        self.values, self.tell = torch.randn(count, 2, generator=generator(1)), tell
        self.spec, self.classes = DataSpec((2,)), None

    def __len__(self):
        return len(self.values)

    def batch(self, rows):
        return Batch(self.values[rows], self.tell(self.values[rows]))


class Listening(nn.Module):
    """A network that keeps the conditions that it is told."""

    def __init__(self, cond_shape):
        super().__init__()
        self.scale, self.cond_shape, self.told = nn.Parameter(torch.zeros(1)), cond_shape, []

    def forward(self, x, noise, cond=None):
        self.told.append(cond)
        return self.scale * x


FIELD = lambda values: values[:, None, :].expand(-1, 3, -1) + 1.0


@pytest.mark.parametrize(
    ("shape", "tell"),
    [
        ((2,), lambda values: values + 1.0),
        ((3, 2), FIELD),
        ({"vector": (2,), "field": (3, 2)}, lambda values: {"vector": -values, "field": FIELD(values)}),
    ],
    ids=["vector", "field", "mapping"],
)
def test_a_network_is_told_the_conditions_of_its_samples(tmp_path, shape, tell):
    """In steps, test losses and pictures; no value of them is dropped as a class would be."""
    source = Told(tell)
    model = ScoreModel(Listening(shape), VPSDE(), source.spec)
    trainer = trainer_of(model, Dataset(source, source), tmp_path, replace(OPTIONS, class_dropout=1.0))
    take_steps(trainer)
    (told,) = model.network.told
    expected = source.batch(torch.arange(OPTIONS.batch_size)).cond
    torch.testing.assert_close(told, expected, rtol=0, atol=0)
    trainer.train(progress=False)
    assert None not in trainer.state.ema.model.network.told
    assert (tmp_path / "samples" / "step_000000012.png").exists()


@pytest.mark.parametrize(
    ("shape", "tell", "message"),
    [
        ((2,), lambda values: None, r"takes a condition of shape \(2,\), but the data has none"),
        ((3,), lambda values: values, r"cond must have the shape \(1, 3\), got \(1, 2\)"),
        ({"a": (2,)}, lambda values: {"b": values}, r"cond must have the shape \{'a': \(1, 2\)\}, got \{'b': \(1, 2\)\}"),
        (None, lambda values: values, r"the data has conditions, \(1, 2\) for one sample, but the network takes none"),
        (None, lambda values: {"a": values}, "but the network takes none: give it an attribute cond_shape"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(tmp_path, shape, tell, message):
    source = Told(tell)
    with pytest.raises(ValueError, match=message):
        trainer_of(ScoreModel(Listening(shape), VPSDE(), source.spec), Dataset(source, source), tmp_path, OPTIONS)
    assert not list(tmp_path.iterdir())


def test_flip_mirrors_half_of_the_images(tmp_path):
    image = torch.arange(4).expand(1, 1, 4).repeat(400, 1, 1, 1).to(torch.uint8)
    source = TensorSource(image, DataSpec((1, 1, 4), levels=4))
    data = Dataset(source, source)
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1))

        def forward(self, x, noise):
            seen.append(x.detach())
            return self.scale * x

    model = ScoreModel(Spy(), VPSDE(beta_max=0.2), data.spec)
    options = replace(OPTIONS, flip=True, batch_size=400)
    take_steps(trainer_of(model, data, tmp_path, options, DenoisingScoreMatching(times="uniform")))
    rising = ((seen[0][:, 0, 0, 3] - seen[0][:, 0, 0, 0]) > 0).float().mean()
    assert abs(rising - 0.5) < 0.12


def test_ema_is_the_average_with_its_warm_up():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema = EMA(model, 0.5)
    expected = 0.0
    for n in range(1, 12):
        nn.init.constant_(model.weight, float(n))
        ema.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert not ema.model.weight.requires_grad


def test_checkpoints_are_kept_two_at_a_time_and_leftovers_removed(tmp_path):
    (tmp_path / ".000000001.pt.abc").write_bytes(b"half a file")
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"value": torch.tensor(step)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000002.pt", "000000003.pt"]
    assert load_checkpoint(latest_checkpoint(tmp_path))["value"] == 3


def test_checkpoint_of_another_model_is_refused(tmp_path):
    build(tmp_path).train(progress=False)
    data = two_moons(samples=100)
    other = ScoreModel(MLP((2,), width=8, depth=1), VPSDE(), data.spec)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        trainer_of(other, data, tmp_path, OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "training.steps"),
        ({"learning_rate": 0.0}, "positive"),
        ({"schedule": "linear"}, "choose one of constant"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"flip": True}, "mirrors images"),
    ],
)
def test_bad_options_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, replace(OPTIONS, **change))


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_nothing(tmp_path):
    """The command itself, killed at several moments and repeated, ends with the bits and metrics of an undisturbed run."""
    command = [sys.executable, "-m", "score_sde", "train", "--config=digits_vp", "--quiet"]
    options = {
        "network.unet.width": 8,
        "network.unet.dropout": 0.1,
        "training.steps": 150,
        "training.batch_size": 16,
        "training.log_every": 7,
        "training.checkpoint_every": 5,
        "training.sample_every": 60,
    }
    command += [f"--config.{key}={value}" for key, value in options.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, f"--workdir={tmp_path / 'whole'}"], check=True, env=environment, capture_output=True)
    random = torch.Generator().manual_seed(int(time.time()))
    folder = tmp_path / "killed"
    kills = 0
    while kills < 3:
        process = subprocess.Popen(
            [*command, f"--workdir={folder}"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        began = time.time()
        while latest_checkpoint(folder / "checkpoints") is None and time.time() - began < 120:
            time.sleep(0.01)
        before = latest_checkpoint(folder / "checkpoints")
        # once training moves, a random moment of a few dozen steps and several checkpoints
        while latest_checkpoint(folder / "checkpoints") == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.5 * torch.rand(1, generator=random).item())
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
    finished = subprocess.run([*command, f"--workdir={folder}"], check=True, env=environment, capture_output=True, text=True)
    assert kills == 3, finished.stdout
    states = [load_checkpoint(latest_checkpoint(tmp_path / name / "checkpoints")) for name in ("whole", "killed")]
    assert states[0]["step"] == states[1]["step"] == 150
    for part in ("model", "ema"):
        for key, value in states[0][part].items():
            assert torch.equal(value, states[1][part][key]), (part, key)
    logs = []
    for name in ("whole", "killed"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        logs.append([{key: value for key, value in line.items() if key != "seconds"} for line in lines])
    assert logs[0] == logs[1]
    assert load(folder).step == 150


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_say_how_to_go_on(tmp_path, number):
    command = [sys.executable, "-m", "score_sde", "train", "--config=two_moons", f"--workdir={tmp_path}", "--quiet"]
    process = subprocess.Popen([*command, "--config.training.sample_every=0"], stdout=subprocess.PIPE, text=True)
    began = time.time()
    while not (tmp_path / "metrics.jsonl").exists() and time.time() - began < 120:
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"to go on:  score-sde train --workdir={tmp_path}" in said
    step = load(tmp_path).step
    assert f"stopped at step {step} of 4000" in said
