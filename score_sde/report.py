"""Figures and one self-contained HTML page."""

import base64
import html
import io
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from torch import Tensor

from score_sde.experiments.comparison import Comparison
from score_sde.experiments.quantities import QUANTITIES, Panel
from score_sde.files import read_metrics, write_text
from score_sde.images import figure_image, image_grid, one_unit
from score_sde.likelihood import BitsPerDim

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption { color: #555; font-size: .9rem; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; } .row figure { flex: 1 1 12rem; max-width: 16rem; } .row img { width: 100%; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
code, pre { background: #f4f4f4; padding: .1rem .3rem; font-size: .88rem; } pre { padding: .6rem; overflow-x: auto; }
.figure { font-size: 1.4rem; }
.wide { overflow-x: auto; width: max-content; max-width: calc(50vw + 50% - 1rem); font-size: .85rem; }
.wide td, .wide th { padding: .15rem .5rem; white-space: nowrap; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1.2rem; }
"""


def paragraph(text: str) -> str:
    """Text as a paragraph; ``text`` is HTML."""
    return f"<p>{text}</p>"


def image(picture: Image.Image, caption: str) -> str:
    """A picture, embedded, with its caption."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    escaped = html.escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{escaped}"><figcaption>{escaped}</figcaption></figure>'


def row(blocks: Sequence[str]) -> str:
    """Figures side by side."""
    return f'<div class="row">{"".join(blocks)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, bold: Collection[tuple[int, int]] = ()) -> str:
    """A table of text, its cells at (row, column) in ``bold`` in bold."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = [
        [f"<b>{html.escape(c)}</b>" if (i, j) in bold else html.escape(c) for j, c in enumerate(r)] for i, r in enumerate(rows)
    ]
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in lines)
    return f"<table><tr>{head}</tr>{body}</table>"


def write_page(path: Path, title: str, blocks: Sequence[str]) -> None:
    """Write one HTML file that needs nothing beside it."""
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><h1>{html.escape(title)}</h1>{''.join(blocks)}</body></html>\n",
    )


def loss_curve(metrics: Path) -> Image.Image:
    """Training and test loss against steps, from a ``metrics.jsonl``."""
    lines, _ = read_metrics(metrics)
    figure = Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], label="training", linewidth=1)
    tested = [line for line in lines if "test_loss" in line]
    if tested:
        steps, losses = [line["step"] for line in tested], [line["test_loss"] for line in tested]
        axes.plot(steps, losses, "o-", label="test (averaged weights)", markersize=4)
    low = min(line["loss"] for line in lines)
    late = sorted(line["loss"] for line in lines[len(lines) // 20 :])
    axes.set(xlabel="step", ylabel="loss", ylim=(low - 0.05 * abs(low), 1.1 * late[-1]))
    axes.legend(frameon=False)
    return figure_image(figure)


def likelihood_histogram(record: BitsPerDim) -> Image.Image:
    """How the single samples' bits/dim are spread around their mean."""
    figure = Figure(figsize=(7, 3), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.hist(record.per_sample, bins=30, color="#7a9cc6")
    axes.axvline(record.mean, color="#b33", label=f"mean {record.mean:.3f} +- {record.stderr:.3f}")
    axes.set(xlabel="bits/dim of a test sample", ylabel="samples")
    axes.legend(frameon=False)
    return figure_image(figure)


# solvers compared


_MARKERS = "osD^vP*X<>"


def quality_curve(comparison: Comparison) -> Image.Image:
    """All that was measured against evaluations, each in a panel; what does not apply to any solver is left out.

    Stochastic solvers are dashed. The dotted line is what other data has in the place of samples, the grey band its interval.
    """
    found, floor = comparison.measurements, comparison.floor
    names = list(dict.fromkeys(m.solver for m in found))
    ordered = sorted(QUANTITIES, key=lambda quantity: quantity.cost)  # how good samples are comes first
    panels = [q.panel for q in ordered if q.panel and any(math.isfinite(q.panel.value(m, floor)) for m in found)]
    columns = min(len(panels), 4 if len(panels) > 6 else 3)
    rows = math.ceil(len(panels) / columns)
    legend_rows = math.ceil((len(names) + 1) / 5)
    figure = Figure(figsize=(3.6 * columns, 2.9 * rows + 0.25 * legend_rows), dpi=110, layout="constrained")
    labelled = {}
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        level = panel.value(floor, floor)
        if panel.floor and math.isfinite(level):
            labelled[floor.solver] = axes.axhline(level, color="grey", linestyle=":", linewidth=1.5)
        for i, name in enumerate(names):
            by_cost = sorted({m.nfe: m for m in found if m.solver == name}.items())
            if not any(math.isfinite(panel.value(m, floor)) for _, m in by_cost):
                continue
            colour = f"C{i % 10}"
            (labelled[name],) = axes.plot(
                [nfe for nfe, _ in by_cost],
                [panel.value(m, floor) for _, m in by_cost],
                color=colour,
                linestyle="--" if all(math.isnan(m.error) for _, m in by_cost) else "-",
                marker=_MARKERS[(i + i // 10) % len(_MARKERS)],
                markerfacecolor=colour if i < 10 else "white",
                markersize=4,
                linewidth=1.1,
            )
            if panel.interval:
                places = [nfe * 1.012 ** (i - (len(names) - 1) / 2) for nfe, _ in by_cost]  # beside each other
                ends = ([getattr(m, key) for _, m in by_cost] for key in panel.interval)
                axes.vlines(places, *ends, color=colour, linewidth=0.8, alpha=1.0 if len(names) < 7 else 0.4)
        _scale(axes, panel, comparison)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    order = [name for name in (*names, floor.solver) if name in labelled]
    figure.legend([labelled[name] for name in order], order, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure_image(figure)


def _scale(axes: Axes, panel: Panel, comparison: Comparison) -> None:
    """Axes that suit the panel: logarithmic where values are positive, linear within the noise where they need not be."""
    floor, found = comparison.floor, comparison.measurements
    axes.set_title(panel.title, fontsize=10)
    axes.set_xscale("log")
    ticks = sorted({m.budget for m in found})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("network evaluations", fontsize=9)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    if panel.scale == "linear":
        axes.set_ylim(-0.03, 1.03)
        return
    if panel.scale == "symlog":
        noise = 0.1
        if panel.interval:
            ends = [getattr(floor, key) for key in panel.interval]
            noise = max(*map(abs, ends), 1e-12)
            axes.axhspan(*ends, color="grey", alpha=0.15, linewidth=0)
        axes.set_yscale("symlog", linthresh=noise)
        axes.autoscale_view(scalex=False)  # margins on the new scale
        low, high = axes.get_ylim()
        decades = [10.0**power for power in range(math.ceil(math.log10(noise)), 1 + math.ceil(math.log10(max(high, noise))))]
        decades = decades[:: 1 + len(decades) // 6]
        axes.set_yticks([-decade for decade in decades if -decade > low] + [0.0] + decades)
        axes.set_ylim(low, high)
    else:
        axes.set_yscale("log")
        axes.autoscale_view(scalex=False)
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def sample_matrix(comparison: Comparison, display: Callable[[Tensor], Tensor], *, shown: int = 16) -> Image.Image:
    """Samples side by side, solvers in rows and budgets in columns; above them data, and the converged ODE.

    Args:
        comparison: what was drawn.
        display: model coordinates to what is drawn, such as ``DataSpec.displayed``.
        shown: images, or curves, in a cell; points are all drawn, in the limits of the data, and those outside are counted.
    """
    names = list(dict.fromkeys(m.solver for m in comparison.measurements))
    budgets = sorted({m.budget for m in comparison.measurements})
    rows, columns, side = len(names) + 1, max(2, len(budgets)), 1.5
    data = display(comparison.data[: len(next(iter(comparison.samples.values())))].cpu())
    limits = _limits(data)
    figure = Figure(figsize=(side * columns + 1.2, (side + 0.12) * rows + 0.2), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    _draw(grid[0, 0], data, limits, shown)
    grid[0, 0].set_title("held-out data", fontsize=9)
    converged = comparison.converged
    _draw(grid[0, 1], display(comparison.samples[converged.solver, converged.budget]), limits, shown)
    grid[0, 1].set_title(f"{converged.solver} ({converged.nfe})", fontsize=9)
    for i, name in enumerate(names, 1):
        grid[i, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for j, budget in enumerate(budgets):
            if i == 1:
                met = all(m.nfe == budget for m in comparison.measurements if m.budget == budget)
                grid[i, j].set_title(f"{'' if met else '<= '}{budget} evaluations", fontsize=9)
            if (name, budget) in comparison.samples:
                _draw(grid[i, j], display(comparison.samples[name, budget]), limits, shown)
            else:
                grid[i, j].text(0.5, 0.5, "left out", ha="center", va="center", color="grey", fontsize=8)
    return figure_image(figure)


def _limits(data: Tensor) -> np.ndarray:
    """The ends of the axes, ``(2, 2)`` a column for each coordinate of points, ``(2, 1)`` for anything else."""
    values = data.double().numpy()
    values = values if values.shape[1:] == (2,) else values.reshape(-1, 1)
    low, high = values.min(0), values.max(0)
    if values.shape[1] == 2 and one_unit(values):
        low, high = np.full(2, low.min()), np.full(2, high.max())
    margin = 0.15 * np.where(high > low, high - low, 1.0)
    return np.stack([low - margin, high + margin])


def _draw(axes: Axes, x: Tensor, limits: np.ndarray, shown: int) -> None:
    """Samples ``(B, *D)`` in one small cell, in ``_limits`` of the data."""
    if x.ndim == 5:
        x = x[:, :, x.shape[2] // 2]
    if x.ndim == 4:
        axes.imshow(image_grid(x[:shown], tile=32), cmap="gray", interpolation="antialiased", vmin=0, vmax=255)
        return
    axes.spines[:].set(visible=True, color="#ccc")
    values = x.detach().cpu().double().numpy()
    if values.shape[1:] == (2,):
        axes.scatter(values[:, 0], values[:, 1], s=3, alpha=0.5, linewidths=0)
        axes.set(xlim=limits[:, 0], ylim=limits[:, 1])
        axes.set_box_aspect(1)
    elif math.prod(values.shape[1:]) == 1:
        axes.hist(values.ravel(), bins=40, range=tuple(limits[:, 0]))
    else:
        axes.plot(values[:shown].reshape(-1, values.shape[-1]).T, linewidth=0.6)
        axes.set_ylim(*limits[:, 0])
        values = values[:shown]
    outside = ((values < limits[0]) | (values > limits[1])).reshape(len(values), -1).any(1).sum()
    if outside:
        axes.text(0.97, 0.03, f"{outside} outside", ha="right", va="bottom", fontsize=7, color="#b33", transform=axes.transAxes)


def comparison_table(comparison: Comparison) -> str:
    """The measurements as an HTML table, the best of each budget in bold."""
    shown, found, bold = comparison.quantities, comparison.measurements, set()
    cells = [[m.solver, *(quantity.cell(m) for quantity in shown)] for m in comparison.rows]
    for j, quantity in enumerate(shown, 1):
        for budget in {m.budget for m in found}:
            rivals = [i for i, m in enumerate(found) if m.budget == budget and not math.isnan(quantity.value(m))]
            if rivals and quantity.best:
                best = cells[quantity.best(rivals, key=lambda i: quantity.value(found[i]))][j]
                first = {(i, j) for i in rivals if cells[i][j] == best}
                bold |= first if len(first) < len(rivals) else set()
    return f'<div class="wide">{table(["solver", *(quantity.heading for quantity in shown)], cells, bold=bold)}</div>'


def write_comparison_page(path: Path, comparison: Comparison, curves: Image.Image, matrix: Image.Image, *, source: str) -> None:
    """Write everything as one HTML file; ``source`` says of what, as HTML."""
    explained = "".join(f"<dt>{quantity.heading}</dt><dd>{quantity.explanation}</dd>" for quantity in comparison.quantities)
    settings = "".join(
        f"<dt>{html.escape(m.solver)}, {m.nfe}</dt><dd>{html.escape(m.settings)}</dd>" for m in comparison.rows if m.settings
    )
    blocks = [
        paragraph(f"{source}. {html.escape(comparison.protocol)}"),
        image(curves, "Against evaluations. Dashed: stochastic solvers; dotted: data against data, grey its interval"),
        comparison_table(comparison),
        paragraph("In bold: the best of each budget. Where intervals overlap, so may the order of the solvers change."),
        image(matrix, "The same latents in every cell: deterministic solvers show the same sample in the same place"),
        f"<h2>What was measured</h2><dl>{explained}</dl>",
        f"<h2>Settings</h2><dl>{settings}</dl>",
    ]
    write_page(path, "Solvers compared", blocks)
