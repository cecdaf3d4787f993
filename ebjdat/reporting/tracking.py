"""MLflow: where the store is, how to write to it without ever stopping a run, and live curves.

The store is a SQLite file in the main checkout, also for queued and ``--temp`` experiments, so that
all runs of a person meet in one place. Tracking is a witness, never a participant: when the store
is locked, unreachable or unwritable there is one warning, what would have been logged goes to files
in a spool folder, and the next ``python -m stages.record`` replays them. ``EBJDAT_STRICT_TRACKING=1``
makes the same failure fatal. MLflow takes seconds to import, so it is imported late.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import sqlite3
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ebjdat import files
from ebjdat.errors import UserError
from ebjdat.subject import Subject

STRICT = "EBJDAT_STRICT_TRACKING"
LOCK_SECONDS = 60.0
_PARAMS_PER_CALL, _METRICS_PER_CALL, _TAGS_PER_CALL = 100, 1000, 100
_SQLITE = "sqlite:///"
SYSTEM = "system/"
"""Start of the metric keys that MLflow shows as system metrics."""
HEADLINE = "headline/"
"""Start of the metric keys of a model's run that repeat the headline of its evaluations, for comparisons."""
NOTE = "mlflow.note.content"
"""Tag whose Markdown MLflow shows as description."""
TAG_LENGTH = 5000
"""Characters that MLflow's databases take."""


_ABOUT = (
    "Runs of the profile {profile} of an EB-JDAT reproduction. One run per trained model, named method-variant-seed, "
    "with its training curves and its headline; nested below it one run per evaluation stage. To compare two variants, "
    "choose Model training at the top left, tick their runs and press Compare. Protocols `standard` and `released` "
    "are never mixed."
)


class TrackingWarning(UserWarning):
    """Tracking did not work; the run goes on."""


class TrackingError(Exception):
    """The store could not be used; callers spool what they had to say."""


def store_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the main checkout."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{(files.main_checkout() / 'mlflow.db').as_posix()}"


def strict() -> bool:
    """Whether a tracking failure ends the run."""
    return os.environ.get(STRICT, "") not in ("", "0")


def report_failure(error: TrackingError, what: str) -> None:
    """One warning, or the end of the run when tracking is strict.

    Raises:
        UserError: with ``EBJDAT_STRICT_TRACKING=1``.
    """
    if strict():
        raise UserError(f"{what}: {error} ({STRICT}=1 makes this fatal)") from error
    warnings.warn(f"{what}: {error}; `python -m stages.record` replays it later", TrackingWarning, stacklevel=2)


