"""The ledger: what workspace, store and git know together, the same to the byte when nothing changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from ebjdat import files
from ebjdat.errors import UserError
from ebjdat.reporting import ledger, records, runs, tracking
from ebjdat.reporting.ledger import COMMITTED, OTHER_RUN, OWN_RUN, WORKSPACE, Candidate
from ebjdat.subject import Subject
from tests.synthetic import (
    clean_environment,
    code,
    other_code,
    params_of_repository,
    records_of,
    use_empty_store,
    write_ledger,
    write_records,
)

PARAMS = params_of_repository()
OURS = Subject.current(PARAMS)
PGD_AT = Subject.baseline(PARAMS, "pgd_at")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return clean_environment(monkeypatch, tmp_path)


def update() -> ledger.Summary:
    return ledger.update(PARAMS, code)


def origins() -> dict[str, str]:
    """Origin of every logged record by stage."""
    return {one.record["stage"]: one.origin for one in runs.load(tracking.Store.open("digits"))}


def joined(*candidates: tuple[records.Record, int]) -> list[records.Record]:
    return ledger.join([Candidate(record, source) for record, source in candidates], code).records


def test_workspace_records_reach_ledger_and_store_once_and_a_second_time_changes_nothing() -> None:
    use_empty_store()
    written = write_records(PARAMS, OURS, stages=["clean", "autoattack"])
    assert update() == ledger.Summary(records=2, logged=2, checks=[])
    before = ledger.ledger_path("digits").read_bytes()
    assert update() == ledger.Summary(records=2, logged=0, checks=[])
    assert ledger.ledger_path("digits").read_bytes() == before
    assert ledger.read_ledger("digits") == written
    assert origins() == {"clean": "run", "autoattack": "run"}


def test_a_stage_restored_from_a_cache_has_its_run_tagged_as_restored(workspace: Path) -> None:
    use_empty_store()
    write_records(PARAMS, OURS, stages=["clean"])
    shutil.rmtree(workspace / ".mlflow")  # the mark of a run just made does not come back from a cache
    update()
    assert origins() == {"clean": "workspace"}


def test_a_queue_run_that_leaves_no_file_is_in_the_next_ledger(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_empty_store()
    copy = workspace / ".dvc" / "tmp" / "exps" / "one"
    copy.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    monkeypatch.chdir(copy)
    (record,) = write_records(PARAMS, OURS, stages=["clean"])
    update()
    monkeypatch.chdir(workspace)
    shutil.rmtree(copy)
    assert not ledger.ledger_path("digits").exists()
    assert update().records == 1
    assert ledger.read_ledger("digits") == [record]


def test_a_fresh_clone_logs_the_committed_ledger_to_its_new_store() -> None:
    use_empty_store()
    committed = records_of(PARAMS, OURS)
    write_ledger(PARAMS, committed)
    assert update().logged == len(committed)
    assert set(origins().values()) == {"ledger"}


def test_own_results_win_and_the_difference_is_a_check_that_stays() -> None:
    use_empty_store()
    committed = [record for record in records_of(PARAMS, OURS, 0.6) if record["stage"] == "clean"]
    write_ledger(PARAMS, committed)
    (own,) = write_records(PARAMS, OURS, 0.63, stages=["clean"])
    assert own["identity"] == committed[0]["identity"]
    checks = update().checks
    assert ledger.read_ledger("digits") == [own]
    by_metric = {check["metric"]: check for check in checks}
    pgd = by_metric["standard/pgd-20"]
    assert (pgd["inside"], pgd["ours"] > pgd["theirs"]) == (True, True)
    assert by_metric["energy/overlap-all"]["inside"] is None
    before = ledger.ledger_path("digits").read_bytes()
    assert update().checks == checks
    assert ledger.ledger_path("digits").read_bytes() == before


def test_a_difference_outside_the_interval_is_reported_and_fails_nothing() -> None:
    use_empty_store()
    write_ledger(PARAMS, [record for record in records_of(PARAMS, OURS, 0.8) if record["stage"] == "clean"])
    write_records(PARAMS, OURS, 0.3, stages=["clean"])
    assert False in {check["inside"] for check in update().checks}


@pytest.mark.parametrize(
    ("first", "second"), [(WORKSPACE, OWN_RUN), (WORKSPACE, COMMITTED), (OWN_RUN, COMMITTED), (COMMITTED, OTHER_RUN)]
)
def test_of_two_answers_the_nearer_source_wins(first: int, second: int) -> None:
    a, b = records_of(PARAMS, PGD_AT, 0.6)[0], records_of(PARAMS, PGD_AT, 0.7)[0]
    assert joined((b, second), (a, first)) == [a]
    assert joined((a, second), (b, first)) == [b]


def test_of_two_equally_near_answers_the_choice_does_not_depend_on_their_order() -> None:
    a, b = records_of(PARAMS, PGD_AT, 0.6)[0], records_of(PARAMS, PGD_AT, 0.7)[0]
    assert joined((a, OWN_RUN), (b, OWN_RUN)) == joined((b, OWN_RUN), (a, OWN_RUN))


def test_records_of_older_code_stay_until_todays_code_has_an_answer() -> None:
    old, new = records_of(PARAMS, PGD_AT, hash_of=other_code)[0], records_of(PARAMS, PGD_AT)[0]
    assert joined((old, COMMITTED)) == [old]
    assert joined((old, COMMITTED), (new, WORKSPACE)) == [new]
    assert joined((old, OTHER_RUN)) == []


def test_seeds_and_recipes_stand_side_by_side() -> None:
    seeds = [records_of(PARAMS, dataclasses.replace(PGD_AT, seed=seed))[0] for seed in (0, 1)]
    assert joined(*((record, COMMITTED) for record in seeds)) == seeds


def test_the_ledger_is_sorted_and_one_line_each() -> None:
    known = [*records_of(PARAMS, PGD_AT), *records_of(PARAMS, OURS)]
    text = ledger.ledger_text(known)
    assert text == ledger.ledger_text(reversed(known))
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["method"] for line in lines[:2]] == ["ebjdat", "ebjdat"]
    assert [line["stage"] for line in lines][:3] == ["clean", "autoattack", "transfer"]


@pytest.mark.parametrize("damage", ["<<<<<<< HEAD", '{"schema": 1}', "[]"])
def test_a_damaged_line_is_named(damage: str) -> None:
    path = write_ledger(PARAMS, records_of(PARAMS, PGD_AT)[:1])
    files.write_text(path, path.read_text() + damage + "\n")
    with pytest.raises(UserError, match=r"records\.jsonl, line 2"):
        ledger.read_ledger("digits")


def test_a_number_changed_by_hand_in_the_ledger_is_refused() -> None:
    path = write_ledger(PARAMS, records_of(PARAMS, PGD_AT)[:1])
    files.write_text(path, path.read_text().replace('"n":80', '"n":81'))
    with pytest.raises(UserError, match="line 1: the content hash does not fit"):
        ledger.read_ledger("digits")


def test_without_a_store_the_ledger_is_written_and_the_records_wait_in_the_spool(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(PARAMS, OURS, stages=["clean"])
    (workspace / "folder").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace}/folder")
    with pytest.warns(tracking.TrackingWarning, match="record: the MLflow store"):
        assert update() == ledger.Summary(records=1, logged=0, checks=[])
    with pytest.warns(tracking.TrackingWarning):
        update()
    assert len(list((workspace / ".mlflow/spool").iterdir())) == 1
    shutil.rmtree("results")  # as a queue's workspace would be
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    use_empty_store()
    assert update() == ledger.Summary(records=1, logged=1, checks=[])
    assert origins() == {"clean": "run"}
    assert not list((workspace / ".mlflow/spool").iterdir())
    store = tracking.Store.open("digits")
    assert float(store.client.get_run(runs.load(store)[0].run).data.tags["side.seconds"]) >= 0


def test_strict_tracking_fails_the_stage(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "folder").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace}/folder")
    monkeypatch.setenv(tracking.STRICT, "1")
    with pytest.raises(UserError, match="EBJDAT_STRICT_TRACKING=1"):
        update()


def test_an_unfinished_copy_of_a_results_folder_is_no_source() -> None:
    (record,) = write_records(PARAMS, OURS, stages=["clean"])
    files.write_text(OURS.results_dir.with_name(".half.new") / "clean.json", '{"half')
    assert [found for _, found in ledger.workspace_records("digits")] == [record]


def test_a_damaged_history_is_named() -> None:
    files.write_text(OURS.model_dir / "history.jsonl", '{"epoch": 1}\n{"epo')
    with pytest.raises(UserError, match=r"history\.jsonl is damaged"):
        ledger.read_history(OURS.model_dir)
