"""The MLflow store: found from anywhere, written by several at once, and never in the way of a run."""

from __future__ import annotations

import copy
import random
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ebjdat import files
from ebjdat.errors import UserError
from ebjdat.provenance import ROOT
from ebjdat.reporting import runs, tracking
from ebjdat.reporting.records import record_path
from ebjdat.subject import Subject
from tests.synthetic import clean_environment, params_of_repository, records_of, use_empty_store, write_records

PARAMS = params_of_repository()
SUBJECT = Subject.current(PARAMS)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return clean_environment(monkeypatch, tmp_path)


@pytest.fixture
def store(workspace: Path) -> tracking.Store:
    use_empty_store()
    return tracking.Store.open("digits")


def broken(profile: str) -> tracking.Store:
    raise tracking.TrackingError(f"no store for {profile}")


def curve(store: tracking.Store, training: str = "t") -> dict[int, float]:
    run = store.parent(SUBJECT, training, {})
    history = store.client.get_metric_history(run.info.run_id, "loss")
    assert len(history) == len({point.step for point in history}), "a step was logged twice"
    return {point.step: point.value for point in history}


def train(steps: range, connect: Callable[[str], tracking.Store] = tracking.Store.open) -> None:
    with tracking.Curves(SUBJECT, "t", {"lr": 0.1}, flush_seconds=0.05, connect=connect) as curves:
        for step in steps:
            curves.log(step, {"loss": 1.0 / (step + 1), "nan": float("nan"), "phase": "warm", "flag": True})


def test_the_store_is_named_by_the_environment_or_lies_in_the_main_checkout(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking.store_uri() == f"sqlite:///{workspace}/mlflow.db"
    (workspace / ".dvc/tmp/exps/queue").mkdir(parents=True)
    monkeypatch.chdir(workspace / ".dvc/tmp/exps/queue")
    assert tracking.store_uri() == f"sqlite:///{workspace}/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", "/main")
    assert tracking.store_uri() == "sqlite:////main/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert tracking.store_uri() == "http://server"


def test_a_model_has_one_run_and_its_curve(store: tracking.Store) -> None:
    train(range(3))
    run = store.parent(SUBJECT, "t", {})
    assert run.info.run_name == "ebjdat-jempp-0"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1"}
    assert tracking.curve_names(run) == ["loss"]
    assert "system/cpu_utilization_percentage" in run.data.metrics, "MLflow shows it among the system metrics"
    assert "energies of clean, adversarial and generated" in run.data.tags["mlflow.note.content"]
    assert curve(store) == {0: 1.0, 1: 0.5, 2: pytest.approx(1 / 3)}
    assert len(store.runs("tags.stage = 'train'")) == 1


