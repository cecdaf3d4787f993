"""The sentences of the README: chosen by their intervals, wrapped, and in the page as the records give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ebjdat.config import load_params
from ebjdat.results import frame, summary
from ebjdat.results.findings import Question, findings
from ebjdat.results.frame import Results

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study() -> Results:
    return frame.load(load_params(ROOT, "digits-study"), ROOT, store=False)


def test_a_sentence_gives_verdict_difference_interval_images_and_seeds(study: Results) -> None:
    said = summary.texts(study)["answers"].replace("\n  ", " ")
    found = findings(study)[Question("ebjdat-jempp", "AutoAttack", "pgd_at")]
    images, seeds = found.difference.images, found.difference.seeds
    numbers = f"AutoAttack {found.verdict}, {found.numbers} points ({images} images, {seeds} seeds)"
    assert f"- EB-JDAT-JEM++ (code form) minus PGD-AT: {numbers}; PGD-20" in said


def test_both_forms_meet_the_control_and_the_start_of_their_chains(study: Results) -> None:
    texts = summary.texts(study)
    starts = [line.partition(":")[0] for line in texts["short"].splitlines() if line.startswith("- ")]
    forms = [f"- EB-JDAT-JEM++ ({form})" for form in ("code form", "equations")]
    rivals = ("its control", "PGD-AT", "its chains' start")
    assert starts == [f"{form} minus {rival}" for rival in rivals for form in forms]
    assert max(len(line) for text in texts.values() for line in text.splitlines()) <= 120


def test_the_range_to_check_against_holds_the_seeds_that_it_is_made_of(study: Results) -> None:
    values = list(100 * study.values("ebjdat-jempp", summary.AUTOATTACK))
    low, high = summary._next(values, 64)
    assert low < min(values) and max(values) < high
    assert summary._next([90.0], 64) == pytest.approx((80.2, 95.2), abs=0.5)


def test_nothing_is_said_where_nothing_was_run() -> None:
    empty = frame.from_records(load_params(ROOT, "digits"), [])
    assert summary.texts(empty)["answers"] == ""
    assert summary.check(empty).startswith("No record of EB-JDAT-JEM++")
