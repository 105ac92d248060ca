r"""bits/dim by the probability-flow ODE, with the protocol that gives the number a meaning (Song et al. 2021, Appendix D.2).

For integers it is -E log2 P(k) / D, where a dequantization bounds P from below by the density of points, and for anything else
-E log2 p / D in the data's own units. The density is that of data plus noise of standard deviation sigma(t_min) / alpha(t_min).
Evaluated at points without that noise, as those of uniform dequantization are, it costs bits that no model can save where the
noise is not small beside a bin.

The value of sample i is y_i = mu_i + d_i + p_i + b_i, where mu_i is the sample's own, d_i comes from the draw of
dequantization, p_i from that of the probes and b_i from the solver. The standard error of the mean of y contains all but b.
What d, p and b are is found by an audit of some samples: a second draw of dequantization with the same probes changes them by
twice the variance of d in the mean square, a second draw of the probes by twice that of p, and a finer solver by -b
(``likelihood/audit.py``). With several probes their own spread, on all samples, gives the variance of p.

With several importance samples a noisy log p does harm: the exponential of noise is larger than 1 in the mean and lifts the
bound. All samples of an integer share their probes, so that most of the noise cancels, but only the exact divergence is safe.
"""

import dataclasses
import math
import warnings
from pathlib import Path

import torch
from torch import Tensor

from score_sde.data import DataError, DataSpec, Moments
from score_sde.divergence import Divergence, ExactDivergence, as_divergence
from score_sde.inputs import whole
from score_sde.likelihood.accuracy import FINEST, choose_solver, enough_probes
from score_sde.likelihood.audit import audit_solver, spread
from score_sde.likelihood.dequantization import DEQUANTIZATIONS, Dequantization
from score_sde.likelihood.dual_weighted import DualWeighted
from score_sde.likelihood.evaluation import Estimator, Values, evaluate, forget, ranks_of_this_run, weights_digest
from score_sde.likelihood.record import BitsPerDim
from score_sde.score import Score, innermost
from score_sde.sdes import SDE
from score_sde.solvers.base import SolverError
from score_sde.solvers.transport import Transport
from score_sde.tensors import derive_seed


