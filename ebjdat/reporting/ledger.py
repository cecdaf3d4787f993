"""The ledger: every known record of a profile, joined from workspace, MLflow store and git.

Results come and go: switching a variant replaces files, a queue run leaves nothing behind, a fresh
clone has neither store nor cache. The committed ``results/<profile>/records.jsonl`` closes the gap.
It holds one record per identity. Where two machines answered the same question with other last
digits, this machine's own answer wins, and the difference is a reproduction check, never a failure.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ebjdat import files, provenance
from ebjdat.config import Params
from ebjdat.errors import UserError
from ebjdat.reporting import runs, tracking
from ebjdat.reporting.records import (
    Record,
    fresh_mark,
    rates_of,
    read_record,
    read_side,
    record_path,
    subject_of,
    validate,
)
from ebjdat.subject import EVALUATIONS, HashOf, Subject

WORKSPACE, OWN_RUN, COMMITTED, OTHER_RUN = range(4)
"""Sources, best first: files here, runs made here, the committed ledger, runs restored from elsewhere."""


@dataclass(frozen=True)
class Candidate:
    """A record and where it was found."""

    record: Record
    source: int


@dataclass(frozen=True)
class Joined:
    """The union of all sources.

    Attributes:
        records: one per identity, in the order of the ledger file.
        answers: all answers to the same questions, by identity and content.
    """

    records: list[Record]
    answers: dict[str, dict[str, Record]]


def ledger_path(profile: str) -> Path:
    """The committed ledger of a profile."""
    return Path("results") / profile / "records.jsonl"


def read_ledger(profile: str) -> list[Record]:
    """The records of the committed ledger; none when there is no file.

    Raises:
        UserError: a line is damaged (edited by hand, or an unresolved merge); it is named.
    """
    path = ledger_path(profile)
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}); restore the file from git") from None
        records.append(validate(value, f"{path}, line {number}"))
    return records


def ledger_text(records: Iterable[Record]) -> str:
    """The ledger file: one canonical JSON line per record, sorted; equal records give equal bytes."""
    return "".join(f"{provenance.canonical(record).decode()}\n" for record in sorted(records, key=_order))


def _order(record: Record) -> tuple[str, int, int, str]:
    name = subject_of(record).name
    return name, record["seed"], EVALUATIONS.index(record["stage"]), record["identity"]


def workspace_records(profile: str) -> list[tuple[Path, Record]]:
    """The records that lie in ``results/<profile>/*/`` now, but those of an external model's earlier weights."""
    root = Path("results") / profile
    paths = [path for stage in EVALUATIONS for path in root.glob(f"[!.]*/{stage}.json")]
    found = [(path, read_record(path)) for path in sorted(paths)]
    return [(path, record) for path, record in found if not _is_replaced(subject_of(record))]


def _is_replaced(subject: Subject) -> bool:
    """Whether other weights of this name lie in the workspace; models trained here have identities that tell."""
    here = subject.model_dir / "external.json"
    return subject.is_external and here.is_file() and files.read_json(here).get("fingerprint") != subject.fingerprint


def join(candidates: Sequence[Candidate], hash_of: HashOf) -> Joined:
    """One record per identity from all sources.

    Records made by older code stay only while today's code has none for the same model, seed and
    stage: they let a table say "stale", and nothing else reads them. The store's stale runs do not
    come back.
    """
    kept = _without_outdated(_latest_externals(candidates), hash_of)
    by_identity: dict[str, list[Candidate]] = {}
    for candidate in kept:
        by_identity.setdefault(candidate.record["identity"], []).append(candidate)
    chosen = [min(group, key=lambda c: (c.source, c.record["content"])).record for group in by_identity.values()]
    answers = {identity: {c.record["content"]: c.record for c in group} for identity, group in by_identity.items()}
    return Joined(sorted(chosen, key=_order), answers)


def _latest_externals(candidates: Sequence[Candidate]) -> list[Candidate]:
    """All candidates but those of an external model that another one of the same name replaced.

    Their parameters do not change with their weights, so nothing else would make the old ones stale.
    The files here decide which is meant, then the committed ledger.
    """
    best: dict[str, tuple[int, str, str]] = {}
    for one in candidates:
        subject = subject_of(one.record)
        if subject.is_external:
            rank = ((WORKSPACE, COMMITTED, OWN_RUN, OTHER_RUN).index(one.source), one.record["content"])
            meant = (*rank, subject.fingerprint or "")
            best[subject.name] = min(meant, best.get(subject.name, meant))
    replaced = {name: fingerprint for name, (_, _, fingerprint) in best.items()}
    kept = []
    for one in candidates:
        subject = subject_of(one.record)
        if replaced.get(subject.name, subject.fingerprint) == subject.fingerprint:
            kept.append(one)
    return kept


def _without_outdated(candidates: Sequence[Candidate], hash_of: HashOf) -> list[Candidate]:
    current = [c for c in candidates if made_by_current_code(c.record, hash_of)]
    answered = {_question(c.record) for c in current}
    outdated = [
        c
        for c in candidates
        if c.source in (WORKSPACE, COMMITTED)
        and not made_by_current_code(c.record, hash_of)
        and _question(c.record) not in answered
    ]
    return current + outdated


def _question(record: Record) -> tuple[str, str]:
    return subject_of(record).run_name, record["stage"]


