"""Numbers by identity: what today's parameters, data and code have measured, and nothing else.

A cell is looked up by the identity of the question, over all seeds that answered it. Where no
record answers, the cell says why: ``not run``, or ``stale`` when only older parameters or older
code have an answer, which is not shown.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ebjdat import provenance
from ebjdat.config import Params
from ebjdat.errors import UserError
from ebjdat.evaluation.statistics import Rate, Spread, spread, wilson
from ebjdat.reporting import ledger, runs, tracking
from ebjdat.reporting.layout import Entry
from ebjdat.reporting.records import Record, flatten, rates_of, subject_of
from ebjdat.subject import HashOf, Subject, data_digest

State = Literal["value", "not run", "stale", "n/a"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One seed's number; ``low``, ``high`` and ``n`` belong to accuracies only."""

    seed: int
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """A number over seeds, or the reason why there is none.

    Attributes:
        state: ``value``; ``not run``; ``stale``; ``n/a``: the record exists and lacks this metric.
        readings: one per seed, in order of the seed.
    """

    state: State
    readings: tuple[Reading, ...] = ()

    @property
    def spread(self) -> Spread:
        """Mean and standard deviation over the seeds; only for ``value``."""
        return spread([reading.value for reading in self.readings])

    @property
    def n(self) -> int | None:
        """Images behind the number (the fewest over seeds)."""
        return min((reading.n for reading in self.readings if reading.n is not None), default=None)

    def of_seeds(self, seeds: Collection[int]) -> Cell:
        """The same number over these seeds alone, some of which it has."""
        return Cell(self.state, tuple(reading for reading in self.readings if reading.seed in seeds))

    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of the mean accuracy at n images; None for other values.

        Seeds share their test images, so more seeds do not narrow what the images leave open.
        """
        if self.state != "value" or self.n is None:
            return None
        if len(self.readings) == 1:
            low, high = self.readings[0].low, self.readings[0].high
            return (low, high) if low is not None and high is not None else None
        return wilson(self.spread.mean * self.n, self.n)


NOT_RUN, STALE, NOT_APPLICABLE = Cell("not run"), Cell("stale"), Cell("n/a")


class Numbers:
    """The records of one profile, asked by identity.

    Args:
        params: whose selected profile is meant, and whose values decide what is stale.
        records: the ledger.
        metrics: MLflow's metrics by content hash; a record without an entry answers from itself.
        digest: of the prepared data.
        hash_of: code hash by module name.
    """

    def __init__(
        self,
        params: Params,
        records: Sequence[Record],
        metrics: Mapping[str, Mapping[str, float]],
        digest: str,
        hash_of: HashOf,
    ) -> None:
        self.params, self.profile, self.digest = params, params.current, digest
        self.records, self._metrics, self._hash_of = list(records), metrics, functools.cache(hash_of)
        self._by_identity = {record["identity"]: record for record in records}
        self._identities: dict[tuple[Subject, str], str] = {}
        self._subjects: dict[tuple[str, str], set[Subject]] = {}
        for record in records:
            subject = subject_of(record)
            self._subjects.setdefault((subject.name, record["stage"]), set()).add(subject)

    def at(self, params: Params) -> Numbers:
        """The same records asked with other parameters of the same profile."""
        return Numbers(params, self.records, self._metrics, self.digest, self._hash_of)

    def cell(self, subject: Subject, stage: str, metric: str | None) -> Cell:
        """A metric over all seeds of the same recipe; ``subject.seed`` does not matter."""
        if metric is None:
            return NOT_APPLICABLE
        found = self._over_seeds(subject, stage)
        if not found:
            return STALE if self._subjects.get((subject.name, stage)) else NOT_RUN
        readings = [self._reading(record, metric) for record in found]
        present = tuple(reading for reading in readings if reading is not None)
        return Cell("value", present) if present else NOT_APPLICABLE

    def cell_beside(self, subject: Subject, stage: str, metric: str, other: Cell) -> Cell:
        """An accuracy over the images and seeds of another cell alone, from per-image flags.

        For cells of unequal n side by side; where the other has no value, its state.
        """
        if other.state != "value" or other.n is None:
            return other
        readings, seeds = [], {reading.seed for reading in other.readings}
        for record in self._over_seeds(subject, stage):
            rate = rates_of(record).get(metric)
            if record["seed"] in seeds and rate is not None and rate.n >= other.n:
                first = Rate.of(rate.per_image()[: other.n])
                readings.append(Reading(record["seed"], first.accuracy, *first.interval(), other.n))
        return Cell("value", tuple(readings)) if len(readings) == len(seeds) else NOT_APPLICABLE

    def externals(self) -> list[Subject]:
        """Models in the ledger that were not trained here, one per name, sorted; the first seed of each."""
        found: dict[str, Subject] = {}
        for subject in sorted(set().union(*self._subjects.values()), key=lambda one: (one.name, one.seed)):
            if subject.is_external:
                found.setdefault(subject.name, subject)
        return list(found.values())

    def _over_seeds(self, subject: Subject, stage: str) -> list[Record]:
        same = sorted(self._subjects.get((subject.name, stage), ()), key=lambda one: one.seed)
        found = (self.record(one, stage) for one in same if one.fingerprint == subject.fingerprint)
        return [record for record in found if record is not None]

    def _reading(self, record: Record, metric: str) -> Reading | None:
        metrics = self.metrics(record)
        if metric not in metrics:
            return None
        n = metrics.get(f"{metric}.n")
        return Reading(
            record["seed"],
            metrics[metric],
            metrics.get(f"{metric}.low"),
            metrics.get(f"{metric}.high"),
            None if n is None else int(n),
        )

    def record(self, subject: Subject, stage: str) -> Record | None:
        """The record that answers for this model, seed included; None without one."""
        return self._by_identity.get(self._identity(subject, stage))

    def _identity(self, subject: Subject, stage: str) -> str:
        if (subject, stage) not in self._identities:
            self._identities[subject, stage] = subject.identity(self.params, stage, self.digest, self._hash_of)
        return self._identities[subject, stage]

    def metrics(self, record: Record) -> Mapping[str, float]:
        """Metrics of a record: MLflow's, or its own where the store lacks it."""
        return self._metrics.get(record["content"]) or flatten(record)

    def rate(self, subject: Subject, stage: str, metric: str) -> Rate | None:
        """An accuracy with its per-image flags, for paired tests."""
        record = self.record(subject, stage)
        return None if record is None else rates_of(record).get(metric)


