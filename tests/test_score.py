"""Scores made of scores: what is counted, and what is known of them, however they are written."""

import copy
import functools
import threading
import types
import weakref
from collections import UserDict, deque, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from score_sde import DDIM, VESDE, VPSDE, DataSpec, GaussianMixture, Heun, Langevin, PredictorCorrector, ScoreModel
from score_sde.composition import HiddenScore, leaves, modules, parts
from score_sde.data import Moments
from score_sde.likelihood.evaluation import weights_digest
from score_sde.networks import NETWORKS
from score_sde.score import (
    BoundScore,
    ClassScore,
    ClippedScore,
    classes_of,
    counting,
    data_of,
    device_of,
    dtype_of,
    event_of,
    moments_of,
    sigma_data_of,
)

SDE = VPSDE()
STEPS = 5
ENDS = torch.tensor(-3.0), torch.tensor(-1.0)
Pair = namedtuple("Pair", "first second")


def model(dtype=torch.float64, seed=0) -> ScoreModel:
    torch.manual_seed(seed)
    network = NETWORKS["mlp"]((2,), width=8, depth=1).to(dtype)
    found = ScoreModel(network, SDE, DataSpec((2,)), sigma_data=0.7).eval()
    found.moments = Moments(torch.zeros(2), torch.eye(2), None)
    return found


def mixture(dtype=torch.float64):
    return GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=dtype), [0.1, 0.1]).score(SDE)


def guided(one, other, x, t, cond):
    """What every wrapper below computes, with two evaluations."""
    return 2 * one(x, t, cond) - other(x, t, cond)


@dataclass(frozen=True)
class AsDataclass:
    inner: object

    @property
    def sde(self):
        return self.inner.sde

    def __call__(self, x, t, cond=None):
        return guided(self.inner, self.inner, x, t, cond)


class AsClass:
    def __init__(self, inner):
        self.inner, self.sde = inner, inner.sde

    def __call__(self, x, t, cond=None):
        return guided(self.inner, self.inner, x, t, cond)


