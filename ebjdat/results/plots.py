"""Files for ``dvc plots``: the current model, first seed, under names that stay; readers of what they show."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ebjdat import files
from ebjdat.drawing import BINS, CURVES, KINDS, energy_histogram, read_arrays
from ebjdat.protocols import PROTOCOLS
from ebjdat.record import read_history
from ebjdat.results.frame import Results
from ebjdat.run import Run

FOLDER = Path("results") / "plots"
TRAINING = ("epoch", "loss", "val_clean", "val_robust", *CURVES)


def write_plots(results: Results) -> list[Path]:
    """Write ``results/plots/*.csv``; a plot without data has its header only, so that DVC finds its columns."""
    run = Run(results.params.profile, results.params.model, results.params.seeds[0])
    history = [[row.get(name, "") for name in TRAINING] for row in read_history(run)]
    texts = {"training": csv(TRAINING, history), "energies": csv(("energy", *KINDS), energy_rows(read_arrays(run)))}
    columns = ("radius_255", "robust_accuracy", "low", "high")
    texts |= {f"radius-{name}": csv(columns, radius_curve(results, run, name)) for name in PROTOCOLS}
    for name, text in texts.items():
        files.write_text(FOLDER / f"{name}.csv", text)
    return [FOLDER / f"{name}.csv" for name in texts]


def csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Plain numbers under a header."""
    return "".join(",".join(map(str, row)) + "\n" for row in (columns, *rows))


def radius_curve(results: Results, run: Run, protocol: str) -> list[tuple[float, ...]]:
    """Rows (radius in 1/255, accuracy under APGD-CE with 20 iterations, low, high)."""
    nominal = results.params.current.evaluation.radius
    rows: list[tuple[float, ...]] = []
    for multiple in PROTOCOLS[protocol].sweep.radii:
        rate = results.rate(run.model, run.seed, "sweep", f"{protocol}/apgd-ce/radius-{multiple:g}/steps-20")
        if rate is not None:
            radius = 255 * multiple * PROTOCOLS[protocol].radius(nominal)
            rows.append((round(radius, 6), rate.accuracy, *rate.interval()))
    return rows


def energy_rows(arrays: Mapping[str, np.ndarray]) -> list[list[float]]:
    """Rows (energy in nats, share of images of each of :data:`KINDS`); a kind that is not here has 0."""
    edges, shares = energy_histogram(arrays)
    columns = [shares.get(kind, np.zeros(BINS)) for kind in KINDS]
    return np.column_stack([(edges[:-1] + edges[1:]) / 2, *columns]).round(6).tolist() if shares else []
