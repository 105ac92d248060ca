"""Figures and one self-contained HTML page."""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from score_sde.comparison import Comparison
from score_sde.files import write_text
from score_sde.images import figure_image
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


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rows)
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
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
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


def quality_curve(comparison: Comparison) -> Image.Image:
    """Distance to the data, and error of the deterministic solvers, against evaluations."""
    figure = Figure(figsize=(8, 3.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(m.solver for m in comparison.measurements):
        mine = [m for m in comparison.measurements if m.solver == name]
        (line,) = left.plot([m.nfe for m in mine], [m.distance for m in mine], "o-", markersize=4, label=name)
        if any(m.error == m.error for m in mine):
            right.plot([m.nfe for m in mine], [m.error for m in mine], "o-", markersize=4, label=name, color=line.get_color())
    left.axhline(comparison.floor, color="grey", linestyle=":", label="data against data")
    left.set(xlabel="network evaluations", ylabel="sliced Wasserstein distance", xscale="log", yscale="log")
    right.set(xlabel="network evaluations", ylabel="RMS error to the converged ODE", xscale="log", yscale="log")
    left.legend(frameon=False, fontsize=8)
    if right.lines:
        right.legend(frameon=False, fontsize=8)
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


def comparison_table(comparison: Comparison) -> str:
    """The measurements as an HTML table."""
    rows = [
        (m.solver, str(m.nfe), f"{m.seconds:.2f}", f"{m.distance:.4f}", "" if m.error != m.error else f"{m.error:.4f}")
        for m in comparison.measurements
    ]
    rows.append(("data against data", "", "", f"{comparison.floor:.4f}", ""))
    return table(("solver", "evaluations", "seconds", "distance to data", "error to ODE"), rows)
