"""Tables: every cell from a record that answers today's question, never an old number, never edited by hand."""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ebjdat import files, tracking
from ebjdat.config import Params, load_params
from ebjdat.errors import UserError
from ebjdat.protocols import PROTOCOLS, RELEASED, STANDARD
from ebjdat.record import Record, read_records, run_of
from ebjdat.results import cells, extended, findings, frame, names, paper, statistics, summary, tables
from ebjdat.results.cells import Table
from ebjdat.results.frame import Results
from ebjdat.results.published import in_table
from ebjdat.run import Run
from ebjdat.statistics import wilson
from tests import ROOT
from tests.synthetic import PARAMS, params_of_repository, setup_of, use_empty_store, write_records

pytestmark = pytest.mark.usefixtures("workspace")
OURS, PLAIN, CONTROL = "ebjdat-jempp", "base-jempp", "control-jempp"
NAME = "EB-JDAT-JEM++ (code form)"
MODELS = {OURS: 0.5, PLAIN: 0.55, "pgd_at": 0.6, "trades": 0.65}


@functools.cache
def _made(profile: str, model: str, seed: int, strength: float) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return write_records(setup_of(params_of_repository(profile), model, seed), strength)


def made(model: str, seed: int = 0, strength: float = 0.6, profile: str = "digits") -> list[Record]:
    """Records of every stage of a model."""
    return copy.deepcopy(_made(profile, model, seed, strength))


def records(seeds: Iterable[int] = (0,), profile: str = "digits") -> list[Record]:
    """Records of ours, the plain variant and two baselines."""
    return [
        record
        for model, strength in MODELS.items()
        for seed in seeds
        for record in made(model, seed, strength + seed / 30, profile)
    ]


def of(known: Iterable[Record] | None = None, params: Params = PARAMS) -> Results:
    return frame.from_records(params, records() if known is None else known)


def pick(known: Iterable[Record], stage: str, model: str = OURS, seed: int = 0) -> Record:
    return next(r for r in known if (r["model"], r["stage"], r["seed"]) == (model, stage, seed))


def texts(table: Table) -> dict[str, dict[str, str]]:
    """Cells by row and column label."""
    heads = [": ".join(filter(None, column)) for column in table.body.columns]
    return {str(name): dict(zip(heads, row, strict=True)) for name, row in table.body.iterrows()}


def write_all(known: Iterable[Record]) -> None:
    for record in known:
        files.write_json(run_of(record).record(record["stage"]), record)


# The frame


def test_the_frame_from_mlflow_equals_the_frame_from_record_files() -> None:
    use_empty_store()
    write_all(made(OURS, 1) + made("pgd_at"))
    from_files = frame.load(PARAMS)
    assert tracking.log_frame("digits", list(read_records("digits"))) == len(from_files.records)
    from_store = frame.load(PARAMS)
    pd.testing.assert_frame_equal(from_store.frame, from_files.frame)
    assert from_files.frame.index.names == ["model", "seed"] and len(from_files.frame) == 2
    row = from_files.frame.loc[(OURS, 1)]
    assert (row["profile"], row["method"], row["variant"]) == ("digits", "ebjdat", "jempp")
    assert row["clean/standard/clean.n"] == 80


def test_a_number_comes_from_mlflow_where_the_store_has_all_of_its_record() -> None:
    use_empty_store()
    write_all(made("pgd_at"))
    tracking.log_frame("digits", list(read_records("digits")))
    path, name = tracking.frame_path("digits"), "clean/standard/clean"
    table = pd.read_csv(path, dtype=str)
    assert table["record.clean"].notna().all() and len(table) == 1
    for number, shown in (("0.25", True), ("", False)):
        table[name] = number
        table.to_csv(path, index=False)
        assert (frame.load(PARAMS).frame.loc[("pgd_at", 0), name] == 0.25) == shown
    path.write_text("")
    with pytest.raises(UserError, match=r"frame\.csv is damaged .*: run `python -m stages\.log`"):
        frame.load(PARAMS)