class AsModule(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.sde = inner, inner.sde

    def forward(self, x, t, cond=None):
        return guided(self.inner, self.inner, x, t, cond)


class Product:
    def __init__(self, a, b):
        self.a, self.b, self.sde = a, b, a.sde

    def __call__(self, x, t, cond=None):
        return guided(self.a, self.b, x, t, cond)


class WithSlots:
    __slots__ = ("_WithSlots__inner", "sde")

    def __init__(self, inner):
        self.__inner, self.sde = inner, inner.sde

    def __call__(self, x, t, cond=None):
        return guided(self.__inner, self.__inner, x, t, cond)


@dataclass(frozen=True, slots=True)
class AsDataclassWithSlots:
    inner: object
    sde: object

    def __call__(self, x, t, cond=None):
        return guided(self.inner, self.inner, x, t, cond)


class Several:
    """Holds its scores in ``held``, in whatever form, and takes two of them by ``chosen``."""

    def __init__(self, held, chosen):
        self.held, self.chosen, self.sde = held, chosen, SDE

    def __call__(self, x, t, cond=None):
        return guided(*self.chosen(self.held), x, t, cond)


class SeveralModules(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held, self.sde = held, SDE

    def forward(self, x, t, cond=None):
        one, other = self.held.values() if isinstance(self.held, nn.ModuleDict) else self.held
        assert len(list(self.modules())) > 3
        assert next(self.parameters()).dtype == x.dtype
        return guided(one, other, x, t, cond)


class ByMethod:
    def __init__(self, inner):
        self.inner, self.sde = inner, inner.sde
        self.evaluate = self._evaluate

    def _evaluate(self, x, t, cond):
        return guided(self.inner, self.inner, x, t, cond)

    def __call__(self, x, t, cond=None):
        return self.evaluate(x, t, cond)


class ByMethodsOfTheInner:
    """Calls the score within by methods of it, which it keeps or takes."""

    def __init__(self, inner):
        self.kept, self.inner, self.sde = inner.__call__, inner, inner.sde

    def __call__(self, x, t, cond=None):
        return guided(self.kept, getattr(self.inner, "forward", self.inner), x, t, cond)


class ByPartial:
    def __init__(self, inner):
        self.evaluate, self.sde = functools.partial(guided, inner, other=inner), inner.sde

    def __call__(self, x, t, cond=None):
        return self.evaluate(x=x, t=t, cond=cond)


class InTheClass:
    sde = SDE

    def __call__(self, x, t, cond=None):
        return guided(self.inner, self.inner, x, t, cond)


class WithParent:
    """A score that refers back to the one in which it lies."""

    def __init__(self, inner):
        self.inner, self.sde, self.parent = inner, inner.sde, None

    def __call__(self, x, t, cond=None):
        return self.parent.weight * self.inner(x, t, cond)


class Parent:
    def __init__(self, inner):
        self.child, self.sde, self.weight = WithParent(inner), inner.sde, 1.0
        self.child.parent = self

    def __call__(self, x, t, cond=None):
        return guided(self.child, self.child, x, t, cond)


class Parallel(nn.Module):
    """Calls the module that it wraps once, as ``nn.DataParallel`` does."""

    def __init__(self, module):
        super().__init__()
        self.module, self.sde = module, SDE

    def forward(self, *inputs):
        return self.module(*inputs)


class Bag:
    """No score itself."""

    def __init__(self, **held):
        vars(self).update(held)


class Once:
    """Calls the score within once."""

    def __init__(self, inner):
        self.inner, self.sde = inner, inner.sde

    def __call__(self, x, t, cond=None):
        return self.inner(x, t, cond)


def in_the_class(score):
    return type("Own", (InTheClass,), {"inner": score})()


def partially(score):
    found = functools.partial(guided, score, score)
    found.sde = score.sde
    return found


def first_two(held):
    return held[0], held[1]


ABOVE = {
    "dataclass": AsDataclass,
    "class": AsClass,
    "module": AsModule,
    "product": lambda score: Product(score, copy.copy(score)),
    "product with itself": lambda score: Product(score, score),
    "slots": WithSlots,
    "dataclass with slots": lambda score: AsDataclassWithSlots(score, score.sde),
    "tuple": lambda score: Several((score, copy.copy(score)), first_two),
    "named tuple": lambda score: Several(Pair(score, copy.copy(score)), first_two),
    "list": lambda score: Several([score, score], first_two),
    "deque": lambda score: Several(deque([score, score]), first_two),
    "dict": lambda score: Several({0: score, 1: copy.copy(score)}, first_two),
    "dict of lists": lambda score: Several({"a": [score], "b": [score]}, lambda held: (held["a"][0], held["b"][0])),
    "mapping": lambda score: Several(types.MappingProxyType({0: score, 1: score}), first_two),
    "user's dict": lambda score: Several(UserDict({0: score, 1: score}), first_two),
    "set": lambda score: Several({score, copy.copy(score)}, tuple),
    "bag": lambda score: Several(Bag(a=score, more=Bag(b=score)), lambda held: (held.a, held.more.b)),
    "partial": partially,
    "partial in an attribute": ByPartial,
    "own method": ByMethod,
    "methods of the score": ByMethodsOfTheInner,
    "attribute of the class": in_the_class,
    "refers back": Parent,
    "clipped": lambda score: ClippedScore(AsClass(score), -1e3, 1e3),
    "around": lambda score: AsClass(Once(AsDataclassOnce(score))),
    "within": lambda score: Once(AsModule(score)),
}
AROUND_MODULES = {
    "parallel": lambda score: AsClass(Parallel(score)),
    "DataParallel": lambda score: Several(nn.DataParallel(score), lambda held: (held, held)),
    "module list": lambda score: SeveralModules(nn.ModuleList([score, copy.deepcopy(score)])),
    "module dict": lambda score: SeveralModules(nn.ModuleDict({"a": score, "b": score})),
}
LEAVES = {
    "mixture": mixture,
    "model": model,
    "foreign module": lambda dtype: ForeignModule(model(dtype).network),
    "foreign class": lambda dtype: Foreign(model(dtype).network),
}
CASES = [(leaf, above) for above in ABOVE for leaf in LEAVES]
CASES += [(leaf, above) for above in AROUND_MODULES for leaf in ("model", "foreign module")]


class ForeignModule(nn.Module):
    """A score that says nothing of itself."""

    def __init__(self, network):
        super().__init__()
        self.network, self.sde = network, SDE

    def forward(self, x, t, cond=None):
        return -self.network(x, t)


class Foreign:
    """The same, and no module."""

    def __init__(self, network):
        self.network, self.sde = network, SDE

    def __call__(self, x, t, cond=None):
        return -self.network(x, t)


@dataclass(frozen=True, eq=False)
class AsDataclassOnce:
    score: object

    @property
    def sde(self):
        return self.score.sde

    def __call__(self, x, t, cond=None):
        return self.score(x, t, cond)


class Direct:
    """What the wrappers compute, said to be a leaf."""

    score_parts = ()

    def __init__(self, leaf):
        self.leaf, self.sde = leaf, leaf.sde

    def __call__(self, x, t, cond=None):
        return guided(self.leaf, self.leaf, x, t, cond)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("leaf", "above"), CASES)
@pytest.mark.covering(2)
def test_whatever_stands_above_a_score_it_is_counted_placed_and_described_by_its_leaves(leaf, above, dtype):
    one = LEAVES[leaf](dtype)
    score = (ABOVE | AROUND_MODULES)[above](one)
    with torch.no_grad():
        expected = DDIM(steps=STEPS).sample(Direct(one), (3, 2), dtype=dtype)
    found = DDIM(steps=STEPS).sample(score, (3, 2))
    assert found.nfe == 2 * STEPS
    assert expected.nfe == STEPS
    assert found.x.dtype == dtype
    torch.testing.assert_close(found.x, expected.x, rtol=1e-6, atol=1e-6)
    assert dtype_of(score) == dtype
    assert device_of(score) == torch.device("cpu")
    known = leaf in ("mixture", "model")
    assert event_of(score) == ((2,) if known else None)
    assert (moments_of(score) is not None) == (known and above != "module list")  # of which one is a deep copy
    assert sigma_data_of(score) == (0.7 if leaf == "model" else 0.5)
    assert data_of(score) == (DataSpec((2,)) if leaf == "model" else None)
    assert classes_of(score) == (2 if leaf == "mixture" else 0)
    assert DDIM(steps=STEPS).sample(score, (3, 2)).nfe == 2 * STEPS  # and again


def in_a_closure(score):
    class Guided:
        sde = SDE

        def __call__(self, x, t, cond=None):
            return guided(score, score, x, t, cond)

    return Guided()


def as_a_lambda(score):
    found = lambda x, t, cond=None: guided(score, score, x, t, cond)
    found.sde = SDE
    return found


def with_attributes(score):
    def found(x, t, cond=None):
        return guided(found.score, found.score, x, t, cond)

    found.sde, found.score = SDE, score
    return found


def in_an_argument(score):
    class Guided:
        sde = SDE

        def __call__(self, x, t, cond=None):
            return self.computed(x, t, cond)

        @staticmethod
        def computed(x, t, cond, inner=score):
            return guided(inner, inner, x, t, cond)

    return Guided()


def by_a_property(score):
    class Guided:
        sde = SDE

        @property
        def inner(self):
            return score

        def __call__(self, x, t, cond=None):
            return guided(self.inner, self.inner, x, t, cond)

    return Guided()


class OfAGlobal:
    sde = SDE

    def __call__(self, x, t, cond=None):
        return evaluated_globally(x, t, cond)


def evaluated_globally(x, t, cond):
    return guided(GLOBAL["score"], GLOBAL["score"], x, t, cond)


GLOBAL = {}


def in_a_global(score):
    GLOBAL["score"] = score
    return OfAGlobal()


def compiled_in_place(score):
    found = AsModule(score)
    found.compile(backend="eager")
    return found


class OfAGlobalInALoop:
    sde = SDE

    def __call__(self, x, t, cond=None):
        return sum([GLOBAL["score"](x, t, cond) for _ in range(2)]) / 2


def in_a_global_within_a_loop(score):
    GLOBAL["score"] = score
    return OfAGlobalInALoop()


@pytest.mark.parametrize(
    ("above", "named"),
    [
        (in_a_global_within_a_loop, "OfAGlobalInALoop reaches a score through GLOBAL"),
        (in_a_closure, "Guided reaches a score through score, which .*__call__ uses"),
        (as_a_lambda, "lambda> reaches a score through score, which .*lambda> uses"),
        (with_attributes, "found reaches a score through found, which .*found uses"),
        (in_an_argument, "Guided reaches a score through a default, which .*computed uses"),
        (by_a_property, "Guided reaches a score through score, which .*inner uses"),
        (in_a_global, "OfAGlobal reaches a score through GLOBAL, which evaluated_globally uses"),
        (lambda score: Several(as_a_lambda(score), lambda held: (held, held)), "lambda> reaches a score through score"),
        (lambda score: Several([lambda x, t, cond: score(x, t), score], first_two), "Several reaches a score through score"),
        (lambda score: Several(weakref.ref(score), lambda held: (held(), held())), "Several reaches .* the weak reference"),
        (lambda score: torch.compile(AsModule(score), backend="eager"), "AsModule is made of other scores, and wrapped as a w"),
        (
            lambda score: AsModule(Parallel(nn.DataParallel(AsModule(score)))),
            "AsModule is made of other scores, and wrapped as a whole in a Data",
        ),
        (compiled_in_place, "AsModule was compiled with the scores that it holds"),
    ],
)
def test_a_score_that_cannot_be_exchanged_is_refused_by_name(above, named):
    inner = model()
    score = above(inner)
    with pytest.raises(HiddenScore, match=named):
        DDIM(steps=STEPS).sample(score, (3, 2))


def test_evaluations_that_pass_by_the_parts_are_not_taken_for_none():
    class Elsewhere(AsClass):
        def __call__(self, x, t, cond=None):
            return -x

    for score in (Elsewhere(mixture()), Product(Elsewhere(mixture()), Elsewhere(mixture()))):
        with pytest.raises(HiddenScore, match=f"{type(score).__name__} holds other scores .* but no evaluation of them"):
            DDIM(steps=STEPS).sample(score, (3, 2))
    Elsewhere.score_parts = ()
    assert DDIM(steps=STEPS).sample(Elsewhere(mixture()), (3, 2)).nfe == STEPS


def test_parts_that_a_class_names_are_believed():
    class Judged:
        """Guided by what is no score, but is called and has an SDE."""

        score_parts = ("inner",)

        def __init__(self, inner, classifier):
            self.inner, self.classifier, self.sde = inner, classifier, inner.sde

        def __call__(self, x, t, cond=None):
            return self.inner(x, t, cond) + 0 * self.classifier(x, t)

    inner, classifier = mixture(torch.float64), mixture(torch.float32)
    assert parts(Judged(inner, classifier)) == (inner,)
    found = DDIM(steps=STEPS).sample(Judged(inner, classifier), (3, 2))
    assert (found.nfe, found.x.dtype) == (STEPS, torch.float64)


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_each_step_counts_what_it_took(calls):
    class Sometimes(AsClass):
        """Evaluates the score ``calls`` times in the first half, once in the second."""

        def __call__(self, x, t, cond=None):
            values = [self.inner(x, t, cond) for _ in range(calls if t[0] > 0.6 else 1)]
            return sum(values) / len(values) if values else -x

    found = DDIM(steps=6, grid="uniform").sample(Sometimes(mixture()), (3, 2))
    assert found.nfe == 3 * calls + 3


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_one_score(in_place):
    plain = model()
    compiled = model()
    if in_place:
        compiled.compile(backend="eager")
    else:
        compiled = torch.compile(compiled, backend="eager")
    for score, nfe in ((compiled, STEPS), (AsClass(compiled), 2 * STEPS), (AsModule(compiled), 2 * STEPS)):
        found = DDIM(steps=STEPS).sample(score, (3, 2))
        assert (found.nfe, found.x.dtype) == (nfe, torch.float64)
        alike = plain if score is compiled else type(score)(plain)
        assert weights_digest(score) == weights_digest(alike)
        assert event_of(score) == (2,)
        assert moments_of(score) is not None
    torch.testing.assert_close(DDIM(steps=STEPS).sample(compiled, (3, 2)).x, DDIM(steps=STEPS).sample(plain, (3, 2)).x)


def test_leaves_that_disagree_are_refused_where_one_answer_is_needed():
    low, high = mixture(torch.float32), model(torch.float64)
    product = Product(low, high)
    with pytest.raises(ValueError, match=r"within Product disagree about dtype: MixtureScore says .*32, ScoreModel says .*64"):
        DDIM(steps=STEPS).sample(product, (3, 2))
    assert DDIM(steps=STEPS).sample(product, (3, 2), dtype=torch.float64).nfe == 2 * STEPS
    product.dtype = torch.float64
    assert DDIM(steps=STEPS).sample(ClippedScore(product, -9, 9), (3, 2)).x.dtype == torch.float64
    wide = GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), [1.0]).score(SDE)
    with pytest.raises(ValueError, match="disagree about event"):
        DDIM(steps=STEPS).sample(Product(high, wide), (3, 2))
    other = ScoreModel(high.network, SDE, DataSpec((2,), levels=4)).eval()
    with pytest.raises(ValueError, match="disagree about data"):
        data_of(Product(high, other))
    assert data_of(Product(high, mixture())) == high.data
    three = GaussianMixture(torch.zeros(3, 2, dtype=torch.float64), [1.0, 1.0, 1.0]).score(SDE)
    with pytest.raises(ValueError, match="disagree about classes"):
        ClassScore(Product(mixture(), three), 1)
    with pytest.raises(ValueError, match="there is no class 2: the score has classes 0 to 1"):
        ClassScore(Product(mixture(), high), 2)
    with pytest.raises(ValueError, match="disagree about device"):
        device_of(Product(mixture(), ForeignModule(nn.Linear(2, 2, device="meta"))))
    worded = Foreign(model().network)
    worded.device = "cpu"
    assert device_of(Product(worded, high)) == torch.device("cpu")  # the same in a word


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu", "cpu"])
def test_a_device_without_a_number_is_the_first_of_its_kind(kind):
    """Devices are compared by what they name; none of them is needed for that."""

    def on(device):
        score = Foreign(model().network)
        score.device = device
        return score

    for first, second in ((kind, f"{kind}:0"), (f"{kind}:0", kind), (torch.device(kind), torch.device(kind, 0))):
        assert device_of(Product(on(first), on(second))) == torch.device(first)
    with pytest.raises(ValueError, match="disagree about device"):
        device_of(Product(on(kind), on(f"{kind}:1")))


