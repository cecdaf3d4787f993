"""Tables: every cell from the record of its identity, never an old number, never edited by hand."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ebjdat import files
from ebjdat.config import Params
from ebjdat.errors import UserError
from ebjdat.evaluation.statistics import Rate, paired
from ebjdat.protocols import PROTOCOLS, RELEASED, STANDARD
from ebjdat.reporting import ledger, lookup, plots, published, readme, seeds, tables
from ebjdat.reporting.comparisons import (
    _counts,
    alignment_table,
    all_subjects,
    checkpoints_table,
    masking_table,
    paired_table,
    reproduction_table,
    seed_interval,
    training_radius,
)
from ebjdat.reporting.findings import findings_table
from ebjdat.reporting.layout import Column, Entry, Row, Table, document, escape, latex, markdown
from ebjdat.reporting.lookup import Cell, Numbers, Reading, load_numbers
from ebjdat.reporting.records import Record, record_path
from ebjdat.subject import Subject
from tests.synthetic import (
    clean_environment,
    code,
    numbers_of,
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
TRADES = Subject.baseline(PARAMS, "trades")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return clean_environment(monkeypatch, tmp_path)


def on_cifar10(params: Params) -> Params:
    """The same parameters with a profile that says CIFAR-10."""
    data = dataclasses.replace(params.current.data, dataset="cifar10")
    return dataclasses.replace(
        params, profiles={**params.profiles, params.profile: dataclasses.replace(params.current, data=data)}
    )


def records(params: Params = PARAMS, seeds: tuple[int, ...] = (0,)) -> list[Record]:
    """Records of ours, the plain variant and two baselines."""
    found = []
    for place, subject in enumerate((OURS, dataclasses.replace(OURS, method="base"), PGD_AT, TRADES)):
        for seed in seeds:
            found += records_of(params, dataclasses.replace(subject, seed=seed), 0.5 + place / 20 + seed / 30)
    return found


def cells(table: Table) -> dict[str, dict[str, Entry]]:
    """Entries by row and column label."""
    heads = [f"{column.group}: {column.label}" if column.group else column.label for column in table.columns]
    return {row.label: dict(zip(heads, row.entries, strict=True)) for row in table.rows}


def test_a_cell_is_the_accuracy_of_the_record_with_its_interval() -> None:
    numbers = numbers_of(PARAMS, records())
    record = numbers.record(OURS, "autoattack")
    assert record is not None
    correct = record["rates"]["standard/apgd-ce"]["correct"]
    low, high = lookup.wilson(correct, 80)
    entry = cells(tables.table1(numbers, STANDARD))["Ours (EB-JDAT-JEM++)"]["APGD-CE"]
    assert entry == Entry(f"{100 * correct / 80:.1f}", "", f"[{100 * low:.0f}, {100 * high:.0f}]")


def test_cells_come_from_mlflow_where_the_store_has_the_record() -> None:
    known = records()
    other = {record["content"]: {"standard/apgd-ce": 0.25} for record in known if record["stage"] == "autoattack"}
    numbers = Numbers(PARAMS, known, other, "synthetic-data", code)
    assert numbers.cell(OURS, "autoattack", "standard/apgd-ce").spread.mean == 0.25
    assert numbers.cell(OURS, "clean", "standard/clean").spread.mean > 0.9


def test_the_published_layout_is_kept_and_our_columns_stand_to_the_right() -> None:
    numbers = numbers_of(PARAMS, records())
    first = [column.label for column in tables.table1(numbers, STANDARD).columns]
    assert first[:4] == ["APGD-CE", "APGD-DLR", "FAB", "SQUARE"]
    assert first[4:] == ["APGD-T", "union", "AutoAttack cascade", "clean"]
    assert [column.label for column in tables.table1(numbers, RELEASED).columns][4:] == ["union", "clean"]
    second = tables.table2(numbers, RELEASED)
    assert [column.label for column in second.columns][:4] == ["PGD", "MI-FGSM", "VMI-FGSM", "VNI-FGSM"]
    surrogates = ["PGD-AT", "Undefended", "EB-JDAT-JEM++", "EB-JDAT-SADAJEM"]
    assert [column.label for column in second.columns][4:] == [*surrogates, "all of them"]
    assert [row.label for row in second.rows][:3] == ["TRADES", "Ours (EB-JDAT-JEM++)", "PGD-AT (the surrogate)"]
    third = [column.label for column in tables.table3(numbers, STANDARD).columns]
    assert third == [
        "16/255",
        "32/255",
        "64/255",
        "128/255",
        "1",
        "10",
        "20",
        "50",
        "16/255",
        "32/255",
        "64/255",
        "128/255",
    ]
    assert [c.label for c in tables.table3(numbers, RELEASED).columns][:4] == ["8/255", "16/255", "32/255", "64/255"]


def test_radius_and_iterations_of_a_heading_are_those_of_its_cell() -> None:
    numbers = numbers_of(PARAMS, records())
    row = cells(tables.table3(numbers, STANDARD))["Ours (EB-JDAT-JEM++)"]
    sweep, eot = numbers.record(OURS, "sweep"), numbers.record(OURS, "eot")
    assert sweep is not None and eot is not None

    def percent(record: Record, key: str) -> str:
        return f"{100 * record['rates'][key]['correct'] / 80:.1f}"

    assert row["APGD-CE: distortion bound: 64/255"].text == percent(sweep, "standard/apgd-ce/radius-2/steps-20")
    assert row["APGD-CE: iterations: 10"].text == percent(sweep, "standard/apgd-ce/radius-1/steps-10")
    assert row["EOT-PGD: distortion bound: 16/255"].text == percent(eot, "standard/eot-pgd/plain/samples-2/radius-0.5")


def test_a_missing_record_is_not_run_and_an_outdated_one_is_stale_and_never_shown() -> None:
    numbers = numbers_of(PARAMS, records_of(PARAMS, OURS, hash_of=other_code))
    row = cells(tables.table1(numbers, STANDARD))["Ours (EB-JDAT-JEM++)"]
    assert {entry.text for entry in row.values()} == {"stale"}
    assert cells(tables.table2(numbers, STANDARD))["TRADES"]["worst case per image, from: all of them"] == Entry(
        "not run"
    )


def test_a_changed_parameter_makes_its_stages_stale_and_leaves_the_others() -> None:
    profile = PARAMS.current
    sweep = dataclasses.replace(profile.evaluation.sweep, images=10)
    changed = dataclasses.replace(
        PARAMS,
        profiles={
            **PARAMS.profiles,
            "digits": dataclasses.replace(profile, evaluation=dataclasses.replace(profile.evaluation, sweep=sweep)),
        },
    )
    numbers = numbers_of(changed, records())
    assert numbers.cell(OURS, "sweep", "standard/unbounded").state == "stale"
    assert numbers.cell(OURS, "clean", "standard/clean").state == "value"


def test_a_metric_that_the_record_does_not_have_is_not_applicable() -> None:
    numbers = numbers_of(PARAMS, records())
    assert numbers.cell(OURS, "autoattack", "released/apgd-t").state == "n/a"


def test_several_seeds_give_mean_spread_and_the_interval_of_the_images() -> None:
    numbers = numbers_of(PARAMS, records(seeds=(0, 1, 2)))
    cell = numbers.cell(OURS, "clean", "standard/pgd-20")
    values = [reading.value for reading in cell.readings]
    assert [reading.seed for reading in cell.readings] == [0, 1, 2]
    entry = lookup.show_percent(cell)
    assert entry.text == f"{100 * np.mean(values):.1f}"
    assert entry.spread == f"±{100 * np.std(values, ddof=1):.1f} (3)"
    low, high = lookup.wilson(float(np.mean(values)) * 80, 80)
    assert entry.interval == f"[{100 * low:.0f}, {100 * high:.0f}]"


@pytest.mark.parametrize(
    ("values", "text", "spread"),
    [
        ((1.234,), "1.23", ""),
        ((0.01234,), "0.0123", ""),
        ((0.02, 0.021), "0.0205", "±0.0007 (2)"),
        ((-0.31, 0.3), "-0.01", "±0.43 (2)"),
    ],
)
def test_a_value_has_the_digits_that_it_or_its_spread_needs(values: tuple[float, ...], text: str, spread: str) -> None:
    cell = Cell("value", tuple(Reading(seed, value) for seed, value in enumerate(values)))
    assert lookup.show_value(cell) == Entry(text, spread)


def test_the_published_value_stands_beside_ours_only_on_the_same_data_set() -> None:
    here = tables.render(numbers_of(PARAMS, records()))
    assert not any("published, as printed" in text for text in here.values())
    params = on_cifar10(PARAMS)
    there = tables.render(numbers_of(params, records(params)))
    printed = cells(tables.table3(numbers_of(params, records(params)), RELEASED))["Ours (published, as printed)"]
    expected = {one.column: one.text() for one in published.in_table("Table 3")}
    assert printed["APGD-CE: iterations: 50"].text == expected["APGD-CE, 50 iterations"]
    assert printed["EOT-PGD: distortion bound: 64/255"].text == expected["EOT-PGD, 32/255"]
    assert "published: Robustness" in there["tradeoff.md"]


def test_every_caption_names_protocol_radius_images_seed_and_profile() -> None:
    for pages in tables.pages(numbers_of(PARAMS, records())).values():
        for table in pages:
            assert "rofile digits" in table.caption, table.label
            for protocol in ("standard", "released"):
                if table.label.endswith(protocol):
                    assert f"Protocol {protocol}: L-inf radius" in table.caption
                    assert "n = 80 test images" in table.caption
                    assert "Seed 0" in table.caption


def test_paired_comparisons_use_flags_of_shared_images() -> None:
    table = paired_table(numbers_of(PARAMS, records()), "PGD-20", "clean", "standard/pgd-20")
    assert len(table.rows) == 6
    row = cells(table)["JEM++ vs. PGD-AT"]
    assert row["n"].text == "80"
    assert row["difference (points)"].text.startswith("-")
    assert 0 < float(row["p"].text) <= 1


def test_the_energy_verdict_compares_overlaps_seed_by_seed() -> None:
    known = records(seeds=(0, 1))
    numbers = numbers_of(PARAMS, known)
    rows = cells(alignment_table(numbers))
    assert rows["EB-JDAT-JEM++ vs. JEM++"]["first aligns"].text == "less", "the difference is the same in both seeds"
    assert rows["EB-JDAT-JEM vs. JEM"]["first aligns"].text == "not known"
    single = cells(alignment_table(numbers_of(PARAMS, records())))
    assert single["EB-JDAT-JEM++ vs. JEM++"]["first aligns"].text == "less (one seed)"
    equal = records()
    for record in (one for one in equal if one["stage"] == "clean"):
        record["values"]["energy/overlap-all-fresh"] = 0.0
    single = cells(alignment_table(numbers_of(PARAMS, equal)))
    assert single["EB-JDAT-JEM++ vs. JEM++"]["first aligns"].text == "equal (one seed)"
    one = next(
        record for record in known if (record["stage"], record["method"], record["seed"]) == ("clean", "base", 1)
    )
    one["values"]["energy/overlap-all-fresh"] += 0.1
    rows = cells(alignment_table(numbers_of(PARAMS, known)))
    assert rows["EB-JDAT-JEM++ vs. JEM++"]["first aligns"].text == "not told apart"


def test_the_interval_over_seeds_is_students_t() -> None:
    low, high = seed_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)


def test_the_masking_page_shows_verdict_numbers_and_rule() -> None:
    rows = cells(masking_table(numbers_of(PARAMS, records())))
    entry = rows["EB-JDAT-JEM++: standard/unbounded"]
    assert entry["verdict"].text == "pass"
    assert "accuracy: 0.0 %" in entry["numbers"].text
    assert "unbounded" in entry["rule"].text
    outdated = cells(masking_table(numbers_of(PARAMS, records_of(PARAMS, OURS, hash_of=other_code))))
    assert outdated["EB-JDAT-JEM++"]["verdict"].text == "stale"


def test_the_reproduction_page_counts_what_lies_inside() -> None:
    row = {"model": "a", "stage": "clean", "metric": "m", "ours": 0.5, "theirs": 0.6, "low": 0.5, "high": 0.7}
    table = reproduction_table([row | {"inside": True}, row | {"inside": False, "metric": "k"}], "digits")
    assert "1 of 2 accuracies" in table.caption
    assert [r.entries[2].text for r in table.rows] == ["inside", "outside"]
    assert "no answers of another machine" in reproduction_table([], "digits").caption


# LaTeX structure


def environments(text: str) -> list[str]:
    """Names of environments still open at the end; raises on a wrong end."""
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    return opened


def cells_of_line(line: str) -> int:
    """Columns that a LaTeX row fills, spanning cells included."""
    spans = [int(width) - 1 for width in re.findall(r"\\multicolumn\{(\d+)\}", line)]
    return len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans)


def test_cells_of_unequal_n_are_warned_about() -> None:
    assert _counts({"clean": {397}}) == "397 test images"
    assert _counts({"clean": {397}, "autoattack": {64}}) == (
        "397 (clean and PGD-20), 64 (AutoAttack and its attacks) test images, each the first n of the split: cells of "
        "unequal n are not about the same images, and the first may be easier or harder than all"
    )
    assert _counts({"eot": {64, 397}}).startswith("64 to 397, UNEQUAL (EOT-PGD) test images, each the first n")
    known = records()
    generated = next(record for record in known if record["stage"] == "generate")
    generated["warnings"] = {"generation/test-fid": ["10000 images instead of 50000: not at equal n"]}
    caption = tables.section2(numbers_of(PARAMS, known)).caption
    assert "UNEQUAL n, which changes distances: test-fid: 10000 images instead of 50000: not at equal n." in caption
    assert "UNEQUAL" not in tables.section2(numbers_of(PARAMS, records())).caption


def test_both_checkpoints_stand_side_by_side() -> None:
    table = checkpoints_table(numbers_of(PARAMS, records()))
    row = cells(table)["EB-JDAT-JEM++"]
    assert float(row["PGD-20: best"].text) > float(row["PGD-20: last"].text)
    assert row["APGD-CE + APGD-T: last"].interval.startswith("[")


def test_an_accuracy_over_the_first_images_alone_counts_their_flags() -> None:
    numbers = numbers_of(PARAMS, records(seeds=(0, 1, 2)))

    def beside(*readings: Reading) -> Cell:
        return numbers.cell_beside(OURS, "clean", "standard/pgd-20", Cell("value", readings))

    cell = beside(Reading(0, 0.5, n=10), Reading(2, 0.5, n=10))
    rates = [numbers.rate(dataclasses.replace(OURS, seed=seed), "clean", "standard/pgd-20") for seed in (0, 2)]
    expected = [(seed, rate.per_image()[:10].mean()) for seed, rate in zip((0, 2), rates, strict=True) if rate]
    assert [(reading.seed, reading.value) for reading in cell.readings] == expected and cell.n == 10
    assert beside(Reading(0, 0.5, n=10**6)).state == "n/a", "fewer images than the other cell"
    assert beside(Reading(7, 0.5, n=10)).state == "n/a", "another seed is another model"
    assert numbers.cell_beside(OURS, "clean", "standard/pgd-20", Cell("stale")).state == "stale"


def findings(known: list[Record]) -> dict[str, Entry]:
    """Answers for EB-JDAT-JEM++ by question."""
    table = cells(findings_table(numbers_of(PARAMS, known), "classifier-frechet"))
    return {question: row["EB-JDAT-JEM++"] for question, row in table.items()}


@pytest.mark.parametrize(("ours", "verdict"), [(0.95, "yes, this pair"), (0.5, "open"), (0.1, "no, this pair")])
def test_a_finding_is_yes_or_no_where_the_interval_of_the_difference_excludes_0(ours: float, verdict: str) -> None:
    known = records_of(PARAMS, OURS, ours) + records_of(PARAMS, PGD_AT, 0.5)
    found = findings(known)
    assert found["PGD-20: above PGD-AT"].text == verdict
    assert found["PGD-20: above PGD-AT"].interval.endswith("(n = 80, one seed)")
    assert found["PGD-20: above its control"].text == "not run"
    question = "energies: aligned more than in PGD-AT (clean and adversarial)"
    assert found[question].text == "open", "one seed has no spread"


@pytest.mark.parametrize(("theirs", "verdict"), [((0.5, 0.45, 0.5), "yes"), ((0.1, 0.5, 0.9), "open")])
def test_over_seeds_a_finding_rests_on_the_interval_over_images_and_seeds(
    theirs: tuple[float, ...], verdict: str
) -> None:
    known = []
    for seed, accuracy in enumerate(theirs):
        known += records_of(PARAMS, dataclasses.replace(OURS, seed=seed), 0.95)
        known += records_of(PARAMS, dataclasses.replace(PGD_AT, seed=seed), accuracy)
    found = findings(known)["PGD-20: above PGD-AT"]
    both = list(seeds.pairs(numbers_of(PARAMS, known), OURS, PGD_AT, "clean", "standard/pgd-20").values())
    assert seeds.mean_interval(both)[0] > 0, "that over images excludes 0 with either"
    low, high = seeds.joint_interval(both)
    assert found.interval == f"[{100 * low:+.1f}, {100 * high:+.1f}] (n = 80, 3 seeds)"
    assert found.text == verdict


def test_a_finding_about_energies_is_about_the_seeds_that_both_models_have() -> None:
    known = records(seeds=(0, 1, 2))
    known = [one for one in known if (one["stage"], one["method"], one["seed"]) != ("clean", "base", 0)]
    for record in (one for one in known if one["stage"] == "clean" and one["method"] in ("ebjdat", "base")):
        ours, seed = record["method"] == "ebjdat", record["seed"]
        record["values"]["energy/overlap-all"] = (0.9, 0.5, 0.6)[seed] if ours else (0.0, 0.3, 0.3)[seed]
    found = findings(known)["energies: aligned more than in the plain variant (buffer)"]
    assert found[:2] == ("open", "0.55, 0.30"), "seed 0 of ours has no partner"
    low, high = seed_interval([0.2, 0.3])
    assert found.interval == f"[{low:+.2f}, {high:+.2f}] (2 seeds)"
    rows = alignment_table(numbers_of(PARAMS, known)).rows
    entries = next(row.entries for row in rows if row.label == "EB-JDAT-JEM++ vs. JEM++")
    shown = [entry.text for entry in entries[:3]]
    assert shown == ["overlap-all", "0.55", "0.30"], "the other table compares the same seeds"
    known = [one for one in known if (one["stage"], one["method"]) != ("clean", "base") or one["seed"] == 0]
    assert findings(known)["energies: aligned more than in the plain variant (buffer)"].text == "not run"


def test_captions_say_radius_and_energy_term_of_training() -> None:
    numbers = numbers_of(PARAMS, records())
    caption = tables.table1(numbers, STANDARD).caption
    assert "Adversarial training at 32/255." in caption
    assert "Energy term of EB-JDAT: reading cross_entropy, w2 = 0.1." in caption
    assert "Energy term" not in tables.readings_table(numbers, "classifier-frechet").caption, "its rows differ in it"
    assert training_radius(numbers, [dataclasses.replace(OURS, method="base")]) == "", "met no adversarial images"


def test_the_trade_off_of_each_protocol_shows_the_distance_of_that_protocol() -> None:
    known = records()
    values = next(r["values"] for r in known if (r["stage"], r["method"]) == ("generate", "ebjdat"))
    values["generation/classifier-frechet"], values["generation/released-classifier-frechet"] = 1.25, 2.5
    column = "generation: classifier-frechet"
    shown = [cells(tables.section3(numbers_of(PARAMS, known), p))["EB-JDAT-JEM++"][column] for p in PROTOCOLS.values()]
    assert [entry.text for entry in shown] == ["1.25", "2.50"]


def test_a_cell_of_table_2_says_where_the_surrogate_is_the_model_itself() -> None:
    known = records()
    for record in (one for one in known if one["stage"] == "transfer"):
        record["rates"]["standard/transfer/ebjdat-jempp/worst"] = record["rates"]["standard/transfer/worst"]
    rows = cells(tables.table2(numbers_of(PARAMS, known), STANDARD))
    marked = {(name, head) for name, row in rows.items() for head, e in row.items() if e.interval.endswith("white-box")}
    own = {head for head in rows["TRADES"] if head.startswith("from PGD-AT") or head.endswith("from: PGD-AT")}
    assert {head for name, head in marked if name == "PGD-AT (the surrogate)"} == own
    assert {head for name, head in marked if name.startswith("Ours")} == {"worst case per image, from: EB-JDAT-JEM++"}
    assert not [name for name, _ in marked if name == "TRADES"]


def test_the_settings_of_a_cell_are_those_of_its_protocol() -> None:
    rows = cells(tables.settings_table(numbers_of(PARAMS, [])))
    assert rows["radius r"] == {"standard": Entry("32/255"), "released": Entry("16/255")}
    assert rows["PGD-20"]["standard"].text == "20 steps of 0.25 r, one random start"
    assert "SQUARE: 5000 queries" in rows["Table 1, each attack alone"]["released"].text
    assert "APGD-CE: 20 steps" in rows["Table 1, each attack alone"]["released"].text
    assert "20 steps of 0.125 r at every radius" in rows["Table 3, EOT-PGD"]["standard"].text


def test_the_self_test_of_the_harness_is_shown_once() -> None:
    known = records_of(PARAMS, OURS)
    masking = next(record for record in known if record["stage"] == "masking")
    audit = {"verdict": "shown", "numbers": {"planted": 1.0}, "rule": "finds what is planted"}
    masking["audits"] |= {f"{name}/self-test": dict(audit) for name in PROTOCOLS}
    labels = [row.label for row in masking_table(numbers_of(PARAMS, known)).rows]
    assert labels.count("EB-JDAT-JEM++: self-test") == 1


def test_a_finding_about_samples_counts_the_seeds_where_both_distances_are_known() -> None:
    known = records(seeds=(0, 1))
    values = [r["values"] for r in known if r["stage"] == "generate" and r["method"] == "ebjdat"]
    for place, value in enumerate(values):
        value["generation/classifier-frechet"], value["generation/start-classifier-frechet"] = 1.0, 2.0 * place
    question = "samples: nearer to the data than the chains' start"
    assert findings(known)[question][:2] == ("in 1 of 2", "1.00, 1.00")
    del values[0]["generation/start-classifier-frechet"]
    assert findings(known)[question][:2] == ("in 1 of 1", "1.00, 2.00")
    del values[1]["generation/classifier-frechet"]
    assert findings(known)[question].text == "no common seed"


def test_findings_tell_stale_from_not_run_and_a_profile_without_ours_has_none() -> None:
    stale = records_of(PARAMS, dataclasses.replace(OURS, method="control"), hash_of=other_code)
    assert findings(records() + stale)["AutoAttack: above its control"].text == "stale"
    assert findings_table(numbers_of(PARAMS, []), "classifier-frechet").rows == ()


def test_over_seeds_each_image_counts_with_its_mean() -> None:
    n, all_right, none = 30, Rate.of([True] * 30), Rate.of([False] * 30)
    for_first, for_second = (all_right, none), (none, all_right)
    low, high = seeds.mean_interval([for_first, for_second])
    assert (low, high) == pytest.approx((-0.0866, 0.0866), abs=1e-4), "1.96 sqrt(2 / 32) / sqrt(32)"
    assert seeds.sign_flip_p([for_first, for_second]) == 1.0
    half = Rate.of([True] * 15 + [False] * 15)
    values = np.concatenate([np.full(15, 1.0), np.full(15, 0.5), [1.0, -1.0]])
    expected = values.mean() - 1.96 * values.std() / np.sqrt(n + 2)
    assert seeds.mean_interval([for_first, (half, none)])[0] == pytest.approx(expected, abs=1e-4)
    assert seeds.sign_flip_p([for_first, (half, none)]) == pytest.approx(2 / 2**n)


def test_one_seed_or_copies_of_it_give_bonett_and_price_and_mcnemar() -> None:
    a, b = Rate.of([True] * 12 + [False] * 8), Rate.of([True] * 4 + [False] * 16)
    assert seeds.mean_interval([(a, b)]) == pytest.approx(paired(a, b).interval())
    assert seeds.mean_interval([(a, b)] * 3) == pytest.approx(paired(a, b).interval()), "three copies know no more"
    assert seeds.sign_flip_p([(a, b)]) == pytest.approx(paired(a, b).p_value())
    assert seeds.sign_flip_p([(a, b)] * 3) == pytest.approx(paired(a, b).p_value())
    assert seeds.sign_flip_p([(a, a)]) == 1.0


def test_the_joint_interval_covers_where_images_and_seeds_both_vary() -> None:
    """Two models that are equal but for images and runs of their own: a verdict is an error."""
    random, draws = np.random.default_rng(0), 1000
    errors = {"images": 0, "both, one by one": 0, "joint": 0}
    for _ in range(draws):
        image = random.normal(1, 1, (1, 100, 1)) + random.normal(0, 0.8, (2, 100, 1))
        flags = image + random.normal(0, 0.25, (2, 1, 6)) + random.normal(0, 0.3, (2, 100, 6)) > 0
        found = [(Rate.of(flags[0, :, seed]), Rate.of(flags[1, :, seed])) for seed in range(6)]
        over_seeds = seed_interval([paired(*pair).difference for pair in found])
        wrong = [low > 0 or high < 0 for low, high in (seeds.mean_interval(found), over_seeds)]
        errors["images"] += wrong[0]
        errors["both, one by one"] += all(wrong)
        low, high = seeds.joint_interval(found)
        errors["joint"] += low > 0 or high < 0
    assert errors["joint"] <= 0.05 * draws < errors["both, one by one"] < errors["images"]


def test_the_joint_interval_adds_squared_distances_and_is_that_of_the_images_for_one_seed() -> None:
    a, b = Rate.of([True] * 12 + [False] * 8), Rate.of([True] * 4 + [False] * 16)
    assert seeds.joint_interval([(a, b)]) == seeds.mean_interval([(a, b)])
    found = [(a, b), (b, b), (a, b)]
    (low, high), (least, most) = seeds.mean_interval(found), seed_interval([0.4, 0.0, 0.4])
    mean = 0.8 / 3
    expected = mean - np.hypot(mean - low, mean - least), mean + np.hypot(high - mean, most - mean)
    assert seeds.joint_interval(found) == pytest.approx(expected)


def test_the_distance_is_named_by_a_record_that_answers_todays_question() -> None:
    old = records_of(PARAMS, dataclasses.replace(OURS, method="base", variant="jem"), hash_of=other_code)
    for record in (one for one in old if one["stage"] == "generate"):
        record["settings"]["features"]["metric"] = "another-distance"
    names = tables.generation_names(numbers_of(PARAMS, records()))
    assert "another-distance" not in names
    assert tables.generation_names(numbers_of(PARAMS, [*old, *records()])) == names


def test_the_caption_of_readings_counts_the_seeds_of_their_rows() -> None:
    other = dataclasses.replace(PARAMS.variants["jempp"], reading="energy", w_energy=1.0)
    params = dataclasses.replace(PARAMS, variants={**PARAMS.variants, "jempp": other})
    known = [record for seed in (0, 1, 2) for record in records_of(params, dataclasses.replace(OURS, seed=seed))]
    table = tables.readings_table(numbers_of(PARAMS, known), "classifier-frechet")
    assert table.rows[0].label.startswith("energy, w2 = 1") and table.rows[0].entries[0].spread.endswith("(3)")
    assert "Seeds 0, 1, 2;" in table.caption and "Several seeds: mean" in table.caption


def test_a_recipe_without_a_reading_is_a_row_like_any_other() -> None:
    none = dataclasses.replace(PARAMS.variants["jempp"], w_energy=0.0, w_adversarial=0.0)
    params = dataclasses.replace(PARAMS, variants={**PARAMS.variants, "jempp": none})
    table = tables.readings_table(numbers_of(params, records_of(params, OURS)), "classifier-frechet")
    assert table.rows[0].label.startswith("no reading, w2 = 0")


@pytest.mark.parametrize("name", tables.TEX_PAGES)
def test_the_latex_of_a_table_is_well_formed(name: str) -> None:
    text = tables.render(numbers_of(on_cifar10(PARAMS), records(on_cifar10(PARAMS), seeds=(0, 1))))[f"{name}.tex"]
    assert environments(text) == []
    assert text.isascii()
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))
    bodies = re.findall(r"\\begin\{tabular\}\{(lc*)\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert len(bodies) == text.count("\\begin{table}") == text.count("\\resizebox{"), "none runs over the margin"
    for columns, body in bodies:
        rows = [line for line in body.splitlines() if line.endswith("\\\\")]
        assert {cells_of_line(line) for line in rows} == {len(columns)}
        assert body.count("\\toprule") == body.count("\\bottomrule") == 1
        assert not re.search(r"\\\\\s*\[", body), "a row that starts with a bracket is read as a length"


def test_special_characters_are_escaped_and_unknown_ones_refused() -> None:
    assert escape("50 % of pgd_at & {x}") == "50 \\% of pgd\\_at \\& \\{x\\}"
    assert escape("±1 \\ < ~^") == "$\\pm$1 \\textbackslash{} $<$ \\textasciitilde{}\\textasciicircum{}"
    with pytest.raises(ValueError, match="no LaTeX"):
        escape("☃")


def test_a_row_with_too_few_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="row short: 1 of 2 cells"):
        Table("t", "t", "c", "h", (Column("a"), Column("b")), (Row("short", (Entry("1"),)),))


def test_markdown_rows_have_equal_cells_and_escape_bars() -> None:
    table = Table("t", "T", "c", "h", (Column("a", "g"),), (Row("x|y", (Entry("1", "±2 (3)", "[0, 1]"),)),))
    lines = [line for line in markdown([table]).splitlines() if line.startswith("|")]
    assert lines == ["| h | g: a |", "| --- | ---: |", "| x\\|y | 1 ±2 (3) [0, 1] |"]
    assert "\\multicolumn{1}{c}{g}" in latex([table])
    assert "\\input{one.tex}" in document(["one.tex"])


# Files


def repository_of_tables(params: Params = PARAMS) -> Numbers:
    write_ledger(params, records(params))
    numbers = lookup.with_recorded_code(load_numbers(params))
    tables.write_tables(numbers, [])
    return numbers


def test_tables_match_the_ledger_until_a_digit_is_typed_by_hand() -> None:
    repository_of_tables()
    assert tables.check_tables_match_records(PARAMS) == []
    path = tables.tables_dir("digits") / "table1.md"
    text = path.read_text()
    digit = re.search(r"\| (\d\d\.\d) ", text)
    assert digit is not None
    files.write_text(path, text.replace(digit[1], "99.9", 1))
    assert tables.check_tables_match_records(PARAMS) == [path.as_posix()]
    path.unlink()
    assert tables.check_tables_match_records(PARAMS) == [path.as_posix()]


def test_the_picture_of_findings_says_what_their_table_says_until_its_words_are_edited() -> None:
    numbers = repository_of_tables()
    path = tables.tables_dir("digits") / tables.PICTURE
    root = ElementTree.fromstring(path.read_text())
    words = root.findtext("{*}desc", "")
    row = cells(findings_table(numbers, "classifier-frechet"))["PGD-20: above PGD-AT"]["EB-JDAT-JEM++"]
    assert f"EB-JDAT-JEM++, PGD-20, minus PGD-AT: {row.spread} {row.interval}" in words.split("; ")
    assert "var(--" not in path.read_text() and "currentColor" not in path.read_text(), "no page fills them in"
    files.write_text(path, path.read_text().replace("<rect ", "<rect x='0' ", 1))
    assert tables.check_tables_match_records(PARAMS) == [], "another machine's strokes"
    files.write_text(path, path.read_text().replace(row.spread, "+99.9", 1))
    assert tables.check_tables_match_records(PARAMS) == [path.as_posix()]
    write_ledger(PARAMS, [])
    assert path.as_posix() in tables.check_tables_match_records(PARAMS), "nothing has numbers any longer"
    tables.write_tables(numbers_of(PARAMS, []), [])
    assert not path.exists()


def test_a_page_shows_the_tables_of_its_places_and_an_edited_digit_is_found(workspace: Path) -> None:
    numbers, page = repository_of_tables(), workspace / "README.md"
    files.write_text(page, "# Title\n<!-- table: digits/tradeoff-standard -->\nold\n<!-- end -->\nBelow\n")
    assert not readme.check_page_matches_records(page, PARAMS)
    readme.fill_page(page, numbers)
    assert readme.check_page_matches_records(page, PARAMS)
    text = page.read_text()
    assert "| EB-JDAT-JEM++ | " in text and text.endswith("<!-- end -->\nBelow\n") and "old" not in text
    files.write_text(page, text.replace("95.0", "96.0", 1))
    assert not readme.check_page_matches_records(page, PARAMS)
    with pytest.raises(UserError, match="no table 'nothing'"):
        readme.fill("<!-- table: nothing -->\n<!-- end -->", {})


def test_a_place_without_an_end_is_refused_and_nothing_is_swallowed(workspace: Path) -> None:
    numbers = numbers_of(PARAMS, records())
    page = workspace / "page.md"
    place = "<!-- table: digits/energies -->\n"
    for text in (f"{place}prose", f"{place}prose\n{place}<!-- end -->"):
        page.write_text(text)
        with pytest.raises(UserError, match="has no end"):
            readme.fill_page(page, numbers)
        assert page.read_text() == text
    with pytest.raises(UserError, match="cannot be read as a page"):
        readme.fill_page(workspace / "missing.md", numbers)


def test_places_of_another_profile_stay_as_they_are_and_a_page_without_one_of_ours_is_refused(workspace: Path) -> None:
    numbers, page = repository_of_tables(), workspace / "page.md"
    other = "<!-- table: cifar10/seeds -->\ntheirs\n<!-- end -->\n"
    files.write_text(page, f"{other}<!-- table: digits/seeds -->\nold\n<!-- end -->\n")
    readme.fill_page(page, numbers)
    assert page.read_text().startswith(other) and "old" not in page.read_text()
    files.write_text(page, other)
    assert not readme.check_page_matches_records(page, PARAMS), "a page without places of ours shows nothing of ours"
    with pytest.raises(UserError, match="no place for a table of profile digits"):
        readme.fill_page(page, numbers)


def test_the_same_ledger_gives_the_same_bytes() -> None:
    first = repository_of_tables()
    assert tables.render(first) == tables.render(repository_of_tables())


def test_numbers_are_read_through_the_store_and_without_it_from_the_ledger_with_a_warning(workspace: Path) -> None:
    use_empty_store()
    write_records(PARAMS, PGD_AT, stages=["clean"])
    ledger.update(PARAMS, code)
    numbers, checks = lookup.load_with_checks(PARAMS)
    (record,) = numbers.records
    assert checks == []
    assert numbers.metrics(record) == lookup.flatten(record)
    (workspace / "mlflow.db").unlink()
    (workspace / "mlflow.db").mkdir()
    with pytest.warns(lookup.tracking.TrackingWarning, match="tables are made from the ledger"):
        assert lookup.load_with_checks(PARAMS)[0].metrics(record) == lookup.flatten(record)


def test_plots_and_metrics_hold_the_current_model_under_fixed_names() -> None:
    numbers = numbers_of(PARAMS, records())
    files.write_text(
        OURS.model_dir / "history.jsonl", '{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "loss": 0.25, "lr": 0.1}\n'
    )
    energy = np.linspace(-8, -4, 50)
    arrays = {"clean/energy": energy, "generated/energy": energy - 1}
    files.write_npz(record_path(OURS, "clean").with_suffix(".npz"), arrays)
    plots.write_plots(numbers)
    metrics = files.read_json("results/metrics.json")
    assert 5 <= len(metrics) <= 10
    assert metrics["autoattack_accuracy"] == numbers.cell(OURS, "autoattack", "standard/autoattack").spread.mean
    rows = {path.name: list(csv.DictReader(io.StringIO(path.read_text()))) for path in Path("results/plots").iterdir()}
    assert [row["epoch"] for row in rows["training.csv"]] == ["1", "2"]
    assert [float(row["radius_255"]) for row in rows["radius-standard.csv"]] == [16, 32, 64, 128]
    assert [float(row["radius_255"]) for row in rows["radius-released.csv"]] == [8, 16, 32, 64]
    histogram = rows["energies.csv"]
    assert sum(float(row["clean"]) for row in histogram) == pytest.approx(1, abs=1e-4)
    assert sum(float(row["targeted"]) for row in histogram) == 0


def test_a_plot_without_data_still_has_its_header() -> None:
    plots.write_plots(numbers_of(PARAMS, []))
    assert files.read_json("results/metrics.json") == {}
    assert Path("results/plots/energies.csv").read_text().startswith("energy,clean,adversarial")
    assert Path("results/plots/radius-standard.csv").read_text() == "radius_255,robust_accuracy,low,high\n"


def test_every_model_has_a_name_of_its_own() -> None:
    names = [tables.display_name(subject) for subject in all_subjects(numbers_of(PARAMS, []))]
    assert len(set(names)) == len(names) == 12
