"""One pandas frame of every number of a profile: a row per run, a column per metric ``<stage>/<metric>``.

A record's numbers come from ``frame.csv`` (stage ``log``, from MLflow) where that has this very record, else from its
file, which says the same. Records of other parameters or revisions than today's are left out and counted. Per-image
flags always come from the record files.
"""

import functools
import math
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ebjdat import tracking
from ebjdat.config import Params, Setup, resolve
from ebjdat.errors import UserError
from ebjdat.evaluation.unreliable import remarks
from ebjdat.record import Record, current_part, outdated, read_records, run_of, superseded
from ebjdat.run import Run
from ebjdat.statistics import Rate

Key = tuple[str, int, str]
"""Model, seed, stage."""


@dataclass(frozen=True, eq=False)
class Results:
    """The numbers of one profile.

    Attributes:
        params: decide which profile is meant, and what is outdated.
        frame: index (model, seed); columns profile, method, variant, and per metric ``<stage>/<metric>`` (an accuracy
            in [0, 1] or a plain value) and ``<stage>/<metric>.n`` (test images behind an accuracy).
        records: the records behind it.
        outdated: why a record on disk is left out.
    """

    params: Params
    frame: pd.DataFrame
    records: Mapping[Key, Record]
    outdated: Mapping[Key, str]

    @property
    def profile(self) -> str:
        """Name of the profile."""
        return self.params.profile

    def setup(self, model: str) -> Setup:
        """What today's parameters say about a model, first seed."""
        return resolve(self.params, Run(self.profile, model, self.params.seeds[0]))

    def values(self, model: str, metric: str) -> pd.Series:
        """A metric ``<stage>/<metric>`` of a model by seed; empty where there is none."""
        found = self._by_model.get(model, {}).get(metric)
        return pd.Series(dtype=float) if found is None else found

    @functools.cached_property
    def _by_model(self) -> dict[str, dict[str, pd.Series]]:
        """Taken apart once: pandas takes its time for each of some thousand cells."""
        parts = {str(model): part.droplevel("model") for model, part in self.frame.groupby(level="model")}
        return {model: {str(name): one.dropna() for name, one in part.items()} for model, part in parts.items()}

    def images(self, model: str, metric: str) -> list[int]:
        """Test images behind an accuracy, by seed; empty for a plain value."""
        return [int(n) for n in self.values(model, f"{metric}.n")]

    def missing(self, model: str, metric: str) -> str:
        """Why a cell has no number: ``not run``, ``outdated``, or ``n/a`` where its record lacks the metric."""
        wanted = model, metric.partition("/")[0]
        found = [record for (one, _, stage), record in self.records.items() if (one, stage) == wanted]
        older = any((one, stage) == wanted for one, _, stage in self.outdated)
        if any(superseded(record, metric) for record in found) or (older and not found):
            return "outdated"
        return "n/a" if found else "not run"

    def record(self, model: str, seed: int, stage: str) -> Record | None:
        """The record of a run's stage; None without one, or with an outdated one."""
        return self.records.get((model, seed, stage))

    def remark(self, model: str, metric: str) -> str:
        """What has to stand beside an accuracy: the warnings about it, with their counts; empty without any."""
        stage, _, name = metric.partition("/")
        return "; ".join(sorted({said[name] for said in self._remarks.get((model, stage), ()) if name in said}))

    @functools.cached_property
    def _remarks(self) -> dict[tuple[str, str], list[dict[str, str]]]:
        """By model and stage, for every seed that has any."""
        found: dict[tuple[str, str], list[dict[str, str]]] = {}
        for (model, seed, stage), record in self.records.items():
            if said := remarks(record, self.record(model, seed, "clean")):
                found.setdefault((model, stage), []).append(said)
        return found

    def rate(self, model: str, seed: int, stage: str, metric: str) -> Rate | None:
        """An accuracy with its per-image flags, for paired statistics."""
        record = self.record(model, seed, stage)
        fields = None if record is None else record["rates"].get(metric)
        return None if fields is None else Rate(**fields)

    def pairs(self, first: str, second: str, metric: str) -> dict[int, tuple[Rate, Rate]]:
        """Per-image results of two models by seed, for the seeds that both have."""
        stage, _, name = metric.partition("/")
        seeds = sorted({seed for _, seed, known in self.records if known == stage})
        both = {seed: (self.rate(first, seed, stage, name), self.rate(second, seed, stage, name)) for seed in seeds}
        return {seed: (a, b) for seed, (a, b) in both.items() if a is not None and b is not None}

    def on_first_images(self, model: str, metric: str, n: int, seeds: Collection[int]) -> pd.Series:
        """An accuracy over the first n images alone, by seed; empty unless all these seeds have as many."""
        stage, _, name = metric.partition("/")
        rates = {seed: self.rate(model, seed, stage, name) for seed in seeds}
        found = {seed: rate.per_image()[:n].mean() for seed, rate in rates.items() if rate is not None and rate.n >= n}
        return pd.Series(found, dtype=float) if len(found) == len(seeds) else pd.Series(dtype=float)


