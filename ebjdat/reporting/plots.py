"""Fixed files for ``dvc metrics`` and ``dvc plots``: the current experiment, whatever its name."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ebjdat import files
from ebjdat.errors import UserError
from ebjdat.protocols import PROTOCOLS
from ebjdat.reporting import ledger, runs
from ebjdat.reporting.comparisons import ENERGY_KINDS
from ebjdat.reporting.lookup import Numbers
from ebjdat.subject import Subject

METRICS_PATH = Path("results") / "metrics.json"
PLOTS_DIR = Path("results") / "plots"
_BINS = 40


def headline(numbers: Numbers) -> dict[str, float]:
    """At most ten numbers of the current model; what was not run is left out."""
    subject = Subject.current(numbers.params)
    found: dict[str, float] = {}
    for stage in {stage: None for stage, _ in runs.HEADLINE.values()}:
        record = numbers.record(subject, stage)
        if record is not None:
            found |= runs.headline(record, numbers.metrics(record))
    return {name: found[name] for name in runs.HEADLINE if name in found}


def radius_curve(
    numbers: Numbers, protocol: str, subject: Subject | None = None
) -> list[tuple[float, float, float, float]]:
    """Rows (radius in 1/255, robust accuracy, low, high) of APGD-CE with 20 iterations; default: the current model."""
    subject = subject or Subject.current(numbers.params)
    record = numbers.record(subject, "sweep")
    metrics = {} if record is None else numbers.metrics(record)
    nominal, cells = numbers.profile.evaluation.radius, PROTOCOLS[protocol].sweep
    rows = []
    for multiple in cells.radii:
        key = f"{protocol}/apgd-ce/radius-{multiple:g}/steps-20"
        if key in metrics:
            radius = 255 * multiple * PROTOCOLS[protocol].radius(nominal)
            rows.append((round(radius, 6), metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"]))
    return rows


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a side file of a record.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); run `dvc repro` to make it again") from None


def energy_histogram(path: Path) -> list[tuple[float, ...]]:
    """Rows (energy, share of images per kind in :data:`ENERGY_KINDS`) from the clean stage's arrays.

    All kinds share their bins; a kind that the file does not have counts 0.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return []
    arrays = read_npz(path)
    found = {kind: arrays[f"{kind}/energy"] for kind in ENERGY_KINDS if f"{kind}/energy" in arrays}
    if not found:
        return []
    edges = np.histogram_bin_edges(np.concatenate(list(found.values())), bins=_BINS)
    none = np.zeros(_BINS)
    shares = [np.histogram(found[k], edges)[0] / len(found[k]) if k in found else none for k in ENERGY_KINDS]
    centres = (edges[:-1] + edges[1:]) / 2
    return [tuple(round(float(value), 6) for value in row) for row in zip(centres, *shares, strict=True)]


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV file with a header."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def training_curve(model_dir: Path) -> str:
    """The model's history as CSV: one row per epoch, numbers only."""
    rows = ledger.read_history(model_dir)
    names = [name for name, value in rows[-1].items() if isinstance(value, int | float)] if rows else []
    columns = ["epoch", *sorted(set(names) - {"epoch"})]
    return csv_text(columns, ([row.get(name, "") for name in columns] for row in rows))


def write_plots(numbers: Numbers) -> list[Path]:
    """Write ``results/metrics.json`` and ``results/plots/*.csv`` of the current model; returns paths.

    A plot without data has its header only, so that DVC always finds its files.
    """
    subject = Subject.current(numbers.params)
    texts = {
        METRICS_PATH: files.json_text(headline(numbers)),
        PLOTS_DIR / "training.csv": training_curve(subject.model_dir),
        PLOTS_DIR / "energies.csv": csv_text(
            ["energy", *ENERGY_KINDS], energy_histogram(subject.results_dir / "clean.npz")
        ),
    }
    for protocol in PROTOCOLS:
        columns = ["radius_255", "robust_accuracy", "low", "high"]
        texts[PLOTS_DIR / f"radius-{protocol}.csv"] = csv_text(columns, radius_curve(numbers, protocol))
    for path, text in texts.items():
        files.write_text(path, text)
    return sorted(texts)
