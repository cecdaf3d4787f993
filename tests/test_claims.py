"""The claims page says reproduced only where the published number may be compared, and says why not elsewhere."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ebjdat.config import Network, Params
from ebjdat.protocols import PROTOCOLS
from ebjdat.results import claims, frame, published
from ebjdat.results.frame import Results
from ebjdat.results.published import Claim
from tests import ROOT
from tests.synthetic import PARAMS, params_of_repository, setup_of, write_records

pytestmark = pytest.mark.usefixtures("workspace")
OURS = "ebjdat-jempp"


@functools.cache
def full_size(eps: float = 4 / 255, depth: int = 28, epochs: int = 150, **recipe: Any) -> Params:
    """Parameters of CIFAR-10 with WRN-28-10 and the published schedule, trained at ``eps``."""
    params = params_of_repository("cifar10")
    training = {**params.current.training, "defaults": {**params.current.training["defaults"], "train_eps": eps}}
    training["jempp"] = {**training["jempp"], "epochs": epochs}
    current = params.current.model_copy(update={"network": Network(depth=depth, width=10), "training": training})
    changed = params.variants["jempp"].model_copy(update=recipe)
    return params.model_copy(update={"current": current, "variants": {**params.variants, "jempp": changed}})


def claim(table: str, column: str, row: str = "Ours") -> Claim:
    (found,) = (one for one in published.claims() if (one.table, one.row, one.column) == (table, row, column))
    return found


def results_of(params: Params, n: int = 10_000, **numbers: float) -> Results:
    """Results of one number per ``model:metric``; accuracies in percent, with n images."""
    index = pd.MultiIndex.from_tuples([(OURS, 0), ("ebjdat-sadajem", 0), ("trades", 0)], names=["model", "seed"])
    table = pd.DataFrame(index=index)
    for metric, value in numbers.items():
        accuracy = not metric.startswith("generate")
        table[metric] = value / 100 if accuracy else value
        if accuracy:
            table[f"{metric}.n"] = float(n)
    return Results(params, table, {}, {})


def judge(one: Claim, shift: float = 0.0, protocol: str = "released", n: int = 10_000, **changes: Any) -> claims.Judged:
    """What our number ``shift`` away from a published one says."""
    metric = one.metric_under(protocol)
    numbers = {metric: one.value + shift} | changes.pop("also", {})
    return claims.judge(one, results_of(full_size(**changes), n, **numbers), one.model, protocol)


APGD = claim("Table 1", "APGD-CE")


def test_a_value_inside_the_interval_of_a_model_like_the_released_one_is_reproduced() -> None:
    assert judge(APGD).verdict == "reproduced"
    assert judge(APGD, -10.0).verdict == judge(APGD, 10.0).verdict == "not reproduced"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": "standard"}, "another protocol"),
        ({"eps": 8 / 255}, "trained at 8/255"),
        ({"depth": 16}, "another network (WRN-16-10)"),
        ({"epochs": 20}, "20 of 150 epochs"),
        ({"reading": "energy"}, "reading energy"),
        ({"w_energy": 1.0}, "w_energy 1.0"),
        ({"n": 1000}, "too few images (1000)"),
    ],
)
def test_anything_else_is_not_comparable_however_close_it_is(changes: dict[str, Any], reason: str) -> None:
    found = judge(APGD, **changes)
    assert (found.verdict, found.reasons) == ("not comparable", [reason])


def test_transfer_cells_are_never_called_reproduced() -> None:
    for one in published.in_table("Table 2"):
        assert judge(one).verdict == "not comparable"


def test_a_fab_that_equals_the_clean_accuracy_is_explained_by_protocol() -> None:
    fab = claim("Table 1", "FAB")
    clean = {"autoattack/released/clean": fab.value}
    assert judge(fab, -25.0, also=clean).verdict == "explained by protocol"
    assert judge(fab, -25.0).verdict == "not reproduced"
    assert judge(fab, also=clean).verdict == "reproduced"


def test_a_distance_is_compared_relatively_and_a_range_by_its_ends() -> None:
    fid = claim("Section 3", "FID", "EB-JDAT-SADAJEM")
    assert judge(fid, fid.value * 0.04).verdict == "reproduced"
    assert judge(fid, fid.value * 0.06).verdict == "not reproduced"
    aa = claim("Headline", "AA", "EB-JDAT-SADAJEM")
    assert aa.upper > aa.value and judge(aa, aa.upper - aa.value).verdict == "reproduced"


def test_a_distance_needs_as_many_samples_as_the_published_one() -> None:
    one, params = claim("Section 3", "FID", "EB-JDAT-SADAJEM"), full_size()
    generation = params.current.evaluation.generation.model_copy(update={"samples": 1000})
    evaluation = params.current.evaluation.model_copy(update={"generation": generation})
    small = params.model_copy(update={"current": params.current.model_copy(update={"evaluation": evaluation})})
    found = claims.judge(one, results_of(small, **{one.metric_under("released"): one.value}), one.model, "released")
    assert found.reasons == ["too few samples (1000)"]


def test_a_missing_number_an_inception_score_and_hours_are_not_claimed() -> None:
    missing = claims.judge(APGD, results_of(full_size()), OURS, "released")
    assert (missing.verdict, missing.reasons) == ("not run", ["not run on cifar10"])
    assert claims.overall(claim("Headline", "IS", "JEM"), []).verdict == "not run"
    assert claims.overall(claim("Headline", "hours (one RTX 3090)", "EB-JDAT-JEM++"), []).verdict == "not comparable"


def test_the_overall_verdict_is_that_of_the_most_comparable_number() -> None:
    off, near = 100 - APGD.value, 0.0
    metric = APGD.metric_under("released")
    everything = [
        results_of(full_size(depth=10, epochs=6), 100, **{metric: APGD.value + near}),
        results_of(full_size(), **{metric: APGD.value + off, APGD.metric_under("standard"): APGD.value}),
    ]
    assert claims.overall(APGD, everything).verdict == "not reproduced", "a bad number is not hidden by a closer one"
    again = [results_of(full_size(), **{metric: value}) for value in (APGD.value + off, APGD.value)]
    assert claims.overall(APGD, again).verdict == "not reproduced", "the better of two attempts does not win"


def test_a_model_trained_at_the_released_radius_answers_in_place_of_the_default_one() -> None:
    params = params_of_repository("cifar10")
    current = params.current.model_copy(update={"training": {**params.current.training, "jempp_mine": {}}})
    current.training["jempp_mine"] = {"train_eps": 4 / 255}
    mine = params.variants["jempp"].model_copy(update={"like": "jempp"})
    params = params.model_copy(update={"current": current, "variants": {**params.variants, "jempp_mine": mine}})
    results = results_of(params, **{APGD.metric_under("released"): APGD.value})
    results.frame.index = results.frame.index.set_levels(["ebjdat-jempp_mine", OURS, "trades"], level=0)
    assert (claims.overall(APGD, [results]).verdict, claims.overall(APGD, [results]).model) == (
        "reproduced",
        "ebjdat-jempp_mine",
    )


def test_numbers_of_another_data_set_are_not_shown_as_an_attempt() -> None:
    results = frame.from_records(PARAMS, write_records(setup_of(PARAMS, OURS)))
    page = claims.page([results])
    assert "Profiles with records: digits." in page and "nothing was run on cifar10" in page
    rows = [line for line in page.splitlines() if line.startswith("| Ours")]
    assert len(rows) == 4 + 4 + 12
    for row in rows:
        assert [cell.strip() for cell in row.split("|")[4:6]] == ["", ""]


def test_a_reason_and_a_model_that_all_rows_of_a_table_share_stand_above_it_once() -> None:
    params = params_of_repository("cifar10-cpu")
    page = claims.page([frame.from_records(params, write_records(setup_of(params, OURS)))])
    parts = {part.split("\n")[0]: part for part in page.split("\n## ")}
    for table, reason in {"Table 1": "another network (WRN-10-1)", "Table 2": "surrogate not stated"}.items():
        above, _, rows = parts[table].partition("\n\n| Row")
        assert f" Not comparable: {reason}. " in above
        ours = [row.split("|")[6].strip() for row in rows.splitlines() if row.startswith("| Ours")]
        assert ours == ["not comparable"] * 4
    assert "second-hand" in page.lower()


def test_a_model_that_answers_for_another_is_named_above_its_rows() -> None:
    params = params_of_repository("cifar10-cpu")
    page = claims.page([frame.from_records(params, write_records(setup_of(params, "ebjdat-jempp_step04")))])
    assert page.count("Row Ours: EB-JDAT-JEM++ (code form, attack step 0.4).") == 3
    assert "attack step" not in "".join(line for line in page.splitlines() if line.startswith("|"))


def test_every_note_is_on_the_page_and_no_place_is_claimed_twice() -> None:
    page = claims.page([])
    for table in {one.table for one in published.claims()}:
        assert all(note[1:] in page for note in published.notes(table))
    places = [(one.table, one.row, one.column, one.dataset) for one in published.claims()]
    assert len(set(places)) == len(places) == 82


def test_all_24_cells_of_the_supplements_tables_and_its_text_are_claims() -> None:
    supplement = ("Table 1", "Table 2", "Table 3", "Section 2", "Section 3")
    assert [len(published.in_table(table)) for table in supplement] == [4, 8, 12, 2, 3]
    assert all((one.table not in supplement) == one.second_hand for one in published.claims())


def test_the_released_twin_of_a_distance_answers_for_the_published_one() -> None:
    fid = claim("Section 2", "FID", "JEM")
    assert fid.metric_under("released") == "generate/generation/released-fid"
    assert fid.metric_under("standard") == "generate/generation/fid"


def test_every_metric_of_a_claim_is_one_that_the_stages_record() -> None:
    params = params_of_repository("cifar10-cpu")
    results = frame.from_records(params, write_records(setup_of(params, OURS)))
    for one in (one for one in published.claims() if one.metric and not one.metric.startswith("generate")):
        for protocol in PROTOCOLS:
            assert one.metric_under(protocol) in results.frame, one


def test_no_published_number_stands_in_the_code() -> None:
    """Numbers with two decimals that no other constant would have."""
    distinctive = {f"{one.value:.2f}" for one in published.claims() if one.value > 20 and not one.second_hand}
    for path in [*(ROOT / "ebjdat").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not [number for number in distinctive if number in text], path


def test_a_smoke_run_is_not_on_the_page(workspace: Path) -> None:
    for name in ("params.yaml", "params"):
        (workspace / name).symlink_to(ROOT / name)
    for profile in ("digits", "cifar10-cpu", "cifar10-smoke"):
        write_records(setup_of(params_of_repository(profile), OURS))
    claims.write_claims(frame.load(PARAMS))
    assert "Profiles with records: digits, cifar10-cpu." in claims.PAGE.read_text()