def test_a_resumed_training_continues_its_curve_without_repeating_a_step(store: tracking.Store) -> None:
    train(range(3))
    train(range(1, 5))
    assert sorted(curve(store)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_a_run_that_ends_early_says_how(store: tracking.Store, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), tracking.Curves(SUBJECT, "t", {}, flush_seconds=0.05) as curves:
        curves.log(0, {"loss": 1.0})
        raise error
    assert store.parent(SUBJECT, "t", {}).info.status == status
    assert curve(store) == {0: 1.0}


def test_without_a_store_training_goes_on_with_one_warning_and_the_curve_is_replayed(workspace: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(range(50), connect=broken)
    assert [w.category for w in caught] == [tracking.TrackingWarning]
    assert len(list((workspace / ".mlflow/spool").glob("*.curves.json"))) == 1
    use_empty_store()
    store = tracking.Store.open("digits")
    assert tracking.replay_curves(store, "another profile") == 0
    assert tracking.replay_curves(store, "digits") == 1
    assert sorted(curve(store)) == list(range(50))
    assert store.parent(SUBJECT, "t", {}).info.status == "FINISHED"
    assert not list((workspace / ".mlflow/spool").iterdir())


def test_a_store_that_breaks_midway_spools_what_it_did_not_take(store: tracking.Store) -> None:
    original, calls = store.log, []

    def log(*arguments: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise tracking.TrackingError("gone")
        original(*arguments, **named)

    store.log = log  # type: ignore[method-assign]
    curves = tracking.Curves(SUBJECT, "t", {}, flush_seconds=0.02, connect=lambda profile: store)
    with pytest.warns(tracking.TrackingWarning, match="gone"), curves:
        curves.log(0, {"loss": 1.0})
        deadline = time.monotonic() + 10
        while not calls and time.monotonic() < deadline:
            time.sleep(0.01)
        curves.log(1, {"loss": 0.5})
    reopened = tracking.Store.open("digits")
    tracking.replay_curves(reopened, "digits")
    assert curve(reopened) == {0: 1.0, 1: 0.5}


def test_strict_tracking_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracking.STRICT, "1")
    with pytest.raises(UserError, match="EBJDAT_STRICT_TRACKING=1"):
        train(range(3), connect=broken)


def test_neither_store_nor_spool_and_training_still_goes_on(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write_text(workspace / ".mlflow", "a file where the folder should be")
    with pytest.warns(tracking.TrackingWarning, match="no store"):
        train(range(3), connect=broken)
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["not a database", "folder", "newer schema"])
def test_whatever_is_wrong_with_the_store_becomes_one_line(workspace: Path, damage: str) -> None:
    path = workspace / "mlflow.db"
    if damage == "folder":
        path.mkdir()
    elif damage == "not a database":
        path.write_text("not a database" * 100)
    else:
        use_empty_store()
        with sqlite3.connect(path) as database:
            database.execute("UPDATE alembic_version SET version_num = 'from the future'")
    with pytest.raises(tracking.TrackingError) as caught:
        tracking.Store.open("digits")
    assert "mlflow.db failed" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_mlflow_installed_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.warns(tracking.TrackingWarning, match="MLflow cannot be imported"):
        train(range(3))


def test_two_first_time_users_at_once_both_succeed(workspace: Path) -> None:
    code = "from ebjdat.reporting.tracking import Store; print(Store.open('digits').experiment)"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]


def test_a_record_comes_back_from_the_store_alone_with_its_metrics_and_side_values(store: tracking.Store) -> None:
    record = write_records(PARAMS, SUBJECT, stages=["clean"])[0]
    path = record_path(SUBJECT, "clean")
    run = runs.log_record(store, record, origin="run", side={"host": "h", "seconds": 1.5}, path=path)
    (logged,) = runs.load(store)
    assert logged.record == record
    assert logged.metrics["standard/clean.n"] == 80
    tags = store.client.get_run(run).data.tags
    parent = store.parent(SUBJECT, record["training"], {})
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert (tags["restored"], tags["side.host"], tags["protocols"]) == ("false", "h", "released,standard")
    assert parent.info.status == "FINISHED"
    names = {file.path for file in store.client.list_artifacts(run)}
    assert names >= {"clean.json", "accuracies.json"}, "the record, and a table that MLflow compares between runs"


def test_a_run_that_was_cut_short_or_damaged_does_not_count_as_logged(store: tracking.Store) -> None:
    record = records_of(PARAMS, SUBJECT)[0]
    parent = store.parent(SUBJECT, "t", {})
    store.child(parent.info.run_id, "cut short", runs.pack(record))
    assert runs.load(store) == []
    store.child(parent.info.run_id, "damaged", {"record.0000": "AAAA", "content": "x"})
    with pytest.warns(tracking.TrackingWarning, match="damaged"):
        assert runs.load(store) == []


def test_a_large_record_is_cut_into_tags_that_the_database_takes(store: tracking.Store) -> None:
    record = records_of(PARAMS, SUBJECT)[0]
    noise = random.Random(0).randbytes(20_000).hex()
    tags = runs.pack({**record, "settings": {"noise": noise}})
    assert len(tags) > 5
    assert max(map(len, tags.values())) <= 5000
    run = store.child(store.parent(SUBJECT, "t", {}).info.run_id, "large", tags)
    assert {k: v for k, v in store.client.get_run(run).data.tags.items() if k.startswith("record.")} == tags


def test_the_run_of_a_model_shows_the_headline_of_its_evaluations_and_what_was_measured_here_wins(
    store: tracking.Store,
) -> None:
    record = write_records(PARAMS, SUBJECT, stages=["clean"])[0]
    wanted = runs.flatten(record)["standard/clean"]
    other = copy.deepcopy(record)
    other["rates"]["standard/clean"] |= {"correct": 0}
    for answer, origin in ((other, "ledger"), (record, "run"), (other, "ledger")):
        runs.log_record(store, answer, origin=origin)
    run = store.parent(SUBJECT, record["training"], {})
    assert run.data.metrics["headline/clean_accuracy"] == wanted > 0
    assert tracking.curve_names(run) == [] and tracking.last_step(store, run) == -1, "a headline is no curve"


def test_a_restored_model_gets_its_curve_from_its_history(store: tracking.Store) -> None:
    record = write_records(PARAMS, SUBJECT, stages=["clean"])[0]
    history: list[dict[str, Any]] = [{"epoch": 1, "loss": 0.5, "phase": "a"}, {"epoch": 2, "loss": 0.25}]
    runs.log_record(store, record, origin="workspace", history=history)
    assert curve(store, record["training"]) == {1: 0.5, 2: 0.25}
