"""The losses of discrete chains: published numbers, closed forms, minimizers."""

import math
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from score_sde import VPSDE, DataSpec, GaussianMixture, ScoreModel
from score_sde.chain import Chain, chain_nodes
from score_sde.data import Batch
from score_sde.decoder import centres, discretized_gaussian
from score_sde.draws import Draws
from score_sde.likelihood import discrete_bound
from score_sde.objectives import DDPM
from score_sde.objectives.steps import LossAwareSteps
from score_sde.parameterization import PARAMETERIZATIONS as TABLE
from score_sde.score import ClippedScore
from score_sde.sdes import TabulatedSDE, ddpm_schedule
from score_sde.tensors import expand
from tests.oracles import SDE_CASES, mixture
from tests.reference import chain as reference

PARAMETERIZATIONS = {"EPSILON": "epsilon", "START_X": "x0", "PREVIOUS_X": "mu_respaced"}
VARIANCES = {"FIXED_SMALL": "beta_tilde", "FIXED_LARGE": "beta", "LEARNED": "learned", "LEARNED_RANGE": "learned_range"}


class Stored(nn.Module):
    """A network whose output is known beforehand."""

    def __init__(self, output: torch.Tensor, learned_variance: bool = False):
        super().__init__()
        self.output, self.learned_variance = nn.Parameter(output), learned_variance

    def forward(self, x, t, cond=None):
        return self.output


def stored(output, sde, spec, *, parameterization="epsilon", variance="beta_tilde", **options):
    """A model of a stored output, and of the variance that an objective calls so."""
    learned = variance.startswith("learned")
    how = {"variance": variance} if learned else {}
    return ScoreModel(Stored(output, learned), sde, spec, parameterization=parameterization, **how, **options)


# the published code


@lru_cache
def published(name: str):
    """The SDE of a case and its tensors; x0 in float32, as there."""
    case, given = reference.cases()[name], reference.arrays(name)
    table = case["steps"], 0.1 / case["steps"], 20 / case["steps"], case["schedule"], tuple(case["betas"])
    sde = ddpm_schedule(*table, t_min=1e-4)
    sde = sde.respaced(case["respacing"]) if case["respacing"] else sde
    given["x0"] = given["x0"].float() / 127.5 - 1
    return sde, given, case["answers"]


def tanh_decoder(x0):
    """The published decoder: the normal CDF by a tanh, probabilities not below 1e-12, of data in float32."""

    def log_prob(integers, mean, std, data):
        x = x0[: len(integers)].double()
        cdf = lambda z: (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2
        above, below = (cdf((x - mean + shift) / std) for shift in (1 / 255, -1 / 255))
        inside = torch.where(integers == 0, above, torch.where(integers == 255, 1 - below, above - below))
        return inside.clamp_min(1e-12).log()

    return log_prob


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", reference.cases())
def test_the_losses_of_the_published_code(name, dtype, monkeypatch):
    """To 1e-6 in float64, step 0 with their CDF. RESCALED_MSE is the hybrid loss, RESCALED_KL is N times the bound's term."""
    sde, given, answers = published(name)
    spec, step = DataSpec((3, 8, 8), levels=256, dequantize=False), given["step"]
    monkeypatch.setattr("score_sde.chain.discretized_gaussian", tanh_decoder(given["x0"][step == 0]))
    x0, noise = given["x0"].to(dtype), given["noise"].to(dtype)
    tolerance = 1e-6 if dtype == torch.float64 else 2e-4
    for answer, expected in zip(answers, given["answers"], strict=True):
        kind, mean, kept, how = answer.split(".")
        variance = VARIANCES[kept]
        output = given["fixed"] if "fixed" in given and not variance.startswith("learned") else given["learned"]
        output = (output if variance.startswith("learned") else output[:, :3]).to(dtype)
        model = stored(output, sde, spec, parameterization=PARAMETERIZATIONS[mean], variance=variance)
        score = model
        if how == "clip" and mean != "PREVIOUS_X":  # there the mean is not clipped, and only x0 is
            score = ClippedScore(model, -1.0, 1.0)
        hybrid = how.endswith("MSE") and variance.startswith("learned")
        terms = DDPM("hybrid" if hybrid else "vlb", variance).terms(score, x0, step, noise)
        found = {"vb": terms.vlb, "mse": terms.mse, "loss": terms.loss}[kind]
        if how == "KL":
            found = terms.vlb
        elif kind == "vb" and how == "RESCALED_MSE":
            found = terms.vlb * len(sde.betas) / 1000
        elif kind == "loss" and how.endswith("MSE") and not hybrid:
            found = DDPM("simple", variance).terms(score, x0, step, noise).loss
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=0, msg=answer)


