"""The sentences of the README: chosen by their intervals, wrapped, and in the page as the records give them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ebjdat.config import load_params
from ebjdat.results import frame, summary
from ebjdat.results.findings import Question, findings
from ebjdat.results.frame import Results

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study() -> Results:
    return frame.load(load_params(ROOT, "digits-study"), ROOT)


def test_a_row_gives_difference_interval_verdict_and_seeds(study: Results) -> None:
    one = findings(study)[Question("ebjdat-jempp", "AutoAttack", "pgd_at")]
    table = summary.short(study)
    assert table.body.loc["AutoAttack, points: minus PGD-AT", ("", "code form")] == str(one)
    assert str(one) == f"{one.numbers} {one.verdict} ({one.difference.seeds})" and "n = 397" in table.caption


def test_the_answer_says_what_the_verdicts_say(study: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = {summary.GAP: "lower", "AutoAttack": "equal, this pair"}
    changed = {
        question: replace(one, verdict=verdicts.get(question.quantity, "undecided"))
        for question, one in findings(study).items()
        if question.rival == "control"
    }
    monkeypatch.setattr(summary, "findings", lambda results: changed)
    told = "against the control: the energy term narrows the gap E(x_adv) - E(x) and keeps accuracy under AutoAttack "
    told += "(this pair); undecided: d', PGD-20."
    assert summary.answer(study) == [f"Code form, {told}", f"Equations, {told}"]
    monkeypatch.setattr(
        summary, "findings", lambda results: {q: replace(o, verdict="undecided") for q, o in changed.items()}
    )
    assert summary.answer(study)[0].startswith("Code form, against the control: undecided: E(x_adv) - E(x), d'")
    texts = summary.texts(study)
    assert max(len(line) for line in f"{texts['answer']}{texts['check']}".splitlines()) <= 120


def test_an_interval_without_0_that_decides_nothing_says_why(study: Results) -> None:
    one = findings(study)[Question("ebjdat-jempp", "AutoAttack", "pgd_at")]
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