def test_without_a_store_the_record_files_serve_with_one_warning(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(made("pgd_at"))
    (workspace / "mlflow.db").mkdir()
    known = list(read_records("digits"))
    before = frame.load(PARAMS).frame
    assert tracking.log_frame("digits", known) is None
    pd.testing.assert_frame_equal(frame.load(PARAMS).frame, before)
    assert capsys.readouterr().err.count("warning") == 1
    monkeypatch.setenv(tracking.STRICT, "1")
    with pytest.raises(tracking.TrackingError):
        tracking.log_frame("digits", known)


@pytest.mark.parametrize("change", ["parameters", "revision", "weights"])
def test_an_outdated_record_is_left_out_and_counted_and_never_shown(change: str) -> None:
    known = records()
    if change == "revision":
        pick(known, "sweep")["revisions"]["sweep"] = 0
    if change == "parameters":
        pick(known, "sweep")["params"]["evaluation"]["sweep"]["images"] = 10
    if change == "weights":
        pick(known, "sweep")["weights"] = "0" * 64
    results = of(known)
    assert list(results.outdated) == [(OURS, 0, "sweep")]
    row = {attack: cells[NAME] for attack, cells in texts(extended.table3(results, STANDARD)).items()}
    assert {text for head, text in row.items() if head.startswith("APGD")} == {"outdated"}
    assert row["EOT-PGD: distortion bound: 16/255"].endswith("]"), "its other stages stay"


def test_a_record_of_a_variant_that_is_gone_is_outdated() -> None:
    gone = made(OURS)[:1]
    gone[0]["model"] = "ebjdat-gone"
    assert len(of(gone).outdated) == 1


def test_of_a_record_older_than_a_protocol_the_cells_of_the_other_one_stay() -> None:
    known = records()
    for record in known:
        del record["revisions"]["released"]
    results = of(known)
    assert not results.outdated
    for protocol, outdated in ((STANDARD, False), (RELEASED, True)):
        for table in (extended.table1(results, protocol), extended.tradeoff(results, protocol)):
            row = next(row for name, row in texts(table).items() if "EB-JDAT-JEM++" in name)
            assert {text == "outdated" for text in row.values()} == {outdated}
    assert not [name for name in texts(extended.masking(results)) if "released" in name]
    assert results.rate(OURS, 0, "clean", "released/clean") is None


def test_a_cell_without_a_number_says_why() -> None:
    results = of()
    assert results.missing(OURS, "autoattack/released/apgd-t") == "n/a"
    assert results.missing(CONTROL, "autoattack/released/union") == "not run"
    assert cells.either(results, OURS, "autoattack/released/apgd-t") == "n/a"


# Cells


def test_a_cell_is_the_accuracy_of_the_record_with_its_interval() -> None:
    known = records()
    correct = pick(known, "autoattack")["rates"]["standard/apgd-ce"]["correct"]
    low, high = wilson(correct, 80)
    cell = texts(extended.table1(of(known), STANDARD))[NAME]["APGD-CE"]
    assert cell == f"{100 * correct / 80:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def test_several_seeds_give_mean_spread_and_the_interval_of_the_images() -> None:
    results = of(records(seeds=(0, 1, 2)))
    values = results.values(OURS, "clean/standard/pgd-20")
    assert list(values.index) == [0, 1, 2]
    low, high = wilson(float(values.mean()) * 80, 80)
    mean, deviation = f"{100 * values.mean():.1f}", f"{100 * values.std():.1f}"
    expected = f"{mean} ±{deviation} (3) [{100 * low:.0f}, {100 * high:.0f}]"
    assert cells.either(results, OURS, "clean/standard/pgd-20") == expected
    assert cells.short(results, OURS, "clean/standard/pgd-20") == f"{mean} ± {deviation}"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1.234,), "1.23"),
        ((0.01234,), "0.0123"),
        ((0.02, 0.021), "0.0205 ±0.0007 (2)"),
        ((-0.31, 0.3), "-0.01 ±0.43 (2)"),
        ((0.0,), "0.00"),
    ],
)
def test_a_value_has_the_digits_that_it_or_its_spread_needs(values: tuple[float, ...], text: str) -> None:
    assert cells.value_text(pd.Series(values)) == text


