r"""The likelihood of a data set: every sample once, in batches, over several processes, going on where it was interrupted.

The value of a sample depends on the model, the sample, its place in the data and the protocol. Its random numbers are those of
its place. It does not matter which process computes it, or when. So batches are kept in files, and dealt out to the processes
of ``torchrun``. The result is that of a single process.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from score_sde.composition import modules
from score_sde.data import Batch, DataSpec
from score_sde.distributed import is_main, rank, together, world
from score_sde.divergence import Divergence
from score_sde.likelihood.dequantization import Dequantization, truncation
from score_sde.likelihood.identity import Unidentified, identify, raw_bytes
from score_sde.likelihood.kept import Kept, forget
from score_sde.likelihood.ode import log_likelihood
from score_sde.progress import Progress
from score_sde.score import Score, counting, data_of, device_of, dtype_of
from score_sde.solvers.base import SolverError
from score_sde.solvers.transport import Transport
from score_sde.tensors import Condition, SampleNoise, condition_of


@dataclass(frozen=True, eq=False)
class Values:
    """Negative log-likelihoods of single samples, and what each of them took; all ``(n,)``, float64, on the CPU.

    ``bits`` in bits per dimension; network evaluations and vector-Jacobian products; ``probe_variance``, the variances of
    ``bits`` over the draw of the probes, None where unknown. Where the solver tells, ``error`` is its estimated error in bits
    per dimension. ``steps`` is the number of steps that a sample was given, 0 for Runge-Kutta steps of its own.
    """

    bits: Tensor
    nfe: Tensor
    vjps: Tensor
    probe_variance: Tensor | None = None
    error: Tensor | None = None
    steps: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Estimator:
    """Data in its own units to bits per dimension, a batch at a time; ``dequantization`` is None for continuous data."""

    model: Score
    data: DataSpec
    dequantization: Dequantization | None
    importance_samples: int
    truncation: bool
    divergence: Divergence
    solver: Transport
    seed: int
    probe_seed: int

    def __call__(self, values: Tensor, places: Sequence[int], cond: Condition | None) -> Values:
        """``values`` ``(n, *D)`` at their ``places`` in the data; ``cond`` ``(n, ...)`` on the model's device."""
        device, dtype = device_of(self.model), torch.promote_types(dtype_of(self.model), torch.float32)
        noise = SampleNoise(self.seed, values.shape, first=places, purpose="dequantization", device=device, dtype=dtype)
        unit = self.data.dim * math.log(2)
        found, logs = [], []
        with counting(self.model) as (model, counter):
            for _ in range(self.importance_samples):
                x, log_q = self._points(model, values, noise, cond)
                result = log_likelihood(
                    model, x, solver=self.solver, divergence=self.divergence, seed=self.probe_seed, first=places, cond=cond
                )
                found.append(result)
                logs.append(result.log_prob.double() - log_q)
        logs = torch.stack(logs)
        share = logs.softmax(0)

        def together(parts: list[Tensor]) -> Tensor:
            """Importance samples share their probes and their place: the worst case is that their errors are one."""
            return (share * torch.stack(parts).double() / unit).sum(0).cpu()

        variance = error = steps = None
        if found[0].probe_variance is not None:
            variance = together([result.probe_variance.sqrt() for result in found]).square()
        if found[0].error is not None:
            error = together([result.error for result in found])
        if found[0].steps is not None:
            given = torch.stack([result.steps for result in found]).cpu().double()
            steps = torch.where((given == 0).any(0), 0.0, given.amax(0))
        bits = -(logs.logsumexp(0) - math.log(len(logs))) / unit
        each = torch.ones(len(bits), dtype=torch.float64)
        nfe, vjps = counter.samples / len(values), sum(result.vjps for result in found)
        return Values(bits.cpu(), nfe * each, vjps * each, variance, error, steps)

    def _points(
        self, model: Score, values: Tensor, noise: SampleNoise, cond: Condition | None
    ) -> tuple[Tensor, Tensor | float]:
        """Points in model coordinates, ``(n, *D)``, and log q of them in nats."""
        if self.dequantization is None:  # scaled before it is rounded: it may lie far from 0
            x, log_q = self.data.scale(values).to(noise.device, noise.dtype), -self.data.log_det
        else:
            x, log_q = self.dequantization(values.to(noise.device, noise.dtype), noise, self.data, model.sde)
        if self.truncation:
            x, lost = truncation(model, x, noise, cond)
            log_q = log_q + lost
        return x, log_q


