"""Figures of all models of a profile, which README and report show."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from ebjdat import files
from ebjdat.drawing import COLOURS, MARKERS, Picture, axes_of, drawn
from ebjdat.protocols import STANDARD, as_fraction
from ebjdat.results.extended import distances
from ebjdat.results.findings import RIVALS, findings
from ebjdat.results.frame import Results
from ebjdat.results.names import COMPARED, DISTANCES, display_name


@functools.lru_cache(maxsize=2)
def differences_picture(results: Results) -> Picture | None:
    """EB-JDAT minus its rivals in accuracy, points with intervals; None where there is nothing to compare."""
    asked = ((quantity, rival) for quantity in reversed(COMPARED) for rival in RIVALS)
    found = {one: finding for one, finding in findings(results).items() if one.quantity in COMPARED}
    rows = [row for row in asked if any((one.quantity, one.rival) == row for one in found)]
    if not rows:
        return None
    models = {one.model: display_name(results.params, one.model) for one in found}

    def plot(figure: Any) -> None:
        axes = axes_of(figure, "difference in accuracy (points)")
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
        figure.legend(loc="outside upper right", ncols=2, columnspacing=1.0, handletextpad=0.3)

    told = [f"{models[one.model]}, {one.quantity}, minus {RIVALS[one.rival]}: {f}" for one, f in found.items()]
    caption = (
        f"EB-JDAT minus each rival at {_radius(results)}, protocol standard, paired by image. Bars: 95 % interval over "
        "images and seeds. Right of 0 EB-JDAT is better."
    )
    return drawn(plot, "; ".join(told), caption, (6.4, 1.1 + max(0.4, 0.1 + 0.065 * len(models)) * len(rows)), "svg")


@functools.lru_cache(maxsize=2)
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

        axes = axes_of(figure, "clean accuracy (%)", f"accuracy under AutoAttack, {_radius(results)} (%)")
        shades = ScalarMappable(LogNorm(known.min(), 1.01 * known.max()) if len(known) else None, "viridis")
        for place, (model, (clean, robust, shade)) in enumerate(means.iterrows()):
            marker = MARKERS[place % len(MARKERS)]
            axes.scatter(*runs.loc[model].values.T[:2], s=12, marker=marker, color="0.6", linewidths=0, zorder=2)
            style: Any = {"color": shades.to_rgba(shade) if shade > 0 else "white", "edgecolors": "black"}
            axes.scatter(clean, robust, s=60, marker=marker, linewidths=0.8, zorder=3, label=names[place], **style)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper")
        if len(known):
            bar = figure.colorbar(shades, ax=axes, location="bottom", shrink=0.6, aspect=30, format="%.3g")
            bar.set_ticks(np.geomspace(known.min(), known.max(), 3), minor=False)
            bar.minorticks_off()
            bar.set_label(f"{DISTANCES[distance]} of generated images\n(white: generates none)")

    told = [
        f"{name}: {row[0]:.1f} % clean, {row[1]:.1f} % robust" for name, row in zip(names, means.values, strict=True)
    ]
    caption = (
        "Protocol standard. Large: mean over seeds; small and grey: each seed. Colour: distance of generated images to "
        "the data, darker is nearer. Best is the upper right corner, dark."
    )
    return drawn(plot, "; ".join(told), caption, (6.4, 5.0), "svg")


def write_figures(results: Results) -> list[Path]:
    """Write ``findings.svg`` and ``tradeoff.svg`` among the tables, where there are numbers for them."""
    folder, written = Path("results") / results.profile / "tables", []
    for name, picture in (("findings", differences_picture(results)), ("tradeoff", tradeoff_picture(results))):
        if picture is not None:
            with files.atomic(folder / f"{name}.svg") as handle:
                handle.write(picture.content)
            written.append(folder / f"{name}.svg")
    return written


def _radius(results: Results) -> str:
    return as_fraction(STANDARD.radius(results.params.current.evaluation.radius))
