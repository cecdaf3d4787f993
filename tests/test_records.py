"""Records: the same to the byte for the same result, and refused when anything about them is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebjdat import files, provenance
from ebjdat.errors import AuditError, UserError
from ebjdat.evaluation.statistics import Rate, Result
from ebjdat.reporting import records
from ebjdat.subject import Subject
from tests.synthetic import clean_environment, code, params_of_repository, prepare_workspace

PARAMS = params_of_repository()
SUBJECT = Subject.current(PARAMS)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    clean_environment(monkeypatch, tmp_path)
    prepare_workspace([SUBJECT])
    return tmp_path


def result(**changes: Any) -> Result:
    """A small result of every kind of field."""
    fields: dict[str, Any] = {
        "n": 4,
        "rates": {"standard/clean": Rate.of([True, True, True, False])},
        "values": {"energy/gap-adversarial": np.float32(0.25)},
        "audits": {"standard/pgd-20": {"largest": np.float64(0.125), "changed": np.int64(3), "range": (0.0, 1.0)}},
        "warnings": {"standard/square": ["stronger than white-box"]},
        "settings": {"standard": {"radius": 0.125}},
        "arrays": {"label": np.array([1, 2, 3, 4])},
    }
    return Result(**fields | changes)


def write(**changes: Any) -> records.Record:
    return records.write_record(SUBJECT, PARAMS, "clean", result(**changes), code)


def test_a_record_survives_the_way_to_disk_and_names_everything_that_made_it() -> None:
    record = write()
    path = records.record_path(SUBJECT, "clean")
    assert records.read_record(path) == record
    assert record["identity"] == SUBJECT.identity(PARAMS, "clean", "synthetic-data", code)
    assert record["training"] == SUBJECT.identity(PARAMS, "train", "synthetic-data", code)
    assert record["model"] == provenance.file_hash(SUBJECT.model_dir / "best.pt")
    assert record["arrays"] == provenance.file_hash(path.with_suffix(".npz"))
    assert record["modules"] == {name: code(name) for name in ("stages.train", "stages.clean")}
    assert record["params"]["evaluation"]["radius"] == PARAMS.current.evaluation.radius
    assert records.subject_of(record) == SUBJECT


def test_the_same_result_gives_the_same_bytes_and_times_stay_in_the_side_file() -> None:
    write()
    path = records.record_path(SUBJECT, "clean")
    first, arrays = path.read_bytes(), path.with_suffix(".npz").read_bytes()
    write()
    assert (path.read_bytes(), path.with_suffix(".npz").read_bytes()) == (first, arrays)
    side = records.read_side(path)
    assert {"seconds", "host", "device", "peak_memory", "versions", "finished"} <= set(side)
    assert not {"seconds", "host", "device", "finished"} & set(json.loads(first))
    assert side["content"] == json.loads(first)["content"]


def test_metrics_are_flat_with_interval_and_count() -> None:
    metrics = records.flatten(write())
    low, high = Rate.of([True, True, True, False]).interval()
    assert metrics["standard/clean"] == 0.75
    assert (metrics["standard/clean.low"], metrics["standard/clean.high"]) == (low, high)
    assert metrics["standard/clean.n"] == 4
    assert metrics["energy/gap-adversarial"] == 0.25


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"values": {"energy/clean/mean": float("nan")}}, "values.energy/clean/mean is nan"),
        ({"values": {"energy/clean/mean": np.float32("inf")}}, "values.energy/clean/mean is inf"),
        ({"audits": {"standard/pgd-20": {"largest": np.array([0.1, np.nan])}}}, "largest[1] is nan"),
        ({"settings": {"radius": float("-inf")}}, "settings.radius is -inf"),
    ],
)
def test_a_number_that_is_not_finite_fails_the_stage_and_keeps_the_old_record(
    changes: dict[str, Any], field: str
) -> None:
    write()
    path = records.record_path(SUBJECT, "clean")
    before = path.read_bytes()
    with pytest.raises(AuditError) as caught:
        write(**changes)
    assert field in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["Standard/clean", "standard/clean accuracy", ""])
def test_a_malformed_metric_name_is_refused(name: str) -> None:
    with pytest.raises(AuditError, match="metric name"):
        write(values={name: 1.0})


def test_a_value_that_json_does_not_have_is_refused() -> None:
    with pytest.raises(TypeError, match=r"settings\.device: .* has no place"):
        write(settings={"device": object()})


def edit(record: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The record with one field replaced and the content hash made to fit."""
    changed = {**record, key: value}
    return changed | {"content": records.content_of(changed)}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", 2, "schema 2, expected 1"),
        ("stage", "cleen", "unknown stage 'cleen'"),
        ("seed", "0", "field 'seed' has the wrong type str"),
        ("n", True, "field 'n' has the wrong type bool"),
        ("extra", 1, "unknown field 'extra'"),
        ("rates", {"standard/clean": {"correct": 4, "n": 4, "flags": "e0"}}, "4 correct, but the flags count 3"),
        ("rates", {"standard/clean": {"correct": 1, "n": 4, "flags": "zz"}}, "rate standard/clean is damaged"),
        ("rates", {"standard/clean": {"correct": 1}}, "rate standard/clean is damaged"),
    ],
)
def test_a_wrong_field_is_named(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        records.validate(edit(write(), key, value), "clean.json")
    assert message in str(caught.value)


def test_a_record_that_was_edited_by_hand_is_refused() -> None:
    write()
    path = records.record_path(SUBJECT, "clean")
    path.write_text(path.read_text().replace('"energy/gap-adversarial": 0.25', '"energy/gap-adversarial": 0.35'))
    with pytest.raises(UserError, match=r"clean\.json: the content hash does not fit"):
        records.read_record(path)


@pytest.mark.parametrize("missing", ["best.pt", "manifest.json"])
def test_a_record_without_its_model_or_data_is_not_written(missing: str) -> None:
    folder = SUBJECT.model_dir if missing == "best.pt" else SUBJECT.data_dir
    (folder / missing).unlink()
    with pytest.raises(UserError, match=missing):
        write()
    assert not records.record_path(SUBJECT, "clean").exists()


def test_a_baseline_has_records_of_its_own() -> None:
    baseline = Subject.baseline(PARAMS, "pgd_at")
    prepare_workspace([baseline])
    record = records.write_record(baseline, PARAMS, "clean", result(), code)
    assert (record["method"], record["variant"]) == ("pgd_at", None)
    assert records.record_path(baseline, "clean") == Path("results/digits/pgd_at/clean.json")


def test_a_scratch_folder_that_cannot_be_written_does_not_fail_the_stage(workspace: Path) -> None:
    files.write_text(workspace / ".mlflow", "a file where the folder should be")
    assert write()["n"] == 4