def test_the_decoder_is_exact_where_the_published_one_is_not():
    """By the tanh a bin is right to 1e-4 at the mean, and off by a third four standard deviations away."""
    spec, std = DataSpec((1,), levels=256, dequantize=False), torch.tensor(0.02, dtype=torch.float64)
    level, x = torch.tensor([[130]]), centres(torch.tensor([[130]]), spec)
    wrong = []
    for away in (0.0, 4.0):
        mean = x + away * std
        exact = discretized_gaussian(level, mean, std, spec)
        above, below = (Normal(mean, std).cdf(x + shift) for shift in (1 / 255, -1 / 255))
        torch.testing.assert_close(exact.exp(), above - below, rtol=1e-9, atol=0)
        wrong.append(abs(tanh_decoder(x)(level, mean, std, spec) - exact).item())
    assert wrong[0] < 1e-4
    assert 0.1 < wrong[1] < 1


def test_loss_aware_steps_of_the_published_code():
    given, rule = reference.arrays("loss_aware"), LossAwareSteps()
    state, weights = rule.begin(20), []
    for ts, losses in zip(given["ts"], given["losses"], strict=True):
        state = rule.learn(state, ts, losses)
        weights.append(rule.probabilities(state) * (20 if (state["counts"] < 10).any() else 1))
    expected = given["weights"]
    torch.testing.assert_close(torch.stack(weights)[given["updates"]], expected, rtol=1e-12, atol=0)
    assert torch.equal(state["counts"], given["counts"])
    torch.testing.assert_close(rule.probabilities(state), given["p"], rtol=1e-12, atol=0)
    step, weight = rule.sample(given["sample_uniforms"], 20, state)
    assert torch.equal(step, given["sample_indices"])
    torch.testing.assert_close(weight, given["sample_weights"], rtol=1e-12, atol=0)


# loss-aware steps


def test_losses_of_one_step_many_times_in_a_batch_are_the_last_ones_in_their_order():
    rule = LossAwareSteps(history=3)
    step, loss = torch.tensor([1, 0, 1, 1, 1, 0, 2]), torch.arange(7.0)
    whole = rule.learn(rule.begin(3), step, loss)
    assert whole["losses"].tolist() == [[1.0, 5.0, 0.0], [2.0, 3.0, 4.0], [6.0, 0.0, 0.0]]
    assert whole["counts"].tolist() == [2, 3, 1]
    one_by_one = rule.begin(3)
    for i in range(7):
        one_by_one = rule.learn(one_by_one, step[i : i + 1], loss[i : i + 1])
    torch.testing.assert_close(one_by_one, whole)


def test_loss_aware_weights_leave_the_mean_where_it_is():
    """The sum of p weight loss over all steps is the mean of the losses, and the variance is below that of uniform steps."""
    rule, losses = LossAwareSteps(history=2), torch.tensor([1.0, 10.0, 0.1, 3.0], dtype=torch.float64)
    state = rule.begin(4)
    for _ in range(2):
        state = rule.learn(state, torch.arange(4), losses)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    step, weight = rule.sample(u, 4, state)
    seen = weight * losses[step]
    assert seen.mean().item() == pytest.approx(losses.mean().item(), rel=1e-4)
    assert seen.std() < 0.01 * losses.std()
    assert set(step.tolist()) == {0, 1, 2, 3}
    assert torch.equal(rule.sample(u, 4, rule.begin(4))[0].bincount(), torch.full((4,), 50_000))


def test_an_objective_learns_the_losses_of_its_steps():
    objective, model = DDPM(times="loss_aware", steps=5), mixture((2,), torch.float32).score(VPSDE())
    state = objective.begin(model)
    batch = Batch(torch.randn(300, 2))
    plain = objective(model, batch, Draws(0, 0, 300), state)
    after = objective.learn(state, plain.observed)
    assert (after["counts"] == 10).all()
    terms = objective(model, batch, Draws(0, 1, 300), after)
    weight = (terms.loss / terms.observed["loss"]).double()
    p = objective.times.probabilities(after)
    torch.testing.assert_close(weight, 1 / (5 * p[terms.observed["step"]]), rtol=1e-5, atol=0)
    torch.testing.assert_close(terms.parts["mse"], terms.loss)
    assert torch.equal(terms.times, objective.chain(model.sde).nodes[terms.observed["step"]])


