"""The claim ledger says reproduced only where the published number may be compared, and says why not elsewhere."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from ebjdat import files
from ebjdat.config import Network, Params
from ebjdat.evaluation.statistics import Rate
from ebjdat.protocols import PROTOCOLS
from ebjdat.provenance import ROOT
from ebjdat.reporting import claims, published
from ebjdat.reporting.lookup import Cell, Numbers, Reading
from ebjdat.subject import Subject
from tests.synthetic import clean_environment, numbers_of, params_of_repository, records_of, write_ledger

PARAMS = params_of_repository()
OURS = Subject.current(PARAMS)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return clean_environment(monkeypatch, tmp_path)


def full_size(params: Params = PARAMS, eps: float = 4 / 255) -> Params:
    """Parameters whose profile is CIFAR-10 with WRN-28-10, trained at ``eps``."""
    profile = params.current
    schedule = dataclasses.replace(profile.training.ebjdat.jempp, train_eps=eps)
    ebjdat = dataclasses.replace(profile.training.ebjdat, jempp=schedule)
    changed = dataclasses.replace(
        profile,
        data=dataclasses.replace(profile.data, dataset="cifar10"),
        network=Network(depth=28, width=10),
        training=dataclasses.replace(profile.training, ebjdat=ebjdat),
    )
    return dataclasses.replace(params, profiles={**params.profiles, params.profile: changed})


def smaller(params: Params) -> Params:
    """The same profile with a WRN-16-4."""
    profile = dataclasses.replace(params.current, network=Network(depth=16, width=4))
    return dataclasses.replace(params, profiles={**params.profiles, params.profile: profile})


def claim(table: str, column: str, row: str = "Ours") -> published.Published:
    (found,) = (one for one in published.ALL if (one.table, one.row, one.column) == (table, row, column))
    return found


def near(one: published.Published, shift: float = 0.0) -> Cell:
    """Our cell at a published accuracy plus ``shift`` points, on 1,000 images."""
    rate = Rate.of([i < 10 * (one.value + shift) for i in range(1000)])
    low, high = rate.interval()
    return Cell("value", (Reading(0, rate.accuracy, low, high, 1000),))


def judge(one: published.Published, cell: Cell, protocol: str = "released", **changes: Any) -> claims.Verdict:
    numbers = numbers_of(changes.get("params", full_size()), [])
    eps = changes.get("eps", 4 / 255)
    return claims.judge(one, numbers, protocol, eps, cell, changes.get("instead", Cell("n/a")))[0]


APGD = claim("Table 1", "APGD-CE")


def test_a_value_inside_the_interval_of_a_model_like_the_released_one_is_reproduced() -> None:
    assert judge(APGD, near(APGD)) == "reproduced"
    assert judge(APGD, near(APGD, -10.0)) == "not reproduced"
    assert judge(APGD, near(APGD, 10.0)) == "not reproduced"


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "standard"},
        {"eps": 8 / 255},
        {"params": PARAMS},
        {"params": smaller(full_size())},
    ],
    ids=["standard protocol", "trained at 8/255", "another data set", "another network"],
)
def test_anything_else_is_not_comparable_however_close_it_is(changes: dict[str, Any]) -> None:
    assert judge(APGD, near(APGD), **changes) == "not comparable"


def test_transfer_cells_are_never_called_reproduced() -> None:
    for one in published.in_table("Table 2"):
        assert judge(one, near(one)) == "not comparable"


def test_a_fab_that_equals_the_clean_accuracy_is_explained_by_protocol() -> None:
    fab = claim("Table 1", "FAB")
    ours, clean = near(fab, -25.0), near(fab)
    assert judge(fab, ours, instead=clean) == "explained by protocol"
    assert judge(fab, ours, instead=ours) == "not reproduced"
    assert judge(fab, clean) == "reproduced"


def test_a_distance_is_compared_relatively_and_a_range_by_its_ends() -> None:
    fid = claim("Section 3", "FID", "EB-JDAT-SADAJEM")
    assert judge(fid, Cell("value", (Reading(0, fid.value * 1.04),))) == "reproduced"
    assert judge(fid, Cell("value", (Reading(0, fid.value * 1.06),))) == "not reproduced"
    aa = claim("Headline", "AA", "EB-JDAT-SADAJEM")
    assert aa.upper is not None
    assert judge(aa, near(dataclasses.replace(aa, value=aa.upper))) == "reproduced"


@pytest.mark.parametrize("state", ["not run", "stale"])
def test_a_missing_number_is_not_run(state: Any) -> None:
    assert judge(APGD, Cell(state)) == "not run"


def test_inception_score_and_hours_are_not_claimed() -> None:
    assert judge(claim("Headline", "IS", "JEM"), Cell("n/a")) == "not run"
    hours = claim("Headline", "hours (one RTX 3090)", "EB-JDAT-JEM++")
    assert judge(hours, Cell("n/a")) == "not comparable"


def test_on_digits_a_claim_is_not_comparable_where_we_have_a_number_and_not_run_where_not() -> None:
    numbers = numbers_of(PARAMS, records_of(PARAMS, OURS))
    for one in published.ALL:
        entry = claims.entry(one, [numbers])
        if any(ours["state"] == "value" for ours in entry["ours"]) or one.model is None or one.kind == "cost":
            assert entry["verdict"] == "not comparable", entry
            assert "data set" in entry["reason"] or "no results on it" in entry["reason"]
        else:
            assert entry["verdict"] == "not run", entry
            assert entry["reason"] == "not measured on digits" or "Inception Score" in entry["reason"], entry
    ours = claims.entry(APGD, [numbers])["ours"]
    assert [(o["protocol"], o["train_eps"], o["n"], o["runs"]) for o in ours] == [
        (name, "32/255", 80, ["ebjdat-jempp-0 autoattack"]) for name in PROTOCOLS
    ]


def test_a_claim_measured_in_two_profiles_is_given_the_reason_of_each() -> None:
    digits = numbers_of(PARAMS, records_of(PARAMS, OURS))
    small = dataclasses.replace(PARAMS, profile="cifar10-cpu")
    numbers = numbers_of(small, records_of(small, Subject.current(small)))
    reason = claims.entry(APGD, [digits, numbers])["reason"]
    assert reason.startswith("cifar10-cpu: another network (WRN-10-1); digits: published on cifar10, ours on digits")


def test_a_claim_is_shown_with_its_note_and_the_radius_of_our_attack() -> None:
    numbers = numbers_of(PARAMS, records_of(PARAMS, OURS))
    page = claims.render(PARAMS, [numbers])[claims.PAGE_PATH]
    for one in published.ALL:
        assert one.note in page
    smallest = next(one for one in published.in_table("Table 3") if "radius-0.5" in (one.metric or ""))
    assert claims.attack_radius(smallest, numbers, "standard") == "16/255", "half of the nominal 32/255"
    assert claims.attack_radius(smallest, numbers, "released") == "8/255"
    assert claims.attack_radius(APGD, numbers, "standard") == "32/255"
    assert claims.attack_radius(claim("Section 3", "FID", "EB-JDAT-SADAJEM"), numbers, "standard") == ""


def test_every_known_training_radius_is_shown_apart() -> None:
    trained = full_size(eps=4 / 255)
    known = records_of(trained, OURS) + records_of(full_size(eps=8 / 255), OURS, 0.7)
    entry = claims.entry(APGD, [numbers_of(full_size(eps=8 / 255), known)])
    values = {(one["protocol"], one["train_eps"]): one["value"] for one in entry["ours"]}
    assert set(values) == {(name, eps) for name in PROTOCOLS for eps in ("4/255", "8/255")}
    assert values["released", "4/255"] != values["released", "8/255"]
    assert "train_eps=4/255" in entry["ours"][0]["command"]
    verdicts = {(one["protocol"], one["train_eps"]): one["verdict"] for one in entry["ours"]}
    assert verdicts["released", "4/255"] in {"reproduced", "not reproduced"}
    assert {verdict for key, verdict in verdicts.items() if key != ("released", "4/255")} == {"not comparable"}


def test_the_released_twin_of_a_distance_answers_for_the_published_one() -> None:
    fid = claim("Section 2", "FID", "JEM")
    assert fid.key("released") == "generation/released-fid"
    assert fid.key("standard") == "generation/fid"


def test_commands_name_profile_model_and_radius() -> None:
    assert claims.command_for(dataclasses.replace(OURS, profile="cifar10"), 4 / 255) == (
        "dvc exp run -S profile=cifar10 -S variant=jempp -S method=ebjdat "
        "-S profiles.cifar10.training.ebjdat.jempp.train_eps=4/255"
    )
    assert claims.command_for(Subject("cifar10", "trades", None, 0), 8 / 255) == (
        "dvc exp run -S profile=cifar10 -S profiles.cifar10.training.trades.train_eps=8/255"
    )


def test_only_commands_of_runs_that_are_there_are_called_the_runs_behind_the_numbers() -> None:
    page = claims.render(PARAMS, [numbers_of(PARAMS, records_of(PARAMS, OURS))])[claims.PAGE_PATH]
    listed = re.findall(r"^- `(dvc exp run .*)`$", page, re.MULTILINE)
    eps = OURS.schedule(PARAMS).train_eps
    assert listed == [claims.command_for(OURS, eps), claims._comparable_command(PARAMS)]


def test_all_24_cells_of_the_supplements_tables_and_its_text_are_claims() -> None:
    counts = {
        table: len(published.in_table(table)) for table in ("Table 1", "Table 2", "Table 3", "Section 2", "Section 3")
    }
    assert counts == {"Table 1": 4, "Table 2": 8, "Table 3": 12, "Section 2": 2, "Section 3": 3}
    assert all(one.second_hand for one in published.HEADLINE)
    assert not any(one.second_hand for one in published.SUPPLEMENT)
    places = [(one.table, one.row, one.column) for one in published.ALL]
    assert len(set(places)) == len(places)


def test_no_published_number_stands_elsewhere_in_the_code() -> None:
    """Numbers with two decimals that no other constant would have."""
    distinctive = {f"{one.value:.2f}" for one in published.SUPPLEMENT if one.value > 20}
    for path in [*(ROOT / "ebjdat").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        if path.name != "published.py":
            text = path.read_text(encoding="utf-8")
            assert not [number for number in distinctive if number in text], path


def write_all(params: Params, numbers: Numbers) -> None:
    write_ledger(params, numbers.records)
    claims.write_claims(params, numbers)


def test_the_files_match_the_ledger_until_they_are_edited() -> None:
    numbers = numbers_of(PARAMS, records_of(PARAMS, OURS))
    write_all(PARAMS, numbers)
    assert claims.check_claims_match_records(PARAMS) == []
    ledger = files.read_json(claims.JSON_PATH)["claims"]
    assert len(ledger) == len(published.ALL)
    page = claims.PAGE_PATH.read_text()
    assert "second-hand" in page and "the released code at 327ea16" in page.lower()
    files.write_text(claims.PAGE_PATH, page.replace("not comparable", "reproduced", 1))
    assert claims.check_claims_match_records(PARAMS) == ["results/claims.md"]


def test_a_smoke_ledger_stands_beside_no_published_number() -> None:
    write_ledger(dataclasses.replace(PARAMS, profile=claims.SMOKE_PROFILE), [])
    collected = claims.collect(PARAMS, numbers_of(PARAMS, []))
    assert [found.params.profile for found in collected] == [PARAMS.profile]
