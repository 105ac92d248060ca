"""The records of likelihoods and of bounds: the number, where its error comes from, and all that is needed to find it again.

A record is saved as JSON with a ``format``, a whole number that rises when a reader must know of a change. A file without it
was written by version 0.1.0; it has the same entries.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from score_sde.files import DamagedError, read_json, read_npz, write_json, write_npz

FORMAT = 1
"""The format of the records that are written."""


@dataclass(frozen=True)
class BitsPerDim:
    """A negative log-likelihood in bits per dimension and how it was obtained; also in nats, for data that is not integer.

    What it is worth:

    * ``mean``; and ``stderr``, its standard error over the samples as a draw from all data. The noise of dequantization and of
      probes enters into each value once, so that ``stderr`` contains it. ``stderr_dequantization`` and ``stderr_probe`` are
      these two parts. ``stderr_data`` remains when their squares are taken off. None where a part was not measured.
    * ``solver_error`` and ``solver_bias``: root mean square and mean, over all samples, of the error that the solver leaves.
      They are found by solving ``audited`` samples more finely. ``solver_bias_stderr`` is the standard error of that mean over
      the choice of these samples. None without an audit.
    * ``prior_mismatch``: the divergence between the noised training data at T, taken as Gaussian, and the prior. None where the
      model does not know the moments of its training data.

    How it was obtained:

    * ``samples`` of ``dim`` coordinates and ``levels``, None for continuous data; their ``dequantization`` with
      ``importance_samples``; ``truncation``, whether the noise of t_min is accounted for.
    * the ``divergence``; the ``solver``, chosen for ``target_error`` if there was one; ``runge_kutta``, the number of samples
      that were too hard for the path of ``DualWeighted`` and got Runge-Kutta steps of their own.
    * ``nfe`` network evaluations and ``vjps`` vector-Jacobian products for each sample; ``seed`` and ``batch_size``.
    * ``model``, a name that the caller gives it; ``weights``, the first digits of their SHA-256.
    * the single values in the order of the data: ``per_sample``; ``per_sample_probe_stderr``, their errors by the probes where
      these were several; ``per_sample_solver_error``, what the solver estimates of its own error.
    """

    mean: float
    stderr: float
    stderr_data: float | None
    stderr_dequantization: float | None
    stderr_probe: float | None
    solver_error: float | None
    solver_bias: float | None
    solver_bias_stderr: float | None
    audited: int
    prior_mismatch: float | None
    samples: int
    dim: int
    levels: int | None
    dequantization: str
    importance_samples: int
    truncation: bool
    divergence: str
    solver: str
    target_error: float | None
    sde: str
    t_min: float
    nfe: float
    vjps: float
    runge_kutta: int
    seed: int
    batch_size: int
    model: str | None
    weights: str | None
    per_sample: tuple[float, ...] = field(repr=False)
    per_sample_probe_stderr: tuple[float, ...] | None = field(repr=False)
    per_sample_solver_error: tuple[float, ...] | None = field(repr=False)

    @property
    def nats_per_dim(self) -> float:
        """The mean in nats per dimension."""
        return self.mean * math.log(2)

    @property
    def nats(self) -> float:
        """The mean in nats, over a whole sample."""
        return self.nats_per_dim * self.dim

    def sentence(self) -> str:
        """The result with its protocol, to be pasted into a paper."""
        if self.levels:
            value, unit = f"{self.mean:.4f} +- {self.stderr:.4f} bits/dim", 1.0
        else:
            unit = math.log(2)
            value = f"{self.nats_per_dim:.4f} +- {self.stderr * unit:.4f} nats/dim ({self.nats:.4g} nats), in the data's units"
        parts = {"data": self.stderr_data, "dequantization": self.stderr_dequantization, "probes": self.stderr_probe}
        known = [f"{name} {part * unit:.4f}" for name, part in parts.items() if part and not math.isnan(part)]
        errors = f"standard error over {self.samples} samples" + (f": {', '.join(known)}" if known else "")
        if math.isnan(self.stderr):
            value = value.replace(" +- nan", "")
            errors = "one sample: a standard error needs at least two"
        measured = self.solver_error, self.solver_bias, self.solver_bias_stderr
        if solver := [part * unit for part in measured if part is not None]:
            error, bias, unsure = solver
            errors += (
                f"; solver error {error:.4f} a sample and {bias:+.4f} +- {unsure:.4f} in the mean, by solving {self.audited} "
                "samples more finely"
            )
        of = f"discrete data with {self.dim} dimensions and {self.levels} levels, " if self.levels else ""
        of = of or f"continuous data with {self.dim} dimensions"
        of += f"{self.dequantization.replace('_', ' ')} dequantization" if self.levels else ""
        of += f" with {self.importance_samples} importance samples" if self.importance_samples > 1 else ""
        of += ", truncation bound" if self.truncation else ""
        target = f" (chosen for an error of {self.target_error:g} bits/dim)" if self.target_error is not None else ""
        how = f"probability-flow ODE of the {self.sde} by {self.solver}{target}, t_min = {self.t_min:g}, {self.divergence}"
        if self.runge_kutta:
            how += f", Runge-Kutta steps for {self.runge_kutta} hard sample{'s' if self.runge_kutta > 1 else ''}"
        cost = f"{self.nfe:.4g} network evaluations and {self.vjps:.4g} vector-Jacobian products per sample"
        whose = [self.model] if self.model else []
        whose += [f"weights sha256 {self.weights}"] if self.weights else []
        end = f"batches of {self.batch_size}, seed {self.seed}" + (f"; {', '.join(whose)}" if whose else "")
        return f"{value} ({errors}; {of}; {how}, {cost}, {end})"

    def save(self, path: Path | str, about: Mapping[str, object] | None = None) -> None:
        """Write the record as JSON, after what ``about`` says of it, and the values of the samples as ``.npz`` beside it."""
        path = Path(path)
        record = asdict(self)
        values = {of: np.array(column) for name, of in _COLUMNS.items() if (column := record.pop(name)) is not None}
        if not self.levels:
            record |= {"nats_per_dim": self.nats_per_dim, "nats": self.nats}
            values["nats_per_dim"] = values["bits_per_dim"] * math.log(2)
        write_npz(path.with_suffix(".npz"), values)
        write_json(path, _entries(about, self.sentence(), record) | {"values": path.with_suffix(".npz").name})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a record that ``save`` wrote, with the values of the samples from the ``.npz`` beside it.

        Raises:
            DamagedError: one of the files is not as it was written, or they do not belong together.
            ValueError: it is no record of ``bits_per_dim``, or of a later format.
        """
        path = Path(path)
        saved = _read_entries(cls, path, beside=tuple(_COLUMNS))
        values = read_npz(path.with_suffix(".npz"))
        columns: dict[str, Any] = {name: tuple(values[of].tolist()) if of in values else None for name, of in _COLUMNS.items()}
        known = [column for column in columns.values() if column is not None]
        mean = np.mean(columns["per_sample"] or math.nan)
        if {len(column) for column in known} != {saved["samples"]} or not math.isclose(mean, saved["mean"], abs_tol=1e-9):
            raise DamagedError(f"{path.with_suffix('.npz')} does not hold the values of the samples of {path}")
        return cls(**(saved | columns))