# the terms in closed form

SDES = {name: SDE_CASES[name] for name in ("vp", "subvp", "ve", "ddpm")} | {"respaced": ddpm_schedule(100).respaced("7,5")}
SHAPES = [(5,), (2, 3), (1, 2, 3), (1, 2, 2, 2)]


def drawn(sde, shape, count=6):
    """Data, noise and x_t at random steps of a chain, that of its table or of 40 steps, in float64."""
    chain = DDPM(steps=40).chain(sde)
    x0, noise = torch.randn(2, count, *shape, dtype=torch.float64) / 2
    step = torch.randint(1, len(chain.nodes), (count,))
    return chain, x0, noise, step, sde.perturb(x0, chain.nodes[step], noise)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_error_is_that_of_the_target_of_the_parameterization(sde, shape):
    chain, x0, noise, step, x = drawn(sde, shape)
    t, s = chain.nodes[step], chain.nodes[step - 1]
    alpha, sigma, a = (expand(value, x) for value in (sde.alpha(t), sde.sigma(t), sde.alpha(t) / sde.alpha(s)))
    beta = sigma**2 - (a * expand(sde.sigma(s), x)) ** 2
    spread = (sigma**2 + (0.7 * alpha) ** 2).sqrt()
    slopes = (expand(torch.autograd.functional.jvp(part, t, torch.ones_like(t))[1], x) for part in (sde.alpha, sde.sigma))
    targets = {
        "score": -noise / sigma,
        "ncsn": -noise,
        "epsilon": noise,
        "x0": x0,
        "v": alpha * noise - sigma * x0,
        "edm": (x0 - 0.49 * alpha / spread**2 * x) / (sigma * 0.7 / spread),
        "mu_respaced": (a * expand(sde.sigma(s), x) ** 2 * x + expand(sde.alpha(s), x) * beta * x0) / sigma**2,
        "velocity": sum(slope * value for slope, value in zip(slopes, (x0, noise), strict=True)),
    }
    if not getattr(sde, "original", ()):  # of a respaced chain, mu is a step of another one
        targets["mu"] = targets["mu_respaced"]
    assert set(targets) | {"mu"} == set(TABLE)
    output = torch.randn_like(x)
    for parameterization, target in targets.items():
        if parameterization.startswith("mu") and not isinstance(sde, TabulatedSDE):
            continue
        model = stored(output, sde, DataSpec(shape), parameterization=parameterization, sigma_data=0.7)
        terms = DDPM("simple", steps=40).terms(model, x0, step, noise)
        expected = ((output - target) ** 2).reshape(len(x), -1).mean(1)
        torch.testing.assert_close(terms.mse, expected, rtol=1e-7, atol=0, msg=parameterization)
        torch.testing.assert_close(terms.loss, terms.mse)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variance", VARIANCES.values())
def test_a_term_is_the_divergence_of_two_gaussians(variance, shape):
    sde, spec = SDES["respaced"], DataSpec(shape)
    chain, x0, noise, step, x = drawn(sde, shape)
    t, s = chain.nodes[step], chain.nodes[step - 1]
    betas = expand(torch.tensor(sde.betas, dtype=torch.float64)[step], x)
    kept = [expand(sde.alpha(time) ** 2, x) for time in (s, t)]
    small = (1 - kept[0]) / (1 - kept[1]) * betas
    mean = kept[0].sqrt() * betas / (1 - kept[1]) * x0 + (1 - betas).sqrt() * (1 - kept[0]) / (1 - kept[1]) * x
    output, extra = torch.randn(2, *x.shape, dtype=torch.float64)
    share = (extra + 1) / 2
    spread = {
        "beta": betas.expand_as(x),
        "beta_tilde": small.expand_as(x),
        "learned": extra.exp(),
        "learned_range": betas**share * small ** (1 - share),
    }[variance]
    learned = variance.startswith("learned")
    model = stored(torch.cat([output, extra], 1) if learned else output, sde, spec, variance=variance)
    terms = DDPM("vlb", variance).terms(model, x0, step, noise)
    guess = (x - betas / (1 - kept[1]).sqrt() * output) / (1 - betas).sqrt()
    divergence = kl_divergence(Normal(mean, small.sqrt().expand_as(x)), Normal(guess, spread.sqrt())).reshape(len(x), -1)
    torch.testing.assert_close(terms.vlb, divergence.mean(1) / math.log(2), rtol=1e-8, atol=0)
    torch.testing.assert_close(terms.loss, len(sde.betas) * terms.vlb)
    if variance == "beta_tilde":  # Ho et al. 2020, Eq. 12, without a constant
        weight = (betas**2 / (2 * small * (1 - betas) * (1 - kept[1]))).reshape(len(x), -1)[:, 0]
        torch.testing.assert_close(terms.vlb * math.log(2), weight * terms.mse)


