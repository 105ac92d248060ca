r"""bits/dim by the probability-flow ODE, with the protocol that gives the number a meaning (Song et al. 2021, Appendix D.2).

For integers it is -E log2 P(k) / D. A dequantization bounds P from below by the density of points. For continuous data it is
-E log2 p / D in the data's own units. The density is that of data plus noise, whose standard deviation is noise_level(t_min).
Points of uniform dequantization lack that noise. Where it is not small beside a bin, this costs bits that no model can save.
``audit`` derives what error the number has, and how the error is found.

With several importance samples a noisy log p does harm. The exponential of noise is larger than 1 in the mean: it lifts the
bound. All samples of an integer share their probes, so that most of the noise cancels. Only the exact divergence is safe.
"""

import math
import warnings
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from score_sde.data import DataError, DataSpec, Moments
from score_sde.divergence import Divergence, ExactDivergence, as_divergence
from score_sde.inputs import whole
from score_sde.likelihood.accuracy import enough_probes, solve_within
from score_sde.likelihood.audit import Audit, audit_draws, audit_solver
from score_sde.likelihood.dequantization import DEQUANTIZATIONS, Dequantization
from score_sde.likelihood.dual_weighted import DualWeighted
from score_sde.likelihood.evaluation import DataSet, Estimator, Values, spec_of, weights_digest
from score_sde.likelihood.record import BitsPerDim
from score_sde.score import Score, moments_of, require_conditions
from score_sde.sdes import SDE
from score_sde.solvers.transport import Transport
from score_sde.tables import require_name
from score_sde.tensors import Condition


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
    cond: Condition | None = None,
    batch_size: int = 128,
    audit: int = 32,
    seed: int = 0,
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
        cond: what each sample is conditioned on: a tensor ``(N, ...)``, or several by their names.
        batch_size: samples at a time.
        audit: number of samples computed again to measure the parts of the error; 0 for none.
        seed: sample i is dequantized and probed by random numbers that depend on ``seed`` and i alone.
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
    spec = spec_of(model, data)
    if levels is not None and levels != spec.levels:
        raise ValueError(f"levels is {levels}, but the model was made for {spec.levels or 'continuous data'}")
    for what, number, least in (
        ("batch_size", batch_size, 1),
        ("importance_samples", importance_samples, 1),
        ("audit", audit, 0),
    ):
        whole(what, number, least)
    if spec.levels is None and importance_samples > 1 and not truncation:
        raise ValueError("importance samples are for integers: continuous data has a density of its own")
    _check_target(target_error, audit, solver)
    _check_values(values, cond, spec)
    estimator = Estimator(
        model=model,
        data=spec,
        dequantization=_dequantization(dequantization, spec),
        importance_samples=importance_samples,
        truncation=truncation,
        divergence=as_divergence(divergence, probes),
        solver=solver or DualWeighted(),
        seed=seed,
        probe_seed=seed,
    )
    _check_points(estimator)
    samples = DataSet(values, cond, batch_size, None if keep is None else Path(keep), identity, progress)
    if target_error is None:
        found = samples.all(estimator)
        solved = audit_solver(estimator, found, samples, audit) if audit else None
    else:
        estimator, found, solved = solve_within(estimator, samples, target_error, audit)
    variances = audit_draws(estimator, found, samples, audit)
    if target_error is not None and importance_samples == 1 and variances.probe is not None:
        again = lambda to: samples.all(to, doing=str(to.divergence), folder=f"probes_{to.divergence.estimates}")
        estimator, found, probe = enough_probes(estimator, found, variances.probe, again, target_error)
        variances = variances._replace(probe=probe)
    samples.forget()
    return _record(
        estimator,
        found,
        Audit(variances, solved),
        batch_size=batch_size,
        target_error=target_error,
        name=name,
    )


def _check_target(target_error: float | None, audit: int, solver: Transport | None) -> None:
    if target_error is None:
        return
    if not 0 < target_error < math.inf:
        raise ValueError(f"target_error must be positive, in bits per dimension, got {target_error}")
    if not audit:
        raise ValueError("target_error needs an audit, which measures the noise of the probes: audit must be at least 1")
    if solver is not None:
        raise ValueError("give a solver, or a target_error by which it is chosen, not both")


def _check_values(values: Tensor, cond: Condition | None, spec: DataSpec) -> None:
    if not isinstance(values, Tensor):
        raise DataError(f"the values must be a tensor (N, *D), got a {type(values).__name__}")
    if spec.levels is None and not values.is_floating_point():
        raise DataError("the values are integers, and the model is of continuous data: convert them, or give data with levels")
    spec.check(values)
    require_conditions(cond, len(values))