def load_numbers(params: Params) -> Numbers:
    """The numbers of the selected profile from its ledger file alone."""
    return _numbers(params, ledger.read_ledger(params.profile), {})


def load_with_checks(params: Params) -> tuple[Numbers, list[dict[str, Any]]]:
    """The numbers with metrics from MLflow, and the reproduction check.

    Only records of the ledger file count, so that tables depend on that file and on nothing that
    happens to be in the store. Without a store the records' own metrics serve, with one warning.
    """
    records = ledger.read_ledger(params.profile)
    try:
        logged = runs.load(tracking.Store.open(params.profile))
    except tracking.TrackingError as error:
        tracking.report_failure(error, "tables are made from the ledger")
        logged = []
    metrics = {one.record["content"]: one.metrics for one in logged}
    others: dict[str, dict[str, Record]] = {}
    for one in logged:
        others.setdefault(one.record["identity"], {})[one.record["content"]] = one.record
    return _numbers(params, records, metrics), ledger.reproduction(records, others)


def _numbers(params: Params, records: Sequence[Record], metrics: Mapping[str, Mapping[str, float]]) -> Numbers:
    return Numbers(params, records, metrics, _digest(params.profile, records), provenance.closure_hash)


def _digest(profile: str, records: Sequence[Record]) -> str:
    """Digest of the prepared data; where they are not here, that of the ledger's records.

    A fresh clone has tables before it has data, and a profile for a GPU may never be prepared here.
    """
    try:
        return data_digest(profile)
    except UserError:
        return most_common((record["data"] for record in records), "not prepared")


def most_common(values: Iterable[str], default: str) -> str:
    """The value that occurs most often (the smallest of several), or the default."""
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return min(counts, key=lambda value: (-counts[value], value), default=default)


def with_recorded_code(numbers: Numbers) -> Numbers:
    """The ledger's own numbers asked with the code that the ledger knows, for checking tables.

    Today's hash of a module counts where the ledger has it; otherwise its most common one does.
    """
    records = numbers.records

    def hash_of(module: str) -> str:
        known = [record["modules"][module] for record in records if module in record["modules"]]
        current = provenance.closure_hash(module)
        return current if current in known or not known else most_common(known, current)

    return Numbers(numbers.params, records, {}, numbers.digest, hash_of)


def show_percent(cell: Cell) -> Entry:
    """An accuracy in percent with its spread and interval; the reason where there is none."""
    if cell.state != "value":
        return Entry(cell.state)
    many = (cell.n or 0) >= 1000
    shown = _with_spread(cell, 100.0, 2 if many else 1)
    interval = cell.interval()
    if interval is None:
        return shown
    low, high = (f"{100 * end:.{1 if many else 0}f}" for end in interval)
    return shown._replace(interval=f"[{low}, {high}]")


def show_value(cell: Cell) -> Entry:
    """A plain number, such as a distance, with its spread."""
    if cell.state != "value":
        return Entry(cell.state)
    size = max(abs(cell.spread.mean), cell.spread.deviation)  # a mean near 0 needs no more digits than its spread
    digits = 2 if size >= 0.1 or size == 0 else 2 - math.floor(math.log10(size))
    return _with_spread(cell, 1.0, min(digits, 6))


def _with_spread(cell: Cell, scale: float, digits: int) -> Entry:
    over = cell.spread
    text = f"{scale * over.mean:.{digits}f}"
    return Entry(text) if over.seeds == 1 else Entry(text, f"±{scale * over.deviation:.{digits}f} ({over.seeds})")
