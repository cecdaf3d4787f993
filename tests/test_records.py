"""Records: the same to the byte for the same result, and refused when anything about them is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebjdat import files, record
from ebjdat.config import MASKING_INPUTS
from ebjdat.errors import AuditError, UserError
from ebjdat.protocols import PROTOCOLS, REVISIONS
from ebjdat.record import Record, revisions
from ebjdat.run import Run
from ebjdat.statistics import Rate, Result
from tests.synthetic import DIGEST, PARAMS, changed, prepare_workspace, setup_of

SETUP = setup_of(PARAMS)
RUN = SETUP.run
PATH = Path("results/digits/records/ebjdat-jempp/0/clean.json")


@pytest.fixture(autouse=True)
def prepared(workspace: Path) -> None:
    prepare_workspace(RUN)


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


def write(**changes: Any) -> Record:
    return record.write_record(SETUP, "clean", result(**changes), data=DIGEST)


def test_a_record_survives_the_way_to_disk_and_names_everything_that_made_it() -> None:
    written = write()
    assert RUN.record("clean") == PATH and record.read_record(PATH) == written
    assert written["weights"] == files.file_hash(RUN.model_dir / "best.pt")
    protocols = {name: protocol.revision for name, protocol in PROTOCOLS.items()}
    assert written["revisions"] == {"clean": REVISIONS["clean"], "train": REVISIONS["train"]} | protocols
    assert written["params"] == SETUP.recorded("clean") and written["data"] == DIGEST
    assert record.run_of(written) == RUN
    assert record.rates_of(written)["standard/clean"].accuracy == 0.75
    assert record.outdated(written, SETUP) == "" and record.read_own(SETUP, "clean") == written


def test_the_same_result_gives_the_same_bytes_and_times_stay_in_the_scratch_folder() -> None:
    write()
    first = PATH.read_bytes()
    write()
    assert PATH.read_bytes() == first
    times = files.read_json(record.times_path(RUN, "clean"))
    assert {"seconds", "host", "device", "peak_memory", "versions", "finished"} <= set(times)
    assert not {"seconds", "host", "device", "finished"} & set(json.loads(first))


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
    before = PATH.read_bytes()
    with pytest.raises(AuditError) as caught:
        write(**changes)
    assert field in str(caught.value)
    assert PATH.read_bytes() == before


@pytest.mark.parametrize("name", ["Standard/clean", "standard/clean accuracy", ""])
def test_a_malformed_metric_name_is_refused(name: str) -> None:
    with pytest.raises(AuditError, match="metric name"):
        write(values={name: 1.0})


def test_a_value_that_json_does_not_have_is_refused() -> None:
    with pytest.raises(TypeError, match=r"settings\.device: .* has no place"):
        write(settings={"device": object()})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", 1, "schema: unknown value 1; known: 2"),
        ("stage", "cleen", "stage: unknown value 'cleen' (did you mean clean?); known: clean, autoattack, "),
        ("seed", "0", "seed: expected a whole number, got '0'"),
        ("n", True, "n: expected a whole number, got True"),
        ("extra", 1, "extra: unknown key; known: schema, profile, "),
        ("rates", {"standard/clean": {"correct": 4, "n": 4, "flags": "e0"}}, "4 correct, but the flags count 3"),
        ("rates", {"standard/clean": {"correct": 1, "n": 4, "flags": "zz"}}, "rate standard/clean is damaged"),
        ("rates", {"standard/clean": {"correct": 1}}, "rate standard/clean is damaged"),
    ],
)
def test_a_wrong_field_is_named(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        record.validate({**write(), key: value}, "clean.json")
    assert message in str(caught.value)


def test_a_record_that_was_moved_by_hand_is_refused() -> None:
    write()
    other = RUN.record("clean").parents[1] / "3" / "clean.json"
    files.write_text(other, PATH.read_text())
    with pytest.raises(UserError, match="it was moved or copied by hand"):
        record.read_record(other)


def test_a_record_without_its_model_is_not_written() -> None:
    (RUN.model_dir / "best.pt").unlink()
    with pytest.raises(UserError, match=r"best\.pt"):
        write()
    assert not PATH.exists()


def test_seeds_models_and_baselines_have_records_of_their_own_in_a_fixed_order() -> None:
    others = [setup_of(PARAMS, "pgd_at"), setup_of(PARAMS, seed=10), setup_of(PARAMS, seed=2)]
    for setup in (*others, SETUP):
        prepare_workspace(setup.run)
        record.write_record(setup, "clean", result(), data=DIGEST)
    runs = [record.run_of(one) for one in record.read_records("digits")]
    assert runs == [*(Run("digits", RUN.model, seed) for seed in (0, 2, 10)), Run("digits", "pgd_at", 0)]


def test_a_record_of_other_parameters_revisions_or_weights_is_told() -> None:
    written = write()
    assert record.outdated(written, changed(SETUP, lr=0.5)) == "of other parameters (training)"
    assert record.outdated(written, changed(SETUP, w_energy=0.7)) == "of other parameters (recipe)"
    older = {**written, "revisions": {"clean": 0, "train": REVISIONS["train"]}}
    assert record.outdated(older, SETUP) == "of an older revision of clean"
    files.write_text(RUN.model_dir / "best.pt", "other weights")
    with pytest.raises(UserError, match=r"about other weights than .*best\.pt: run the stage clean again"):
        record.read_own(SETUP, "clean")


def test_a_protocol_of_a_higher_revision_supersedes_its_own_numbers_alone() -> None:
    rates = {"released/clean": Rate.of([True]), "standard/clean": Rate.of([True])}
    values = {"generation/released-fid": 1.0, "generation/fid": 2.0, "standard/transfer/ebjdat-jempp_released/x": 3.0}
    written = write(rates=rates, values=values)
    assert record.current_part(written) == written and PROTOCOLS["released"].revision > 1
    older = {**written, "revisions": {**written["revisions"], "released": 1}}
    assert record.outdated(older, SETUP) == "", "its other protocol stays"
    assert list(record.rates_of(older)) == ["standard/clean"]
    assert list(record.current_part(older)["values"]) == ["generation/fid", "standard/transfer/ebjdat-jempp_released/x"]
    files.write_json(PATH, older)
    with pytest.raises(UserError, match="of an older revision of released: run the stage clean again"):
        record.read_own(SETUP, "clean")


def test_a_scratch_folder_that_cannot_be_written_does_not_fail_the_stage(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write_text(workspace / ".scratch", "a file where the folder should be")
    assert write()["n"] == 4
    assert "times of digits/ebjdat-jempp/0 clean are lost" in capsys.readouterr().err


def test_a_masking_record_rests_on_the_revisions_of_what_it_decides_from() -> None:
    assert set(revisions("masking")) == {"train", "craft", "masking", *MASKING_INPUTS, *PROTOCOLS}
    assert set(revisions("transfer")) == {"train", "craft", "transfer", *PROTOCOLS}
    assert set(revisions("eot")) == {"train", "eot", *PROTOCOLS}