def _dequantization(given: str | Dequantization | None, spec: DataSpec) -> Dequantization | None:
    """The dequantization that was asked for by its name, or given; None for continuous data."""
    choices = ", ".join(DEQUANTIZATIONS)
    if given is None and spec.levels is not None:
        raise ValueError(
            f"integers have no density without dequantization: choose one of {choices}, or give what fit_dequantizer makes"
        )
    if given is not None and not (isinstance(given, str) or callable(given)):
        raise ValueError(f"dequantization must be one of {choices}, or a function, got {given!r}")
    if isinstance(given, str):
        require_name("dequantization", given, DEQUANTIZATIONS)
    if spec.levels is None:
        return None
    return DEQUANTIZATIONS[given] if isinstance(given, str) else given


def _check_points(estimator: Estimator) -> None:
    """Refuse points that have the noise of t_min twice, and warn where they lack it, or where its estimate does harm."""
    with_noise = estimator.dequantization is DEQUANTIZATIONS["truncated_normal"]
    if with_noise and estimator.truncation:
        raise ValueError("points of truncated_normal have the noise of t_min already: truncation is for other dequantizations")
    if estimator.data.levels is not None and not with_noise and not estimator.truncation:
        _warn_of_noise(estimator.model.sde, estimator.data)
    if estimator.importance_samples > 1 and not isinstance(estimator.divergence, ExactDivergence):
        warnings.warn(
            "the noise of an estimated divergence biases an average of importance samples towards fewer bits: use "
            "divergence='exact', or many probes",
            stacklevel=3,
        )


def _record(
    estimator: Estimator,
    found: Values,
    audit: Audit,
    *,
    batch_size: int,
    target_error: float | None,
    name: str | None,
) -> BitsPerDim:
    bits, count, spec, sde = found.bits, len(found.bits), estimator.data, estimator.model.sde
    stderr = (bits.std() / math.sqrt(count)).item() if count > 1 else math.nan
    parts, solved = audit.standard_errors(stderr, count), audit.solver
    moments = moments_of(estimator.model)
    return BitsPerDim(
        mean=bits.mean().item(),
        stderr=stderr,
        stderr_data=parts.data,
        stderr_dequantization=parts.dequantization,
        stderr_probe=parts.probe,
        solver_error=None if solved is None else solved.error,
        solver_bias=None if solved is None else solved.bias,
        solver_bias_stderr=None if solved is None else solved.bias_stderr,
        audited=0 if solved is None else solved.audited,
        prior_mismatch=None if moments is None else prior_mismatch(sde, moments),
        samples=count,
        dim=spec.dim,
        levels=spec.levels,
        dequantization="none" if estimator.dequantization is None else _name(estimator.dequantization),
        importance_samples=estimator.importance_samples,
        truncation=estimator.truncation,
        divergence=str(estimator.divergence),
        solver=estimator.solver.describe(),
        target_error=target_error,
        sde=type(sde).__name__,
        t_min=sde.t_min,
        nfe=found.nfe.mean().item(),
        vjps=found.vjps.mean().item(),
        runge_kutta=0 if found.steps is None else int((found.steps == 0).sum()),
        seed=estimator.seed,
        batch_size=batch_size,
        model=name,
        weights=weights_digest(estimator.model),
        per_sample=tuple(bits.tolist()),
        per_sample_probe_stderr=None if found.probe_variance is None else tuple(found.probe_variance.sqrt().tolist()),
        per_sample_solver_error=None if found.error is None else tuple(found.error.tolist()),
    )


def _name(dequantization: Dequantization) -> str:
    return getattr(dequantization, "name", getattr(dequantization, "__name__", type(dequantization).__name__))


def prior_mismatch(sde: SDE, moments: Moments) -> float:
    """KL(N(alpha m, alpha^2 C + sigma^2 I) || N(0, sigma^2 I)) at T in bits per dimension, m and C being the data's moments.

    It is what the likelihood loses, on average, by starting from the prior instead of the noised data itself, as far as the
    first two moments tell.
    """
    alpha, sigma = float(sde.alpha(sde.T)), float(sde.sigma(sde.T))
    covariance = moments.covariance
    variances = cast(Tensor, moments.spectrum) if covariance is None else torch.linalg.eigvalsh(covariance)
    ratio = (alpha / sigma) ** 2 * variances.clamp_min(0)
    shift = ((alpha / sigma) * moments.mean).square().sum()
    divergence = ((ratio - torch.log1p(ratio)).sum() + shift) / 2
    return float(divergence) / (moments.mean.numel() * math.log(2))


def _warn_of_noise(sde: SDE, spec: DataSpec) -> None:
    """Warn where the noise at t_min is more than a quarter of the variance of dequantization."""
    noise = float(sde.noise_level(sde.t_min))
    width = spec.slope
    if noise**2 > width**2 / 12 / 4:
        floor = math.log2(math.sqrt(2 * math.pi) * noise / width)
        below = f"; no model can score below {floor:.2f} bits/dim" if floor > 0 else ""
        warnings.warn(
            f"the noise at t_min, {noise:.3g}, is large beside a bin of {width:.3g} in model coordinates, and the likelihood "
            f"is that of data with this noise added{below}: a smaller t_min (or sigma_min) makes the number meaningful, "
            "truncation=True or truncated_normal dequantization accounts for the noise",
            stacklevel=4,
        )
