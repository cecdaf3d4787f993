"""Figures by matplotlib: two of all models, which the README shows, and those of one model for its MLflow run.

Equal numbers give equal bytes on one machine. Dark on white; colours are Okabe and Ito's, which people with colour
vision deficiencies can tell apart, and every colour comes with a shape, a dash or a label.
"""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebjdat import files
from ebjdat.protocols import STANDARD, as_fraction
from ebjdat.results import plots
from ebjdat.results.extended import distances
from ebjdat.results.findings import RIVALS, findings
from ebjdat.results.frame import Results
from ebjdat.results.names import COMPARED, DISTANCES, ENERGIES, display_name
from ebjdat.run import Run

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX*<>hpd8"
DASHES = ("-", "--", "-.", ":")
SIZE = (4.8, 3.4)
"""Inches; at the width of a telephone text of 10 points stays readable."""
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
    """A figure and what it shows in words.

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


def differences_picture(results: Results) -> Picture | None:
    """EB-JDAT minus its rivals in accuracy, points with intervals; None where there is nothing to compare."""
    asked = ((quantity, rival) for quantity in reversed(COMPARED) for rival in RIVALS)
    found = {one: finding for one, finding in findings(results).items() if one.quantity in COMPARED}
    rows = [row for row in asked if any((one.quantity, one.rival) == row for one in found)]
    if not rows:
        return None
    models = {one.model: display_name(results.params, one.model) for one in found}

    def plot(figure: Any) -> None:
        axes = _axes(figure, "difference in accuracy (points)")
        for place, (model, name) in enumerate(models.items()):
            mine = {rows.index((one.quantity, one.rival)): f for one, f in found.items() if one.model == model}
            y = [row + (place - (len(models) - 1) / 2) * 0.7 / len(models) for row in mine]
            numbers = [(one.difference.mean, *one.difference.interval) for one in mine.values()]
            mean, low, high = np.array(numbers).T
            style: Any = {"color": COLOURS[place % len(COLOURS)], "fmt": MARKERS[place % len(MARKERS)], "capsize": 2}
            axes.errorbar(mean, y, xerr=[mean - low, high - mean], label=name, **style)
        axes.axvline(0.0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [f"{quantity}, minus {RIVALS[rival]}" for quantity, rival in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, columnspacing=1.0, handletextpad=0.3)

    told = [f"{models[one.model]}, {one.quantity}, minus {RIVALS[one.rival]}: {f}" for one, f in found.items()]
    caption = (
        f"EB-JDAT minus each rival at {_radius(results)}, protocol standard, paired by image. Bars: 95 % interval over "
        "images and seeds. Right of 0 EB-JDAT is better."
    )
    return Picture(_drawn(plot, (6.4, 1.1 + 0.4 * len(rows)), "svg"), "; ".join(told), caption)


def tradeoff_picture(results: Results) -> Picture | None:
    """Accuracy under AutoAttack against clean accuracy of every model; None where no model has both."""
    distance = distances(results)[0]
    metrics = [COMPARED["clean accuracy"], COMPARED["AutoAttack"], f"generate/generation/{distance}"]
    runs = results.frame.reindex(columns=metrics).dropna(subset=metrics[:2]) * [100, 100, 1]
    if runs.empty:
        return None
    means = runs.groupby(level="model").mean().sort_values(metrics[1::-1])
    names = [display_name(results.params, model) for model in means.index]
    known = means[metrics[2]].dropna()

    def plot(figure: Any) -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LogNorm

        axes = _axes(figure, "clean accuracy (%)", f"accuracy under AutoAttack, {_radius(results)} (%)")
        shades = ScalarMappable(LogNorm(known.min(), 1.01 * known.max()) if len(known) else None, "viridis")
        for place, (model, (clean, robust, shade)) in enumerate(means.iterrows()):
            marker = MARKERS[place % len(MARKERS)]
            axes.scatter(*runs.loc[model].values.T[:2], s=12, marker=marker, color="0.6", linewidths=0, zorder=2)
            style: Any = {"color": shades.to_rgba(shade) if shade > 0 else "white", "edgecolors": "black"}
            axes.scatter(clean, robust, s=60, marker=marker, linewidths=0.8, zorder=3, **style)
            # Points may lie on each other: the names stand beside the axes, in the order of the points.
            side: Any = {"xytext": (1.05, (place + 0.5) / len(means)), "textcoords": "axes fraction", "va": "center"}
            line = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.6}
            axes.annotate(names[place], (clean, robust), arrowprops=line, **side)
        if len(known):
            bar = figure.colorbar(shades, ax=axes, location="bottom", shrink=0.6, aspect=30, format="%.3g")
            bar.set_ticks(np.geomspace(known.min(), known.max(), 3), minor=False)
            bar.minorticks_off()
            bar.set_label(f"{DISTANCES[distance]} of generated images (white: generates none)")

    told = [
        f"{name}: {row[0]:.1f} % clean, {row[1]:.1f} % robust" for name, row in zip(names, means.values, strict=True)
    ]
    caption = (
        "Protocol standard. Large: mean over seeds; small and grey: each seed. Colour: distance of generated images to "
        "the data, darker is nearer. Best is the upper right corner, dark."
    )
    return Picture(_drawn(plot, (6.4, 5.0), "svg"), "; ".join(told), caption)


def write_figures(results: Results) -> list[Path]:
    """Write ``findings.svg`` and ``tradeoff.svg`` among the tables, where there are numbers for them."""
    folder, written = Path("results") / results.profile / "tables", []
    for name, picture in (("findings", differences_picture(results)), ("tradeoff", tradeoff_picture(results))):
        if picture is not None:
            with files.atomic(folder / f"{name}.svg") as handle:
                handle.write(picture.content)
            written.append(folder / f"{name}.svg")
    return written


def model_figures(run: Run) -> dict[str, bytes]:
    """The pictures of a run that are no files yet, as PNG files by name, for its MLflow run."""
    return {f"{name}.png": picture.content for name, picture in model_pictures(run).items() if name not in SAMPLES}


def model_pictures(run: Run) -> dict[str, Picture]:
    """Energies, training, samples, chains, attacked images and reliability of a run, where their files are here.

    Raises:
        UserError: a file is damaged.
    """
    arrays = plots.read_arrays(run)
    drawers = {"clean/energy": _energies, "pictures/adversarial": _attacked, "reliability/count": _reliability}
    drawn = {draw.__name__.strip("_"): draw(arrays) for needed, draw in drawers.items() if needed in arrays}
    history = plots.read_history(run)
    curves = {name: [row[name] for row in history] for name in plots.ENERGIES if history and name in history[0]}
    if len(curves) > 1:
        drawn["training"] = _training(curves)
    for name, (alt, caption) in SAMPLES.items():
        path = run.arrays("generate") / f"{name}.png"
        if path.is_file():
            drawn[name] = Picture(path.read_bytes(), alt, caption)
    return drawn


def _energies(arrays: Arrays) -> Picture:
    edges, shares = plots.energy_histogram(arrays)

    def plot(figure: Any) -> None:
        axes = _axes(figure, "E(x) (nats)", "share of images (%)")
        for place, (kind, share) in enumerate(shares.items()):
            axes.stairs(100 * share, edges, color=COLOURS[place], fill=True, alpha=0.15)
            axes.stairs(100 * share, edges, color=COLOURS[place], linestyle=DASHES[place], label=ENERGIES[kind])
        axes.legend(**ABOVE)

    means = ", ".join(f"{ENERGIES[kind]} {arrays[f'{kind}/energy'].mean():.2f}" for kind in shares)
    alt = f"Distributions of the energy; means in nats: {means}."
    return Picture(_drawn(plot), alt, f"{alt} Aligned energies lie on each other.")


def _training(curves: Mapping[str, list[float]]) -> Picture:
    def plot(figure: Any) -> None:
        axes = _axes(figure, "epoch", "mean E(x) (nats)")
        for place, (name, curve) in enumerate(curves.items()):
            label = name.removeprefix("energy_")
            axes.plot(range(1, len(curve) + 1), curve, DASHES[place], color=COLOURS[place], label=label)
        axes.legend(**ABOVE)

    ends = ", ".join(f"{name.removeprefix('energy_')} {curve[-1]:.2f}" for name, curve in curves.items())
    return Picture(_drawn(plot), f"Mean energies over training; at the end: {ends}.", "Healthy energies stay together.")


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
    return Picture(_drawn(plot, (6.4, 4.2)), alt, caption)


def _reliability(arrays: Arrays) -> Picture:
    count, confidence, accuracy = (arrays[f"reliability/{name}"] for name in ("count", "confidence", "accuracy"))

    def plot(figure: Any) -> None:
        axes = _axes(figure, "mean confidence (%)", "accuracy (%)")
        axes.plot([0, 100], [0, 100], color="0.5", linewidth=0.8)
        axes.scatter(100 * confidence, 100 * accuracy, s=200 * count / count.max(), color=COLOURS[0], alpha=0.8)

    error = 100 * float((count * np.abs(confidence - accuracy)).sum() / count.sum())
    alt = f"Accuracy against confidence on clean test images; expected calibration error {error:.1f} points."
    return Picture(_drawn(plot), alt, f"{alt} Area: images in a bin; on the line confidence is right.")


def _radius(results: Results) -> str:
    return as_fraction(STANDARD.radius(results.params.current.evaluation.radius))


def _axes(figure: Any, x_label: str, y_label: str = "") -> Any:
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return axes


def _drawn(plot: Callable[[Any], None], size: tuple[float, float] = SIZE, kind: str = "png") -> bytes:
    """What ``plot`` puts on an empty matplotlib figure, as a file without dates or versions in it."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    stream = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure)
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(stream, format=kind, dpi=150, metadata=metadata)
    return stream.getvalue()