def bits_per_dim(
    model: Score,
    values: Tensor,
    *,
    levels: int | None = None,
    data: DataSpec | None = None,
    dequantization: str | Dequantization = "uniform",
    importance_samples: int = 1,
    truncation: bool = False,
    divergence: str | Divergence = "hutchinson",
    probes: int | None = None,
    target_error: float | None = None,
    solver: Transport | None = None,
    cond: Tensor | None = None,
    batch_size: int = 128,
    audit: int = 32,
    seed: int = 0,
    moments: Moments | None = None,
    name: str | None = None,
    keep: Path | str | None = None,
    identity: str | None = None,
    progress: bool = False,
) -> BitsPerDim:
    """Negative log-likelihood of ``values`` in bits per dimension, each sample once.

    Under ``torchrun``, where torch.distributed has been initialized, the batches are dealt out to the processes, and each of
    them returns the record that a single process would.

    Args:
        model: a ``ScoreModel``, or any score together with ``data``.
        values: data in its own units, ``(N, *D)``: integers from 0 to levels - 1, or continuous values, whose density
            is then in their own units.
        levels: number of integer values; checked against the model's own.
        data: description of the data; by default the model's.
        dequantization: ``uniform`` or ``truncated_normal``, for integers; or an object such as ``fit_dequantizer`` makes.
        importance_samples: points per integer, K; the bound is that of their average density.
        truncation: bound the density at 0 instead of taking that at t_min for it; for points without the noise of t_min.
        divergence: a key of ``DIVERGENCES``, ``hutchinson`` or ``exact`` for example, or an object such as
            ``Hutchinson(probes=4)``.
        probes: number of probes where the divergence is given by its name; by default 1, and 3 of ``hutch++``.
        target_error: in bits per dimension. The solver is then chosen on a few samples so that its error is smaller in the root
            mean square, and made finer where the audit finds more. New probes are added until their standard error of the mean
            is smaller, or until the exact divergence would be cheaper; with several importance samples the probes stay as they
            are.
        solver: how the ODE is solved; by default ``DualWeighted()``.
        cond: what each sample is conditioned on, ``(N, ...)``.
        batch_size: samples at a time.
        audit: number of samples computed again to measure the parts of the error; 0 for none.
        seed: sample i is dequantized and probed by random numbers that depend on ``seed`` and i alone.
        moments: of the training data, for ``prior_mismatch``.
        name: what the record calls the model.
        keep: folder for finished batches, from which an interrupted call goes on; removed at the end. Batches of another
            model, of other data or of another protocol, and damaged ones, are computed again.
        identity: words that stand for the score where ``keep`` cannot identify it, as where it holds a lambda, and for such a
            dequantization or divergence. They must change whenever one of these does.
        progress: show a progress bar.

    Raises:
        DataError: the values are not data of this description.
        SolverError: the ODE cannot be solved for each sample, or not to ``target_error``.
        TypeError: the SDE is not linear: its prior is not known then.
        Unidentified: ``keep`` is given, and the score or another part cannot be identified; a ``ValueError``.
        ValueError: an argument is not one of those allowed.
    """
    model.sde.require_linear()
    model.sde.require_ends()
    spec = data or getattr(innermost(model), "data", None)
    if spec is None:
        raise ValueError("the score does not say what its data is: give data=DataSpec(...)")
    if levels is not None and levels != spec.levels:
        raise ValueError(f"levels is {levels}, but the model was made for {spec.levels or 'continuous data'}")
    if not isinstance(values, Tensor):
        raise DataError(f"the values must be a tensor (N, *D), got a {type(values).__name__}")
    if spec.levels is None and not values.is_floating_point():
        raise DataError("the values are integers, and the model is of continuous data: convert them, or give data with levels")
    if dequantization is None and spec.levels is not None:
        raise ValueError(
            f"integers have no density without dequantization: choose one of {', '.join(DEQUANTIZATIONS)}, or give what "
            "fit_dequantizer makes"
        )
    if dequantization is not None and not (isinstance(dequantization, str) or callable(dequantization)):
        raise ValueError(f"dequantization must be one of {', '.join(DEQUANTIZATIONS)}, or a function, got {dequantization!r}")
    if isinstance(dequantization, str) and dequantization not in DEQUANTIZATIONS:
        raise ValueError(f"unknown dequantization {dequantization!r}; choose one of {', '.join(DEQUANTIZATIONS)}")
    numbers = ("batch_size", batch_size, 1), ("importance_samples", importance_samples, 1), ("audit", audit, 0)
    for what, number, least in numbers:
        whole(what, number, least)
    if spec.levels is None and importance_samples > 1 and not truncation:
        raise ValueError("importance samples are for integers: continuous data has a density of its own")
    if target_error is not None and not 0 < target_error < math.inf:
        raise ValueError(f"target_error must be positive, in bits per dimension, got {target_error}")
    if target_error is not None and not audit:
        raise ValueError("target_error needs an audit, which measures the noise of the probes: audit must be at least 1")
    if target_error is not None and solver is not None:
        raise ValueError("give a solver, or a target_error by which it is chosen, not both")
    spec.check(values)
    if cond is not None and len(cond) != len(values):
        raise ValueError(f"cond has {len(cond)} entries for {len(values)} samples")
    if spec.levels is not None and dequantization == "truncated_normal" and truncation:
        raise ValueError("points of truncated_normal have the noise of t_min already: truncation is for other dequantizations")
    if spec.levels is not None and dequantization != "truncated_normal" and not truncation:
        _warn_of_noise(model.sde, spec)
    trace = as_divergence(divergence, probes)
    if importance_samples > 1 and not isinstance(trace, ExactDivergence):
        warnings.warn(
            "the noise of an estimated divergence biases an average of importance samples towards fewer bits: use "
            "divergence='exact', or many probes",
            stacklevel=2,
        )
    dequantize = DEQUANTIZATIONS[dequantization] if isinstance(dequantization, str) else dequantization
    estimator = Estimator(
        model=model,
        data=spec,
        dequantization=dequantize if spec.levels else None,
        importance_samples=importance_samples,
        truncation=truncation,
        divergence=trace,
        solver=solver or DualWeighted(),
        seed=seed,
        probe_seed=seed,
    )

    folder = Path(keep) if keep is not None else None

    def at(places: Tensor, changed: Estimator, doing: str, kept: Path | None = None, partly: bool = False) -> Values:
        told = None if cond is None else cond[places.to(cond.device)]
        how = {"batch_size": batch_size, "keep": kept, "identity": identity, "progress": doing if progress else ""}
        found = evaluate(changed, values[places.to(values.device)], places.tolist(), told, **how)
        if not partly:
            _require_solved(found, places)
        return found

    if target_error is not None:
        pilot = spread(len(values), min(16, max(8, len(values) // 16)), offset=0.25)
        tried = lambda changed: at(pilot, changed, f"pilot, {changed.solver.steps} steps")
        estimator = choose_solver(estimator, tried, target_error)
    everything = torch.arange(len(values))
    found = at(everything, estimator, "likelihood", folder)
    finely = lambda places, changed: at(places, changed, "audit", partly=True)
    solved = audit_solver(estimator, found, audit, finely) if audit else None
    while target_error is not None and not solved.error <= target_error:
        if estimator.solver.steps >= FINEST:
            raise SolverError(
                f"an error of {target_error:g} bits/dim is out of reach: with {estimator.solver.steps} steps the audit still "
                f"finds {solved.error:.2g} bits/dim a sample; ask for a larger target_error, or give a solver of your own"
            )
        estimator = dataclasses.replace(estimator, solver=estimator.solver.finer())
        steps = estimator.solver.steps
        found = at(everything, estimator, f"likelihood, {steps} steps", folder and folder / f"steps_{steps}")
        solved = audit_solver(estimator, found, audit, finely)
    audited = spread(len(values), audit, offset=0.5)
    errors = _noise(estimator, found, audited, lambda changed: at(audited, changed, "audit"))
    if target_error is not None and importance_samples == 1:
        within = lambda changed: folder and folder / f"probes_{changed.divergence.estimates}"
        again = lambda changed: at(everything, changed, str(changed.divergence), within(changed))
        estimator, found, errors["probe"] = enough_probes(estimator, found, errors["probe"], again, target_error)
    if folder is not None and ranks_of_this_run()[0] == 0:
        forget(folder)
    bits, count = found.bits, len(found.bits)
    stderr = (bits.std() / math.sqrt(count)).item() if count > 1 else math.nan
    return BitsPerDim(
        mean=bits.mean().item(),
        stderr=stderr,
        **_parts(stderr, errors, count),
        solver_error=None if solved is None else solved.error,
        solver_bias=None if solved is None else solved.bias,
        solver_bias_stderr=None if solved is None else solved.bias_stderr,
        audited=0 if solved is None else solved.audited,
        prior_mismatch=None if moments is None else prior_mismatch(model.sde, moments),
        samples=count,
        dim=spec.dim,
        levels=spec.levels,
        dequantization=_name(dequantization) if spec.levels else "none",
        importance_samples=importance_samples,
        truncation=truncation,
        divergence=str(estimator.divergence),
        solver=estimator.solver.describe(),
        target_error=target_error,
        sde=type(model.sde).__name__,
        t_min=model.sde.t_min,
        nfe=found.nfe.mean().item(),
        vjps=found.vjps.mean().item(),
        runge_kutta=0 if found.steps is None else int((found.steps == 0).sum()),
        seed=seed,
        batch_size=batch_size,
        model=name,
        weights=weights_digest(model),
        per_sample=tuple(bits.tolist()),
        per_sample_probe_stderr=None if found.probe_variance is None else tuple(found.probe_variance.sqrt().tolist()),
        per_sample_solver_error=None if found.error is None else tuple(found.error.tolist()),
    )


def _require_solved(found: Values, places: Tensor) -> None:
    """Raise a ``SolverError`` that names the samples which have no value."""
    lost = places[found.bits.isfinite().logical_not()].tolist()
    if lost:
        named = ", ".join(map(str, lost[:10])) + (", ..." if len(lost) > 10 else "")
        raise SolverError(
            f"{len(lost)} of {len(places)} samples have no likelihood, since no solver could take them to T: those at {named}, "
            "counted from 0; leave them out, or compute in float64"
        )


def _noise(estimator: Estimator, found: Values, places: Tensor, at) -> dict[str, float | None]:
    """Single values' variances by probes and by dequantization, by computing some samples again with other draws."""
    known = found.probe_variance
    errors = dict.fromkeys(("probe", "dequantization"))
    errors["probe"] = None if known is None else known.mean().item()
    random = estimator.dequantization is not None or estimator.truncation
    if not random:
        errors["dequantization"] = 0.0
    if not len(places):
        return errors
    first, other = found.bits[places], derive_seed(estimator.seed, "audit")
    half_square = lambda changed: (at(changed).bits - first).square().mean().item() / 2
    if known is None:
        errors["probe"] = half_square(dataclasses.replace(estimator, probe_seed=other))
    if random:
        errors["dequantization"] = half_square(dataclasses.replace(estimator, seed=other))
    return errors


def _parts(stderr: float, errors: dict, count: int) -> dict[str, float | None]:
    """The standard error's parts from the variances of single values."""
    of = {name: None if errors[name] is None else math.sqrt(errors[name] / count) for name in ("probe", "dequantization")}
    known = None not in of.values() and not math.isnan(stderr)
    rest = math.sqrt(max(0.0, stderr**2 - sum(part**2 for part in of.values()))) if known else None
    return {"stderr_data": rest, "stderr_dequantization": of["dequantization"], "stderr_probe": of["probe"]}


def _name(dequantization: str | Dequantization) -> str:
    if isinstance(dequantization, str):
        return dequantization
    return getattr(dequantization, "name", getattr(dequantization, "__name__", type(dequantization).__name__))


def prior_mismatch(sde: SDE, moments: Moments) -> float:
    """KL(N(alpha m, alpha^2 C + sigma^2 I) || N(0, sigma^2 I)) at T in bits per dimension, m and C being the data's moments.

    It is what the likelihood loses, on average, by starting from the prior instead of the noised data itself, as far as the
    first two moments tell.
    """
    alpha, sigma = float(sde.alpha(sde.T)), float(sde.sigma(sde.T))
    variances = moments.spectrum if moments.covariance is None else torch.linalg.eigvalsh(moments.covariance)
    ratio = (alpha / sigma) ** 2 * variances.clamp_min(0)
    shift = ((alpha / sigma) * moments.mean).square().sum()
    divergence = ((ratio - torch.log1p(ratio)).sum() + shift) / 2
    return float(divergence) / (moments.mean.numel() * math.log(2))


def _warn_of_noise(sde: SDE, spec: DataSpec) -> None:
    """Warn where the noise at t_min is more than a quarter of the variance of dequantization."""
    noise = float(sde.sigma(sde.t_min) / sde.alpha(sde.t_min))
    width = spec.slope
    if noise**2 > width**2 / 12 / 4:
        floor = math.log2(math.sqrt(2 * math.pi) * noise / width)
        below = f"; no model can score below {floor:.2f} bits/dim" if floor > 0 else ""
        warnings.warn(
            f"the noise at t_min, {noise:.3g}, is large beside a bin of {width:.3g} in model coordinates, and the likelihood "
            f"is that of data with this noise added{below}: a smaller t_min (or sigma_min) makes the number meaningful, "
            "truncation=True or truncated_normal dequantization accounts for the noise",
            stacklevel=3,
        )