def test_an_accuracy_over_the_first_images_alone_counts_their_flags() -> None:
    results, metric = of(records(seeds=(0, 1, 2))), "clean/standard/pgd-20"
    found = results.on_first_images(OURS, metric, 10, [0, 2])
    rates = [results.rate(OURS, seed, "clean", "standard/pgd-20") for seed in (0, 2)]
    assert list(found) == [rate.per_image()[:10].mean() for rate in rates if rate] and list(found.index) == [0, 2]
    assert results.on_first_images(OURS, metric, 10**6, [0]).empty, "fewer images than the other cell"
    assert results.on_first_images(OURS, metric, 10, [7]).empty, "another seed is another model"


def test_a_caption_names_the_stage_that_has_fewer_seeds() -> None:
    later = [record for record in records(seeds=(1,)) if record["stage"] != "autoattack"]
    caption = extended.readme(of([*records(), *later])).caption
    assert "; seeds 0, 1 (AutoAttack" in caption and ": seed 0). " in caption


def test_every_caption_is_short_and_names_data_network_protocol_radius_images_and_seeds() -> None:
    results = of()
    groups = [*tables.extended_tables(results).values(), *paper.paper_tables(results).values()]
    for table in (table for group in groups for table in group):
        assert len(table.caption) <= 240
        assert "rofile digits" in table.caption, table.label
        for protocol in ("standard at 32/255", "released at 16/255"):
            if table.label.endswith(protocol.split()[0]):
                assert f"WRN-10-1, profile digits; protocol {protocol}" in table.caption
                assert "seed 0" in table.caption and ("n = 80" in table.caption or "section2" in table.label)


def test_cells_of_unequal_n_are_told() -> None:
    assert cells._counts({"clean": {397}}) == "397"
    assert cells._counts({"clean": {397}, "autoattack": {64}}) == (
        "397 (clean and PGD-20), 64 (AutoAttack and its attacks)"
    )
    assert cells._counts({"eot": {64, 397}}) == "64 to 397, UNEQUAL (EOT-PGD)"
    known = records()
    pick(known, "generate")["warnings"] = {"generation/test-fid": ["10 images instead of 50: not at equal n"]}
    assert extended.initialisation(of(known)).caption.endswith("UNEQUAL n: test-fid.")


def test_seeds_are_listed_in_words() -> None:
    said = ["no seed yet", "seed 3", "seeds 0 to 2", "seeds 0, 2"]
    assert [cells.seeds_text(seeds) for seeds in ([], [3], [0, 1, 2], [0, 2])] == said


# The paper's form


def test_the_papers_layout_is_kept() -> None:
    found = paper.paper_tables(of())
    heads = {name: [head for _, head in group[0].body.columns] for name, group in found.items()}
    assert heads["table1"] == ["APGD-CE", "APGD-DLR", "FAB", "SQUARE"]
    assert heads["table2"] == ["PGD", "MI-FGSM", "VMI-FGSM", "VNI-FGSM"]
    radii = ["16/255", "32/255", "64/255", "128/255"]
    assert heads["table3"] == [*radii, "1", "10", "20", "50", *radii]
    groups = ["APGD-CE: distortion bound", "APGD-CE: iterations", "EOT-PGD: distortion bound"]
    assert list(dict.fromkeys(group for group, _ in found["table3"][0].body.columns)) == groups
    assert heads["section3"] == ["Robustness", "Accuracy", "Fréchet distance"]
    assert list(found["table1"][0].body.index) == ["Ours"]
    assert list(found["table2"][1].body.index) == ["TRADES", "Ours"]
    assert [head for _, head in found["table3"][1].body.columns][:4] == ["8/255", "16/255", "32/255", "64/255"]
    assert all(re.fullmatch(r"\d+\.\d", cell) for cell in found["table3"][0].body.values.flat)