@dataclass(frozen=True, eq=False)
class Watched:
    """A score with a learned variance that keeps the states and times at which it was asked."""

    inner: object
    data: DataSpec
    seen: list
    dtype = torch.float64

    @property
    def sde(self):
        return self.inner.sde

    def __call__(self, x, t, cond=None):
        self.seen.append((x, t))
        return self.inner(x, t, cond)

    def score_and_variance(self, x, t, ends, cond=None):
        low, high = (expand(end, x) for end in ends)
        return self(x, t, cond), low + torch.sigmoid(x) * (high - low)


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize(("trained", "variance"), [("beta", "beta"), ("beta_tilde", "beta_tilde"), ("learned", "learned")])
def test_the_terms_of_all_steps_are_the_discrete_bound(trained, variance, dequantize):
    sde, spec = VPSDE(), DataSpec((2, 3), levels=6, dequantize=dequantize)
    model = Watched(mixture((2, 3)).score(sde), spec, [])
    values = torch.randint(0, 6, (4, 2, 3))
    record = discrete_bound(model, values, steps=12, variance=variance)
    x0, objective = centres(values, spec), DDPM("vlb", trained, steps=12)
    nodes, total = objective.chain(sde).nodes, torch.zeros(4, dtype=torch.float64)
    for x, t in list(model.seen):
        step = (nodes[:, None] - t.double()).abs().argmin(0)
        noise = (x - expand(sde.alpha(t), x) * x0) / expand(sde.sigma(t), x)
        total += objective.terms(model, x0, step, noise).vlb
    expected = torch.tensor(record.per_sample, dtype=torch.float64)
    prior = (x0**2).flatten(1).sum(1) * (sde.alpha(sde.T) / sde.sigma(sde.T)).double() ** 2 / 2 / (6 * math.log(2))
    torch.testing.assert_close(total + prior, expected, rtol=1e-6, atol=0)


def test_the_last_term_of_continuous_data_is_a_density():
    sde = SDE_CASES["ddpm"]
    x0, noise, output, extra = torch.randn(4, 6, 2, 3, dtype=torch.float64) / 2
    model = stored(torch.cat([output, extra], 1), sde, DataSpec((2, 3)), parameterization="x0", variance="learned")
    terms = DDPM("vlb", "learned").terms(model, x0, torch.zeros(6, dtype=torch.int64), noise)
    expected = -Normal(output, (extra / 2).exp()).log_prob(x0).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(terms.vlb, expected)


