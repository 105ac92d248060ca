"""What draws from a run: samples, solvers compared, solvers chosen by measurement.

    run = score_sde.load("runs/moons")
    sample = draw_samples(run, 500, UniPC(steps=10))
    points = run.model.data.decode(sample.x)

Samples are in model coordinates; ``decode`` gives them in data units.
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from score_sde.data import Dataset, DataSource, DataSpec, read
from score_sde.experiments.comparison import Comparison, compare
from score_sde.experiments.tuning import tune
from score_sde.inputs import whole
from score_sde.model import score_for_class
from score_sde.run import NoTuned, Run, UnusableTuned, build_solver, load_tuned, save_choice
from score_sde.score import ClippedScore
from score_sde.solvers import Sample, Solver, Tuned
from score_sde.solvers.tuned import Choice

JUDGES = 2000
"""The number of held-out samples by which solvers are compared."""


def draw_samples(
    run: Run,
    count: int,
    solver: Solver | None = None,
    *,
    class_: int | None = None,
    denoise: bool = False,
    clip: bool | tuple[float, float] = False,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> Sample:
    """Samples of a run's model ``(count, *D)``, in model coordinates; ``run.model.data.decode`` gives them in data units.

    Args:
        run: the run.
        count: how many, at least 1.
        solver: how; by default by the solver of the run's config.
        class_: of this class alone.
        denoise: end with the posterior mean, at one more evaluation.
        clip: clip x0 at every evaluation: to the range of the data, or to a smallest and a largest value in its units.
        seed: sample i depends on ``seed`` and i alone, as long as the solver does not share its steps among a batch.
        batch_size: samples at a time.
        progress: show a progress bar.

    Raises:
        ValueError: a number is out of range, there is no such class, or the range of the data is not known.
        SolverError: the state stopped being finite.
    """
    solver = build_solver(run.config) if solver is None else solver
    score, clipped = score_for_class(run.model, class_), clipped_data(run.model.data, clip)
    limits = clipped and clipped.model_limits(run.model.device, run.model.dtype)
    parts = []
    for first in range(0, whole("count", count, 1), whole("batch_size", batch_size, 1)):
        shape = (min(batch_size, count - first), *run.model.data.shape)
        part = solver.sample(score, shape, seed=seed, first=first, denoise=denoise, clip=limits, progress=progress)
        parts.append(part)
    nfe, seconds = max(part.nfe for part in parts), sum(part.seconds for part in parts)
    return Sample(torch.cat([part.x for part in parts]), nfe, denoise, seconds)


def clipped_data(spec: DataSpec, clip: bool | tuple[float, float]) -> DataSpec | None:
    """The data with the range to which ``clip`` clips: its own, or the one that is given in its units; None for no clipping.

    Raises:
        UnknownRange: the range of the data is not known.
        ValueError: integers are given another range than their own.
    """
    if clip is False:
        return None
    given = () if clip is True else clip
    if spec.levels is not None and given:
        raise ValueError(f"the data is integer, from 0 to {spec.levels - 1}: it is clipped to no other range")
    if not given and spec.levels is None and not spec.limits:
        raise UnknownRange("the run does not know the range of its data: give it in the data's units")
    return dataclasses.replace(spec, limits=(given,)) if given else spec


def clip_limits(clipped: DataSpec | None) -> tuple | None:
    """The ends by which one clipping is told from another; None for no clipping."""
    return clipped and (clipped.limits or clipped.model_range)


class UnknownRange(ValueError):
    """Samples are to be clipped to the range of the data, and it is not known."""


def compare_solvers(
    run: Run,
    data: Dataset,
    solvers: Mapping[str, Solver],
    budgets: Sequence[int],
    *,
    class_: int | None = None,
    samples: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """``compare`` of a run's model, judged by held-out data and beside as much training data as there are samples.

    Args:
        run: the run.
        data: what it was trained on, and what was held out.
        solvers: by the names under which they are reported.
        budgets: numbers of evaluations.
        class_: of this class alone, the data too.
        samples: samples per solver and budget.
        seed: of latents, noise, resamples and dequantization.
        progress: show a progress bar.

    Raises:
        ValueError: as ``compare`` raises it, or there is no such class.
        SolverError: the ODE could not be solved.
    """
    random = torch.Generator().manual_seed(seed)

    def encoded(source: DataSource, count: int) -> Tensor:
        rows = torch.arange(len(source))
        if class_ is not None and source.classes is not None:
            rows = rows[source.classes == class_]
        values = read(source, rows[:count]).values
        return run.model.data.encode(values, torch.rand(values.shape, generator=random)).to(run.model.device)

    score = score_for_class(run.model, class_)
    held_out, other = encoded(data.test, JUDGES), encoded(data.train, samples)
    return compare(score, solvers, budgets, held_out, other=other, samples=samples, seed=seed, progress=progress)


def tune_solvers(
    run: Run,
    budgets: Sequence[int],
    *,
    folder: Path | str | None = None,
    class_: int | None = None,
    clip: bool | tuple[float, float] = False,
    t_end: float | None = None,
    pilot: int = 128,
    trials: int = 60,
    seed: int = 0,
    progress: bool = False,
) -> Tuned:
    """``tune`` for a run's model; each choice is kept in ``tuned.json`` as soon as it is made.

    Args:
        run: the run.
        budgets: numbers of evaluations, each at least 2.
        folder: of the ``tuned.json``; by default the run's. What it holds for the same class, clipping and end takes part in
            the check.
        class_: for samples of this class alone.
        clip: for samples that are clipped, as by ``draw_samples``.
        t_end, pilot, trials, seed, progress: as for ``tune``.

    Raises:
        ValueError: as ``tune`` raises it, or there is no such class.
        SolverError: no known solver gives finite samples within a budget.
    """
    folder, clipped = run.folder if folder is None else Path(folder), clipped_data(run.model.data, clip)
    score, limits = score_for_class(run.model, class_), clip_limits(clipped)
    if clipped:
        score = ClippedScore(score, *clipped.model_limits(run.model.device, run.model.dtype))
    about = {"pilot": pilot, "trials": trials, "seed": seed, "class": class_, "step": run.step}
    others = {"clip": limits, "t_end": t_end, "run": run.identity}
    about |= {name: value for name, value in others.items() if value is not None}
    earlier = _chosen_before(folder, class_, limits, t_end)

    def keep(choice: Choice) -> None:
        save_choice(folder, choice, about)

    return tune(
        score,
        run.model.data.shape,
        budgets,
        pilot=pilot,
        trials=trials,
        seed=seed,
        t_end=t_end,
        earlier=earlier,
        keep=keep,
        progress=progress,
    )


def _chosen_before(folder: Path, class_: int | None, limits: tuple | None, t_end: float | None) -> Tuned | None:
    """What was tuned for the same samples, or for simpler ones, which the check may find good too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_tuned(folder, class_=class_, clip=limits, t_end=t_end)
    except UnusableTuned:
        raise
    except NoTuned:
        return None