def test_published_rows_stand_below_ours_only_on_the_same_data_set() -> None:
    assert not any("Published" in text for text in tables.render(of()).values())
    results = of(records(profile="cifar10-cpu"), params_of_repository("cifar10-cpu"))
    row = texts(paper.paper_tables(results)["table3"][1])["Published (Ours)"]
    expected = {claim.column: claim.text() for claim in in_table("Table 3")}
    assert row["APGD-CE: iterations: 50"] == expected["APGD-CE, 50 iterations"]
    assert row["EOT-PGD: distortion bound: 16/255"] == expected["EOT-PGD, 32/255"], "the printed radius is twice ours"
    assert list(paper.paper_tables(results)["table2"][0].body.index)[-2:] == ["Published (TRADES)", "Published (Ours)"]


@functools.cache
def _cifar10() -> dict[str, list[Table]]:
    profile = "cifar10-cpu"
    return paper.paper_tables(of(records((0, 1), profile), params_of_repository(profile)))


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "section2", "section3"])
def test_the_latex_of_a_table_is_well_formed_and_needs_booktabs_alone(name: str) -> None:
    text = "".join(map(paper.latex, _cifar10()[name]))
    opened: list[str] = []
    for kind, environment in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(environment)
        else:
            assert opened.pop() == environment
    assert opened == [] and text.isascii()
    assert not re.search(r"\\(resizebox|multirow|cmidrule|rowcolor|bfseries)", text)
    assert text.count("\\toprule") == text.count("\\midrule") == text.count("\\bottomrule") == text.count("{tabular}{")
    for columns, body in re.findall(r"\\begin\{tabular\}\{(lc*)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        assert len(columns) <= 5, "a column of 345 pt holds four numbers with deviations beside a name"
        for line in (line for line in body.splitlines() if line.endswith("\\\\")):
            spans = sum(int(width) - 1 for width in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + spans == len(columns)


def test_latex_escapes_names_and_markdown_escapes_bars() -> None:
    table = Table("t", "T", "5 % of a_b", cells.grid("h", ["a|b"], {"pgd_at & {x}": ["±1"]}))
    text = paper.latex(table)
    assert "5 \\% of a\\_b" in text and "pgd\\_at \\& \\{x\\}" in text and "$\\pm$1" in text
    assert "a\\|b" in table.markdown()


# Extended tables


def test_radius_and_iterations_of_a_heading_are_those_of_its_cell() -> None:
    known = records()
    row = {attack: cells[NAME] for attack, cells in texts(extended.table3(of(known), STANDARD)).items()}
    for head, stage, key in (
        ("APGD-CE: distortion bound: 64/255", "sweep", "standard/apgd-ce/radius-2/steps-20"),
        ("APGD-CE: iterations: 10", "sweep", "standard/apgd-ce/radius-1/steps-10"),
        ("EOT-PGD: distortion bound: 16/255", "eot", "standard/eot-pgd/plain/samples-2/radius-0.5"),
    ):
        correct = pick(known, stage)["rates"][key]["correct"]
        assert row[head].split(" ")[0] == f"{100 * correct / 80:.1f}"


def test_a_cell_of_table_2_says_where_the_surrogate_is_the_model_itself() -> None:
    rows = texts(extended.table2(of(), STANDARD))
    marked = {(name, head) for name, row in rows.items() for head, text in row.items() if text.endswith("white-box")}
    own = {head for head in rows["TRADES"] if head.startswith("from PGD-AT") or head.endswith("from: PGD-AT")}
    assert marked == {("PGD-AT", head) for head in own}


def test_both_checkpoints_stand_side_by_side() -> None:
    row = texts(extended.checkpoints(of()))[NAME]
    assert float(row["PGD-20: best"].split()[0]) > float(row["PGD-20: last"].split()[0])
    assert row["APGD-CE + APGD-T: last"].endswith("]")


def test_the_masking_page_shows_verdict_numbers_and_rule_and_the_harness_once() -> None:
    known = made(OURS)
    audits = pick(known, "masking")["audits"]
    audit = {"passed": True, "verdict": "shown", "numbers": {"steps 100": 0.5, "steps 20": 1.0}, "rule": "finds all"}
    audits |= {f"{name}/self-test": dict(audit) for name in PROTOCOLS}
    rows = texts(extended.masking(of(known)))
    entry = rows["EB-JDAT-JEM++ (code form): standard/unbounded"]
    assert entry["verdict"] == "pass" and "accuracy: 0.0 %" in entry["numbers"] and "unbounded" in entry["rule"]
    assert [name for name in rows if name.endswith("self-test")] == ["EB-JDAT-JEM++ (code form): self-test"]
    assert rows["EB-JDAT-JEM++ (code form): self-test"]["numbers"] == "steps 20: 100.0 %; steps 100: 50.0 %"
    audits["standard/self-test"]["verdict"] = "failed"
    rows = texts(extended.masking(of(known)))
    failed = rows["EB-JDAT-JEM++ (code form): standard/self-test"]
    assert failed["verdict"] == "FAIL", "a failure hides behind no other protocol"
    pick(known, "masking")["revisions"]["masking"] = 0
    assert texts(extended.masking(of(known)))[NAME]["verdict"] == "outdated"


def test_the_trade_off_of_each_protocol_shows_the_distance_of_that_protocol() -> None:
    known = records()
    distances = {"generation/classifier-frechet": 1.25, "generation/released-classifier-frechet": 2.5}
    pick(known, "generate")["values"] |= distances
    column = "generation: Fréchet distance"
    rows = [texts(extended.tradeoff(of(known), protocol)) for protocol in PROTOCOLS.values()]
    assert [row[NAME][column] for row in rows] == ["1.25", "2.50"]
    assert rows[0]["PGD-AT"][column] == "", "a baseline does not generate"


def test_a_study_has_a_row_for_each_of_its_models_with_records_and_says_what_differs() -> None:
    assert extended.studies(of()) == [], "at most half of their models were run"
    known = records(seeds=(0, 1)) + made(CONTROL) + made("ebjdat-jempp_energy")
    (forms,) = extended.studies(of(known))
    rows = texts(forms)
    assert list(rows) == ["JEM++", "Control-JEM++", NAME, "EB-JDAT-JEM++ (equations)"]
    weights = ["1, 1, 0, 0", "1, 1, 0, 1", "1, 1, 0.1, 1", "1, 1, 1, 1"]
    assert [row["w1, w_clean, w2, w3"] for row in rows.values()] == weights
    assert [row["adversary"] for row in rows.values()] == ["", "code form", "code form", "equations"]
    assert "epochs" not in rows[NAME], "they are equal"
    ours = rows[NAME]
    assert re.fullmatch(r"\d\d\.\d ±\d\.\d \(2\)", ours["APGD-T"]) and "n = 80; seeds 0, 1" in forms.caption


def test_the_standardised_gap_is_the_gap_over_the_pooled_deviation() -> None:
    known = records()
    pick(known, "clean")["values"] |= {"energy/clean/std": 3.0, "energy/adversarial/std": 4.0}
    assert of(known).values(OURS, "clean/energy/standardised-gap")[0] == pytest.approx(0.2 / 12.5**0.5)
    assert of(known).values(PLAIN, "clean/energy/standardised-gap").empty


def like(**values: object) -> Params:
    """The parameters with a variant ``mine`` that is like JEM++ but for these values."""
    mine = PARAMS.variants["jempp"].model_copy(update={"like": "jempp", "label": "JEM++ (mine)"} | values)
    return PARAMS.model_copy(update={"variants": {**PARAMS.variants, "mine": mine}})


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"w_energy": 0.3}, "EB-JDAT-JEM++ (code form, mine)"),
        ({"reading": "energy", "w_energy": 1.0}, "EB-JDAT-JEM++ (equations, mine)"),
        ({"label": "JEM++ (equations, w2 = 0.3)", "reading": "energy"}, "EB-JDAT-JEM++ (equations, w2 = 0.3)"),
        ({"label": ""}, "EB-JDAT-mine (code form)"),
        ({"attack_steps": 9, "w_energy": 0.0}, "EB-JDAT-JEM++ (mine)"),
        ({"reading": "committed"}, "EB-JDAT-JEM++ (as committed, mine)"),
    ],
)
def test_the_name_of_ebjdat_says_the_form_of_its_energy_term(values: dict[str, object], name: str) -> None:
    assert names.display_name(like(**values), "ebjdat-mine") == name
    label = values.get("label", "JEM++ (mine)") or "mine"
    assert names.display_name(like(**values), "pgd_at-mine") == f"PGD-AT-{label}"


