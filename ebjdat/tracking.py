"""MLflow, the store that people compare in: one run per trained model, with its curves and all its numbers.

The store is ``mlflow.db`` in the main checkout, also for queued and ``--temp`` experiments. It never stops a run: where
it is locked, unreachable or unwritable there is one warning, and the next ``python -m stages.log`` logs what is
missing, since records and history files are still on disk. ``EBJDAT_STRICT_TRACKING=1`` makes the same failure fatal.
MLflow takes seconds to import, so it is imported late.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import re
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ebjdat import files
from ebjdat.config import Setup
from ebjdat.errors import UserError
from ebjdat.protocols import REVISIONS
from ebjdat.record import Record, current_part, rates_of, read_history, run_of, times_path
from ebjdat.run import Run

if TYPE_CHECKING:
    import pandas as pd

STRICT = "EBJDAT_STRICT_TRACKING"
KEY = "ebjdat.key"
"""Tag that names what a run of the store is about: profile, model, seed and all that decided its training."""
WEIGHTS = "weights"
"""Tag with the SHA-256 of the checkpoint whose training a run's curves show; :func:`log_records` sets it."""
END_SECONDS = 10.0
"""How long the end of a training waits for the store."""

HEADLINE: dict[str, tuple[str, ...]] = {
    "accuracy_clean": ("clean/standard/clean",),
    "accuracy_pgd20": ("clean/standard/pgd-20",),
    "accuracy_autoattack": ("autoattack/standard/autoattack",),
    "accuracy_autoattack_released": ("autoattack/released/union",),
    "accuracy_transfer": ("transfer/standard/transfer/worst",),
    "frechet_distance": ("generate/generation/fid", "generate/generation/classifier-frechet"),
    "energy_gap_pgd20": ("clean/energy/gap-adversarial",),
    "energy_overlap": ("clean/energy/overlap-all",),
    "masking_failed": ("masking/masking/failed",),
    "epochs": ("epochs",),
}
"""The numbers that models are compared by: short name, and the metrics that it repeats, the first that is there."""

_LOCK_SECONDS = 60.0
_SQLITE = "sqlite:///"
_NOTE = "mlflow.note.content"  # MLflow shows this tag's Markdown as description
_VIEW = "mlflow.sharedViewState.headline"  # and this one's JSON as the view that _LINK names
_TAG_LENGTH = 5000  # characters that MLflow's databases take
_BATCH = 800  # MLflow takes at most 1000 metrics at once
_ABOUT = (
    "Runs of the profile {profile} of an EB-JDAT reproduction: one per model, seed and training parameters, with its "
    "training curves and the numbers of all its evaluation stages. To compare models, choose Model training at the top "
    "left, tick their runs and press Compare. Protocols `standard` and `released` are never mixed."
)
_LINK = "[Headline numbers as columns](#/experiments/{experiment}/runs?viewStateShareKey=headline). "

Point = tuple[str, float, int, int]
"""A metric: name, value, step, time in ms since 1970."""


class TrackingError(UserError):
    """The store cannot be used."""


def warn(error: TrackingError, what: str) -> None:
    """One line on stderr, or the end of the command when tracking is strict.

    Raises:
        TrackingError: with ``EBJDAT_STRICT_TRACKING=1``.
    """
    if _strict():
        raise TrackingError(f"{error} ({STRICT}=1 makes this fatal)") from error
    later = "the next `python -m stages.log` logs what is missing"
    print(f"warning: {what} not logged: {error}; {later}", file=sys.stderr)


def _strict() -> bool:
    return os.environ.get(STRICT, "") not in ("", "0")


def address() -> str:
    """``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the main checkout; a relative SQLite path begins there as well."""
    named = os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db"
    if not named.startswith(_SQLITE):
        return named
    return f"{_SQLITE}{(files.main_checkout() / named.removeprefix(_SQLITE)).as_posix()}"


