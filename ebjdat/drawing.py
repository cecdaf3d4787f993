"""Pictures of one run by matplotlib: energies, training, attacked images, calibration; for MLflow and the report.

Equal numbers give equal bytes on one machine. Dark on white; colours are Okabe and Ito's, which people with colour
vision deficiencies can tell apart, and every colour comes with a shape, a dash or a label.
"""

import base64
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ebjdat import files
from ebjdat.errors import UserError
from ebjdat.record import read_history
from ebjdat.run import Run

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = "osD^vPX*<>hpd8"
DASHES = ("-", "--", "-.", ":")
SIZE = (4.8, 3.4)
"""Inches; at the width of a telephone text of 10 points stays readable."""
KINDS = {"clean": "clean", "adversarial": "adversarial", "generated": "buffer", "generated-fresh": "fresh chains"}
"""Images whose energies are drawn, and what they are called."""
CURVES = ("energy_clean", "energy_adversarial", "energy_generated", "energy_data")
"""Mean energies per epoch in a history."""
BINS = 40
SAMPLES = {
    "samples": ("Samples, one row per class.", "Rows of one image, or of another class, are failures."),
    "chains": ("Chains, one per row, from their start on the left to the sample.", "What the chain adds to its start."),
}
"""Pictures of the stage ``generate``: what they show, and what to look for."""
ABOVE: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2}
"""Where a legend stands."""
STYLE: Any = {
    "svg.hashsalt": "ebjdat",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "lines.markersize": 4,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """What a figure shows, also in words; a PNG of :func:`drawn` holds them, too.

    Attributes:
        content: an SVG or PNG file.
        alt: for those who do not see it.
        caption: how to read it.
    """

    content: bytes
    alt: str
    caption: str

    @property
    def address(self) -> str:
        """As a ``data:`` address, which needs no file beside the page."""
        kind = "png" if self.content.startswith(b"\x89PNG") else "svg+xml"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode('ascii')}"


Arrays = Mapping[str, np.ndarray]


def write_pictures(run: Run) -> None:
    """Draw what is known of a run whose files are here, each as ``<name>.png`` in its folder of pictures.

    Raises:
        UserError: a file of the run is damaged.
    """
    arrays, history = read_arrays(run), read_history(run)
    drawers = {"clean/energy": _energies, "pictures/adversarial": _attacked, "reliability/count": _reliability}
    found = {draw.__name__.strip("_"): draw(arrays) for needed, draw in drawers.items() if needed in arrays}
    curves = {name: [row[name] for row in history] for name in CURVES if history and name in history[0]}
    if len(curves) > 1:
        found["training"] = _training(curves)
    for path in run.pictures.glob("*.png"):
        if path.stem not in found:
            path.unlink()
    for name, picture in found.items():
        with files.atomic(run.pictures / f"{name}.png") as handle:
            handle.write(picture.content)


def read_pictures(run: Run) -> dict[str, Picture]:
    """Pictures of :func:`write_pictures` and of the stage ``generate`` that are here, by name.

    Raises:
        UserError: a picture is damaged.
    """
    from PIL import Image

    found = {}
    for path in sorted(run.pictures.glob("*.png")):
        try:
            with Image.open(path) as image:
                found[path.stem] = Picture(path.read_bytes(), image.info["Title"], image.info["Description"])
        except (OSError, KeyError):
            raise UserError(f"{path} is no picture of the stage log: run `python -m stages.log` to draw it") from None
    for name, words in SAMPLES.items():
        path = run.arrays("generate") / f"{name}.png"
        if path.is_file():
            found[name] = Picture(path.read_bytes(), *words)
    return found


def read_arrays(run: Run) -> dict[str, np.ndarray]:
    """What the stage ``clean`` left beside its record, by name; nothing where the file is not here.

    Raises:
        UserError: the file is damaged.
    """
    path = run.arrays("clean") / "arrays.npz"
    return files.read_npz(path, "run `dvc repro` to make it") if path.is_file() else {}