def test_a_variant_like_another_one_stands_in_every_table_once_it_was_run_unless_it_has_one_of_its_own() -> None:
    results = of([], like(attack_steps=9))
    assert names.variants(results) == ["jem", "jempp", "sadajem"]
    with contextlib.chdir(tempfile.mkdtemp()):
        known = write_records(setup_of(results.params, "ebjdat-mine"))
    known += made("ebjdat-jempp_energy") + made("ebjdat-jempp_energy_weak")
    assert names.variants(of(known, results.params)) == ["jem", "jempp", "sadajem", "jempp_energy", "mine"]


def test_every_model_has_a_name_of_its_own() -> None:
    own = names.studies()["labels"]
    shown = [names.display_name(PARAMS, model) for model in (*names.all_models(of()), *own)]
    assert len(set(shown)) == len(shown) == 11 + len(own) and "DHAT (no mask)" in shown
    assert names.display_name(PARAMS, "external-mine") == "mine"


# Findings


def row_of(known: Iterable[Record], question: str) -> str:
    """The answer for EB-JDAT-JEM++; empty where nobody asks."""
    found = texts(findings.table(of(known)))
    return next((row[NAME] for name, row in found.items() if name == question), "")


@pytest.mark.parametrize(
    ("ours", "verdict"), [(0.95, "higher, this pair"), (0.5, "undecided"), (0.1, "lower, this pair")]
)
def test_a_finding_about_accuracy_is_paired_by_image_and_of_one_seed_about_this_pair(ours: float, verdict: str) -> None:
    known = made(OURS, 0, ours) + made("pgd_at", 0, 0.5)
    found = row_of(known, "PGD-20: minus PGD-AT")
    difference = statistics.Difference.of_rates(list(of(known).pairs(OURS, "pgd_at", "clean/standard/pgd-20").values()))
    assert found == f"{difference.text(1)} {verdict} (1)"
    assert row_of(known, "PGD-20: minus the control") == ""


