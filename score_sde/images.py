"""Samples as pictures: image grids, scatter plots and curves, whatever the shape of the data calls for."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from score_sde.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image_grid(images: Tensor, *, columns: int | None = None, tile: int = 48) -> Image.Image:
    """Images ``(B, C, H, W)`` in [0, 1] as one picture, small ones enlarged to about ``tile`` pixels.

    One or three channels are shown as grey or colour; any other number as grey tiles, one a channel.
    """
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu()
    if pixels.shape[1] not in (1, 3):
        columns = pixels.shape[1]
        pixels = pixels.flatten(0, 1).unsqueeze(1)
    count, channels, height, width = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    scale = max(1, round(tile / max(height, width)))
    tiles = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3).permute(0, 2, 3, 1).numpy()
    gap, rows = 2, math.ceil(count / columns)
    canvas = np.full(
        (rows * (height * scale + gap) + gap, columns * (width * scale + gap) + gap, channels), 255, dtype=np.uint8
    )
    for i, picture in enumerate(tiles):
        top, left = gap + i // columns * (height * scale + gap), gap + i % columns * (width * scale + gap)
        canvas[top : top + height * scale, left : left + width * scale] = picture
    return Image.fromarray(canvas.squeeze(2) if channels == 1 else canvas)


def picture(samples: Tensor, *, limits: tuple[float, float] | None = None) -> Image.Image:
    """Samples ``(B, *D)`` of any shape as one picture.

    Images ``(C, H, W)`` become a grid and volumes ``(C, Z, H, W)`` a grid of their middle slices; both are expected in
    [0, 1]. Points ``(2,)`` become a scatter plot, single numbers a histogram; other vectors and signals become
    curves. ``limits`` fixes the axes of a plot.
    """
    if samples.ndim == 5:
        samples = samples[:, :, samples.shape[2] // 2]
    if samples.ndim == 4:
        return image_grid(samples)
    values = samples.detach().cpu().double().numpy()  # float32 has no digits left for what varies far from 0
    from matplotlib.figure import Figure  # here: it takes long to import

    figure = Figure(figsize=(4, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    if values.shape[1:] == (2,):
        axes.scatter(values[:, 0], values[:, 1], s=max(3, min(12, 3000 / max(1, len(values)))), alpha=0.6, linewidths=0)
        if one_unit(values):
            axes.set_aspect("equal")
        if limits:
            axes.set(xlim=limits, ylim=limits)
    elif math.prod(values.shape[1:]) == 1:
        axes.hist(values.ravel(), bins=50, range=limits)
    else:
        for curve in values[:16].reshape(-1, values.shape[-1]):
            axes.plot(curve, linewidth=0.8)
        if limits:
            axes.set_ylim(limits)
    return figure_image(figure)


def one_unit(points: np.ndarray) -> bool:
    """Whether both coordinates of points ``(B, 2)`` vary alike, so that they may be drawn to one scale."""
    first, second = points.std(0) if len(points) else (1.0, 1.0)
    return bool(max(first, second) < 10 * min(first, second))


def figure_image(figure: "Figure") -> Image.Image:
    """A matplotlib figure as a picture, drawn without any display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer)


def save_png(image: Image.Image, path: Path | str) -> None:
    """Write ``image`` as PNG, atomically."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
