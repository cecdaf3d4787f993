"""Records: what a stage found about a run, as one small JSON file that the same run writes to the byte again.

A record is written once and read everywhere. It says what it answers by its resolved parameters, the digest of the
data, the weights' sha256, the protocol's settings and the stages' revisions. Time, memory and host differ between two
runs of the same thing: they go to ``.scratch/times/`` and from there to MLflow.
"""

import json
import math
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import ConfigDict, Field

from ebjdat import command, files
from ebjdat.config import MASKING_INPUTS, Section, Setup, build
from ebjdat.errors import AuditError, UserError
from ebjdat.protocols import PROTOCOLS, REVISIONS
from ebjdat.run import Run
from ebjdat.statistics import Rate, Result

Stage = Literal["clean", "autoattack", "transfer", "sweep", "eot", "generate", "masking"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""Stages that write a record, in the order of the pipeline."""

Record = dict[str, Any]
"""A validated record; see :class:`Fields`."""

_NAME = re.compile(r"[a-z0-9._/-]+")
_PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "pyautoattack", "torch-fidelity")


class Fields(Section):
    """The fields of a record; see :class:`ebjdat.statistics.Result` for what a stage found."""

    model_config = ConfigDict(strict=True)
    form: Literal[2] = Field(alias="schema")
    profile: str
    model: str
    seed: int
    stage: Stage
    revisions: dict[str, int]
    params: dict[str, Any]
    data: str
    weights: str
    n: int
    rates: dict[str, dict[str, Any]]
    values: dict[str, float]
    audits: dict[str, dict[str, Any]]
    warnings: dict[str, list[str]]
    settings: dict[str, Any]


def revisions(stage: str) -> dict[str, int]:
    """The revisions that a record of ``stage`` rests on: of it, of the stages that it uses, and of the protocols."""
    names = {"train", stage} | (set(MASKING_INPUTS) if stage == "masking" else set())
    if stage in ("transfer", "masking"):
        names.add("craft")
    return {name: REVISIONS[name] for name in sorted(names)} | {p.name: p.revision for p in PROTOCOLS.values()}


def write_record(setup: Setup, stage: str, result: Result, *, data: str, params: Mapping[str, Any] = {}) -> Record:
    """Write the record of a stage, and its time and host into the scratch folder.

    Args:
        data: digest of the prepared data.
        params: more of what decides the result, such as an external model's fingerprint.

    Raises:
        AuditError: a number is NaN or infinite, or a metric name is malformed.
        UserError: the model is missing, or the file cannot be written.
    """
    run = setup.run
    where = f"{run} {stage}"
    fields = {
        "schema": 2,
        "profile": run.profile,
        "model": run.model,
        "seed": run.seed,
        "stage": stage,
        "revisions": revisions(stage),
        "params": setup.recorded(stage) | dict(params),
        "data": data,
        "weights": files.file_hash(run.model_dir / "best.pt"),
        "n": result.n,
        "rates": {name: {"correct": r.correct, "n": r.n, "flags": r.flags} for name, r in result.rates.items()},
        "values": {name: float(value) for name, value in result.values.items()},
        "audits": result.audits,
        "warnings": result.warnings,
        "settings": result.settings,
    }
    record = validate(_plain(fields, where), where)
    files.write_json(run.record(stage), record)
    # A queued or temporary experiment runs in a copy: the main checkout gets its record, where it has none.
    if not (main := files.main_checkout() / run.record(stage)).exists():
        files.write_json(main, record)
    write_times(run, stage)
    return record


def _version(package: str) -> str:
    """Of an installed package; empty of one that is not, such as one of two names of AutoAttack."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def write_times(run: Run, stage: str) -> None:
    """What differs between two equal runs, for MLflow: time, host, device, memory, versions."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    found: dict[str, Any] = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - command.STARTED, 3),
        "cpu_seconds": round(time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]), 3),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "host": socket.gethostname(),
        "platform": f"{sys.platform}, Python {sys.version.split()[0]}",
        "versions": {name: _version(name) for name in _PACKAGES},
        "device": "cpu",
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found |= {"device": torch.cuda.get_device_name(), "peak_device_memory": torch.cuda.max_memory_allocated()}
    try:
        files.write_json(times_path(run, stage), found)
    except UserError as error:
        print(f"warning: times of {run} {stage} are lost: {error}", file=sys.stderr)


def times_path(run: Run, stage: str) -> Path:
    """Where :func:`write_times` puts them."""
    return files.scratch("times", run.profile, run.model, str(run.seed), f"{stage}.json")


def read_record(path: Path) -> Record:
    """Read and validate a record. UserError: the file is missing or damaged, or does not lie where its run says."""
    record = validate(files.read_json(path), str(path))
    if run_of(record).record(record["stage"]).parts != path.parts[-6:]:
        raise UserError(f"{path} is about {run_of(record)} {record['stage']}: it was moved or copied by hand")
    return record


def read_records(profile: str, root: Path = Path()) -> Iterator[Record]:
    """All records of a profile, sorted by model, seed and stage."""
    folder = root / "results" / profile / "records"
    for path in sorted(
        folder.glob("*/*/*.json"), key=lambda path: (path.parts[-3], len(path.parts[-2]), *path.parts[-2:])
    ):
        yield read_record(path)


def read_own(setup: Setup, stage: str) -> Record:
    """The record of a stage if it answers today's question about today's model.

    Raises:
        UserError: it is missing or damaged, of other parameters or revisions, or of other weights than best.pt.
    """
    path = setup.run.record(stage)
    record = read_record(path)
    older = older_protocols(record)
    reason = outdated(record, setup) or (f"of an older revision of {' and '.join(older)}" if older else "")
    if not reason and record["weights"] != files.file_hash(setup.run.model_dir / "best.pt"):
        reason = f"about other weights than {setup.run.model_dir}/best.pt"
    if reason:
        raise UserError(f"{path} is {reason}: run the stage {stage} again")
    return record


def outdated(record: Record, setup: Setup) -> str:
    """Why a record does not answer today's question about its run; empty where it does.

    Not by a protocol's revision, which concerns some of its numbers: see :func:`current_part`.
    """
    stage = record["stage"]
    wanted = {name: number for name, number in revisions(stage).items() if name not in PROTOCOLS}
    older = [name for name, number in wanted.items() if record["revisions"].get(name) != number]
    if older:
        return f"of an older revision of {' and '.join(older)}"
    ours = {name: value for name, value in record["params"].items() if name != "fingerprint"}
    asked = setup.recorded(stage)
    if ours != asked:
        differing = sorted(name for name in {*ours, *asked} if ours.get(name) != asked.get(name))
        return f"of other parameters ({', '.join(differing)})"
    return ""


def older_protocols(record: Record) -> list[str]:
    """Protocols that have changed since a record was written; one that names no revision of theirs is of the first."""
    return [name for name, one in PROTOCOLS.items() if record["revisions"].get(name, 1) != one.revision]


def superseded(record: Record, name: str) -> bool:
    """Whether a metric (with its stage or without), audit or setting of a record belongs to an older protocol."""
    older = older_protocols(record)
    return bool(older) and re.search(rf"(^|/)({'|'.join(older)})[/-]", f"{name}/") is not None


def current_part(record: Record) -> Record:
    """A record without what it measured under an older revision of a protocol."""
    fields = ("rates", "values", "audits", "warnings", "settings")
    return record | {
        field: {name: value for name, value in record[field].items() if not superseded(record, name)}
        for field in fields
    }


def read_history(run: Run) -> list[dict[str, Any]]:
    """Numbers by epoch of a training; none where the file is not here. UserError: the file is damaged."""
    path = run.model_dir / "history.jsonl"
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); run `dvc repro` to make it again") from None


def run_of(record: Record) -> Run:
    """The run that a record is about."""
    return Run(record["profile"], record["model"], record["seed"])


def rates_of(record: Record) -> dict[str, Rate]:
    """The accuracies of a record by metric name, without those of an older protocol."""
    return {name: Rate(**fields) for name, fields in current_part(record)["rates"].items()}


def validate(record: Any, where: str) -> Record:
    """Check a record's fields and numbers. UserError: what is wrong, and in which record."""
    try:
        build(Fields, record, f"{where}: ")
    except UserError as error:
        raise UserError(f"{error}: delete the record and run `dvc repro` again") from None
    for name in (*record["rates"], *record["values"]):
        if not _NAME.fullmatch(name):
            raise AuditError(f"{where}: metric name {name!r} may hold a-z, 0-9 and . _ / - only")
    for name, rate in record["rates"].items():
        try:
            counted = int(Rate(**rate).per_image().sum())
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: rate {name} is damaged: {error}") from None
        if counted != rate["correct"]:
            raise UserError(f"{where}: rate {name}: {rate['correct']} correct, but the flags count {counted}")
    return record


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
