"""The record of a likelihood: the number, where its error comes from, and all that is needed to compute it again."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from score_sde.files import write_json, write_npz


@dataclass(frozen=True)
class BitsPerDim:
    """A negative log-likelihood in bits per dimension and how it was obtained; also in nats, for data that is not integer.

    What it is worth:

    * ``mean``, and ``stderr``, its standard error over the samples as a draw from all data. The noise of dequantization and of
      probes enters into each value once and is contained in it; ``stderr_dequantization`` and ``stderr_probe`` are their parts,
      ``stderr_data`` is what remains when their squares are taken off. None where they were not measured.
    * ``solver_error`` and ``solver_bias``: root mean square and mean, over all samples, of the error that the solver leaves, as
      found by solving ``audited`` samples more finely; ``solver_bias_stderr``, the standard error of that mean over the choice
      of these samples. None without an audit.
    * ``prior_mismatch``: the divergence between the noised training data at T, taken as Gaussian, and the prior; None where the
      training data's moments were not given.

    How it was obtained: ``samples`` of ``dim`` coordinates and ``levels`` (None for continuous data), their ``dequantization``
    with ``importance_samples``, whether the noise of t_min is accounted for (``truncation``), the ``divergence``, the
    ``solver`` (chosen for ``target_error``, if there was one), ``nfe`` network evaluations and ``vjps`` vector-Jacobian
    products per sample, of which ``runge_kutta`` samples were too hard for ``DualWeighted``'s path and got Runge-Kutta steps of
    their own, ``seed`` and ``batch_size``; the ``model``, as its caller calls it, and the first digits of the SHA-256
    of its ``weights``. ``per_sample`` holds the single values in the order of the data, ``per_sample_probe_stderr`` their
    errors by the probes where these were several, ``per_sample_solver_error`` what the solver estimates of its own error.
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
        if self.solver_error is not None:
            errors += (
                f"; solver error {self.solver_error * unit:.4f} a sample and {self.solver_bias * unit:+.4f} +- "
                f"{self.solver_bias_stderr * unit:.4f} in the mean, by solving {self.audited} samples more finely"
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

    def save(self, path: Path | str, **about: object) -> None:
        """Write the record, and whatever ``about`` says of it, as JSON, and the values of the samples beside it as ``.npz``."""
        path = Path(path)
        record = asdict(self)
        values = {"bits_per_dim": np.array(record.pop("per_sample"))}
        if (errors := record.pop("per_sample_probe_stderr")) is not None:
            values["probe_stderr"] = np.array(errors)
        if (errors := record.pop("per_sample_solver_error")) is not None:
            values["solver_error"] = np.array(errors)
        if not self.levels:
            record |= {"nats_per_dim": self.nats_per_dim, "nats": self.nats}
            values["nats_per_dim"] = values["bits_per_dim"] * math.log(2)
        write_npz(path.with_suffix(".npz"), values)
        record = {**about, "sentence": self.sentence(), **record, "values": path.with_suffix(".npz").name}
        write_json(path, {k: _plain(v) for k, v in record.items()})


def _plain(value: object) -> object:
    """JSON has no NaN: the standard error of a single sample is null there."""
    return None if isinstance(value, float) and math.isnan(value) else value
