"""The report of ``score-sde demo``, for a reader who has never seen a score-based model."""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from score_sde.data import Dataset, blocks, read
from score_sde.experiments.comparison import Comparison
from score_sde.images import image_grid, picture
from score_sde.likelihood import BitsPerDim
from score_sde.report import (
    comparison_table,
    image,
    likelihood_histogram,
    loss_curve,
    paragraph,
    quality_curve,
    row,
    sample_matrix,
    table,
    write_page,
)
from score_sde.run import Run
from score_sde.solvers import DDIM


def write_demo_report(path: Path, run: Run, data: Dataset, record: BitsPerDim, comparison: Comparison) -> None:
    """Write the report as one HTML file: what was learned, what was drawn, how likely the test images are, at what cost."""
    model, spec, levels = run.model, run.model.data, _levels(data)
    largest = max(m.budget for m in comparison.measurements)
    families = [
        image(picture(spec.displayed(x[:36])), f"{_TITLES.get(name, name)}, {nfe} evaluations")
        for (name, nfe), x in comparison.samples.items()
        if nfe == largest or name == "converged ODE"
    ]
    histograms = pixel_histograms(data)
    folder = html.escape(quote(str(run.folder)))
    test_images = read(data.test, slice(36)).values / (levels - 1)
    page = [
        paragraph(
            "A diffusion turns data into noise; a neural network learns the <em>score</em>, the direction in which noisy "
            "data becomes more likely; a solver then follows the diffusion backwards, from noise to new data. Here the "
            f"data is {len(data.train)} handwritten digits of 8 x 8 pixels with {levels} grey levels, the diffusion "
            f"is the {type(model.sde).__name__}, and the network was trained for {run.step} steps. {len(data.test)} "
            "further images were held out: everything measured below is measured on them."
        ),
        "<h2>From noise to data</h2>",
        paragraph(
            "Left to right: six samples on their way from pure noise to digits. The structure appears late, over a few "
            "evaluations; that is where solvers differ."
        ),
        image(_path_of_samples(run), "Six samples at nine times from T (left) to 0 (right)"),
        "<h2>What was learned</h2>",
        row(
            [
                image(picture(test_images), "Held-out images"),
                *families,
            ]
        ),
        paragraph(
            "The first picture is data, all others are drawn by the model. <em>Euler-Maruyama</em> simulates the "
            "reverse-time stochastic equation; the <em>predictor-corrector</em> adds Langevin steps that undo some of "
            "its error; the <em>probability-flow ODE</em> is deterministic, as are <em>DDIM</em>, its cheapest "
            "discretization, and the multistep methods <em>UniPC</em> and <em>Gaussian reference</em>, which remember what the "
            "network said before. All start from the same noise, so that deterministic solvers show the same digit in the same "
            "place."
        ),
        "<h2>Training</h2>",
        image(
            loss_curve(run.folder / "metrics.jsonl"),
            "Loss against steps: the squared error of the noise, weighted for likelihood",
        ),
        paragraph(
            "Part of this loss no model can avoid: it is the noise itself. What matters is that the test loss still "
            "falls; where it parts from the training loss, the network has begun to memorize its images."
        ),
        "<h2>How likely are the test images?</h2>",
        paragraph(
            f'<span class="figure">{record.mean:.3f} &plusmn; {record.stderr:.3f} bits/dim</span>: so many bits per pixel '
            "would a perfect code built on this model need to store a test image. The probability-flow ODE gives the exact "
            "log-density of the model; the error is the standard error over the test images."
        ),
        table(
            ("model", "test bits/dim"),
            [
                ("every level equally likely", f"{math.log2(levels):.2f}"),
                ("independent histograms of each pixel", f"{histograms:.2f}"),
                ("this model", f"{record.mean:.2f} ± {record.stderr:.2f}"),
            ],
        ),
        image(likelihood_histogram(record), "bits/dim of the test images, one by one"),
        paragraph(f"Protocol: {record.sentence()}."),
        "<h2>Which solver?</h2>",
        paragraph(
            "Each solver is given the same noise and the same number of network evaluations, which is what sampling costs. The "
            "panels show the distances between samples and held-out images (lower is better), the error of the deterministic "
            "solvers, precision (how good samples are), recall (how varied), and the time spent outside of the network; dotted "
            "is what as many training images have in the place of samples."
        ),
        image(quality_curve(comparison), "Quality against evaluations"),
        comparison_table(comparison),
        image(
            sample_matrix(comparison, spec.displayed), "Solvers in rows, evaluations in columns, the same latents in each cell"
        ),
        "<h2>Go on</h2>",
        paragraph(f"Everything is in <code>{html.escape(str(run.folder))}</code>. Try:"),
        f"<pre>score-sde sample --workdir={folder} --solver=ode --n=100 --seed=1\n"
        f"score-sde tune --workdir={folder} --nfe=6,10\n"
        f"score-sde compare --workdir={folder} --nfe=6,10,20\n"
        "score-sde train --config=digits_subvp --workdir=runs/subvp\n"
        "score-sde train --config=two_moons --workdir=runs/moons</pre>",
    ]
    write_page(path, "A score-based model of handwritten digits", page)


_TITLES = {
    "euler_maruyama": "Euler-Maruyama",
    "pc": "predictor-corrector",
    "ddim": "DDIM",
    "unipc": "UniPC",
    "gaussian": "Gaussian reference",
    "converged ODE": "converged probability-flow ODE",
}


def pixel_histograms(data: Dataset) -> float:
    """bits/dim of the test set under independent histograms of each coordinate, one count added to each level."""
    levels, coordinates = _levels(data), torch.arange(data.spec.dim)
    counts = torch.ones(data.spec.dim, levels)
    for block in blocks(data.train, "histograms"):
        counts += torch.nn.functional.one_hot(block.values.flatten(1).long(), levels).sum(0)
    bits = -(counts / (len(data.train) + levels)).log2()
    found = (bits[coordinates, block.values.flatten(1).long()] for block in blocks(data.test, "histograms"))
    return sum(part.double().sum().item() for part in found) / (len(data.test) * data.spec.dim)


def _levels(data: Dataset) -> int:
    if data.spec.levels is None:
        raise ValueError("the demo is about images of integers, and this data is continuous")
    return data.spec.levels


def _path_of_samples(run: Run, columns: Sequence[float] = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)) -> Image.Image:
    model, spec = run.model, run.model.data
    drawn = DDIM(steps=60).sample(model, (6, *spec.shape), seed=3, trajectory=True)
    states, frames = cast(Tensor, drawn.trajectory), []  # asked for
    for fraction in columns:
        nearest = min(range(len(drawn.times)), key=lambda i: abs(drawn.times[i] - fraction * model.sde.T))
        frames.append(spec.unit(states[nearest]) if nearest < len(drawn.times) - 1 else spec.displayed(drawn.x))
    return image_grid(torch.stack(frames, dim=1).flatten(0, 1), columns=len(columns))