class Store:
    """Runs of one profile: an experiment of the MLflow store. Its methods raise only :class:`TrackingError`."""

    def __init__(self, client: Any, experiment: str, uri: str) -> None:
        self.client, self.experiment, self.uri = client, experiment, uri

    @classmethod
    def open(cls, profile: str) -> Self:
        """Connect, making the store and the profile's experiment where they are missing."""
        uri = address()
        with _using(uri):
            client = _client(uri)
            found = client.get_experiment_by_name(profile)
            folder = Path(uri.removeprefix(_SQLITE)).with_name("mlartifacts") / profile
            location = folder.as_uri() if uri.startswith(_SQLITE) else None
            if found is None:
                made = client.create_experiment(profile, location, {_VIEW: _view()})
                _describe(client, made, profile)
                return cls(client, made, uri)
            if found.lifecycle_stage != "active":
                raise TrackingError(
                    f"the experiment {profile} of the MLflow store {_shown(uri)} was deleted: restore it "
                    f"(`mlflow experiments restore --experiment-id {found.experiment_id}`)"
                )
            if location and found.artifact_location != location:
                _move_artifacts(uri, profile, found.artifact_location, location)
            if _VIEW not in found.tags:  # made by an earlier version
                client.set_experiment_tag(found.experiment_id, _VIEW, _view())
                _describe(client, found.experiment_id, profile)
            return cls(client, found.experiment_id, uri)

    def runs(self) -> list[Any]:
        """All runs of the experiment that have a key."""
        with self.using():
            return list(self.client.search_runs([self.experiment], f"tags.`{KEY}` != ''", max_results=50_000))

    def log(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        tags: Mapping[str, str] = {},
        params: Mapping[str, str] = {},
    ) -> None:
        """Log metrics, then params (fewer than MLflow takes at once), and tags last."""
        with self.using():
            from mlflow.entities import Metric, Param, RunTag

            metrics = [Metric(name, value, moment, step) for name, value, step, moment in points]
            for start in range(0, len(metrics), _BATCH):
                self.client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
            told = [RunTag(name, value[:_TAG_LENGTH]) for name, value in tags.items()]
            self.client.log_batch(run_id, params=[Param(name, value) for name, value in params.items()], tags=told)

    def attach(self, run_id: str, folder: str) -> None:
        """Keep the files in a folder with a run."""
        with self.using():
            self.client.log_artifacts(run_id, folder)

    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        with self.using():
            self.client.set_terminated(run_id, status)

    def discard(self, run_id: str) -> None:
        """Delete a run, as MLflow cannot take a curve back; ``mlflow runs restore`` undoes it."""
        with self.using():
            self.client.delete_run(run_id)

    def using(self) -> contextlib.AbstractContextManager[None]:
        """Around calls of MLflow: one process at a time, and whatever fails becomes a TrackingError."""
        return _using(self.uri)

    @contextlib.contextmanager
    def default(self) -> Iterator[Any]:
        """MLflow's module with this store as its default, which for some calls is the only way to name one."""
        with self.using():
            import mlflow

            before = os.environ.get("MLFLOW_TRACKING_URI")
            try:
                mlflow.set_tracking_uri(self.uri)  # which also sets the variable
                yield mlflow
            finally:
                os.environ.pop("MLFLOW_TRACKING_URI", None)
                if before is not None:
                    os.environ["MLFLOW_TRACKING_URI"] = before


