"""Records: what an evaluation found, as plain JSON that the same run writes to the byte again.

A record holds deterministic fields only. Time, device, memory and host differ between two runs of
the same thing and live in a side file beside it. Two keys matter: ``identity`` says which question
was asked (known before the run), ``content`` hashes the answer.
"""

from __future__ import annotations

import contextlib
import math
import re
import socket
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ebjdat import command, files, provenance
from ebjdat.config import Params
from ebjdat.errors import AuditError, UserError
from ebjdat.evaluation.statistics import Rate, Result
from ebjdat.subject import EVALUATIONS, HashOf, Subject, data_digest

SCHEMA = 1

Record = dict[str, Any]
"""A validated record; see :func:`validate` for its fields."""

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "stage": str,
    "profile": str,
    "method": str,
    "variant": (str, type(None)),
    "seed": int,
    "identity": str,
    "training": str,
    "content": str,
    "params": dict,
    "data": str,
    "model": str,
    "modules": dict,
    "n": int,
    "rates": dict,
    "values": dict,
    "audits": dict,
    "warnings": dict,
    "settings": dict,
    "arrays": (str, type(None)),
}
_NAME = re.compile(r"[a-z0-9._/-]+")
_PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "pyautoattack", "torch-fidelity")


def record_path(subject: Subject, stage: str) -> Path:
    """Where the record of a stage lies, relative to the repository root."""
    return subject.results_dir / f"{stage}.json"


def side_path(path: Path) -> Path:
    """The side file of a record."""
    return path.with_suffix(".side.json")


def arrays_path(path: Path) -> Path:
    """The per-image arrays of a record."""
    return path.with_suffix(".npz")


def write_record(
    subject: Subject, params: Params, stage: str, result: Result, hash_of: HashOf = provenance.closure_hash
) -> Record:
    """Write ``results/<profile>/<name>/<stage>.json``, its side file and its arrays.

    The arrays come first and the record last, so that a record always has what it names.

    Raises:
        AuditError: a number is NaN or infinite, or a metric name is malformed.
        UserError: the model or the data are missing, or a file cannot be written.
    """
    path = record_path(subject, stage)
    arrays = None
    if result.arrays:
        files.write_npz(arrays_path(path), result.arrays)
        arrays = provenance.file_hash(arrays_path(path))
    record = build_record(subject, params, stage, result, arrays, hash_of)
    files.write_json(side_path(path), _side(record))
    files.write_json(path, record)
    with contextlib.suppress(UserError):  # without the mark, tracking only calls the run restored
        files.write_text(fresh_mark(record), f"{subject.run_name} {stage}\n")
    return record


def fresh_mark(record: Record) -> Path:
    """A file that exists from a record's run until its MLflow run; restored records have none."""
    return files.scratch("fresh", record["content"])


def build_record(
    subject: Subject,
    params: Params,
    stage: str,
    result: Result,
    arrays: str | None = None,
    hash_of: HashOf = provenance.closure_hash,
) -> Record:
    """The record of a result, validated, without writing it.

    Args:
        arrays: hash of the file of per-image arrays.
        hash_of: code hash by module name.
    """
    data = data_digest(subject.profile)
    fields: Record = {
        "schema": SCHEMA,
        "stage": stage,
        "profile": subject.profile,
        "method": subject.method,
        "variant": subject.variant,
        "seed": subject.seed,
        "identity": subject.identity(params, stage, data, hash_of),
        "training": subject.identity(params, "train", data, hash_of),
        "params": subject.resolved(params, stage),
        "data": data,
        "model": provenance.file_hash(subject.model_dir / "best.pt"),
        "modules": {name: hash_of(name) for name in subject.modules(stage)},
        "n": result.n,
        "rates": {name: _rate_fields(rate) for name, rate in result.rates.items()},
        "values": {name: float(value) for name, value in result.values.items()},
        "audits": result.audits,
        "warnings": result.warnings,
        "settings": result.settings,
        "arrays": arrays,
    }
    fields = _plain(fields, f"{subject.name}/{stage}")
    record = fields | {"content": content_of(fields)}
    return validate(record, f"{subject.name}/{stage}")


def content_of(record: Mapping[str, Any]) -> str:
    """Hash of all fields but ``content`` itself, 16 hex characters."""
    return provenance.digest({name: value for name, value in record.items() if name != "content"})


def _rate_fields(rate: Rate) -> dict[str, Any]:
    return {"correct": rate.correct, "n": rate.n, "flags": rate.flags}