def energy_histogram(arrays: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Edges of common bins (nats), and the share of images in them of those :data:`KINDS` that are here."""
    found = {kind: arrays[f"{kind}/energy"] for kind in KINDS if f"{kind}/energy" in arrays}
    edges = np.histogram_bin_edges(np.concatenate([*found.values(), []]), bins=BINS)
    return edges, {kind: np.histogram(values, edges)[0] / len(values) for kind, values in found.items()}


def _energies(arrays: Arrays) -> Picture:
    edges, shares = energy_histogram(arrays)

    def plot(figure: Any) -> None:
        axes = axes_of(figure, "E(x) (nats)", "share of images (%)")
        for place, (kind, share) in enumerate(shares.items()):
            axes.stairs(100 * share, edges, color=COLOURS[place], fill=True, alpha=0.15)
            axes.stairs(100 * share, edges, color=COLOURS[place], linestyle=DASHES[place], label=KINDS[kind])
        axes.legend(**ABOVE)

    means = ", ".join(f"{KINDS[kind]} {arrays[f'{kind}/energy'].mean():.2f}" for kind in shares)
    alt = f"Distributions of the energy; means in nats: {means}."
    return drawn(plot, alt, f"{alt} Aligned energies lie on each other.")


def _training(curves: Mapping[str, list[float]]) -> Picture:
    def plot(figure: Any) -> None:
        axes = axes_of(figure, "epoch", "mean E(x) (nats)")
        for place, (name, curve) in enumerate(curves.items()):
            label = name.removeprefix("energy_")
            axes.plot(range(1, len(curve) + 1), curve, DASHES[place], color=COLOURS[place], label=label)
        axes.legend(**ABOVE)

    ends = ", ".join(f"{name.removeprefix('energy_')} {curve[-1]:.2f}" for name, curve in curves.items())
    return drawn(plot, f"Mean energies over training; at the end: {ends}.", "Healthy energies stay together.")


def _attacked(arrays: Arrays) -> Picture:
    clean, attacked = (arrays[f"pictures/{name}"] for name in ("clean", "adversarial"))
    moved = attacked.astype(int) - clean
    factor = max(1, 127 // max(int(np.abs(moved).max()), 1))
    rows = np.stack([clean, attacked, (128 + factor * moved).clip(0, 255).astype(np.uint8)])
    answers = np.stack([arrays[f"pictures/{name}"] for name in ("label", "clean-prediction", "adversarial-prediction")])
    told = [f"{label}: {before}→{after}" for label, before, after in answers.T]

    def plot(figure: Any) -> None:
        for axes, part in zip(figure.subplots(2, 1), np.array_split(np.arange(len(told)), 2), strict=True):
            images = np.pad(rows[:, part], ((0, 0), (0, 0), (0, 0), (0, 1), (0, 1)), constant_values=255)
            count, across, channels, height, width = images.shape
            board = images.transpose(0, 3, 1, 4, 2).reshape(count * height, across * width, channels)
            axes.imshow(board.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_xticks((np.arange(across) + 0.5) * width, [told[place] for place in part])
            axes.set_yticks((np.arange(count) + 0.5) * height, ["clean", "attacked", "change"])
            axes.tick_params(length=0, labeltop=True, labelbottom=False)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)

    caption = (
        "PGD-20, protocol standard, on the first test images of each class, not chosen by outcome: "
        f"{(answers[1] != answers[2]).sum()} of {len(told)} predictions change. Above each image: label, prediction "
        f"before and after. Changes are magnified {factor} times around grey."
    )
    alt = f"Clean images, attacked images and their difference. Label, prediction before and after: {'; '.join(told)}."
    return drawn(plot, alt, caption, (6.4, 4.2))


def _reliability(arrays: Arrays) -> Picture:
    count, confidence, accuracy = (arrays[f"reliability/{name}"] for name in ("count", "confidence", "accuracy"))

    def plot(figure: Any) -> None:
        axes = axes_of(figure, "mean confidence (%)", "accuracy (%)")
        axes.plot([0, 100], [0, 100], color="0.5", linewidth=0.8)
        axes.scatter(100 * confidence, 100 * accuracy, s=200 * count / count.max(), color=COLOURS[0], alpha=0.8)

    error = 100 * float((count * np.abs(confidence - accuracy)).sum() / count.sum())
    alt = f"Accuracy against confidence on clean test images; expected calibration error {error:.1f} points."
    return drawn(plot, alt, f"{alt} Area: images in a bin; on the line confidence is right.")


def axes_of(figure: Any, x_label: str, y_label: str = "") -> Any:
    """The only axes of a figure."""
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return axes


def drawn(
    plot: Callable[[Any], None],
    alt: str,
    caption: str,
    size: tuple[float, float] = SIZE,
    kind: Literal["png", "svg"] = "png",
) -> Picture:
    """What ``plot`` puts on an empty matplotlib figure, without dates or versions in the file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    stream = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure)
        said = {"Title": alt, "Description": caption, "Software": None}
        metadata = {"Date": None, "Creator": None} if kind == "svg" else said
        figure.savefig(stream, format=kind, dpi=150, metadata=metadata)
    content = stream.getvalue()
    if kind == "svg":  # hundredths of a point are enough
        content = re.sub(rb"(\.\d\d)\d+", rb"\1", content)
    return Picture(content, alt, caption)