def load(params: Params, root: Path = Path()) -> Results:
    """The numbers of the selected profile; ``root``: folder of ``results/``.

    Raises:
        UserError: a record or ``frame.csv`` is damaged.
    """
    path, logged = root / tracking.frame_path(params.profile), None
    if path.is_file():
        try:
            logged = pd.read_csv(path, float_precision="round_trip", low_memory=False).set_index(["model", "seed"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}): run `python -m stages.log` to make it again") from None
    return from_records(params, read_records(params.profile, root), logged)


def from_records(params: Params, found: Iterable[Record], logged: pd.DataFrame | None = None) -> Results:
    """The numbers of these records; ``logged``: what ``frame.csv`` says, by (model, seed)."""
    current: dict[Key, Record] = {}
    older: dict[Key, str] = {}
    found = list(found)
    weights = {run_of(record): record["weights"] for record in found if record["stage"] == "clean"}
    for record in found:
        key = record["model"], record["seed"], record["stage"]
        try:
            reason = outdated(record, resolve(params, run_of(record), record["params"].get("variant")))
        except UserError as error:  # a variant that params.yaml has no longer
            reason = str(error)
        here = weights.setdefault(run_of(record), record["weights"])
        if not reason and record["weights"] != here:
            reason = "about other weights than the other records of its run"
        if reason:
            older[key] = reason
        else:
            current[key] = record
    rows: Mapping[Any, Any] = {} if logged is None else logged.to_dict("index")
    numbers = [(record, _metrics(record, rows.get(key[:2], {}))) for key, record in current.items()]
    return Results(params, _frame(numbers), {key: current_part(one) for key, one in current.items()}, older)


def _metrics(record: Record, row: Mapping[Hashable, Any]) -> dict[str, float]:
    """A record's numbers from a row of what was logged, where the row is of this very record, else from itself."""
    stage, own = record["stage"], tracking.metrics_of(record)
    if row and row.get(f"record.{stage}") == tracking.digest_of(record):
        logged = tracking.stage_metrics({str(name): value for name, value in row.items()}, stage)
        return logged if logged.keys() == own.keys() else own
    return own


def _standardised(metrics: Mapping[str, float]) -> dict[str, float]:
    """d': the gap of the mean energies over their pooled standard deviation, where a run has both."""
    gap, *deviations = (
        metrics.get(f"clean/energy/{name}") for name in ("gap-adversarial", "clean/std", "adversarial/std")
    )
    if gap is None or None in deviations or not any(deviations):
        return {}
    return {"clean/energy/standardised-gap": gap / math.sqrt(sum(one**2 for one in deviations if one) / 2)}


def _frame(rows: Iterable[tuple[Record, Mapping[str, float]]]) -> pd.DataFrame:
    by_run: dict[Run, dict[str, float]] = {}
    for record, metrics in rows:
        shown = {name: value for name, value in metrics.items() if not superseded(record, name)}
        by_run.setdefault(run_of(record), {}).update(shown)
    runs = sorted(by_run)
    index = pd.MultiIndex.from_tuples([(run.model, run.seed) for run in runs], names=["model", "seed"])
    about = {"profile": [run.profile for run in runs], "method": [run.method for run in runs]}
    about["variant"] = [run.variant or "" for run in runs]
    numbers = pd.DataFrame([by_run[run] | _standardised(by_run[run]) for run in runs], index=index, dtype=float)
    return pd.concat([pd.DataFrame(about, index=index), numbers[sorted(numbers)]], axis=1)
