"""Records as MLflow runs: written once per content, and readable back from the store alone.

The whole record travels in the run's tags, compressed and in pieces. Tags live in the database, so
they survive a moved checkout, where the absolute folder of an artifact does not.
"""

from __future__ import annotations

import base64
import json
import time
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebjdat import provenance
from ebjdat.errors import UserError
from ebjdat.reporting import tracking
from ebjdat.reporting.records import Record, arrays_path, flatten, rates_of, subject_of, validate

_PIECE = 4900
"""Characters of one tag; the database takes at least 5,000."""

_SIDE_TAGS = ("finished", "seconds", "host", "device", "peak_memory", "peak_device_memory", "platform")

ORIGINS = ("run", "workspace", "ledger")
"""Where a logged record came from: a run just finished here, a restored file here, the committed ledger."""

HEADLINE = {
    "clean_accuracy": ("clean", "standard/clean"),
    "pgd20_accuracy": ("clean", "standard/pgd-20"),
    "pgd20_accuracy_last_checkpoint": ("clean", "standard/pgd-20-last"),
    "autoattack_accuracy": ("autoattack", "standard/autoattack"),
    "autoattack_accuracy_released": ("autoattack", "released/union"),
    "transfer_accuracy_worst": ("transfer", "standard/transfer/worst"),
    "frechet_distance_samples": ("generate", "generation/{distance}"),
    "frechet_distance_start": ("generate", "generation/start-{distance}"),
    "energy_overlap": ("clean", "energy/overlap-all"),
    "masking_none_failed": ("masking", "masking/passed"),
}
"""The numbers that models are compared by, by name: stage and metric; ``{distance}`` depends on the features."""


@dataclass(frozen=True)
class Logged:
    """One evaluation run of the store.

    Attributes:
        run: MLflow's run id.
        record: recovered from the run's tags and validated.
        metrics: as MLflow holds them.
        origin: one of :data:`ORIGINS`.
    """

    run: str
    record: Record
    metrics: dict[str, float]
    origin: str


def log_record(
    store: tracking.Store,
    record: Record,
    *,
    origin: str,
    side: Mapping[str, Any] | None = None,
    path: Path | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Log a record as a run nested under its model's run; returns the run id.

    Args:
        origin: one of :data:`ORIGINS`; all but ``run`` are tagged as restored.
        side: content of the side file, which becomes tags.
        path: the record's file, whose arrays are attached when they are there.
        history: rows of the training curve, for a model whose run has none yet.

    Raises:
        TrackingError: the store failed.
    """
    subject = subject_of(record)
    training = {name: value for name, value in record["params"].items() if name != "evaluation"}
    parent = store.parent(subject, record["training"], training)
    _complete_parent(store, parent, history)
    _show_headline(store, parent, record, origin)
    run = store.child(parent.info.run_id, f"{subject.run_name} {record['stage']}", _tags(record, origin, side or {}))
    moment = time.time_ns() // 1_000_000
    store.log(run, points=[(0, moment, flatten(record))], params=tracking.flat_params(record["params"]))
    if path is not None:
        _attach(store, run, record, path)
    # The content tag comes last: a run without it was cut short and does not count as logged.
    store.log(run, tags={"content": record["content"]})
    store.finish(run)
    return run


def _attach(store: tracking.Store, run: str, record: Record, path: Path) -> None:
    """The record's files: itself, its arrays, its table, and the pictures of samples."""
    pictures = [path.with_name(name) for name in ("samples.png", "chains.png")] if record["stage"] == "generate" else []
    for file in (path, arrays_path(path), *pictures):
        if file.is_file():
            store.attach(run, file)
    rates = rates_of(record)
    if rates:
        intervals = [rate.interval() for rate in rates.values()]
        store.attach_table(
            run,
            "accuracies.json",
            {
                "accuracy of": list(rates),
                "accuracy": [rate.accuracy for rate in rates.values()],
                "low": [low for low, _ in intervals],
                "high": [high for _, high in intervals],
                "n": [rate.n for rate in rates.values()],
            },
        )


def _complete_parent(store: tracking.Store, parent: Any, history: Sequence[Mapping[str, Any]]) -> None:
    """A model restored from a cache has no live curve; its history file has the same rows.

    A record means that its training is over, also where the training process was killed silently.
    """
    if parent.info.status == "RUNNING":
        store.finish(parent.info.run_id)
    if history and not tracking.curve_names(parent):
        moment = time.time_ns() // 1_000_000
        points = [
            (int(row.get("epoch", place)), moment, {k: float(v) for k, v in row.items() if tracking.is_number(v)})
            for place, row in enumerate(history)
        ]
        tracking.log_curve(store, parent, points)


def headline(record: Record, metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of :data:`HEADLINE` that a record answers, in their order; ``metrics`` are the record's by key."""
    distance = record["settings"]["features"]["metric"] if record["stage"] == "generate" else ""
    found = {
        name: metric.format(distance=distance) for name, (stage, metric) in HEADLINE.items() if stage == record["stage"]
    }
    return {name: metrics[metric] for name, metric in found.items() if metric in metrics}


def _show_headline(store: tracking.Store, parent: Any, record: Record, origin: str) -> None:
    """The headline beside the model's curves; what was measured here wins over what came with the ledger."""
    found = {f"{tracking.HEADLINE}{name}": value for name, value in headline(record, flatten(record)).items()}
    if origin == "ledger":
        found = {name: value for name, value in found.items() if name not in parent.data.metrics}
    if found:
        store.log(parent.info.run_id, points=[(0, time.time_ns() // 1_000_000, found)])


def _tags(record: Record, origin: str, side: Mapping[str, Any]) -> dict[str, str]:
    protocols = sorted({name.split("/")[0] for name in record["rates"]} & {"standard", "released"})
    tags = tracking.subject_tags(subject_of(record)) | {
        tracking.NOTE: f"Stage {record['stage']} of {subject_of(record).run_name}; n = {record['n']} images.",
        "stage": record["stage"],
        "identity": record["identity"],
        "training": record["training"],
        "protocols": ",".join(protocols),
        "origin": origin,
        "restored": str(origin != "run").lower(),
    }
    tags |= {f"side.{name}": str(side[name]) for name in _SIDE_TAGS if name in side}
    return tags | pack(record)


def pack(record: Record) -> dict[str, str]:
    """A record as numbered tags."""
    text = base64.b64encode(zlib.compress(provenance.canonical(record), 9)).decode("ascii")
    return {f"record.{place // _PIECE:04d}": text[place : place + _PIECE] for place in range(0, len(text), _PIECE)}


def unpack(tags: Mapping[str, str]) -> Record:
    """The record in a run's tags, validated.

    Raises:
        UserError: pieces are missing or damaged.
    """
    text = "".join(tags[name] for name in sorted(tags) if name.startswith("record."))
    try:
        value = json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
    except (ValueError, zlib.error) as error:
        raise UserError(f"the record in run tags is damaged ({error})") from None
    return validate(value, "run tags")


def load(store: tracking.Store) -> list[Logged]:
    """Every complete evaluation run of the store; damaged ones are named in a warning and left out.

    Raises:
        TrackingError: the store failed.
    """
    found = []
    for run in store.runs("tags.content != ''"):
        try:
            record = unpack(run.data.tags)
        except UserError as error:
            warnings.warn(f"run {run.info.run_id}: {error}", tracking.TrackingWarning, stacklevel=2)
            continue
        found.append(Logged(run.info.run_id, record, dict(run.data.metrics), run.data.tags.get("origin", "ledger")))
    return found
