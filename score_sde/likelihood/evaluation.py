r"""The likelihood of a data set: every sample once, in batches, over several processes, going on where it was interrupted.

A sample's value depends on the model, the sample, its place in the data and the protocol, not on who computes it or when: its
random numbers are those of its place. So batches can be kept in files and dealt out to the processes of ``torchrun``, and the
result is that of a single process.
"""

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from score_sde.data import DataSpec
from score_sde.divergence import Divergence
from score_sde.files import write_atomically, write_text
from score_sde.likelihood.dequantization import Dequantization, truncation
from score_sde.likelihood.identity import Unidentified, identify, raw_bytes
from score_sde.likelihood.ode import log_likelihood
from score_sde.progress import Progress
from score_sde.score import Counter, Score, counted, innermost
from score_sde.solvers.base import SolverError
from score_sde.solvers.transport import Transport
from score_sde.tensors import SampleNoise


@dataclass(frozen=True, eq=False)
class Values:
    """Negative log-likelihoods in bits per dimension, their variances over the draw of the probes (None where unknown), and
    what each of them took: network evaluations and vector-Jacobian products. Where the solver tells, the estimated error of
    each in bits per dimension, and the steps that it was given, 0 for Runge-Kutta steps of its own. All ``(n,)``, float64,
    on the CPU."""

    bits: Tensor
    probe_variance: Tensor | None
    nfe: Tensor
    vjps: Tensor
    error: Tensor | None = None
    steps: Tensor | None = None


ARRAYS = tuple(field.name for field in fields(Values))


@dataclass(frozen=True, eq=False)
class Estimator:
    """Data in its own units to bits per dimension, batch by batch; ``dequantization`` is None for continuous data."""

    model: Score
    data: DataSpec
    dequantization: Dequantization | None
    importance_samples: int
    truncation: bool
    divergence: Divergence
    solver: Transport
    seed: int
    probe_seed: int

    def __call__(self, values: Tensor, places: Sequence[int], cond: Tensor | None) -> Values:
        """``values`` ``(n, *D)`` at their ``places`` in the data; ``cond`` ``(n, ...)`` on the model's device."""
        inner = innermost(self.model)
        dtype = torch.promote_types(getattr(inner, "dtype", torch.get_default_dtype()), torch.float32)
        place = {"device": getattr(inner, "device", "cpu"), "dtype": dtype}
        noise = SampleNoise(self.seed, values.shape, first=places, purpose="dequantization", **place)
        counter, unit = Counter(), self.data.dim * math.log(2)
        model = counted(self.model, counter)
        how = {"solver": self.solver, "divergence": self.divergence, "seed": self.probe_seed, "first": places, "cond": cond}
        logs, variances, errors, steps, vjps = [], [], [], [], 0.0
        for _ in range(self.importance_samples):
            if self.dequantization is None:  # scaled before it is rounded: it may lie far from 0
                x, log_q = self.data.scale(values).to(**place), -self.data.log_det
            else:
                x, log_q = self.dequantization(values.to(**place), noise, self.data, model.sde)
            if self.truncation:
                x, lost = truncation(model, x, noise, cond)
                log_q = log_q + lost
            result = log_likelihood(model, x, **how)
            logs.append(result.log_prob.double() - log_q)
            variances.append(result.probe_variance)
            errors.append(result.error)
            steps.append(result.steps)
            vjps += result.vjps
        nfe = counter.samples / len(values)
        logs = torch.stack(logs)
        bits = -(logs.logsumexp(0) - math.log(len(logs))) / unit
        # importance samples share their probes and their place: the worst case is that their errors are one
        together = lambda parts: (logs.softmax(0) * torch.stack(parts).double() / unit).sum(0).cpu()
        variance = None if variances[0] is None else together([variance.sqrt() for variance in variances]).square()
        error = None if errors[0] is None else together(errors)
        if steps[0] is None:
            most = None
        else:
            steps = torch.stack(steps).cpu().double()
            most = torch.where((steps == 0).any(0), 0.0, steps.amax(0))
        each = torch.ones(len(bits), dtype=torch.float64)
        return Values(bits.cpu(), variance, nfe * each, vjps * each, error, most)


def evaluate(
    estimator: Estimator,
    values: Tensor,
    places: Sequence[int],
    cond: Tensor | None,
    *,
    batch_size: int,
    keep: Path | None = None,
    identity: str | None = None,
    progress: str = "",
) -> Values:
    """The estimator's answer for ``values`` ``(N, *D)``, which lie at ``places`` of the data, each once.

    Args:
        cond: condition of each, ``(N, ...)``.
        batch_size: samples at a time.
        keep: folder for finished batches; those that are there already are not computed again, provided that they belong to
            the same model, data and protocol, and are whole. ``forget`` removes them.
        identity: what the caller calls a score that cannot be identified.
        progress: name of a progress bar; none if empty.

    Raises:
        Unidentified: something would have to be identified for ``keep``, and cannot be.
        ValueError: ``keep`` is a folder of other things.
    """
    rank, ranks = ranks_of_this_run()
    device = getattr(innermost(estimator.model), "device", "cpu")
    starts = range(0, len(values), batch_size)
    mine = starts[rank::ranks]
    if keep is not None:
        protocol = fingerprint(estimator, values, places, cond, batch_size, identity)
        _prepare(keep, protocol, rank)
    done: dict[int, dict[str, np.ndarray]] = {}
    with Progress(progress, len(values), unit="sample", shown=bool(progress) and rank == 0) as bar:
        for start in mine:
            chunk, end = values[start : start + batch_size], min(start + batch_size, len(values))
            file = keep / f"{start:09d}.npz" if keep else None
            kept = None if file is None else _read(file, protocol, len(chunk))
            if kept is not None:
                done[start] = kept
            else:
                told = None if cond is None else cond[start:end].to(device)
                try:
                    done[start] = _arrays(estimator(chunk, places[start:end], told))
                except SolverError as error:
                    raise SolverError(f"samples {places[start]} to {places[end - 1]}, counted from 0: {error}") from error
                if file is not None:
                    _write(file, protocol, done[start])
            bar.update(ranks * len(chunk))
    if ranks > 1:
        gathered: list = [None] * ranks
        torch.distributed.all_gather_object(gathered, done)
        done = {start: arrays for part in gathered for start, arrays in part.items()}
    whole = {name: torch.from_numpy(np.concatenate([done[start][name] for start in starts])) for name in done[0]}
    return Values(**{name: whole.get(name) for name in ARRAYS})