def test_moments_are_those_of_all_leaves_or_of_none():
    one, other, foreign = mixture(), mixture(), Foreign(model().network)
    assert moments_of(Product(one, one)) is one.moments
    assert moments_of(Product(one, one.mixture.score(VESDE()))) is one.moments
    assert moments_of(Product(one, other)) is None
    assert moments_of(Product(one, foreign)) is None
    assert moments_of(Product(foreign, one)) is None
    assert sigma_data_of(Product(model(), model())) == 0.7
    assert sigma_data_of(Product(model(), foreign)) == 0.5
    assert sigma_data_of(ScoreModel(model().network, SDE, DataSpec((2,)), sigma_data=1)) == 1
    assert sigma_data_of(Product(model(), ScoreModel(model().network, SDE, DataSpec((2,)), sigma_data=1))) == 0.5


def test_the_digest_is_of_all_weights_within():
    one, other = model(seed=0), model(seed=1)
    known = weights_digest(one)
    assert weights_digest(mixture()) is None
    assert weights_digest(AsClass(mixture())) is None
    for above in (AsDataclass, AsClass, WithSlots, ByMethod, lambda score: Several([score, score], first_two)):
        assert weights_digest(above(one)) == known
        assert weights_digest(above(other)) not in (known, None)
    assert weights_digest(Foreign(one.network)) not in (known, None)
    weighted = AsModule(one)
    weighted.scale = nn.Parameter(torch.ones(()))
    held = [
        Product(one, one),
        Product(one, other),
        Product(other, one),
        AsModule(one),
        weighted,
        Several(Bag(a=one, b=other.network), None),
    ]
    digests = {weights_digest(score) for score in held}
    assert digests & {known} == {known}
    assert len(digests) == len(held)
    before = [weights_digest(score) for score in held]
    with torch.no_grad():
        next(other.parameters()).add_(1)
        weighted.scale.add_(1)
    changed = [old != weights_digest(score) for old, score in zip(before, held, strict=True)]
    assert changed == [False, True, True, False, True, True]
    assert modules(AsModule(one)) != modules(one) == (one,)
    foreign = ForeignModule(one.network)
    assert modules(AsClass(foreign)) == (foreign,)
    assert weights_digest(Several(nn.DataParallel(one), None)) == known