_COLUMNS = {"per_sample": "bits_per_dim", "per_sample_probe_stderr": "probe_stderr", "per_sample_solver_error": "solver_error"}
"""Field -> the name of its array in the ``.npz``."""


@dataclass(frozen=True)
class VariationalBound:
    """A bound on the negative log-likelihood and how it was obtained, all in bits per dimension.

    ``mean`` is the sum of ``prior``, ``diffusion`` and ``reconstruction``. ``stderr`` is its standard error over the samples.
    The noise of each single value enters into it once. ``per_sample`` holds these values in the order of the data. From two
    draws on, ``per_sample_stderr`` holds their Monte-Carlo errors and ``monte_carlo`` that of the mean. Else both are None.
    ``bound`` is ``discrete`` or ``continuous``. ``steps`` and ``variance`` describe the chain, and are None in continuous time.
    ``times`` is the number of times at which a sample's diffusion term was evaluated in each of its ``draws``; ``t_min`` and
    ``T`` are the first and the last time; ``nfe`` counts network evaluations per sample.
    """

    mean: float
    stderr: float
    prior: float
    diffusion: float
    reconstruction: float
    monte_carlo: float | None
    samples: int
    dim: int
    levels: int
    bound: str
    steps: int | None
    variance: str | None
    times: int
    draws: int
    t_min: float
    T: float
    nfe: float
    seed: int
    batch_size: int
    per_sample: tuple[float, ...] = field(repr=False)
    per_sample_stderr: tuple[float, ...] | None = field(repr=False)

    def sentence(self) -> str:
        """The result with its protocol, to be pasted into a paper."""
        if self.bound == "discrete":
            some = "" if self.steps == self.times + 1 else f", {self.times} of them drawn for each sample"
            how = f"discrete chain of {self.steps} steps{some}, variance {self.variance}"
        else:
            how = f"continuous time from t_min = {self.t_min:g}, {self.times} times of uniform log-SNR for each sample"
        noise = "" if self.monte_carlo is None else f", {self.draws} draws with a Monte-Carlo error of {self.monte_carlo:.4f}"
        value, error = f"{self.mean:.4f} +- {self.stderr:.4f}", f"standard error over {self.samples} samples"
        if math.isnan(self.stderr):
            value, error = f"{self.mean:.4f}", "one sample, and a standard error needs at least two; sample"
        return (
            f"at most {value} bits/dim ({error} of discrete "
            f"data with {self.dim} dimensions, {self.levels} levels; variational bound, prior {self.prior:.4f} + diffusion "
            f"{self.diffusion:.4f} + reconstruction {self.reconstruction:.4f}; {how}{noise}, {self.nfe:.6g} network "
            f"evaluations per sample, seed {self.seed})"
        )

    def save(self, path: Path | str, about: Mapping[str, object] | None = None) -> None:
        """Write the record as JSON, after whatever ``about`` says of it."""
        write_json(path, _entries(about, self.sentence(), asdict(self)))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a record that ``save`` wrote.

        Raises:
            DamagedError: the file is not as it was written.
            ValueError: it is no record of a bound, or of a later format.
        """
        saved = _read_entries(cls, Path(path))
        for name in ("per_sample", "per_sample_stderr"):
            saved[name] = None if saved[name] is None else tuple(saved[name])
        return cls(**saved)


def _entries(about: Mapping[str, object] | None, sentence: str, record: Mapping[str, object]) -> dict[str, object]:
    """What is written: JSON has no NaN, and the standard error of a single sample is null there."""
    entries = {"format": FORMAT, **(about or {}), "sentence": sentence, **record}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in entries.items()}


def _read_entries(kind: type, path: Path, *, beside: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a record from its JSON, without those that are ``beside`` it."""
    entries = read_json(path)
    version = entries.get("format", FORMAT)
    if version not in range(1, FORMAT + 1):
        raise ValueError(f"{path} has the format {version}, of a later version of score_sde: this one reads up to {FORMAT}")
    names = [field.name for field in fields(kind) if field.name not in beside]
    if missing := [name for name in names if name not in entries]:
        raise ValueError(f"{path} is no record of a {kind.__name__}: it lacks {', '.join(missing[:3])}")
    if entries["stderr"] is None:  # of a single sample
        entries["stderr"] = math.nan
    return {name: entries[name] for name in names}
