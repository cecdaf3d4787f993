"""The MLflow store: found from anywhere, written by several at once, completed from the disk, never in the way."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.db import utils as db_utils

from ebjdat import files, tracking
from ebjdat.errors import UserError
from ebjdat.record import Record, read_records
from ebjdat.tracking import Curves, Store, TrackingError
from tests.faults.test_storage import full_disk
from tests.small_runs import short_run
from tests.synthetic import (
    PARAMS,
    ROOT,
    changed,
    setup_of,
    use_empty_store,
    write_records,
)

SETUP = setup_of(PARAMS)
RUN = SETUP.run


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a checkout é"
    (folder / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def store(workspace: Path) -> Store:
    use_empty_store()
    return Store.open("digits")


def only_run(profile: str = "digits") -> Any:
    (run,) = Store.open(profile).runs()
    return run


def curve(name: str = "loss") -> dict[int, float]:
    store = Store.open("digits")
    history = store.client.get_metric_history(only_run().info.run_id, name)
    assert len(history) == len({point.step for point in history}), "a step was logged twice"
    return {point.step: point.value for point in history}


def rows(epochs: range, scale: float = 1.0) -> list[dict[str, Any]]:
    return [{"epoch": n, "loss": scale / n, "nan": float("nan"), "phase": "warm", "flag": True} for n in epochs]


def test_the_list_of_runs_has_a_view_of_the_headline_numbers_and_its_description_a_link_to_it(store: Store) -> None:
    tags = store.client.get_experiment(store.experiment).tags
    columns = json.loads(tags["mlflow.sharedViewState.headline"])["selectedColumns"]
    assert columns == [f"metrics.`{name}`" for name in tracking.HEADLINE]
    assert f"(#/experiments/{store.experiment}/runs?viewStateShareKey=headline)" in tags["mlflow.note.content"]


def test_no_headline_number_has_the_name_of_a_curve() -> None:
    outcome = short_run("ebjdat-jempp").run()
    assert "energy_gap" in outcome.history[0], "of the training's own adversary"
    assert not set(tracking.HEADLINE) & {name for row in outcome.history for name in row}


def train(epochs: range, scale: float = 1.0) -> None:
    with Curves(SETUP) as curves:
        for row in rows(epochs, scale):
            curves.log(row)


def write_history(epochs: range, scale: float = 1.0) -> None:
    files.write_text(RUN.model_dir / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows(epochs, scale)))


def test_the_store_is_named_by_the_environment_or_lies_in_the_main_checkout(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking.address() == f"sqlite:///{workspace}/mlflow.db"
    (workspace / ".dvc/tmp/exps/queue").mkdir(parents=True)
    monkeypatch.chdir(workspace / ".dvc/tmp/exps/queue")
    assert tracking.address() == f"sqlite:///{workspace}/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", "/main")
    assert tracking.address() == "sqlite:////main/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///stores/mine.db")
    assert tracking.address() == "sqlite:////main/stores/mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////stores/mine.db")
    assert tracking.address() == "sqlite:////stores/mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert tracking.address() == "http://server"


def test_a_model_has_one_run_with_its_parameters_and_its_curve(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with Curves(SETUP) as curves:
        for row in rows(range(1, 4)):
            curves.log(row)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not any(
            "system/" in name for run in store.runs() for name in run.data.metrics
        ):
            time.sleep(0.1)
    run = only_run()
    assert (run.info.run_name, run.info.status) == ("ebjdat-jempp-0", "FINISHED")
    assert (run.data.params["training.lr"], run.data.params["recipe.steps"]) == ("0.05", "10")
    assert {name for name in run.data.metrics if "system/" not in name} == {"loss", "epochs"}
    assert "system/cpu_utilization_percentage" in run.data.metrics, "MLflow shows it among the system metrics"
    assert "between clean, adversarial and generated images" in run.data.tags["mlflow.note.content"]
    named = {name: run.data.tags[name] for name in ("profile", "model", "method", "variant", "seed")}
    assert list(named.values()) == ["digits", "ebjdat-jempp", "ebjdat", "jempp", "0"]
    assert curve() == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3)}
    other = changed(SETUP, lr=0.01)
    assert tracking.find_or_create(store, RUN, tracking.trained_with(other)) != run.info.run_id


def test_a_resumed_training_continues_its_curve_without_repeating_a_step(store: Store) -> None:
    train(range(1, 4))
    train(range(2, 6))
    assert sorted(curve()) == [1, 2, 3, 4, 5]


def test_a_model_that_is_trained_anew_has_the_curve_of_its_last_training_alone(store: Store) -> None:
    train(range(1, 6))
    train(range(1, 3), scale=3.0)  # of the same parameters, as on another device
    assert curve() == {1: 3.0, 2: 1.5}


def test_records_and_the_curve_of_their_weights_share_a_run(store: Store) -> None:
    train(range(1, 4))
    records = write_records(SETUP, stages=["clean"])
    write_history(range(1, 4))
    logged = only_run().info.run_id
    tracking.log_records("digits", records)
    assert only_run().info.run_id == logged and sorted(curve()) == [1, 2, 3], "what training logged stays"
    files.write_text(RUN.model_dir / "best.pt", "trained on another device, without a store")
    write_history(range(1, 3), scale=2.0)
    tracking.log_records("digits", records)
    assert curve()[1] == 1.0, "the records are still about the first training"
    (record,) = records
    record["weights"] = files.file_hash(RUN.model_dir / "best.pt")
    assert tracking.log_records("digits", records) == 1
    assert curve() == {1: 2.0, 2: 1.0} and only_run().data.tags["weights"] == record["weights"]
    record["weights"] = "0" * 64
    tracking.log_records("digits", records)
    assert "loss" not in only_run().data.metrics, "a curve of weights that no record names goes"
    assert only_run().data.metrics["clean/standard/clean"] > 0


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_a_run_that_ends_early_says_how(store: Store, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), Curves(SETUP) as curves:
        curves.log({"epoch": 1, "loss": 1.0})
        curves.note_rollback({"retry": 1, "epoch": 1, "step": 2, "cause": "loss is nan"})
        curves.diverged("x" * 9000)
        raise error
    run = only_run()
    assert run.info.status == status and run.data.metrics["loss"] == 1.0
    assert run.data.tags["rollback.1"] == "epoch 1, step 2: loss is nan"
    assert set(run.data.tags["diverged"]) == {"x"}, "cut to what databases take"


def test_a_store_that_breaks_midway_is_completed_from_the_history(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = Store.log, []

    def log(*arguments: Any, **named: Any) -> None:
        calls.extend(arguments[2:3])  # the points, where there are any
        if len(calls) > 1:
            raise TrackingError("gone")
        original(*arguments, **named)

    with monkeypatch.context() as broken:
        broken.setattr(Store, "log", log)
        train(range(1, 6))
    assert capsys.readouterr().err.count("gone") == 1
    assert sorted(curve()) == [1] and only_run().info.status == "RUNNING"
    records = write_records(SETUP, stages=["clean"])
    write_history(range(1, 6))
    assert tracking.log_records("digits", records) == 1
    assert sorted(curve()) == [1, 2, 3, 4, 5] and only_run().info.status == "FINISHED"


def test_a_store_that_hangs_delays_the_end_by_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "END_SECONDS", 0.2)

    def hang(profile: str) -> Store:
        time.sleep(3)
        raise TrackingError("at last")

    monkeypatch.setattr(Store, "open", hang)
    started = time.monotonic()
    train(range(1, 4))
    assert time.monotonic() - started < 2
    assert "did not answer within" in capsys.readouterr().err


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program writes to the store for ever."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield


@contextlib.contextmanager
def newer(path: Path) -> Iterator[None]:
    """The store was made by a later MLflow."""
    with sqlite3.connect(path) as database:
        (version,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
        database.execute("UPDATE alembic_version SET version_num = 'from the future'")
    yield
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))


@contextlib.contextmanager
def unreachable(path: Path) -> Iterator[None]:
    """A server that does not answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