def test_small_steps_give_the_bound_in_continuous_time():
    """Of the score 0 the error of the noise is the noise: half the range of the log-SNR, approached like 1 / N."""
    sde, spec, off = VPSDE(), DataSpec((400,)), []
    for steps in (50, 200, 800):
        objective, step = DDPM("vlb", steps=steps), torch.arange(steps // 10, steps)  # from t = 0.1 on
        nodes = objective.chain(sde).nodes
        noise = torch.randn(len(step), 400, dtype=torch.float64)
        noise = noise / noise.square().mean(1, keepdim=True).sqrt()  # whose mean square is 1 to the last digit
        model = stored(torch.zeros_like(noise), sde, spec, parameterization="score")
        found = objective.terms(model, torch.zeros_like(noise), step, noise).vlb.sum().item() * math.log(2)
        off.append(found / ((sde.log_snr(0.1) - sde.log_snr(nodes[-1])) / 2).item() - 1)
    assert off[0] / off[1] == pytest.approx(4, rel=0.1)
    assert off[1] / off[2] == pytest.approx(4, rel=0.1)
    assert 0 < off[2] < 0.01


# minimizers


@pytest.mark.parametrize("spread", [1.0, 0.5, 0.0], ids=["standard normal", "normal", "point"])
def test_the_best_learned_variance_of_gaussian_data(spread):
    """Var(x_s | x_t) by conditioning in the joint Gaussian: beta for N(0, 1), beta_tilde for a point."""
    sde, count = ddpm_schedule(20, 1e-3, 0.3, t_min=1e-3), 50_000
    chain = Chain(sde, chain_nodes(sde))
    step = torch.tensor(9)
    before, after = ((sde.alpha(t) * spread) ** 2 + sde.sigma(t) ** 2 for t in (chain.nodes[8], chain.nodes[9]))
    best = (before - (1 - sde.betas[9]) * before**2 / after).log()
    low, high = chain.variance_ends(step)
    if spread in (0.0, 1.0):
        torch.testing.assert_close(best, high if spread else low)
    x0, noise = spread * torch.randn(count, 1, dtype=torch.float64), torch.randn(count, 1, dtype=torch.float64)
    x = sde.perturb(x0, chain.nodes[9].expand(count), noise)
    score = -x / after
    for off in (-0.2, 0.0, 0.2):
        output = torch.cat([score, torch.full_like(x, best + off)], 1)
        model = stored(output, sde, DataSpec((1,)), parameterization="score", variance="learned")
        DDPM("vlb", "learned").terms(model, x0, step.expand(count), noise).vlb.sum().backward()
        slope = model.network.output.grad[:, 1]
        error = (slope.std() / count**0.5).item()
        assert abs(slope.mean().item()) <= 4 * error + 1e-12 if off == 0 else slope.mean().item() * off > 4 * error


@dataclass(frozen=True, eq=False)
class Known:
    """A score that knows its data."""

    inner: object
    data: DataSpec
    factor: float

    @property
    def sde(self):
        return self.inner.sde

    def __call__(self, x, t, cond=None):
        return self.factor * self.inner(x, t, cond)


@pytest.mark.parametrize("loss", ["simple", "vlb"])
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
@pytest.mark.quick("beta_tilde")
def test_the_minimizer_is_the_score(loss, variance):
    """On Gaussian data the slope along multiples of the exact score vanishes there, and nowhere else."""
    truth = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.5, 0.2]], dtype=torch.float64))
    x0, noise = truth.sample(8000).double(), torch.randn(8000, 2, dtype=torch.float64)
    step = torch.randint(0, 30, (8000,))
    objective, slopes = DDPM(loss, variance, steps=30), {}
    for factor in (0.7, 1.0, 1.3):
        ends = [
            objective.terms(Known(truth.score(VPSDE()), DataSpec((2,)), factor + by), x0, step, noise).loss
            for by in (1e-3, -1e-3)
        ]
        slopes[factor] = (ends[0] - ends[1]) / 2e-3
    error = {factor: slope.std() / 8000**0.5 for factor, slope in slopes.items()}
    assert abs(slopes[1.0].mean()) < 4 * error[1.0]
    assert slopes[0.7].mean() < -4 * error[0.7]
    assert slopes[1.3].mean() > 4 * error[1.3]


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_the_gradient_of_hybrid(variance):
    """Of the mean that of simple, of the variance 0.001 N times the bound's; the bound itself detaches nothing."""
    sde, spec = SDE_CASES["ddpm"], DataSpec((2, 3), levels=5)
    output, x0 = torch.randn(6, 4, 3, dtype=torch.float64), centres(torch.randint(0, 5, (6, 2, 3)), spec)
    step, noise = torch.arange(6), torch.randn_like(x0)
    gradients = {}
    for loss in ("simple", "vlb", "hybrid"):
        objective = DDPM(loss) if loss == "simple" else DDPM(loss, variance)
        model = stored(output.clone(), sde, spec, variance=variance)
        objective.terms(model, x0, step, noise).loss.sum().backward()
        gradients[loss] = model.network.output.grad.chunk(2, 1)
    torch.testing.assert_close(gradients["hybrid"][0], gradients["simple"][0])
    torch.testing.assert_close(gradients["hybrid"][1], 0.001 * gradients["vlb"][1])
    assert not gradients["simple"][1].any()
    assert (gradients["vlb"][0].flatten(1).norm(dim=1) > 0).all()
    assert (gradients["vlb"][1].flatten(1).norm(dim=1) > 0).all()


# what does not go together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, "unknown loss 'mse'; choose one of simple, vlb, hybrid"),
        ({"variance": "small"}, "choose one of beta_tilde, beta, learned_range, learned"),
        ({"variance": "learned"}, "no bound would train variance learned: take loss vlb or hybrid"),
        ({"times": "often"}, "unknown times 'often'; choose one of uniform, loss_aware"),
    ],
)
def test_losses_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DDPM(**options)