@dataclass(frozen=True, eq=False)
class DataSet:
    """Data whose likelihood is to be found, and how it is gone through.

    Args:
        values: data in its own units, ``(N, *D)``.
        cond: conditions of the samples, ``(N, ...)``.
        batch_size: samples at a time.
        keep: folder for the finished batches of all samples. Those that are there already are not computed again, provided
            that they belong to the same model, data and protocol, and are whole.
        identity: what the caller calls a score that cannot be identified.
        progress: show a progress bar.
    """

    values: Tensor
    cond: Condition | None = None
    batch_size: int = 128
    keep: Path | None = None
    identity: str | None = None
    progress: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def all(self, estimator: Estimator, *, doing: str = "likelihood", folder: str = "") -> Values:
        """The estimator's answer for every sample.

        Args:
            doing: name of the progress bar.
            folder: within ``keep``, for finished batches.

        Raises:
            SolverError: a sample cannot be solved.
            Unidentified: something would have to be identified for ``keep``, and cannot be.
            ValueError: ``keep`` is a folder of other things.
        """
        places = torch.arange(len(self))
        found = self._evaluated(estimator, places, doing, None if self.keep is None else self.keep / folder)
        _require_solved(found, places)
        return found

    def at(self, places: Tensor, estimator: Estimator, *, doing: str, partial: bool = False) -> Values:
        """The estimator's answer for the samples at ``places`` ``(n,)``, which is not kept.

        With ``partial``, samples that cannot be solved are NaN, as long as there is another one in their batch that can be.
        """
        found = self._evaluated(estimator, places, doing, None)
        if not partial:
            _require_solved(found, places)
        return found

    def forget(self) -> None:
        """Remove what was kept."""
        if self.keep is not None and is_main():
            forget(self.keep)

    def _evaluated(self, estimator: Estimator, places: Tensor, doing: str, folder: Path | None) -> Values:
        batches = places.split(self.batch_size)
        kept = None
        if folder is not None:
            kept = Kept(folder, fingerprint(estimator, self, places))
            together(lambda: kept.prepare() if is_main() else None)

        def mine() -> dict[int, dict[str, np.ndarray]]:
            """The batches of this process by their numbers."""
            done: dict[int, dict[str, np.ndarray]] = {}
            with Progress(doing, len(places), unit="sample", shown=self.progress and is_main()) as bar:
                for i in range(rank(), len(batches), world()):
                    batch, first = batches[i], i * self.batch_size
                    arrays = None if kept is None else kept.read(first, len(batch))
                    if arrays is None:
                        arrays = self._batch(estimator, batch)
                        if kept is not None:
                            kept.write(first, arrays)
                    done[i] = arrays
                    bar.update(world() * len(batch))
            return done

        done = {i: arrays for part in together(mine) for i, arrays in part.items()}
        whole = {name: torch.from_numpy(np.concatenate([done[i][name] for i in range(len(batches))])) for name in done[0]}
        return Values(**whole)

    def _batch(self, estimator: Estimator, places: Tensor) -> dict[str, np.ndarray]:
        batch = Batch(self.values[places], condition_of(self.cond, places)).to(device_of(estimator.model))
        try:
            found = estimator(batch.values, places.tolist(), batch.cond)
        except SolverError as error:
            raise SolverError(f"samples {int(places[0])} to {int(places[-1])}, counted from 0: {error}") from error
        return {name: value.numpy() for name, value in vars(found).items() if value is not None}


def spec_of(model: Score, data: DataSpec | None) -> DataSpec:
    """The description of the data: ``data``, or the model's own; a ``ValueError`` where there is none."""
    spec = data or data_of(model)
    if spec is None:
        raise ValueError("the score does not say what its data is: give data=DataSpec(...)")
    return spec


def _require_solved(found: Values, places: Tensor) -> None:
    """Raise a ``SolverError`` that names the samples which have no value."""
    lost = places[found.bits.isfinite().logical_not()].tolist()
    if lost:
        named = ", ".join(map(str, lost[:10])) + (", ..." if len(lost) > 10 else "")
        raise SolverError(
            f"{len(lost)} of {len(places)} samples have no likelihood, since no solver could take them to T: those at {named}, "
            "counted from 0; leave them out, or compute in float64"
        )


def weights_digest(model: Score) -> str | None:
    """The first 16 digits of the SHA-256 of all parameters and buffers within a score; None where it holds no module."""
    digest, held = hashlib.sha256(), modules(model)
    for module in held:
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.replace("_orig_mod.", "").encode())  # whether it was compiled or not
            digest.update(raw_bytes(value))
    return digest.hexdigest()[:16] if held else None


def fingerprint(estimator: Estimator, data: DataSet, places: Tensor) -> dict[str, str]:
    """What batches of the samples at ``places`` must agree with to be used again: the model, the data and the protocol.

    Raises:
        Unidentified: something cannot be identified, and the data set has no ``identity``.
    """
    digest = hashlib.sha256()
    told = data.cond if isinstance(data.cond, Mapping) else {"": data.cond}
    for name, whole in (("", data.values), *sorted(told.items())):
        digest.update(name.encode())
        if whole is not None:
            for batch in places.split(data.batch_size):
                digest.update(raw_bytes(whole[batch]))
    digest.update(places.numpy().tobytes())

    def named(value: object, what: str) -> str:
        try:
            return identify(value, what)
        except Unidentified:
            if data.identity is None:
                raise
            return f"{type(value).__name__}, {data.identity}"

    if data.identity is None:
        score = named(estimator.model, "the score")
    else:
        score = f"{data.identity}, {weights_digest(estimator.model)}"
    return {
        "score": score,
        "sde": f"{estimator.model.sde!r} {named(estimator.model.sde, 'the SDE')}",
        "place": f"{device_of(estimator.model).type} {dtype_of(estimator.model)}",
        "data": digest.hexdigest(),
        "dequantization": named(estimator.dequantization, "the dequantization"),
        "spec": named(estimator.data, "the description of the data"),
        "solver": named(estimator.solver, "the solver"),
        "divergence": named(estimator.divergence, "the divergence"),
        "importance_samples": str(estimator.importance_samples),
        "truncation": str(estimator.truncation),
        "seeds": f"{estimator.seed} {estimator.probe_seed}",
        "batch_size": str(data.batch_size),
    }