def test_each_leaf_is_named_once():
    one, other = mixture(), model()
    assert leaves(one) == (one,)
    assert leaves(Product(AsClass(one), Several([other, one], first_two))) == (one, other)
    assert parts(AsClass(AsModule(other)))[0].inner is other
    assert parts(one) == parts(other) == ()


def test_a_wrapper_keeps_what_it_notes_of_itself_and_its_parts_stay_its_own():
    class Noting(AsClass):
        calls = 0

        def __call__(self, x, t, cond=None):
            self.calls += 1
            self.inner.times = self.calls  # on the leaf
            return self.inner(x, t, cond)

    inner = model()
    score, other = Noting(inner), WithSlots(mixture())
    assert DDIM(steps=STEPS).sample(score, (3, 2)).nfe == STEPS
    assert (score.calls, score.inner) == (STEPS, inner)
    assert inner.times == STEPS
    assert DDIM(steps=STEPS).sample(score, (3, 2)).nfe == STEPS
    assert score.calls == 2 * STEPS
    held = other._WithSlots__inner
    DDIM(steps=STEPS).sample(other, (3, 2))
    assert other._WithSlots__inner is held


def test_solves_side_by_side_and_within_one_another_count_for_themselves():
    class Solving(AsClass):
        """Makes three evaluations at each call, two of them in a solve of its own."""

        def __call__(self, x, t, cond=None):
            assert DDIM(steps=2).sample(self.inner, x.shape).nfe == 2
            return self.inner(x, t, cond)

    score = Solving(mixture())
    assert DDIM(steps=STEPS).sample(score, (3, 2)).nfe == 3 * STEPS
    product, found = Product(model(), model(seed=1)), {}

    def solve(steps):
        found[steps] = DDIM(steps=steps).sample(product, (3, 2), seed=steps)

    threads = [threading.Thread(target=solve, args=(steps,)) for steps in range(3, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for steps, sample in found.items():
        assert sample.nfe == 2 * steps
        assert torch.equal(sample.x, DDIM(steps=steps).sample(product, (3, 2), seed=steps).x)
    assert len(found) == 8


def test_a_score_must_have_the_shape_of_its_states():
    class Flat(AsClass):
        def __call__(self, x, t, cond=None):
            return self.inner(x, t, cond).sum(1, keepdim=True)

    with pytest.raises(ValueError, match=r"the score of states \(3, 2\) must have their shape, it has \(3, 1\)"):
        BoundScore(Flat(mixture()))(torch.zeros(3, 2, dtype=torch.float64), 0.5)
    with pytest.raises(ValueError, match="must have their shape"):
        Heun(steps=2).sample(Flat(mixture()), (3, 2))
    corrected = PredictorCorrector(DDIM(steps=3), Langevin())
    assert corrected.sample(AsClass(mixture()), (3, 2)).nfe == 2 * corrected.sample(mixture(), (3, 2)).nfe


def test_every_evaluation_of_a_leaf_counts_by_whatever_method_it_is_made():
    class Learned(AsClass):
        def __call__(self, x, t, cond=None):
            score, variance = self.inner.score_and_variance(x, t, ENDS)
            return score + 0 * (variance + self.inner.score_and_variance(x, t, ENDS)[1]) + 0 * self.inner.forward(x, t)

    torch.manual_seed(0)
    network = NETWORKS["unet"]((1, 4, 4), width=8, multipliers=(1,), blocks=1, attention=(), learned_variance=True).double()
    learned = ScoreModel(network, SDE, DataSpec((1, 4, 4))).eval()
    with torch.no_grad(), counting(Learned(learned)) as (score, counter):
        found = score(torch.zeros(3, 1, 4, 4, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64))
    assert (counter.nfe, counter.samples) == (3, 9)
    assert found.isfinite().all()
    x, t = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    clipped = ClippedScore(learned, -0.1, 0.1)
    score, variance = clipped.score_and_variance(x, t, ENDS)
    assert torch.equal(score, clipped(x, t))
    assert torch.equal(variance, learned.score_and_variance(x, t, ENDS)[1])
    assert not torch.equal(score, learned(x, t))


def test_the_score_of_a_class_is_told_that_class():
    inner, x, t = mixture(), torch.randn(3, 2, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    assert torch.equal(ClassScore(AsClass(inner), 1)(x, t), AsClass(inner)(x, t, torch.ones(3, dtype=torch.long)))
    assert not torch.equal(ClassScore(inner, 1)(x, t), inner(x, t))


def test_a_network_with_an_sde_of_another_kind_is_no_score():
    network = model().network
    network.sde = "vp"

    class Twice(Foreign):
        def __call__(self, x, t, cond=None):
            return -(self.network(x, t) + self.network(x, t))

    assert DDIM(steps=STEPS).sample(Twice(network), (3, 2)).nfe == STEPS


def test_a_class_method_may_use_a_score_that_it_wraps():
    class Made(AsClass):
        @classmethod
        def of_the_global(cls):
            return cls(GLOBAL["score"])

    GLOBAL["score"] = mixture()
    assert DDIM(steps=STEPS).sample(Made.of_the_global(), (3, 2)).nfe == 2 * STEPS


def test_states_are_drawn_in_the_dtype_of_the_weights_and_in_float32_at_least():
    class Buffered(nn.Module):
        sde = SDE

        def __init__(self, dtype):
            super().__init__()
            self.register_buffer("count", torch.zeros((), dtype=torch.long))
            self.register_buffer("scale", torch.ones((), dtype=dtype))

        def forward(self, x, t, cond=None):
            return -self.scale * x

    for weights, states in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        assert dtype_of(Buffered(weights)) == states
        assert DDIM(steps=STEPS).sample(AsClass(Buffered(weights)), (3, 2)).x.dtype == states


def test_a_partial_function_keeps_what_it_states():
    score = partially(Foreign(model(torch.float32).network))
    score.dtype, score.event = torch.float32, (2,)
    with counting(score) as (counted, counter):
        assert (dtype_of(counted), event_of(counted)) == (torch.float32, (2,))
        DDIM(steps=STEPS).solve(counted, torch.zeros(3, 2), 1.0, 0.1)
    assert counter.nfe == 2 * STEPS
