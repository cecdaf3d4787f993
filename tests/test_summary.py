"""The sentences of the README: chosen by their intervals, wrapped, and in the page as the records give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ebjdat.config import load_params
from ebjdat.results import frame, summary
from ebjdat.results.frame import Results

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def digits() -> Results:
    return frame.load(load_params(ROOT, "digits"), ROOT, store=False)


def test_a_sentence_follows_the_interval_of_its_difference(digits: Results) -> None:
    said = summary.texts(digits)["answers"]
    assert "EB-JDAT-JEM++ is more robust than JEM++: AutoAttack" in said
    assert "No benefit of the default energy term for robustness was found: AutoAttack" in said
    assert "EB-JDAT-JEM++ is less robust than PGD-AT" in said.replace("\n  ", " ")


def test_the_gap_is_told_for_the_default_term_and_for_the_papers_equation(digits: Results) -> None:
    said = summary.texts(digits)["short"].replace("\n  ", " ")
    assert "the default term (cross_entropy, w2 = 0.1) widens it" in said
    assert "the paper's equation (energy, w2 = 1) narrows it" in said


def test_sentences_are_wrapped_and_say_images_and_seeds(digits: Results) -> None:
    said = summary.texts(digits)
    assert max(len(line) for text in said.values() for line in text.splitlines()) <= 120
    short = " ".join(said["short"].split())
    assert "64 images" in short and "6 seeds" in short


def test_the_range_to_check_against_holds_the_seeds_that_it_is_made_of(digits: Results) -> None:
    values = list(100 * digits.values("ebjdat-jempp", summary.AUTOATTACK))
    low, high = summary._next(values, 64)
    assert low < min(values) and max(values) < high
    assert summary._next([90.0], 64) == pytest.approx((80.2, 95.2), abs=0.5)


def test_nothing_is_said_where_nothing_was_run() -> None:
    empty = frame.from_records(load_params(ROOT, "digits"), [])
    assert summary.texts(empty)["answers"] == ""
    assert summary.check(empty).startswith("No record of EB-JDAT-JEM++")