class Store:
    """Runs of one profile: an experiment of the MLflow store.

    Every method raises :class:`TrackingError` when the store fails, and nothing else.
    """

    def __init__(self, client: Any, experiment: str, uri: str) -> None:
        self.client, self.experiment, self.uri = client, experiment, uri

    @classmethod
    def open(cls, profile: str) -> Store:
        """Connect, making the store and the profile's experiment where they are missing.

        Two first users at once would race on the schema of a SQLite store, hence the lock.
        """
        uri = store_uri()
        with _translated(uri), _alone(uri):
            _probe(uri)
            client = _client(uri)
            found = client.get_experiment_by_name(profile)
            if found is not None:
                return cls(client, found.experiment_id, uri)
            folder = files.main_checkout() / "mlartifacts" / profile if uri.startswith(_SQLITE) else None
            location = folder.as_uri() if folder else None
            made = client.create_experiment(profile, artifact_location=location)
            client.set_experiment_tag(made, NOTE, _ABOUT.format(profile=profile))
            return cls(client, made, uri)

    def parent(self, subject: Subject, training: str, params: Mapping[str, Any]) -> Any:
        """The run of a trained model, found by its training identity or made.

        Args:
            subject: names the run method-variant-seed.
            training: training identity.
            params: resolved training parameters, nested.
        """
        with _translated(self.uri), _alone(self.uri):
            found = self.client.search_runs(
                [self.experiment], f"tags.stage = 'train' and tags.identity = '{training}'", max_results=1
            )
            if found:
                return found[0]
            tags = subject_tags(subject) | {"stage": "train", "identity": training, NOTE: describe_model(subject)}
            reading = params.get("recipe", {}).get("reading")
            if reading is not None:
                tags["reading"] = reading
            run = self.client.create_run(self.experiment, run_name=subject.run_name, tags=tags)
            self._log(run.info.run_id, params=flat_params(params))
            return run

    def child(self, parent: str, name: str, tags: Mapping[str, str]) -> str:
        """A new run nested under ``parent``; returns its id."""
        with _translated(self.uri), _alone(self.uri):
            all_tags = dict(tags) | {"mlflow.parentRunId": parent}
            return self.client.create_run(self.experiment, run_name=name, tags=all_tags).info.run_id

    def log(
        self,
        run: str,
        *,
        points: Sequence[tuple[int, int, Mapping[str, float]]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log values, params and tags to a run.

        Args:
            points: (step, time in ms since 1970, value by key).
        """
        with _translated(self.uri), _alone(self.uri):
            self._log(run, points=points, params=params, tags=tags)

    def _log(
        self,
        run: str,
        *,
        points: Sequence[tuple[int, int, Mapping[str, float]]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(key, value, moment, step) for step, moment, row in points for key, value in row.items()]
        for part in _chunks(metrics, _METRICS_PER_CALL):
            self.client.log_batch(run, metrics=part)
        for part in _chunks([Param(key, value) for key, value in (params or {}).items()], _PARAMS_PER_CALL):
            self.client.log_batch(run, params=part)
        for part in _chunks([RunTag(key, value) for key, value in (tags or {}).items()], _TAGS_PER_CALL):
            self.client.log_batch(run, tags=part)

    def translated(self) -> contextlib.AbstractContextManager[None]:
        """For calls beyond those here: whatever the store throws becomes a TrackingError."""
        return _translated(self.uri)

    def attach(self, run: str, path: Path) -> None:
        """Keep a file with a run."""
        with _translated(self.uri):
            self.client.log_artifact(run, str(path))

    def attach_table(self, run: str, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Keep a table with a run, which MLflow's pages show and compare between runs."""
        with _translated(self.uri):
            self.client.log_table(run, dict(columns), name)

    def finish(self, run: str, status: str = "FINISHED") -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        with _translated(self.uri), _alone(self.uri):
            self.client.set_terminated(run, status)

    def runs(self, where: str) -> list[Any]:
        """All runs of the experiment that a search expression selects."""
        with _translated(self.uri):
            found, token = [], None
            while True:
                page = self.client.search_runs([self.experiment], where, max_results=500, page_token=token)
                found += page
                token = page.token
                if not token:
                    return found


def subject_tags(subject: Subject) -> dict[str, str]:
    """Tags that name the model of a run."""
    return {
        "profile": subject.profile,
        "method": subject.method,
        "variant": subject.variant or "",
        "seed": str(subject.seed),
    }


def describe_model(subject: Subject) -> str:
    """What MLflow's pages say about the run of a model, as Markdown."""
    what = {
        "ebjdat": "EB-JDAT: energies of clean, adversarial and generated images are brought together",
        "base": "the plain JEM variant, without adversarial terms",
        "control": "EB-JDAT without its energy term",
        "pgd_at": "adversarial training with PGD, a baseline and transfer surrogate",
        "trades": "TRADES, a baseline",
        "undefended": "trained on clean images only",
    }.get(subject.method, "a model that was not trained here")
    variant = f", variant {subject.variant}" if subject.variant else ""
    return (
        f"**{subject.name}** on profile {subject.profile}, seed {subject.seed}: {what}{variant}.\n\n"
        "Steps are epochs. Nested runs hold its evaluations, one per stage; accuracies are in [0, 1] with "
        "`.low`, `.high` (95 % Wilson interval) and `.n` beside them."
    )


def flat_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted keys and text."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        key = f"{prefix}{name}"
        flat |= flat_params(value, f"{key}.") if isinstance(value, Mapping) else {key: str(value)}
    return flat


def _client(uri: str) -> Any:
    """An MLflow client that sends no telemetry, asks git nothing and gives up after seconds."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise TrackingError(f"MLflow cannot be imported ({error})") from None
    return MlflowClient(tracking_uri=uri)


def _probe(uri: str) -> None:
    """Fail at once where MLflow would try for minutes: no database, not writable, locked for long."""
    if uri.startswith(_SQLITE):
        with contextlib.closing(sqlite3.connect(uri.removeprefix(_SQLITE), timeout=10)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One writer at a time for a SQLite store; a server looks after itself."""
    if not uri.startswith(_SQLITE):
        yield
        return
    import filelock

    with filelock.FileLock(uri.removeprefix(_SQLITE) + ".lock", timeout=LOCK_SECONDS):
        yield


@contextlib.contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Whatever the store throws becomes a TrackingError of one line.

    MLflow passes on what its layers raise (SQLAlchemy, Alembic, requests, sqlite3, the lock, the
    file system), and none of it may stop a training run, hence the broad net.
    """
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise TrackingError(f"the MLflow store {uri} failed: {type(error).__name__}: {reason}") from error


def _machine(started: int) -> Machine | None:
    """The monitors, unless this MLflow has none."""
    try:
        return Machine(started)
    except ImportError:
        return None


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def spool(kind: str, content: Mapping[str, Any]) -> Path | None:
    """Keep an event for later in the main checkout; None when even that is impossible."""
    path = files.scratch("spool", f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.{kind}.json")
    try:
        files.write_json(path, content)
    except UserError as error:
        print(f"warning: tracking: {error}", file=sys.stderr)
        return None
    return path


def spooled(kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Events of a kind, oldest first; a damaged file is named and left alone."""
    for path in sorted(files.scratch("spool").glob(f"*.{kind}.json")):
        try:
            yield path, files.read_json(path)
        except UserError as error:
            warnings.warn(f"spool: {error}", TrackingWarning, stacklevel=2)


def replay_curves(store: Store, profile: str) -> int:
    """Log spooled curves of a profile and delete their files; returns how many there were."""
    count = 0
    for path, event in spooled("curves"):
        subject = Subject(**event["subject"])
        if subject.profile != profile:
            continue
        run = store.parent(subject, event["training"], event["params"])
        log_curve(store, run, [(step, moment, row) for step, moment, row in event["points"]])
        store.log(run.info.run_id, tags=event.get("tags", {}))
        store.finish(run.info.run_id, event["status"])
        path.unlink()
        count += 1
    return count


def log_curve(store: Store, run: Any, points: Sequence[tuple[int, int, Mapping[str, float]]]) -> None:
    """Log the points that lie after the last step the run already has."""
    last = last_step(store, run)
    store.log(run.info.run_id, points=[point for point in points if point[0] > last])


def last_step(store: Store, run: Any) -> int:
    """The last step that a run's curves have; -1 without any.

    A resumed or repeated training logs nothing twice, because its points start after this.
    """
    with _translated(store.uri):
        metrics = curve_names(run)
        if not metrics:
            return -1
        longest = store.client.get_metric_history(run.info.run_id, metrics[0])
        return max((point.step for point in longest), default=-1)


def curve_names(run: Any) -> list[str]:
    """Names of a run's training curves, sorted; neither the machine's load nor a headline is one."""
    return sorted(name for name in run.data.metrics if not name.startswith((SYSTEM, HEADLINE)))


class Machine:
    """Load of the machine during training, as MLflow's own monitors measure it, under its ``system/`` keys.

    A monitor that this machine lacks (no GPU, no driver library) measures nothing.
    """

    def __init__(self, started: int) -> None:
        """Args: when the run started, in ms since 1970; steps are seconds from then."""
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        self._monitors: list[Any] = []
        self._started = started
        for kind in (CPUMonitor, GPUMonitor):
            with contextlib.suppress(Exception):  # the monitors answer a missing driver with errors of their own
                self._monitors.append(kind())

    def point(self) -> tuple[int, int, dict[str, float]]:
        """(seconds since the run started, time in ms, values by key)."""
        row: dict[str, float] = {}
        for monitor in self._monitors:
            with contextlib.suppress(Exception):  # a driver that fails must not end the thread that sends curves
                monitor.collect_metrics()
                row |= {f"{SYSTEM}{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
        now = time.time_ns() // 1_000_000
        return max(0, (now - self._started) // 1000), now, row


class Curves:
    """Live training curves of one model, logged to its MLflow run by a thread.

    The loop never waits for the store, and no failure of the store reaches it unless tracking is
    strict. Points that could not be logged are spooled at the end.

    >>> with Curves(subject, identity, subject.resolved(params, "train")) as curves:
    ...     curves.log(epoch, {"loss": 0.4})

    Args:
        subject: the model.
        training: its training identity.
        params: its resolved training parameters.
        flush_seconds: how long points are collected before they are sent together.
        connect: opens the store of a profile; replaced in tests.
    """

    def __init__(
        self,
        subject: Subject,
        training: str,
        params: Mapping[str, Any],
        *,
        flush_seconds: float = 5.0,
        connect: Callable[[str], Store] = Store.open,
    ) -> None:
        self.subject, self.training, self.params = subject, training, params
        self._flush_seconds, self._connect = flush_seconds, connect
        self._waiting: queue.Queue[tuple[int, int, dict[str, float]] | tuple[str, str] | None] = queue.Queue()
        self._unsent: list[tuple[int, int, dict[str, float]]] = []
        self._tags: dict[str, str] = {}
        self._status = "RUNNING"
        self._failure: TrackingError | None = None
        self._told = False
        self._thread = threading.Thread(target=self._work, name="curves", daemon=True)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Queue the finite numbers among ``values`` at ``step``; text and other entries are left out.

        Raises:
            UserError: the store failed and tracking is strict.
        """
        row = {name: float(value) for name, value in values.items() if is_number(value)}
        self._waiting.put((step, time.time_ns() // 1_000_000, row))
        self._tell()

    def note(self, key: str, text: str) -> None:
        """Queue a tag; the same key again replaces it, so an event that a resumed run meets again is there once."""
        self._waiting.put((key, text[:TAG_LENGTH]))

    def note_rollback(self, event: Mapping[str, Any]) -> None:
        """Queue a rollback of training with its cause."""
        text = f"epoch {event['epoch']}, step {event['step']}: {event['cause']}"
        self.note(f"rollback.{event['retry']}", text)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._status = "FINISHED"
        else:  # an interruption is no fault, and Python says so by its base class
            self._status = "FAILED" if issubclass(kind, Exception) else "KILLED"
        self._waiting.put(None)
        self._thread.join(timeout=LOCK_SECONDS)
        if self._thread.is_alive():
            self._failure = TrackingError(f"the MLflow store did not answer within {LOCK_SECONDS:.0f} s")
        self._spool_unsent()
        if kind is None:
            self._tell()

    def _tell(self) -> None:
        if self._failure is not None and not self._told:
            self._told = True
            report_failure(self._failure, f"curves of {self.subject.run_name}")

    def _work(self) -> None:
        """Thread: connect, then send what has gathered, every few seconds, until the end mark."""
        try:
            store = self._connect(self.subject.profile)
            run = store.parent(self.subject, self.training, self.params)
            last, run_id, open_ = last_step(store, run), run.info.run_id, True
            machine = _machine(run.info.start_time)
            while open_:
                open_ = self._gather()
                measured = [] if machine is None else [machine.point()]
                points = [point for point in self._unsent if point[0] > last] + measured
                store.log(run_id, points=points, tags=self._tags)
                self._unsent.clear()
                self._tags.clear()
            store.finish(run_id, self._status)
        except TrackingError as error:
            self._failure = error

    def _gather(self) -> bool:
        """Collect points for ``flush_seconds``; False once the end mark came."""
        deadline = time.monotonic() + self._flush_seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                point = self._waiting.get(timeout=left)
            except queue.Empty:
                break
            if point is None:
                return False
            self._keep(point)
        return True

    def _keep(self, entry: tuple[int, int, dict[str, float]] | tuple[str, str]) -> None:
        if len(entry) == 2:
            self._tags[entry[0]] = entry[1]
        else:
            self._unsent.append(entry)

    def _spool_unsent(self) -> None:
        if self._failure is None:
            return
        while not self._waiting.empty():
            point = self._waiting.get_nowait()
            if point is not None:
                self._keep(point)
        event = {
            "subject": {name: getattr(self.subject, name) for name in ("profile", "method", "variant", "seed")},
            "training": self.training,
            "params": dict(self.params),
            "status": self._status,
            "points": self._unsent,
            "tags": self._tags,
        }
        spool("curves", json.loads(json.dumps(event)))


def is_number(value: Any) -> bool:
    """Whether a value of a history row is a finite number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