def _plain(value: Any, where: str) -> Any:
    """JSON values only: NumPy scalars and arrays unpacked, numbers finite.

    Raises:
        AuditError: a number is NaN or infinite; the message names the field.
        TypeError: a value that JSON does not have.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise AuditError(f"{where} is {value}: a result that is not finite is not recorded")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where}: {type(value).__name__} has no place in a record")


def validate(record: Any, where: str) -> Record:
    """Check a record's schema, its numbers and that its content hash fits.

    Raises:
        UserError: what is wrong, and in which record.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a record, got {type(record).__name__}")
    for name, kind in _FIELDS.items():
        if name not in record:
            raise UserError(f"{where}: the record has no field {name!r}")
        if not isinstance(record[name], kind) or isinstance(record[name], bool):
            raise UserError(f"{where}: field {name!r} has the wrong type {type(record[name]).__name__}")
    unknown = sorted(set(record) - set(_FIELDS))
    if unknown:
        raise UserError(f"{where}: unknown field {unknown[0]!r}")
    if record["schema"] != SCHEMA:
        raise UserError(f"{where}: schema {record['schema']}, expected {SCHEMA}; delete it and run `dvc repro` again")
    if record["stage"] not in EVALUATIONS:
        raise UserError(f"{where}: unknown stage {record['stage']!r}")
    for name in (*record["rates"], *record["values"]):
        if not _NAME.fullmatch(name):
            raise AuditError(f"{where}: metric name {name!r} may hold a-z, 0-9 and . _ / - only")
    for name, rate in record["rates"].items():
        _validate_rate(rate, f"{where}: rate {name}")
    if content_of(record) != record["content"]:
        raise UserError(f"{where}: the content hash does not fit, so it was edited; make it again with `dvc repro`")
    return record


def _validate_rate(fields: Any, where: str) -> None:
    try:
        flags = Rate(**fields).per_image()
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} is damaged: {error}") from None
    if int(flags.sum()) != fields["correct"]:
        raise UserError(f"{where}: {fields['correct']} correct, but the flags count {int(flags.sum())}")


def read_record(path: Path) -> Record:
    """Read and validate a record.

    Raises:
        UserError: the file is missing or damaged.
    """
    return validate(files.read_json(path), str(path))


def read_todays(subject: Subject, params: Params, stage: str, hash_of: HashOf = provenance.closure_hash) -> Record:
    """The record of a stage if it answers today's question about today's model.

    Raises:
        UserError: it is missing or damaged, of other parameters, data or code, or of other weights than best.pt.
    """
    path = record_path(subject, stage)
    record = read_record(path)
    if record["identity"] != subject.identity(params, stage, data_digest(subject.profile), hash_of):
        raise UserError(f"{path} is stale (other parameters, data or code); run the stage {stage} again")
    if record["model"] != provenance.file_hash(subject.model_dir / "best.pt"):
        raise UserError(f"{path} is about other weights than {subject.model_dir}/best.pt; run the stage {stage} again")
    return record


def read_side(path: Path) -> dict[str, Any]:
    """The side file of the record at ``path``; empty when there is none."""
    side = side_path(path)
    return files.read_json(side) if side.is_file() else {}


def subject_of(record: Record) -> Subject:
    """The model that a record is about."""
    fingerprint = record["params"].get("fingerprint")
    return Subject(record["profile"], record["method"], record["variant"], record["seed"], fingerprint)


def rates_of(record: Record) -> dict[str, Rate]:
    """The accuracies of a record by metric name."""
    return {name: Rate(**fields) for name, fields in record["rates"].items()}


def flatten(record: Record) -> dict[str, float]:
    """Metrics by key: a rate ``x`` gives x, x.low, x.high (95 % interval, in [0, 1]) and x.n."""
    metrics: dict[str, float] = {}
    for name, rate in rates_of(record).items():
        low, high = rate.interval()
        metrics |= {name: rate.accuracy, f"{name}.low": low, f"{name}.high": high, f"{name}.n": float(rate.n)}
    return metrics | record["values"]


def _side(record: Record) -> dict[str, Any]:
    """What differs between two equal runs: time, device, memory, host, versions."""
    return {
        "content": record["content"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - command.STARTED, 3),
        "host": socket.gethostname(),
        "platform": f"{sys.platform}, Python {sys.version.split()[0]}",
        "versions": _versions(),
        **_memory(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _memory() -> dict[str, Any]:
    """Peak memory in bytes and the device; PyTorch is asked only when the stage has loaded it."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    measured: dict[str, Any] = {"peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        measured["device"] = torch.cuda.get_device_name()
        measured["peak_device_memory"] = torch.cuda.max_memory_allocated()
    else:
        measured["device"] = "cpu"
    return measured
