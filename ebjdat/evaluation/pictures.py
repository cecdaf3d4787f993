"""Samples to look at: a grid per class, and chains from their start to their end.

A number does not show that all samples are the same image; a person who looks does.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebjdat import files
from ebjdat.evaluation.generation import Samples

PER_CLASS = 8
CHAINS = 8


def draw_grid(path: Path, samples: Samples, title: str) -> None:
    """Class-conditional samples (PNG), one row per class."""
    rows = [samples.conditional[samples.labels == label][:PER_CLASS] for label in range(10)]
    images = torch.zeros(10, PER_CLASS, *samples.conditional.shape[1:])
    for row, found in zip(images, rows, strict=True):
        row[: len(found)] = found
    _draw(path, images, [str(label) for label in range(10)], [], f"{title}, class-conditional")


def draw_chains(path: Path, samples: Samples, title: str) -> None:
    """Chains over their steps (PNG), one row per chain, start on the left."""
    images = samples.snapshots[:, :CHAINS].transpose(0, 1)
    columns = [str(step) for step in samples.snapshot_steps]
    _draw(path, images, [""] * len(images), columns, f"{title}, chain steps")


def _draw(path: Path, images: Tensor, rows: list[str], columns: list[str], title: str) -> None:
    """Images (rows, columns, C, H, W) in [0, 1] as one picture with labels at its edges."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = images.shape[-2:]
    figure = Figure(figsize=(0.55 * images.shape[1] + 0.5, 0.55 * len(images) + 0.6), dpi=120)
    axes: Any = figure.add_axes((0.08, 0.02, 0.9, 0.9))
    axes.imshow(_mosaic(images), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_yticks([(row + 0.5) * (height + 1) for row in range(len(rows))], rows, fontsize=7)
    axes.set_xticks([(column + 0.5) * (width + 1) for column in range(len(columns))], columns, fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.suptitle(title, fontsize=8, y=0.995)
    with files.atomic(path) as handle:
        # The library's version in the file would change its hash without changing the picture.
        FigureCanvasAgg(figure).print_png(handle, metadata={"Software": None})


def _mosaic(images: Tensor) -> np.ndarray:
    """(rows, columns, C, H, W) -> (rows * (H + 1), columns * (W + 1)) grey or with 3 channels last."""
    padded = torch.nn.functional.pad(images, (0, 1, 0, 1), value=1.0)
    rows, columns, channels, height, width = padded.shape
    mosaic = padded.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    return mosaic.squeeze(2).numpy() if channels == 1 else mosaic.numpy()
