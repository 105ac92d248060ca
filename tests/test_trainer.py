"""Training: it learns, it resumes bit for bit, it stops with a sentence and without losses."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from score_sde import DDIM, VPSDE, DataSpec, GaussianMixture, ScoreModel, load
from score_sde.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from score_sde.data import Batch, Dataset, TensorSource, moments, read, two_moons
from score_sde.draws import Draws
from score_sde.ema import EMA
from score_sde.networks import MLP, UNet
from score_sde.objectives import DenoisingScoreMatching
from score_sde.tensors import generator
from score_sde.trainer import Trainer, TrainingError, TrainingOptions

OPTIONS = TrainingOptions(steps=12, batch_size=16, log_every=4, sample_every=6, checkpoint_every=5, warmup=2)


def build(folder, options=OPTIONS, *, dropout=0.2, seed=0, samples=100, width=16):
    torch.manual_seed(5)
    data = two_moons(samples=samples)
    model = ScoreModel(
        MLP((2,), width=width, depth=2, dropout=dropout), VPSDE(), data.spec, parameterization="edm", time_input="edm"
    )
    folder.mkdir(exist_ok=True)
    return Trainer(model, data, folder, options, seed=seed)


def end_state(trainer):
    """Everything that an interrupted run must share with one that was not."""
    metrics = [json.loads(line) for line in (trainer.folder / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        line.pop("seconds")
    return {**trainer.model.state_dict()}, {**trainer.ema.model.state_dict()}, metrics


def assert_same(first, second):
    for a, b in zip(first[:2], second[:2], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert first[2] == second[2]


def test_it_learns(tmp_path):
    """It ends below the loss of the best Gaussian, whose score is exact and linear."""
    options = TrainingOptions(
        steps=800,
        batch_size=64,
        log_every=10,
        sample_every=400,
        learning_rate=3e-3,
        warmup=20,
        schedule="cosine",
        ema_decay=0.99,
    )
    trainer = build(tmp_path, options, dropout=0.0, samples=4000, width=64)
    assert trainer.train(progress=False) is None
    _, _, metrics = end_state(trainer)
    first_two = moments(trainer.data.train)
    gaussian = GaussianMixture(first_two.mean[None], first_two.covariance[None]).to(torch.float32).score(trainer.model.sde)
    batch = Batch(read(trainer.data.test, slice(None)).values.repeat(5, 1))
    draws = Draws(1, 0, len(batch.values))
    losses = [trainer.loss(score, batch, draws).loss.mean().item() for score in (trainer.ema.model, gaussian)]
    assert losses[0] < losses[1] - 0.1
    assert [line["step"] for line in metrics] == list(range(10, 801, 10))
    assert {"gradient_norm", "learning_rate", "loss"} <= metrics[0].keys()
    assert (tmp_path / "samples" / "step_000000800.png").stat().st_size > 500


@pytest.mark.parametrize("stops", [(1,), (4, 5), (3, 6, 11)])
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, stops):
    """Stopped by a signal after any step, mid-way between logs and checkpoints, with dropout: the same bits."""
    whole = build(tmp_path / "whole")
    whole.train(progress=False)
    for stop in stops:
        trainer = build(tmp_path / "parts")
        take_step = trainer._take_step

        def step_and_stop(trainer=trainer, take_step=take_step, stop=stop):
            take_step()
            if trainer.step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        trainer._take_step = step_and_stop
        said = []
        assert trainer.train(progress=False, announce=said.append) == signal.SIGTERM
        assert f"stopped at step {stop} of 12" in said[0]
    trainer = build(tmp_path / "parts")
    assert trainer.step == stops[-1]
    trainer.train(progress=False)
    assert_same(end_state(trainer), end_state(whole))


def test_a_crash_loses_the_steps_since_the_last_checkpoint_and_no_more(tmp_path):
    whole = build(tmp_path / "whole")
    whole.train(progress=False)
    trainer = build(tmp_path / "parts")
    draw = trainer._draw

    def crash_later():
        draw()
        if trainer.step == 6:
            raise KeyboardInterrupt("crash")

    trainer._draw = crash_later
    with pytest.raises(KeyboardInterrupt):
        trainer.train(progress=False)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # a line cut off by the crash
    trainer = build(tmp_path / "parts")
    assert trainer.step == 5
    trainer.train(progress=False)
    assert_same(end_state(trainer), end_state(whole))


@pytest.mark.parametrize("moment", ["_draw", "save", "_log"])
def test_a_signal_at_any_moment_is_followed_by_a_checkpoint(tmp_path, moment):
    """Whatever the loop is doing when Ctrl-C comes, the step it says it stopped at is the step that is saved."""
    trainer = build(tmp_path, replace(OPTIONS, checkpoint_every=6, log_every=6))
    original = getattr(trainer, moment)

    def interrupted(**how):
        result = original(**how)
        if trainer.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    setattr(trainer, moment, interrupted)
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
        layer = next(module for module in trainer.model.modules() if isinstance(module, nn.Dropout))
        layer.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output == 0))
        for _ in range(3):
            trainer._take_step()
        masks.append(seen)
    assert not torch.equal(masks[0][0], masks[0][1])
    assert not torch.equal(masks[0][1], masks[0][2])
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_options_changed_on_resuming_are_used(tmp_path):
    build(tmp_path).train(progress=False)
    trainer = build(tmp_path, replace(OPTIONS, steps=20, beta2=0.5, weight_decay=0.3))
    (group,) = trainer.optimizer.param_groups
    assert group["betas"] == (0.9, 0.5)
    assert group["weight_decay"] == 0.3


def test_ctrl_c_in_the_last_step_finishes(tmp_path):
    trainer = build(tmp_path)
    log = trainer._log
    trainer._log = lambda **how: (os.kill(os.getpid(), signal.SIGINT) if trainer.step == 12 else None, log(**how))[1]
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
    take_step = trainer._take_step

    def poisoned():
        if trainer.step == 7:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(math.nan)
        take_step()

    trainer._take_step = poisoned
    with pytest.raises(TrainingError, match=r"step 8, with t from .* to .*000000005.pt, is sound") as caught:
        trainer.train(progress=False)
    assert "lower training.learning_rate" in str(caught.value)
    assert trainer.step == 8  # seen at the next line of the log, before anything was written
    state = load_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))
    assert state["step"] == 5
    assert all(value.isfinite().all() for value in state["model"].values())


def test_the_t_range_named_is_that_of_the_step(tmp_path):
    trainer = build(tmp_path)
    times = []
    forward = trainer.model.forward
    trainer.model.forward = lambda x, t, cond=None: (times.append(t), forward(x, t, cond))[1]
    trainer._take_step()
    trainer.pending[-1][0] = math.nan
    with pytest.raises(TrainingError, match=f"from {times[0].min().item():.3g} to {times[0].max().item():.3g}"):
        trainer.save()


def test_learning_rate_rises_and_falls(tmp_path):
    trainer = build(tmp_path, replace(OPTIONS, steps=100, warmup=10, schedule="cosine", learning_rate=1.0))
    rates = []
    for step in range(100):
        rates.append(trainer._learning_rate(step))
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9])
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] < 1e-3


@pytest.mark.slow
def test_bfloat16_and_compiled_training_stay_near_float32(tmp_path):
    """The same steps: the losses agree to the precision, the weights stay float32, and a run may change its mind."""
    losses = {}
    for name, changes in {"float32": {}, "bfloat16": {"precision": "bfloat16"}, "compiled": {"compile": True}}.items():
        trainer = build(tmp_path / name, replace(OPTIONS, steps=8, log_every=1, **changes), dropout=0.0)
        trainer.train(progress=False)
        losses[name] = [line["loss"] for line in end_state(trainer)[2]]
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert losses["compiled"] == pytest.approx(losses["float32"], rel=1e-4)
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bfloat16"] != losses["float32"]
    continued = build(tmp_path / "compiled", replace(OPTIONS, steps=10), dropout=0.0)
    continued.train(progress=False)
    assert continued.step == 10


def test_the_average_of_pretrained_weights_begins_with_them(tmp_path):
    """One step moves it by 1 - decay of the way, where the average of new weights moves by most of it."""
    for pretrained, share in ((True, 1 - OPTIONS.ema_decay), (False, 1 - 2 / 11)):
        trainer = build(tmp_path / str(pretrained))
        trainer = Trainer(trainer.model, trainer.data, trainer.folder, OPTIONS, pretrained=pretrained)
        before = trainer.model.network.first.weight.detach().clone()
        trainer._take_step()
        after, average = trainer.model.network.first.weight, trainer.ema.model.network.first.weight
        torch.testing.assert_close(average - before, share * (after.detach() - before), rtol=1e-2, atol=1e-7)


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
    Trainer(model, data, tmp_path, options).train(progress=False)
    draw = lambda cond: DDIM(steps=20).sample(model.eval(), (64, 1), seed=0, cond=cond).x[:, 0]
    for k in range(2):
        assert ((draw(torch.full((64,), k)) > 0) == k).float().mean() > 0.95
    assert 0.2 < (draw(None) > 0).float().mean() < 0.8


def test_a_non_finite_loss_names_the_times_of_its_step_with_classes_too(tmp_path):
    moons, seen = two_moons(samples=50), []
    model = ScoreModel(MLP((2,), width=8, classes=2), VPSDE(), moons.spec, time_input="time")
    model.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    trainer = Trainer(model, moons, tmp_path, OPTIONS)
    trainer._take_step()
    trainer.pending[0] = trainer.pending[0] * math.nan
    with pytest.raises(TrainingError, match=f"t from {seen[0].min():.3g} to {seen[0].max():.3g}"):
        trainer._check_finite()


def test_classes_that_do_not_fit_the_data_are_refused(tmp_path):
    moons = two_moons(samples=50)
    plain = moons._replace(train=TensorSource(read(moons.train, slice(None)).values, moons.spec))
    for data, classes, message in ((moons, 1, "the data has 2"), (plain, 2, "the data has none")):
        model = ScoreModel(MLP((2,), width=8, classes=classes), VPSDE(), data.spec)
        with pytest.raises(ValueError, match=message):
            Trainer(model, data, tmp_path, OPTIONS)
    model = ScoreModel(UNet((1, 4, 4), width=8, multipliers=(1,), attention=(), learned_variance=True), VPSDE(), moons.spec)
    with pytest.raises(ValueError, match="learned_variance"):
        Trainer(model, moons, tmp_path, OPTIONS)


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
    trainer = Trainer(model, data, tmp_path, options, DenoisingScoreMatching(times="uniform"))
    trainer._take_step()
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
        Trainer(other, data, tmp_path, OPTIONS)


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
