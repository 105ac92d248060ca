"""Parameterizations, the model, its loss and its times, each against an answer that does not use their formulas."""

import math

import pytest
import torch
from torch import nn

from score_sde import DDIM, VPSDE, DataSpec, GaussianMixture, ScoreModel, StraightSDE, encode
from score_sde.networks import MLP, UNet
from score_sde.objectives import WEIGHTINGS, denoising_score_matching
from score_sde.parameterization import PARAMETERIZATIONS, TIME_INPUTS
from score_sde.sdes import ddpm_schedule
from score_sde.tensors import expand, generator
from score_sde.time_sampling import TIMES
from tests.oracles import SDE_CASES, autograd_score, mixture


class Oracle(nn.Module):
    """A network that returns whatever it was given."""

    def __init__(self, output):
        super().__init__()
        self.output, self.unused = output, nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.seen = None

    def forward(self, x, noise, cond=None):
        self.seen = (x, noise, cond)
        return self.output


def target(name, sde, x0, epsilon, t, sigma_data):
    """What a perfect network of each parameterization returns, from its definition."""
    alpha, sigma = expand(sde.alpha(t), x0), expand(sde.sigma(t), x0)
    if name == "score":
        return -epsilon / sigma
    if name == "ncsn":
        return -epsilon
    if name == "epsilon":
        return epsilon
    if name == "x0":
        return x0
    if name == "v":
        return alpha * epsilon - sigma * x0
    if name.startswith("mu"):  # the mean one step of the table before t (Ho et al. 2020, Eq. 7)
        earlier = expand((t - 1 / len(sde.betas)).clamp_min(0), x0)
        a, sigma_s, alpha_s = alpha / sde.alpha(earlier), sde.sigma(earlier), sde.alpha(earlier)
        x = alpha * x0 + sigma * epsilon
        return (a * sigma_s**2 * x + alpha_s * (sigma**2 - a**2 * sigma_s**2) * x0) / sigma**2
    if name == "velocity":
        slopes = (expand(torch.autograd.functional.jvp(part, t, torch.ones_like(t))[1], x0) for part in (sde.alpha, sde.sigma))
        return sum(slope * value for slope, value in zip(slopes, (x0, epsilon), strict=True))
    # Karras et al. 2022, Table 1, for the variance-exploding process of x / alpha with noise s
    s, y = sigma / alpha, (alpha * x0 + sigma * epsilon) / alpha
    c_skip = sigma_data**2 / (s**2 + sigma_data**2)
    c_out = s * sigma_data / (s**2 + sigma_data**2).sqrt()
    return (x0 - c_skip * y) / c_out


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("event", [(2,), (3, 4), (1, 4, 4), (1, 2, 3, 2)])
def test_a_perfect_network_gives_the_score(name, event, sde):
    sde = SDE_CASES["ddpm"] if name.startswith("mu") else sde  # which needs a table
    x0, epsilon = torch.randn(2, 5, *event, dtype=torch.float64)
    t = torch.tensor([sde.t_min, 0.01, 0.2, 0.6, sde.T], dtype=torch.float64)
    x = sde.perturb(x0, t, epsilon)
    network = Oracle(target(name, sde, x0, epsilon, t, 0.7))
    model = ScoreModel(network, sde, DataSpec(event), parameterization=name, sigma_data=0.7)
    torch.testing.assert_close(model(x, t) * expand(sde.sigma(t), x), -epsilon, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_the_target_of_a_network_follows_from_the_coefficients(name, sde):
    """F = -(a x + epsilon / sigma) / b, which is what is predicted, by its definition."""
    sde = SDE_CASES["ddpm"] if name.startswith("mu") else sde  # which needs a table
    x0, epsilon = torch.randn(2, 4, 3, dtype=torch.float64)
    t = torch.tensor([0.01, 0.2, 0.6, 0.9], dtype=torch.float64)
    a, b, _ = (expand(value, x0) for value in PARAMETERIZATIONS[name](sde, t, 0.7))
    found = -(a * sde.perturb(x0, t, epsilon) + epsilon / expand(sde.sigma(t), x0)) / b
    torch.testing.assert_close(found, target(name, sde, x0, epsilon, t, 0.7), rtol=1e-5, atol=1e-5)


def test_the_mean_of_a_step_is_that_of_the_chain_it_was_trained_on_or_of_the_respaced_one_by_name():
    """Ho et al. 2020, Eq. 7, with a and beta of the step from 0.29 to 0.3, and of that from the kept node below."""
    whole = ddpm_schedule(steps=100)
    sde = whole.respaced("10")
    t = sde.nodes()[3:4]
    x0, epsilon = torch.randn(2, 1, 5, dtype=torch.float64)
    x = sde.perturb(x0, t, epsilon)
    for name, s in (("mu", t - 0.01), ("mu_respaced", sde.nodes()[2:3])):
        a = whole.alpha(t) / whole.alpha(s)
        beta = whole.sigma(t) ** 2 - (a * whole.sigma(s)) ** 2
        mean = (a * whole.sigma(s) ** 2 * x + whole.alpha(s) * beta * x0) / whole.sigma(t) ** 2
        score = ScoreModel(Oracle(mean), sde, DataSpec((5,)), parameterization=name)(x, t)
        torch.testing.assert_close(score, -epsilon / sde.sigma(t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("steps", "dtype"), [(100, torch.float64), (1000, torch.float32), (4000, torch.float64)])
def test_labels_of_steps_are_whole(steps, dtype):
    """A network may look them up in a table of its own."""
    t = ddpm_schedule(steps=steps).nodes().to(dtype)
    assert torch.equal(TIME_INPUTS["step"](VPSDE(), t, steps).long(), torch.arange(steps))


def test_a_network_without_weights_is_given_the_states_as_they_are():
    class Unweighted(nn.Module):
        def forward(self, x, noise):
            return x

    t, x = torch.full((4,), 0.5, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    counting = Unweighted()
    counting.register_buffer("count", torch.arange(3))
    for network in (Unweighted(), counting):
        model = ScoreModel(network, VPSDE(), DataSpec((2,)), parameterization="score")
        torch.testing.assert_close(model(x, t), x, rtol=1e-15, atol=1e-15)


def test_velocity_is_the_noise_minus_the_data_on_the_straight_path():
    t = torch.tensor([1e-3, 0.3, 0.999], dtype=torch.float64)
    a, b, _ = PARAMETERIZATIONS["velocity"](StraightSDE(), t, 0.5)
    torch.testing.assert_close(a, -1 / t)
    torch.testing.assert_close(b, -(1 - t) / t)


def test_v_is_that_of_the_field_for_every_sde(sde):
    """a = -1/(alpha^2 + sigma^2), b = -alpha/(sigma (alpha^2 + sigma^2)), also where alpha^2 + sigma^2 is not 1."""
    t = torch.tensor([0.01, 0.5, 1.0], dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    a, b, _ = PARAMETERIZATIONS["v"](sde, t, 0.5)
    torch.testing.assert_close(a, -1 / (alpha**2 + sigma**2))
    torch.testing.assert_close(b, -alpha / (sigma * (alpha**2 + sigma**2)))


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_input_of_the_network_has_unit_scale(name, sde):
    """c_in x has variance 1 for data of the assumed variance: sigma_data^2 for edm, 1 for the others."""
    sde = SDE_CASES["ddpm"] if name.startswith("mu") else sde
    variance = 0.09 if name == "edm" else 1.0
    t = torch.full((20000,), 0.7, dtype=torch.float64)
    x = sde.perturb(variance**0.5 * torch.randn(20000, 1, dtype=torch.float64), t, torch.randn(20000, 1, dtype=torch.float64))
    network = Oracle(x)
    ScoreModel(network, sde, DataSpec((1,)), parameterization=name, sigma_data=0.3)(x, t)
    assert network.seen[0].var().item() == pytest.approx(1, rel=5 * (2 / 20000) ** 0.5)


def test_epsilon_input_is_untouched_under_vp():
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 1e-3
    network = Oracle(x)
    ScoreModel(network, ddpm_schedule(), DataSpec((2,)))(x, t.clamp_max(1))
    torch.testing.assert_close(network.seen[0], x, rtol=1e-12, atol=0)


def nearest(sde, t, labels):
    """The step whose noise level is nearest; the level before the first step counts as one, -1."""
    ends = torch.arange(labels + 1, dtype=torch.float64) / labels * sde.T
    return (sde.noise_level(t)[:, None] - sde.noise_level(ends)).abs().argmin(dim=1).double() - 1


def test_time_inputs(sde):
    share = torch.tensor([0.02, 0.5, 1.0], dtype=torch.float64)
    t = share * sde.T
    ratio = sde.sigma(t) / sde.alpha(t)
    wanted = {
        "label": 999 * share,
        "reversed": 999 - 999 * share,
        "step": 1000 * share - 1,
        "rescaled_step": 1000 * share - 1,
        "nearest_step": nearest(sde, t, 1000),
        "time": t,
        "sigma": sde.sigma(t),
        "log_half_sigma": sde.sigma(t).log() - math.log(2),
        "log_snr": -2 * ratio.log(),
        "edm": ratio.log() / 4,
        "none": torch.ones_like(t),
    }
    assert set(wanted) == set(TIME_INPUTS)
    for name, value in wanted.items():
        torch.testing.assert_close(TIME_INPUTS[name](sde, t, 1000), value)


def test_labels_count_the_steps_of_the_discrete_chains():
    """Row k of a table of N betas, and level j of N falling sigmas, are met at whole labels."""
    table = ddpm_schedule(steps=20, beta_end=0.3)
    k = torch.arange(20, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - torch.tensor(table.betas, dtype=torch.float64), 0)
    t = (k + 1) / 20
    torch.testing.assert_close(table.alpha(t) ** 2, alpha_bar)
    torch.testing.assert_close(TIME_INPUTS["step"](table, t, 20), k)
    torch.testing.assert_close(TIME_INPUTS["rescaled_step"](table, t, 20), 50 * k)
    ve = SDE_CASES["ve"]
    sigmas = torch.logspace(math.log10(ve.sigma_max), math.log10(ve.sigma_min), 20, dtype=torch.float64)
    t = 1 - k / 19
    torch.testing.assert_close(ve.sigma(t), sigmas)
    torch.testing.assert_close(TIME_INPUTS["reversed"](ve, t, 20), k)


def test_a_network_of_raw_inputs_sees_them(sde):
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    network = Oracle(torch.randn(3, 2, dtype=torch.float64))
    raw = ScoreModel(network, sde, DataSpec((2,)), scale_input=False)
    found = raw(x, t)
    torch.testing.assert_close(network.seen[0], x, rtol=0, atol=0)
    torch.testing.assert_close(found, ScoreModel(network, sde, DataSpec((2,)))(x, t))  # a and b do not change


def test_a_learned_variance_is_the_second_half_of_the_output(sde):
    """v = -1 is the smaller variance, v = 1 the larger one (Nichol and Dhariwal 2021, Eq. 15), or it is log Sigma itself."""
    output = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    x, t = torch.randn(3, 2, 5, 5, dtype=torch.float64), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    network = Oracle(output)
    network.learned_variance = True
    model = ScoreModel(network, sde, DataSpec((2, 5, 5)))
    without = ScoreModel(Oracle(output[:, :2]), sde, DataSpec((2, 5, 5)))
    ends = torch.tensor([-5.0, -4.0, -3.0]).double(), torch.tensor([-3.0, -3.5, -3.0]).double()
    score, log_variance = model.score_and_variance(x, t, ends)
    torch.testing.assert_close(score, without(x, t))
    torch.testing.assert_close(model(x, t), score)
    share = (output[:, 2:] + 1) / 2
    torch.testing.assert_close(log_variance[0], -5 + 2 * share[0])
    torch.testing.assert_close(log_variance[1], -4 + 0.5 * share[1])
    torch.testing.assert_close(log_variance[2], torch.full_like(share[2], -3.0))
    itself = ScoreModel(network, sde, DataSpec((2, 5, 5)), variance="learned")
    torch.testing.assert_close(itself.score_and_variance(x, t, ends), (score, output[:, 2:]))
    with pytest.raises(TypeError, match="no learned variance"):
        without.score_and_variance(x, t, ends)
    with pytest.raises(ValueError, match="unknown variance 'log'; choose one of learned_range, learned"):
        ScoreModel(network, sde, DataSpec((2, 5, 5)), variance="log")


@pytest.mark.parametrize("variance", ["learned_range", "learned"])
def test_a_learned_variance_is_as_precise_as_the_ends_of_each_sample(variance):
    network = Oracle(torch.randn(3, 4))
    network.learned_variance = True
    model = ScoreModel(network, SDE_CASES["vp"], DataSpec((2,)), variance=variance)
    x, t = torch.randn(3, 2), torch.full((3,), 0.5)
    for shape, dtype in (((3,), torch.float64), ((), torch.float32)):
        ends = torch.full(shape, -2.0, dtype=torch.float64), torch.full(shape, -1.0, dtype=torch.float64)
        score, log_variance = model.score_and_variance(x, t, ends)
        assert (score.dtype, log_variance.dtype) == (torch.float32, dtype)


def test_bfloat16_output_is_combined_in_float32():
    network = Oracle(torch.full((2, 3), 1.0, dtype=torch.bfloat16))
    x = torch.randn(2, 3)
    score = ScoreModel(network, SDE_CASES["vp"], DataSpec((3,)))(x, torch.tensor([1e-3, 0.5]))
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, -1 / SDE_CASES["vp"].sigma(torch.tensor([[1e-3], [0.5]])).expand(2, 3))


def test_states_in_another_dtype_than_the_network():
    """A float32 network under a float64 or a bfloat16 state: it sees its own dtype, the state keeps its own."""
    for network in (MLP((3,), width=8), UNet((3, 8), width=8, multipliers=(1,), attention=())):
        model = ScoreModel(network, SDE_CASES["vp"], DataSpec(network.event))
        x = torch.randn(2, *model.event, dtype=torch.float64)
        t = torch.tensor([0.2, 0.7], dtype=torch.float64)
        nn.init.normal_(list(network.parameters())[-2])
        x, t = x.bfloat16().double(), t.bfloat16().double()  # the same numbers in every dtype
        double, single, half = (model(x.to(d), t.to(d)) for d in (torch.float64, torch.float32, torch.bfloat16))
        assert (double.dtype, half.dtype) == (torch.float64, torch.bfloat16)
        torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(half.float(), single, rtol=0.01, atol=1e-4)


def test_conditions_by_their_names_reach_the_network_from_everywhere():
    """A network of two conditions, told by their names, is that of their sum, told as one: sampled, encoded, and trained."""

    class Told(nn.Module):
        def forward(self, x, noise, cond):
            return 0.3 * x + (cond["shift"] + cond["more"] if isinstance(cond, dict) else cond)

    sde, data = SDE_CASES["vp"], DataSpec((2,), data_range=(-4.0, 4.0))
    model = ScoreModel(Told(), sde, data)
    named = {"shift": torch.randn(3, 2, generator=generator(0)), "more": torch.randn(3, 2, generator=generator(1))}
    one = named["shift"] + named["more"]
    x, t = torch.randn(3, 2, generator=generator(2)), torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(model(x, t, named), model(x, t, one))
    solver, options = DDIM(steps=5), {"seed": 1, "clip": (-5.0, 5.0), "denoise": True}
    drawn = [solver.sample(model, (3, 2), cond=cond, **options).x for cond in (named, one)]
    assert torch.equal(*drawn)
    assert torch.equal(encode(model, x, solver, cond=named), encode(model, x, solver, cond=one))
    losses = [denoising_score_matching(model, x, t, torch.ones(3, 2), cond=cond) for cond in (named, one)]
    assert torch.equal(*losses)
    with pytest.raises(ValueError, match="one condition for each of 3 samples"):
        solver.sample(model, (3, 2), cond={**named, "more": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"classes": 3}, "classes must be integers"),
        ({"cond_shape": (2,)}, r"must have the shape \(3, 2\), got {'place': \(3, 2\)}"),
    ],
)
def test_a_network_of_one_condition_refuses_several(stated, told):
    network = MLP((2,), width=8)
    for name, value in stated.items():
        setattr(network, name, value)
    model = ScoreModel(network, SDE_CASES["vp"], DataSpec((2,), data_range=(-4.0, 4.0)))
    with pytest.raises(ValueError, match=told):
        model(torch.zeros(3, 2), torch.full((3,), 0.5), {"place": torch.zeros(3, 2)})


def test_condition_is_passed_on():
    network = Oracle(torch.zeros(2, 3))
    cond = torch.tensor([1, 2])
    ScoreModel(network, SDE_CASES["vp"], DataSpec((3,)))(torch.zeros(2, 3), torch.ones(2) / 2, cond)
    assert network.seen[2] is cond


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameterization": "eps"}, "choose one of score, epsilon"),
        ({"time_input": "tim"}, "choose one of label"),
        ({"labels": 1}, "labels must be at least 2"),
        ({"sigma_data": 0.0}, "sigma_data must be positive"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreModel(Oracle(None), SDE_CASES["vp"], DataSpec((2,)), **options)


# the oracle


@pytest.mark.parametrize("event", [(2,), (2, 3), (1, 2, 2), (1, 2, 1, 2)])
def test_mixture_score_is_the_gradient_of_its_density(event, sde):
    score = mixture(event).score(sde)
    t = torch.tensor([sde.t_min, 0.1, 0.5, sde.T], dtype=torch.float64)
    x = sde.perturb(mixture(event).sample(4), t, torch.randn(4, *event, dtype=torch.float64))
    torch.testing.assert_close(score(x, t), autograd_score(score, x, t), rtol=1e-8, atol=1e-8)


def test_mixture_density_agrees_with_torch_distributions(sde):
    truth, t = mixture((3,)), 0.3
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    covariances = truth.basis @ torch.diag_embed(truth.variances) @ truth.basis.mT
    components = torch.distributions.MultivariateNormal(
        alpha * truth.means, alpha**2 * covariances + sigma**2 * torch.eye(3, dtype=torch.float64)
    )
    reference = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(truth.weights), components)
    x = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(truth.score(sde).log_prob(x, t), reference.log_prob(x))


def test_mixture_forms_of_covariance_agree():
    means = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    isotropic = GaussianMixture(means, [0.3, 0.7])
    diagonal = GaussianMixture(means, torch.tensor([0.3, 0.7]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2))
    full = GaussianMixture(means, torch.stack([0.3 * torch.eye(4), 0.7 * torch.eye(4)]))
    x, t = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    scores = [m.score(SDE_CASES["vp"])(x, t) for m in (isotropic, diagonal, full)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores[0], scores[2], rtol=1e-5, atol=1e-6)


def test_a_mixture_goes_to_a_dtype_and_a_device():
    truth, x = mixture(), torch.zeros(1, 2)
    for other in (truth.to(torch.float32), truth.to("cpu", torch.float32), truth.to(dtype=torch.float32)):
        assert other.log_prob(x).dtype == torch.float32
        torch.testing.assert_close(other.log_prob(x).double(), truth.log_prob(x.double()), rtol=1e-5, atol=0)
    assert truth.to("meta").means.device.type == "meta"
    assert truth.to("meta").means.dtype == torch.float64


def test_mixture_samples_have_its_moments():
    truth = mixture((2, 2))
    x = truth.sample(20000).flatten(1)
    standard = truth.covariance().diagonal().sqrt()
    assert ((x.mean(0) - truth.mean().flatten()).abs() < 4 * standard / 20000**0.5).all()
    assert ((x.T.cov() - truth.covariance()).abs() < 6 * standard[:, None] * standard / 20000**0.5).all()


def test_conditional_mixture_score_is_that_of_the_component():
    truth = mixture()
    alone = GaussianMixture(truth.means[1:2], (truth.basis @ torch.diag_embed(truth.variances) @ truth.basis.mT)[1:2])
    x, t = torch.randn(4, 2, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    found = truth.score(SDE_CASES["ve"])(x, t, torch.ones(4))
    torch.testing.assert_close(found, alone.score(SDE_CASES["ve"])(x, t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_covariances_are_accepted(dtype):
    """Data on a subspace, as images with constant pixels are: rounding must not make it a negative variance."""
    for seed in range(20):
        factor = torch.randn(8, 3, generator=generator(seed), dtype=dtype)
        flat = GaussianMixture(torch.zeros(1, 8, dtype=dtype), (factor @ factor.T)[None])
        assert (flat.variances[0] == 0).sum() == 5
        score = flat.score(SDE_CASES["vp"])
        x, t = torch.randn(4, 8, dtype=dtype), torch.full((4,), 0.3, dtype=dtype)
        torch.testing.assert_close(score(x, t), autograd_score(score, x, t), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [1.0, 1.0]), r"\(K, \*D\)"),
        (([[1.0, 2.0]], [[1.0, 1.0, 1.0]]), "covariances must have shape"),
        (([[1.0, 2.0]], [-1.0]), "negative eigenvalues"),
        (([[1.0, 2.0]], [[[1.0, 0.5], [0.0, 1.0]]]), "symmetric"),
        (([[1.0, 2.0]], [1.0], [-1.0]), "non-negative"),
    ],
)
def test_bad_mixtures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


# the loss


class PointScore(nn.Module):
    """score = c x: a linear model whose expected loss is known."""

    def __init__(self, sde, c):
        super().__init__()
        self.sde, self.c, self.sigma_data = sde, c, 0.5

    def forward(self, x, t, cond=None):
        return self.c * x


def test_loss_of_a_linear_model_in_closed_form(sde):
    """For x0 ~ N(0, 1), E (sigma c x + epsilon)^2 = sigma^2 c^2 (alpha^2 + sigma^2) + 2 sigma^2 c + 1."""
    count, t, c = 20000, 0.3, -0.4
    x0, epsilon = torch.randn(2, count, 1, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    model = PointScore(sde, c)
    expected = sigma**2 * c**2 * (alpha**2 + sigma**2) + 2 * sigma**2 * c + 1
    for name, weight in (
        ("sigma2", 1.0),
        ("likelihood", float(sde.diffusion(t)) ** 2 / sigma**2),
        ("edm", ((sigma / alpha) ** 2 + 0.25) / 0.25),
    ):
        times = torch.full((count,), t, dtype=torch.float64)
        values = denoising_score_matching(model, x0, times, epsilon, weighting=WEIGHTINGS[name]())
        assert values.shape == (count,)
        assert abs(values.mean() - weight * expected) < 5 * values.std() / count**0.5


def test_edm_weighting_is_a_unit_weight_on_the_networks_output(sde):
    """The weighted loss equals the squared error of F itself."""
    x0, epsilon = torch.randn(2, 4, 3, dtype=torch.float64)
    t = torch.tensor([0.02, 0.2, 0.5, 0.9], dtype=torch.float64)
    output = torch.randn(4, 3, dtype=torch.float64)
    model = ScoreModel(Oracle(output), sde, DataSpec((3,)), parameterization="edm", sigma_data=0.4)
    error = output - target("edm", sde, x0, epsilon, t, 0.4)
    loss = denoising_score_matching(model, x0, t, epsilon, weighting=WEIGHTINGS["edm"]())
    torch.testing.assert_close(loss, error.square().mean(1))


def test_likelihood_weighting_bounds_the_likelihood():
    """For two scores, half the integrated difference of losses is the difference of KL divergences (Song et al. 2021b, Thm 1).

    With data N(0, 1) under VP, p_t = N(0, 1) at all times. The score c x is exact at c = -1, and the ODE-free bound
    KL <= 1/2 int g^2 E |s - score|^2 dt = (c + 1)^2 / 2 * int beta dt is what the loss must return, minus its value at c = -1.
    """
    sde = SDE_CASES["vp"]
    count = 100000
    random = generator(0)
    t, weight = TIMES["log_snr"]().sample(sde, count, random)
    t, weight = t.double(), weight.double()
    x0, epsilon = torch.randn(2, count, 1, dtype=torch.float64)
    losses = [
        weight * denoising_score_matching(PointScore(sde, c), x0, t, epsilon, weighting=WEIGHTINGS["likelihood"]())
        for c in (-1.0, -0.7)
    ]
    difference = losses[1] - losses[0]
    found = (sde.T - sde.t_min) * difference.mean() / 2
    expected = 0.3**2 / 2 * float(sde.integral(torch.tensor(1.0)))
    assert abs(found - expected) < 5 * float(difference.std()) / 2 / count**0.5


def test_sigma_data_of_one_makes_edm_and_v_agree_under_vp():
    """With sigma_data = 1 and alpha^2 + sigma^2 = 1 the two rows differ by the sign of F alone."""
    sde = SDE_CASES["vp"]
    t = torch.tensor([0.05, 0.5], dtype=torch.float64)
    edm, v = (PARAMETERIZATIONS[name](sde, t, 1.0) for name in ("edm", "v"))
    torch.testing.assert_close(edm.a, v.a)
    torch.testing.assert_close(edm.b, -v.b)
    assert math.isclose(float(edm.c_in[0]), 1.0, rel_tol=1e-9)