def made_by_current_code(record: Record, hash_of: HashOf) -> bool:
    """Whether the modules that made a record are those of this checkout."""
    try:
        return all(hash_of(name) == code for name, code in record["modules"].items())
    except UserError:  # a module that is gone has no current code
        return False


@dataclass(frozen=True)
class Summary:
    """What :func:`update` did."""

    records: int
    logged: int
    checks: list[dict[str, Any]]


def update(params: Params, hash_of: HashOf) -> Summary:
    """Join all sources of the selected profile, log what the store lacks, write the ledger.

    Raises:
        UserError: a record or the ledger is damaged, or tracking is strict and failed.
    """
    profile = params.profile
    store, logged = _read_store(profile)
    waiting = [Waiting(record, WORKSPACE, read_side(path)) for path, record in workspace_records(profile)]
    waiting += _spooled(profile)
    waiting += [Waiting(record, COMMITTED) for record in read_ledger(profile)]
    candidates = [Candidate(one.record, OWN_RUN if one.origin == "run" else OTHER_RUN) for one in logged]
    joined = join([*candidates, *waiting], hash_of)
    count = _log_missing(store, {one.record["content"] for one in logged}, waiting)
    files.write_text(ledger_path(profile), ledger_text(joined.records))
    return Summary(len(joined.records), count, reproduction(joined.records, joined.answers))


@dataclass(frozen=True)
class Waiting(Candidate):
    """A record that the store may lack, with its side file where that is known."""

    side: Mapping[str, Any] = field(default_factory=dict)


def _read_store(profile: str) -> tuple[tracking.Store | None, list[runs.Logged]]:
    try:
        store = tracking.Store.open(profile)
        tracking.replay_curves(store, profile)
        return store, runs.load(store)
    except tracking.TrackingError as error:
        tracking.report_failure(error, "record")
        return None, []


def _spooled(profile: str) -> list[Waiting]:
    """Records that an earlier call, perhaps a queue's, could not log."""
    found = [
        (validate(event.get("record"), str(path)), event.get("side", {})) for path, event in tracking.spooled("record")
    ]
    return [Waiting(record, OWN_RUN, side) for record, side in found if record["profile"] == profile]


def _log_missing(store: tracking.Store | None, known: set[str], waiting: Sequence[Waiting]) -> int:
    """Log the records that the store lacks; returns how many. What cannot be logged is spooled."""
    count = 0
    for one in waiting:
        content = one.record["content"]
        if content not in known:
            known.add(content)
            store = _try_to_log(store, one)
            count += store is not None
        if store is not None:
            _settle(content, one.record)
    return count


def _try_to_log(store: tracking.Store | None, one: Waiting) -> tracking.Store | None:
    """Log a record; returns the store, or None when it is not, or no longer, usable."""
    record, here = one.record, one.source == WORKSPACE
    if store is not None:
        subject = subject_of(record)
        try:
            runs.log_record(
                store,
                record,
                origin="run" if fresh_mark(record).is_file() else "workspace" if here else "ledger",
                side=one.side,
                path=record_path(subject, record["stage"]) if here else None,
                history=read_history(subject.model_dir) if here else (),
            )
            return store
        except tracking.TrackingError as error:
            tracking.report_failure(error, "record")
    spooled = {event["record"]["content"] for _, event in tracking.spooled("record")}
    if here and record["content"] not in spooled:
        tracking.spool("record", {"record": record, "side": dict(one.side)})
    return None


def _settle(content: str, record: Record) -> None:
    """The store has the record: neither mark nor spool file is needed any longer."""
    with contextlib.suppress(OSError):
        fresh_mark(record).unlink(missing_ok=True)
    for path, event in tracking.spooled("record"):
        if event["record"]["content"] == content:
            path.unlink()


def read_history(model_dir: Path) -> list[dict[str, Any]]:
    """Rows of a model's training curve; none without the file."""
    path = model_dir / "history.jsonl"
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run `dvc repro` to make it again") from None


def reproduction(records: Sequence[Record], others: Mapping[str, Mapping[str, Record]]) -> list[dict[str, Any]]:
    """Own answers against other machines' answers to the same questions.

    Args:
        records: those that count.
        others: all known answers, by identity and content.

    Returns:
        One row per rate: model, stage, metric, ours, theirs, their 95 % interval, whether ours is
        inside it; values without an interval give a row when they differ, with ``inside`` None.
    """
    rows = []
    for record in records:
        for content, other in sorted(others.get(record["identity"], {}).items()):
            if content != record["content"]:
                rows += _compare(record, other)
    return rows


def _compare(own: Record, other: Record) -> list[dict[str, Any]]:
    base: dict[str, Any] = {"model": subject_of(own).run_name, "stage": own["stage"]}
    rows = []
    theirs = rates_of(other)
    for name, rate in sorted(rates_of(own).items()):
        if name in theirs:
            low, high = theirs[name].interval()
            numbers = {"ours": rate.accuracy, "theirs": theirs[name].accuracy, "low": low, "high": high}
            rows.append(base | {"metric": name, "inside": low <= rate.accuracy <= high} | numbers)
    for name, value in sorted(own["values"].items()):
        known = other["values"].get(name)
        if known is not None and known != value:
            rows.append(
                base | {"metric": name, "inside": None, "ours": value, "theirs": known, "low": None, "high": None}
            )
    return rows