def test_a_finding_about_energies_is_about_the_seeds_that_both_models_have() -> None:
    known = [r for r in records((0, 1, 2)) if (r["stage"], r["model"], r["seed"]) != ("clean", PLAIN, 0)]
    for record in (one for one in known if one["stage"] == "clean" and one["model"] in (OURS, PLAIN)):
        shares = (0.9, 0.5, 0.6) if record["model"] == OURS else (0.0, 0.3, 0.301)
        record["values"]["energy/overlap-all"] = shares[record["seed"]]
    expected = statistics.Difference.of_values([0.2, 0.299]).text(2)
    assert row_of(known, "overlap, all (buffer): minus the plain variant") == f"{expected} undecided (2)"


def test_samples_are_compared_with_the_start_of_their_chains() -> None:
    known = records(seeds=(0, 1, 2))
    for seed in (0, 1, 2):
        values = pick(known, "generate", OURS, seed)["values"]
        values["generation/classifier-frechet"], values["generation/start-classifier-frechet"] = seed / 100, 2.0
    question = "Fréchet distance: minus the start of the chains"
    found = row_of(known, question)
    assert found.startswith("-1.99 [") and found.endswith("] lower (3)")


def test_the_verdicts_of_a_model_are_corrected_for_all_its_questions() -> None:
    known = records(seeds=(0, 1, 2))
    found = findings.findings(of(known))
    assert {question.model for question in found} == {OURS}
    margins = [one.margin for one in found.values()]
    verdicts = statistics.verdicts([one.difference for one in found.values()], margins)
    assert [one.verdict for one in found.values()] == verdicts and len(set(verdicts)) > 1
    assert f"at most {len(found)} questions about a model" in findings.table(of(known)).caption