def ranks_of_this_run() -> tuple[int, int]:
    """This process's number among how many: (0, 1) unless torch.distributed was initialized."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def weights_digest(model: Score) -> str | None:
    """The first 16 digits of the SHA-256 of a module's parameters and buffers; None for a score that is none."""
    inner = innermost(model)
    if not isinstance(inner, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(inner.state_dict().items()):
        digest.update(name.encode())
        digest.update(raw_bytes(value))
    return digest.hexdigest()[:16]


def fingerprint(
    estimator: Estimator,
    values: Tensor,
    places: Sequence[int],
    cond: Tensor | None,
    batch_size: int,
    identity: str | None = None,
) -> dict[str, str]:
    """What a batch that was kept must agree with: the model, the data and the protocol.

    Args:
        identity: what the caller calls the score, and whatever else cannot be identified.

    Raises:
        Unidentified: something cannot be identified, and there is no ``identity``.
    """
    data = hashlib.sha256(raw_bytes(values) + (b"" if cond is None else raw_bytes(cond)) + np.asarray(places).tobytes())
    inner = innermost(estimator.model)

    def named(value: object, what: str) -> str:
        try:
            return identify(value, what)
        except Unidentified:
            if identity is None:
                raise
            return f"{type(value).__name__}, {identity}"

    score = named(estimator.model, "the score") if identity is None else f"{identity}, {weights_digest(estimator.model)}"
    return {
        "score": score,
        "sde": f"{estimator.model.sde!r} {named(estimator.model.sde, 'the SDE')}",
        "place": f"{torch.device(getattr(inner, 'device', 'cpu')).type} {getattr(inner, 'dtype', None)}",
        "data": data.hexdigest(),
        "dequantization": named(estimator.dequantization, "the dequantization"),
        "spec": named(estimator.data, "the description of the data"),
        "solver": named(estimator.solver, "the solver"),
        "divergence": named(estimator.divergence, "the divergence"),
        "importance_samples": str(estimator.importance_samples),
        "truncation": str(estimator.truncation),
        "seeds": f"{estimator.seed} {estimator.probe_seed}",
        "batch_size": str(batch_size),
    }


def _prepare(keep: Path, protocol: dict[str, str], rank: int) -> None:
    """An empty folder, or one with batches of the same protocol."""
    file = keep / "protocol.json"
    if rank == 0:
        foreign = [path for path in keep.glob("*") if not path.name.startswith(".")]  # as those of an interrupted write do
        if foreign and not file.is_file():
            raise ValueError(f"{keep} holds other files, and is not a folder of finished batches: keep takes a new one")
        try:
            same = json.loads(file.read_text()) == protocol
        except (OSError, ValueError):
            same = False
        if not same:
            forget(keep)
            write_text(file, json.dumps(protocol, indent=2) + "\n")
    if ranks_of_this_run()[1] > 1:
        torch.distributed.barrier()


def _write(file: Path, protocol: dict[str, str], arrays: dict[str, np.ndarray]) -> None:
    """A finished batch as ``.npz``, and behind it a SHA-256 of that, of its place and of the protocol."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    whole = content.getvalue()
    write_atomically(file, lambda target: target.write(whole + _seal(file, protocol, whole)))


def _read(file: Path, protocol: dict[str, str], count: int) -> dict[str, np.ndarray] | None:
    """A batch of ``count`` samples that was kept; None where it is missing, damaged, of another place, or holds NaN."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    content, seal = content[:-32], content[-32:]
    if seal != _seal(file, protocol, content):
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as saved:
        arrays = dict(saved)
    sound = all(len(array) == count and not np.isnan(array).any() for array in arrays.values())
    return arrays if sound else None


def _seal(file: Path, protocol: dict[str, str], content: bytes) -> bytes:
    return hashlib.sha256(json.dumps([file.name, protocol]).encode() + content).digest()


def forget(keep: Path) -> None:
    """Remove what ``evaluate`` kept in a folder and in those within it, and nothing else."""
    for folder in (*(path for path in keep.glob("*") if path.is_dir()), keep):
        for pattern in ("[0-9]*.npz", ".[0-9]*.npz.*", ".protocol.json.*", "protocol.json"):  # with those half written
            for file in folder.glob(pattern):
                file.unlink()
        with contextlib.suppress(OSError):  # it is not there, or holds other files
            folder.rmdir()


def _arrays(values: Values) -> dict[str, np.ndarray]:
    arrays = {name: getattr(values, name) for name in ARRAYS}
    return {name: value.numpy() for name, value in arrays.items() if value is not None}