def find_or_create(store: Store, run: Run, trained: Mapping[str, Any]) -> str:
    """The id of a model's run in the store, made where it is missing; ``trained``: see :func:`trained_with`."""
    key = key_of(run, trained)
    with store.using():
        found = store.client.search_runs([store.experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {
            "profile": run.profile,
            "model": run.model,
            "method": run.method,
            "variant": run.variant or "",
            "seed": str(run.seed),
            "mlflow.source.git.commit": files.commit(),
            _NOTE: describe(run),
        }
        made = store.client.create_run(store.experiment, run_name=f"{run.model}-{run.seed}", tags=tags).info.run_id
        params = {name: str(value) for name, value in files.flat(trained).items()}
        store.log(made, tags={KEY: key}, params=params)  # the key comes last: it says "complete"
        return str(made)


def trained_with(source: Setup | Record) -> dict[str, Any]:
    """What decided a training besides model and seed: resolved parameters and the revision of training."""
    if isinstance(source, Setup):
        return source.recorded("train") | {"revision": REVISIONS["train"]}
    params = {name: value for name, value in source["params"].items() if name != "evaluation"}
    return params | {"revision": source["revisions"]["train"]}


def key_of(run: Run, trained: Mapping[str, Any]) -> str:
    """The tag :data:`KEY` of a model's run."""
    return files.digest([run.profile, run.model, run.seed, trained])


def describe(run: Run) -> str:
    """What MLflow's pages say about a model, as Markdown."""
    variant = f", variant {run.variant}" if run.variant else ""
    return (
        f"**{run.model}** on profile {run.profile}, seed {run.seed}: {run.about}{variant}.\n\nSteps are epochs. "
        "Metrics are named stage/protocol/attack; accuracies are in [0, 1], `.n` beside them is their number of images."
    )


class Curves:
    """Training curves of one model, logged to its MLflow run by a thread: the loop never waits for the store.

    >>> with Curves(setup) as curves:
    ...     curves.log({"epoch": 1, "loss": 0.4})

    A resumed training continues the run's curves. One that begins again at epoch 1 (trained anew, on another device)
    replaces the run. A store that fails costs one warning. With ``EBJDAT_STRICT_TRACKING=1`` the failure ends the
    training instead: :meth:`log` or the end of the block raises TrackingError.
    """

    def __init__(self, setup: Setup) -> None:
        self._run, self._trained = setup.run, trained_with(setup)
        self._waiting: queue.SimpleQueue[tuple[list[Point], dict[str, str]] | None] = queue.SimpleQueue()
        self._status = "FINISHED"
        self._failure: TrackingError | None = None
        self._thread = threading.Thread(target=self._work, name="curves", daemon=True)

    def log(self, row: Mapping[str, Any]) -> None:
        """The finite numbers of an epoch by name, ``epoch`` among them; text and other entries are left out."""
        self._waiting.put((_epoch_points(row), {}))
        self._raise_if_strict()

    def note_rollback(self, event: Mapping[str, Any]) -> None:
        """A rollback with its cause; one that a resumed training meets again is there once."""
        self._waiting.put(([], _rollbacks([event])))

    def diverged(self, text: str) -> None:
        """Why training was given up."""
        self._waiting.put(([], {"diverged": text}))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # an interruption is no fault, and Python says so by its base class
            self._status = "FAILED" if issubclass(kind, Exception) else "KILLED"
        self._waiting.put(None)
        self._thread.join(timeout=END_SECONDS)
        if self._thread.is_alive():
            self._fail(TrackingError(f"the MLflow store did not answer within {END_SECONDS:.0f} s"))
        if kind is None:
            self._raise_if_strict()

    def _work(self) -> None:
        """Thread: connect, then log what comes until the end mark."""
        try:
            store = Store.open(self._run.profile)
            with contextlib.ExitStack() as load:
                run_id, last = self._begin(store, load)
                while (entry := self._waiting.get()) is not None:
                    points, tags = entry
                    if last and points and points[0][2] == 1:  # nothing was resumed: the curves are of other weights
                        load.close()
                        store.discard(run_id)
                        run_id, last = self._begin(store, load)
                    store.log(run_id, [point for point in points if point[2] > last], tags)
            store.finish(run_id, self._status)
        except TrackingError as error:
            self._fail(error)

    def _begin(self, store: Store, load: contextlib.ExitStack) -> tuple[str, int]:
        """Mark the run as running; its id and the last epoch of its curves."""
        run_id = find_or_create(store, self._run, self._trained)
        with store.using():
            store.client.update_run(run_id, "RUNNING")
            last = int(store.client.get_run(run_id).data.metrics.get("epochs", 0))
        load.enter_context(_machine_load(store.uri, run_id))
        return run_id, last

    def _fail(self, error: TrackingError) -> None:
        told, self._failure = self._failure is not None, error
        if not told and not _strict():
            warn(error, f"curves of {self._run}")

    def _raise_if_strict(self) -> None:
        if self._failure is not None and _strict():
            warn(self._failure, f"curves of {self._run}")


def log_records(profile: str, records: Iterable[Record]) -> int:
    """Log every record of a profile that the store lacks, with curves, times and pictures where they are on disk.

    Returns how many were logged. TrackingError: the store failed; the next call logs what is missing then.
    """
    store = Store.open(profile)
    known = {run.data.tags[KEY]: run for run in store.runs()}
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key_of(run_of(record), trained_with(record)), []).append(record)
    return sum(_complete(store, known.get(key), group) for key, group in groups.items())


def _complete(store: Store, known: Any, records: Sequence[Record]) -> int:
    """Log what the run of these records lacks; ``known``: that run as MLflow gives it, None where it is new."""
    run = run_of(records[0])
    weights, points, tags = _curve(run, records, known.data.tags.get(WEIGHTS, "") if known else "")
    if known and weights != known.data.tags.get(WEIGHTS, "") and "epochs" in known.data.metrics:
        latest = {name: value for name, value, *_ in points}  # a later epoch's values replace those before
        if latest and latest.items() <= known.data.metrics.items():
            points = []  # the training has logged them itself
        else:
            store.discard(known.info.run_id)
            known = None
    logged, before = (known.data.metrics, known.data.tags) if known else ({}, {})
    run_id = known.info.run_id if known else find_or_create(store, run, trained_with(records[0]))
    missing = [record for record in records if before.get(_mark(record)) != digest_of(record)]
    for record in missing:
        points += _points(_replaced(record, logged))
        evaluation = files.flat(record["params"].get("evaluation", {}))
        tags |= {f"evaluation.{name}": str(value) for name, value in evaluation.items()} | {"data": record["data"]}
    for stage in (*(record["stage"] for record in missing), *["train"] * ("seconds/train" not in logged)):
        seconds, machine = _times(run, stage)
        points += _points(seconds)
        tags |= machine
    if missing or weights != before.get(WEIGHTS, ""):
        store.log(run_id, points, tags | {WEIGHTS: weights})
    if missing:
        _attach(store, run_id, run, missing)
        # These tags come last: without them a record does not count as logged.
        store.log(run_id, tags={_mark(record): digest_of(record) for record in missing})
    if not known or known.info.status == "RUNNING":  # a record means that the training is over, however it ended
        store.finish(run_id)
    return len(missing)


def _curve(run: Run, records: Sequence[Record], tagged: str) -> tuple[str, list[Point], dict[str, str]]:
    """The weights that the run's curves must be of, and these curves with their rollbacks where they are to be logged.

    Weights are those on disk where a record names them, else ``tagged`` where one names these, else "".
    """
    named, folder = {record["weights"] for record in records}, run.model_dir
    if named == {tagged} or not (folder / "best.pt").is_file() or files.file_hash(folder / "best.pt") not in named:
        return tagged if tagged in named else "", [], {}
    try:
        rows, summary = read_history(run), folder / "summary.json"
        tags = _rollbacks(files.read_json(summary)["events"]) if rows and summary.is_file() else {}
    except UserError as error:
        raise TrackingError(str(error)) from None
    return files.file_hash(folder / "best.pt"), [point for row in rows for point in _epoch_points(row)], tags


def _attach(store: Store, run_id: str, run: Run, records: Sequence[Record]) -> None:
    """Keep a run's pictures with it, record files, and pictures and tables that lie beside their arrays."""
    found = {f"pictures/{path.name}": path.read_bytes() for path in run.pictures.glob("*.png")}
    for stage in (record["stage"] for record in records):
        shown = [path for path in run.arrays(stage).glob("*.*") if path.suffix in (".png", ".csv")]
        found |= {f"{stage}/{path.name}": path.read_bytes() for path in shown}
        if (own := run.record(stage)).is_file():
            found[f"records/{own.name}"] = own.read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in found.items():
            path = Path(scratch, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        store.attach(run_id, scratch)


def log_frame(profile: str, records: Sequence[Record]) -> int | None:
    """Log what the store lacks and write the profile's frame: these records' numbers, as MLflow gives them back.

    A row per (model, seed); columns ``record.<stage>``, a digest of the record whose numbers these are, and metrics
    ``<stage>/<metric>``. A store that fails costs one warning, and the frame has no rows.

    Returns how many records were logged, None after a failure. TrackingError: the store failed, tracking is strict.
    """
    import pandas as pd

    logged: dict[tuple[str, str], Mapping[Hashable, Any]] = {}
    count, rows = None, dict[Run, dict[str, Any]]()
    try:
        count = log_records(profile, records)
        for found in search(profile).to_dict("records"):
            logged |= {(str(name), str(tag)): found for name, tag in found.items() if str(name).startswith("tags.")}
    except TrackingError as error:
        warn(error, "records")
    for record in records:
        if run := logged.get((f"tags.{_mark(record)}", digest_of(record))):
            numbers = {str(name).removeprefix("metrics."): value for name, value in run.items()}
            row = rows.setdefault(run_of(record), {"model": record["model"], "seed": record["seed"]})
            row |= {_mark(record): digest_of(record)} | stage_metrics(numbers, record["stage"])
    columns = ["model", "seed", *sorted({name for row in rows.values() for name in row} - {"model", "seed"})]
    files.write_text(frame_path(profile), pd.DataFrame(list(rows.values()), columns=columns).to_csv(index=False))
    return count


def frame_path(profile: str) -> Path:
    """Where :func:`log_frame` writes."""
    return Path("results") / profile / "frame.csv"


def stage_metrics(numbers: Mapping[str, Any], stage: str) -> dict[str, float]:
    """Those of a stage, without what other runs have and this one lacks."""
    return {name: v for name, v in numbers.items() if name.startswith(f"{stage}/") and v == v}


def digest_of(record: Record) -> str:
    """SHA-256 of a record's canonical JSON, 64 hex characters: the tag ``record.<stage>`` of the run that has it."""
    return files.digest(record, 64)


def _mark(record: Record) -> str:
    return f"record.{record['stage']}"


def metrics_of(record: Record) -> dict[str, float]:
    """A record's numbers as metrics: ``<stage>/<metric>``, of an accuracy (in [0, 1]) also ``<stage>/<metric>.n``."""
    stage, found = record["stage"], dict[str, float]()
    for name, rate in rates_of(record).items():
        found |= {f"{stage}/{name}": rate.accuracy, f"{stage}/{name}.n": float(rate.n)}
    return found | {f"{stage}/{name}": value for name, value in current_part(record)["values"].items()}


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of :data:`HEADLINE` that metrics (as of :func:`metrics_of`) answer, in their order."""
    verdicts = {name: value for name, value in metrics.items() if name.startswith("masking/masking/")}
    if verdicts:
        failed = sum(value == 0 for name, value in verdicts.items() if not name.endswith("/passed"))
        metrics = {**metrics, "masking/masking/failed": float(failed)}
    sources = {short: next((name for name in names if name in metrics), None) for short, names in HEADLINE.items()}
    return {short: metrics[name] for short, name in sources.items() if name is not None}


def search(profile: str) -> pd.DataFrame:
    """All runs of a profile as ``mlflow.search_runs`` gives them: columns run_id, params.*, metrics.*, tags.*.

    Runs of other training parameters than today's are among them; ``tags.record.<stage>`` says which records a run
    has (see :func:`digest_of`).

    Raises:
        TrackingError: the store failed.
    """
    store = Store.open(profile)
    with store.default() as mlflow:
        frame: pd.DataFrame = mlflow.search_runs([store.experiment], f"tags.`{KEY}` != ''")
        return frame


def _replaced(record: Record, logged: Mapping[str, float]) -> dict[str, float]:
    """A record's metrics; those that an earlier record of the stage had besides become NaN, which means missing."""
    new, old = metrics_of(record), {name: v for name, v in logged.items() if name.startswith(f"{record['stage']}/")}
    new |= headline(new)
    return {name: math.nan for name in old | headline(old) if name not in new} | new


def _epoch_points(row: Mapping[str, Any]) -> list[Point]:
    """The finite numbers of a history row at step = epoch; ``epochs`` comes last and says how far the curves reach."""
    numbers = {name: value for name, value in row.items() if name != "epoch" and _is_number(value)}
    return _points(numbers | {"epochs": row["epoch"]}, row["epoch"])


def _points(values: Mapping[str, float], step: int = 0) -> list[Point]:
    moment = time.time_ns() // 1_000_000
    return [(name, float(value), step, moment) for name, value in values.items()]


def _rollbacks(events: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {f"rollback.{one['retry']}": f"epoch {one['epoch']}, step {one['step']}: {one['cause']}" for one in events}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _times(run: Run, stage: str) -> tuple[dict[str, float], dict[str, str]]:
    """What a stage took, as metrics, and where it ran, as tags; nothing where it ran elsewhere."""
    try:
        found = files.read_json(times_path(run, stage))
    except UserError:
        return {}, {}
    numbers = ("seconds", "peak_memory", "peak_device_memory")
    return (
        {f"{name}/{stage}": float(found[name]) for name in numbers if _is_number(found.get(name))},
        {name: str(found[name]) for name in ("host", "device", "platform") if name in found},
    )


def _client(uri: str) -> Any:
    """An MLflow client that sends no telemetry, asks git nothing and gives up after seconds.

    Fails at once where MLflow would try for minutes: no database, not writable, locked for long. A new SQLite store
    appears whole: one whose making was cut off would be refused by MLflow for ever.
    """
    path = Path(uri.removeprefix(_SQLITE))
    made = not uri.startswith(_SQLITE) or path.exists()
    place = path if made else path.with_name(f"{path.name}.making")
    if not made:
        place.unlink(missing_ok=True)
    if uri.startswith(_SQLITE):
        with contextlib.closing(sqlite3.connect(place, timeout=5)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they report comes as an exception, too
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise TrackingError(f"MLflow cannot be imported ({error})") from None
    if not made:
        MlflowClient(tracking_uri=f"{_SQLITE}{place.as_posix()}").search_experiments(max_results=1)
        place.replace(path)
    return MlflowClient(tracking_uri=uri)


def _move_artifacts(uri: str, profile: str, old: str, new: str) -> None:
    """Point a store that moved with its checkout to the artifacts beside it: MLflow keeps absolute folders.

    A location that somebody else chose is left alone.
    """
    if not old.startswith("file:") or not old.endswith(f"/mlartifacts/{profile}"):
        return
    columns = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    with contextlib.closing(sqlite3.connect(uri.removeprefix(_SQLITE), timeout=5)) as database, database:
        for table, column in columns.items():
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old), old),
            )


def _view() -> str:
    """The list of runs with the headline numbers as columns, as MLflow's page keeps it."""
    widths = {f"metrics.`{name}`": 8 * len(name) + 24 for name in HEADLINE}  # or names are cut short
    return json.dumps({"selectedColumns": [*widths], "columnOrder": [*widths], "columnWidths": widths})


def _describe(client: Any, experiment: str, profile: str) -> None:
    """What the experiment is, with a link to its view."""
    text = _LINK.format(experiment=experiment) + _ABOUT.format(profile=profile)
    client.set_experiment_tag(experiment, _NOTE, text)


@contextlib.contextmanager
def _using(uri: str) -> Iterator[None]:
    """One process at a time, and whatever the store throws becomes a TrackingError of one sentence.

    MLflow passes on what its layers raise (SQLAlchemy, Alembic, requests, sqlite3, the lock, the file system), and none
    of it may stop a training, hence the broad net.
    """
    try:
        import filelock

        lock = files.scratch("mlflow.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock, timeout=_LOCK_SECONDS, is_singleton=True):  # may be held twice by one thread
            yield
    except UserError:
        raise
    except Exception as error:
        reason = _shown(" ".join(str(error).replace(uri, _shown(uri)).split()))[:300].rstrip(".")
        raise TrackingError(f"the MLflow store {_shown(uri)} failed: {type(error).__name__}: {reason}") from None


def _shown(text: str) -> str:
    """An address, or a text with one, without user and password."""
    return re.sub(r"//\S*@", "//", re.sub(r"(password=)[^&\s]*", r"\1***", text))


@contextlib.contextmanager
def _machine_load(uri: str, run_id: str) -> Iterator[None]:
    """MLflow's own monitors log the load of processor, memory and GPU as ``system/`` metrics while the block runs."""
    monitor = None
    with contextlib.suppress(Exception):  # without a driver or library they raise errors of their own
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
        monitor.start()
    try:
        yield
    finally:
        if monitor is not None:
            monitor.finish()