def test_each_form_meets_rivals_of_its_own_training() -> None:
    usual = {"control": CONTROL, "base": PLAIN, "pgd_at": "pgd_at", "compute": "pgd_at-19"}
    assert findings.rivals("ebjdat-jempp_energy") == usual | {"unweighted": "ebjdat-jempp_energy_0"}
    assert findings.rivals("ebjdat-jempp_energy_40")["control"] == "control-jempp_40"
    assert findings.rivals("ebjdat-jem")["matched"] == "pgd_at-jem"
    assert findings.rivals("ebjdat-mine") == {"control": "control-mine", "base": "base-mine", "pgd_at": "pgd_at"}
    assert findings.table(of([])).body.empty


# Files


def test_a_table_that_no_record_gives_is_removed_and_pictures_stay() -> None:
    folder = tables.tables_dir("digits")
    for name in ("older.md", "paper/older.tex", "older.svg"):
        files.write_text(folder / name, "no record gives this\n")
    assert set(tables.write_tables(of())) | {folder / "older.svg"} == {p for p in folder.rglob("*") if p.is_file()}


def test_the_same_records_give_the_same_bytes() -> None:
    assert tables.render(of()) == tables.render(of(reversed(records())))


def test_a_profile_without_records_has_tables_without_numbers() -> None:
    found = tables.render(of([]))
    assert "not run" in found["paper/table1.md"] and "no seed yet" in found["paper/table3.md"]
    assert "settings.md" in found and "table1.md" not in found
    assert tables.headline(of([])) == {}


def test_the_headline_is_that_of_the_current_model_and_first_seed() -> None:
    known = records(seeds=(0, 1))
    rate = pick(known, "autoattack")["rates"]["standard/autoattack"]
    found = tables.headline(of(known))
    assert found["accuracy_autoattack"] == rate["correct"] / rate["n"] and set(found) <= set(tracking.HEADLINE)


def test_a_page_shows_the_tables_of_its_places(workspace: Path) -> None:
    results, page = of(), workspace / "README.md"
    places = "<!-- table: {} -->\nold\n<!-- end -->\n"
    files.write_text(page, f"{places.format('cifar10/check')}{places.format('digits/tradeoff-standard')}Below\n")
    tables.fill_page(page, results)
    text = page.read_text()
    assert "| EB-JDAT-JEM++ (code form) " in text and text.endswith("<!-- end -->\nBelow\n") and text.count("old") == 1
    assert text.startswith(places.format("cifar10/check")), "places of another profile stay as they are"
    place = "<!-- table: digits/{} -->\n<!-- end -->"
    assert "| Ours " in tables.fill(place.format("paper/table1-standard"), results), "the paper's form has its own"
    assert tables.fill(place.format("dose"), results) == place.format("dose"), "a study without enough records is empty"
    with pytest.raises(UserError, match="no table 'digits/nothing'"):
        tables.fill(place.format("nothing"), results)