@pytest.mark.parametrize("options", [{"history": 0}, {"uniform": 0.0}, {"uniform": 1.5}])
def test_loss_aware_steps_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LossAwareSteps(**options)


def test_a_model_that_lacks_what_is_trained_is_refused_before_the_first_step():
    spec, x = DataSpec((2,)), torch.zeros(3, 2)
    plain, ranged = stored(x, VPSDE(), spec), stored(torch.zeros(3, 4), VPSDE(), spec, variance="learned_range")
    with pytest.raises(ValueError, match="variance learned_range needs a network with learned_variance=True"):
        DDPM("hybrid", "learned_range").begin(plain)
    with pytest.raises(ValueError, match="trains the variance learned, and the model reads its output as learned_range"):
        DDPM("vlb", "learned").begin(ranged)
    for score in (ranged, ClippedScore(ranged, -1.0, 1.0)):
        with pytest.raises(ValueError, match="give both the same variance"):
            DDPM("vlb", "learned").terms(score, x, torch.zeros(3, dtype=torch.int64), x)
    with pytest.raises(ValueError, match="the loss vlb needs to know the data"):
        DDPM("vlb").begin(mixture((2,)).score(VPSDE()))
    with pytest.raises(ValueError, match="mu is the mean of a step of a table of betas, and VPSDE has none"):
        stored(x, VPSDE(), spec, parameterization="mu")
    assert not DDPM("simple").begin(plain)


# training


class Small(nn.Module):
    """Two outputs for each coordinate of a vector, the second for its variance; or one."""

    def __init__(self, learned_variance):
        super().__init__()
        self.learned_variance = learned_variance
        self.layers = nn.Sequential(
            nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 4 if learned_variance else 2)
        )

    def forward(self, x, t, cond=None):
        return self.layers(torch.cat([x, t.to(x)[:, None]], 1))


TABLE_2 = [
    (mean, loss) for mean in ("epsilon", "mu") for loss in (("vlb", "learned_range"), ("vlb", "beta"), ("simple", "beta"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("parameterization", "how"), TABLE_2, ids=str)
def test_every_cell_of_the_table_of_ddpm_is_trained(parameterization, how):
    """Ho et al. 2020, Table 2: the mean or the noise is predicted, by the bound or by the squared error.

    The error of the score is a small share of the score itself, whose mean square is 0.62 here; the mean magnifies it.
    """
    sde, truth, objective = ddpm_schedule(20, 1e-2, 0.3, t_min=0.01), mixture((2,)), DDPM(*how)
    torch.manual_seed(0)
    model = ScoreModel(
        Small(objective.trains_variance), sde, DataSpec((2,)), parameterization=parameterization, time_input="time"
    )
    optimizer = torch.optim.Adam(model.parameters())
    data = truth.sample(20_000, seed=1).float()
    for i in range(1500):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - i / 1500)
        rows = torch.randint(0, 20_000, (256,))
        loss = objective(model, Batch(data[rows]), Draws(0, i, 256), {}).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    step = torch.arange(20).repeat(200)
    t = chain_nodes(sde)[step]
    x = sde.perturb(truth.sample(4000, seed=2), t, torch.randn(4000, 2, dtype=torch.float64))
    with torch.no_grad():
        off = expand(sde.sigma(t), x) * (model(x, t) - truth.score(sde)(x, t))
    assert off.square().mean() < {"epsilon": 0.04, "mu": 0.12}[parameterization]


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (torch.tensor([-1, 0]), "steps are counted from 0 to 999, got -1 to 0"),
        (torch.tensor([0, 1000]), "got 0 to 1000"),
        (torch.tensor([0, 1], dtype=torch.uint8), r"int64 of shape \(2,\), got torch.uint8"),
        (torch.tensor(1), r"got torch.int64 of shape \(\)"),
        ([0, 1], "got list"),
    ],
)
def test_what_is_no_step_is_refused(step, match):
    model = mixture((2,), torch.float64).score(ddpm_schedule())
    with pytest.raises(ValueError, match=match):
        DDPM().terms(model, torch.zeros(2, 2, dtype=torch.float64), step, torch.zeros(2, 2, dtype=torch.float64))


def test_integers_are_no_data_in_model_coordinates():
    model = mixture((2,), torch.float64).score(ddpm_schedule())
    with pytest.raises(ValueError, match="x0"):
        DDPM().terms(model, torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2))