@contextlib.contextmanager
def no_database(path: Path, *, folder: bool = False) -> Iterator[None]:
    """Something else lies there."""
    path.unlink()
    path.mkdir() if folder else path.write_text("not a database" * 100)
    yield
    path.rmdir() if folder else path.unlink()
    use_empty_store()


STORES: dict[str, Callable[[Path], contextlib.AbstractContextManager[None]]] = {
    "locked": locked,
    "unreachable": unreachable,
    "newer schema": newer,
    "full": lambda path: full_disk(1000),
    "not a database": no_database,
    "folder": partial(no_database, folder=True),
}


@pytest.mark.parametrize("fault", STORES)
def test_a_store_locked_unreachable_newer_full_or_damaged_costs_one_warning_and_what_is_missing_is_logged_later(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    use_empty_store()
    connect, sql = sqlite3.connect, db_utils.sql.text
    with STORES[fault](workspace / "mlflow.db"), monkeypatch.context() as hasty:
        hasty.setattr(tracking.sqlite3, "connect", lambda path, timeout: connect(path, timeout=0.2))
        hasty.setattr(
            db_utils.sql, "text", lambda text: sql(text.replace("busy_timeout = 20000", "busy_timeout = 200"))
        )
        train(range(1, 4))
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("warning: curves of digits/ebjdat-jempp/0 not logged: the MLflow store")
    assert "the next `python -m stages.log` logs what is missing" in told
    records = write_records(SETUP, stages=["clean"])
    write_history(range(1, 4))
    rollback = {"retry": 1, "epoch": 0, "step": 2, "cause": "loss is nan"}
    files.write_json(RUN.model_dir / "summary.json", {"events": [rollback]})
    assert tracking.log_records("digits", records) == 1  # as the stage `log` does
    run = only_run()
    assert run.data.metrics["loss"] == pytest.approx(1 / 3) and run.info.status == "FINISHED"
    assert run.data.tags["rollback.1"] == "epoch 0, step 2: loss is nan"


def test_a_strict_switch_makes_a_broken_store_fatal(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "mlflow.db").mkdir()
    monkeypatch.setenv(tracking.STRICT, "1")
    with pytest.raises(UserError, match="EBJDAT_STRICT_TRACKING=1 makes this fatal"):
        train(range(1, 4))


@pytest.mark.parametrize(
    "address",
    ["postgresql://me:s3cret@nowhere/db", "nosuch://me:s3cr@t@host/x", "nosuch://host/db?user=me&password=s3cret"],
)
def test_a_password_in_an_address_is_never_printed(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(TrackingError) as caught:
        Store.open("digits")
    assert "s3cr" not in str(caught.value) and caught.value.__suppress_context__


def test_a_deleted_experiment_is_told_by_its_name_and_how_to_restore_it(store: Store) -> None:
    store.client.delete_experiment(store.experiment)
    with pytest.raises(TrackingError, match=rf"experiment digits .* was deleted: restore it .*{store.experiment}`"):
        Store.open("digits")
    store.client.restore_experiment(store.experiment)
    assert Store.open("digits").experiment == store.experiment


def test_without_mlflow_installed_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    train(range(1, 4))
    assert capsys.readouterr().err.count("MLflow cannot be imported") == 1


def test_a_store_whose_making_was_cut_off_is_made_again(workspace: Path) -> None:
    use_empty_store()
    part = workspace / "mlflow.db.making"
    (workspace / "mlflow.db").rename(part)
    with contextlib.closing(sqlite3.connect(part)) as database, database:  # all tables, and no version of them yet
        database.execute("DELETE FROM alembic_version")
    assert Store.open("other").runs() == [] and not part.exists()


def test_two_first_time_users_at_once_both_succeed_and_share_one_run(workspace: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from ebjdat.run import Run; from ebjdat.tracking import Store, find_or_create\n"
        "print(find_or_create(Store.open('digits'), Run('digits', 'trades', 0), {'lr': 0.1}))"
    )
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]


def test_a_store_that_moved_with_its_checkout_writes_beside_itself(
    store: Store, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = write_records(SETUP, stages=["clean"])
    tracking.log_records("digits", records)
    moved = Path(shutil.move(workspace, workspace.with_name("moved")))
    monkeypatch.chdir(moved)
    assert tracking.log_records("digits", records + write_records(setup_of(PARAMS, "trades"), stages=["clean"])) == 1
    for run in Store.open("digits").runs():
        folder = moved / "mlartifacts/digits" / run.info.run_id / "artifacts"
        assert run.info.artifact_uri == folder.as_uri() and (folder / "records/clean.json").is_file()
    assert not workspace.exists()


def test_records_are_logged_once_with_all_that_lies_beside_them(store: Store) -> None:
    records = write_records(SETUP)
    files.write_text(RUN.arrays("generate") / "samples.png", "a picture")
    files.write_text(RUN.pictures / "energies.png", "drawn")
    assert tracking.log_records("digits", records) == len(records) == 7
    assert tracking.log_records("digits", list(read_records("digits"))) == 0
    run = only_run()
    logged = {name: value for record in records for name, value in tracking.metrics_of(record).items()}
    assert {name: run.data.metrics[name] for name in logged} == logged
    assert logged["clean/standard/clean.n"] == 80 and 0 < logged["clean/standard/clean"] < 1
    assert run.data.metrics["seconds/clean"] > 0 and run.data.tags["device"] == "cpu" and run.data.tags["host"]
    assert run.data.tags["weights"] == records[0]["weights"] == files.file_hash(RUN.model_dir / "best.pt")
    assert run.data.tags["data"] == records[0]["data"] and run.info.status == "FINISHED"
    assert run.data.tags["evaluation.clean.images"] == "397", "what may change between evaluations is no param"
    assert not any(name.startswith("evaluation") for name in run.data.params)
    listed = {file.path for folder in ("records", "generate", "pictures") for file in artifacts(store, run, folder)}
    assert {"records/clean.json", "generate/samples.png", "pictures/energies.png"} <= listed


def artifacts(store: Store, run: Any, folder: str) -> list[Any]:
    return list(store.client.list_artifacts(run.info.run_id, folder))


def test_the_headline_has_short_names(store: Store) -> None:
    records = write_records(SETUP)
    write_history(range(1, 11))
    tracking.log_records("digits", records)
    metrics = only_run().data.metrics
    assert set(tracking.HEADLINE) <= set(metrics)
    assert metrics["accuracy_autoattack"] == metrics["autoattack/standard/autoattack"]
    assert metrics["accuracy_autoattack_released"] == metrics["autoattack/released/union"]
    assert metrics["frechet_distance"] == metrics["generate/generation/classifier-frechet"]
    assert metrics["epochs"] == 10
    verdicts = {"masking/masking/standard/noise": 0.0, "masking/masking/standard/one-step": 1.0}
    assert tracking.headline(verdicts | {"masking/masking/passed": 0.0}) == {"masking_failed": 1.0}


def test_a_record_that_was_cut_short_does_not_count_as_logged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    records = write_records(SETUP, stages=["clean"])

    def attach(*arguments: Any) -> None:
        raise TrackingError("gone")

    with monkeypatch.context() as broken, pytest.raises(TrackingError, match="gone"):
        broken.setattr(Store, "attach", attach)
        tracking.log_records("digits", records)
    assert tracking.log_records("digits", records) == 1


def with_correct(record: Record, correct: int) -> Record:
    other = copy.deepcopy(record)
    other["rates"]["standard/clean"] |= {"correct": correct}
    return other


def test_a_newer_record_replaces_the_numbers_of_an_older_one_and_back(store: Store) -> None:
    (record,) = write_records(SETUP, stages=["clean"])
    older = with_correct(record, 3)
    older["values"] |= {"energy/gap-adversarial": 9.0, "energy/dropped": 1.0}
    newer = with_correct(record, 5)
    del newer["values"]["energy/gap-adversarial"]
    for one, accuracy in ((older, 3 / 80), (newer, 5 / 80), (older, 3 / 80)):
        assert tracking.log_records("digits", [one]) == 1
        row = tracking.search("digits").iloc[0]
        assert row["metrics.clean/standard/clean"] == row["metrics.accuracy_clean"] == accuracy
        missing = (
            row[["metrics.clean/energy/dropped", "metrics.energy_gap_pgd20"]].isna().all() if one is newer else False
        )
        assert missing == (one is newer), "a number that the newer record lacks is missing in the store"


def test_a_search_gives_one_row_per_run_and_leaves_mlflow_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(tracking.search("digits")) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    (record,) = write_records(SETUP, stages=["clean"])
    other = copy.deepcopy(record)
    other["params"]["training"]["lr"] = 0.5
    tracking.log_records("digits", [record, other])
    frame = tracking.search("digits")
    assert sorted(frame["params.training.lr"]) == ["0.05", "0.5"]
    assert set(frame["tags.record.clean"]) == {tracking.digest_of(record), tracking.digest_of(other)}
    assert tracking.os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///mlflow.db"