def test_a_place_without_an_end_is_refused_and_nothing_is_swallowed(workspace: Path) -> None:
    results, page = of(), workspace / "page.md"
    place = "<!-- table: digits/energies -->\n"
    for text in (f"{place}prose", f"{place}prose\n{place}<!-- end -->"):
        page.write_text(text)
        with pytest.raises(UserError, match="has no end"):
            tables.fill_page(page, results)
        assert page.read_text() == text
    with pytest.raises(UserError, match="cannot be read as a page"):
        tables.fill_page(workspace / "missing.md", results)
    page.write_text("<!-- table: cifar10/seeds -->\n<!-- end -->\n")
    with pytest.raises(UserError, match="no place for a table of profile digits"):
        tables.fill_page(page, results)


# The sentences of the README: chosen by their intervals, wrapped, and in the page as the records give them


@pytest.fixture(scope="module")
def study() -> Results:
    return frame.load(load_params(ROOT, "digits-study"), ROOT)


def test_a_row_gives_difference_interval_verdict_and_seeds(study: Results) -> None:
    one = findings.findings(study)[findings.Question("ebjdat-jempp", "AutoAttack", "pgd_at")]
    table = summary.short(study)
    assert table.body.loc["AutoAttack, points: minus PGD-AT", ("", "code form")] == str(one)
    assert str(one) == f"{one.numbers} {one.verdict} ({one.difference.seeds})" and "n = 397" in table.caption


def test_the_answer_says_what_the_verdicts_say(study: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = {summary.GAP: "lower", "AutoAttack": "equal, this pair"}
    changed = {
        question: replace(one, verdict=verdicts.get(question.quantity, "undecided"))
        for question, one in findings.findings(study).items()
        if question.rival == "control"
    }
    monkeypatch.setattr(summary, "findings", lambda results: changed)
    told = "against the control: the energy term narrows the gap E(x_adv) - E(x) and keeps accuracy under AutoAttack "
    told += "(this pair); undecided: d', PGD-20."
    assert summary.answer(study, study.params.variant) == [f"Code form, {told}", f"Equations, {told}"]
    monkeypatch.setattr(
        summary, "findings", lambda results: {q: replace(o, verdict="undecided") for q, o in changed.items()}
    )
    said = summary.answer(study, study.params.variant)
    assert said[0].startswith("Code form, against the control: undecided: E(x_adv) - E(x), d'")
    texts = summary.texts(study)
    assert max(len(line) for line in f"{texts['answer']}{texts['check']}".splitlines()) <= 120


def test_trainings_that_diverged_are_told_by_model_seed_and_epoch(study: Results, workspace: Path) -> None:
    for seed, epoch in ((0, 7), (2, 9)):
        files.write_json(Run("digits-study", "ebjdat-jempp", seed).diverged, {"epoch": epoch})
    told = "EB-JDAT-JEM++ (code form): seed 0 at epoch 7, seed 2 at epoch 9"
    assert summary.texts(study)["diverged"] == f"- {told}\n"


def test_an_interval_without_0_that_decides_nothing_says_why(study: Results) -> None:
    one = findings.findings(study)[findings.Question("ebjdat-jempp", "AutoAttack", "pgd_at")]
    assert str(one).endswith("] lower (3)")
    assert str(replace(one, verdict="undecided")).endswith("] undecided after correction (3)")


def test_no_line_begins_with_a_minus() -> None:
    text = f"- {'x' * 108} E(x_adv) - E(x)"
    assert summary.wrapped(text) == f"- {'x' * 108}\n  E(x_adv) - E(x)"


def test_the_range_to_check_against_holds_the_seeds_that_it_is_made_of(study: Results) -> None:
    values = list(100 * study.values("ebjdat-jempp", summary.AUTOATTACK))
    low, high = summary._next(values, 64)
    assert low < min(values) and max(values) < high
    assert summary._next([90.0], 64) == pytest.approx((80.2, 95.2), abs=0.5)


def test_nothing_is_said_where_nothing_was_run() -> None:
    empty = frame.from_records(load_params(ROOT, "digits"), [])
    assert summary.texts(empty)["short"] == summary.texts(empty)["answer"] == ""
    assert summary.check(empty).startswith("No record of EB-JDAT-JEM++")
