"""Each sign of gradient masking fails its own indicator, and chance fails none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from ebjdat.evaluation import masking
from ebjdat.protocols import STANDARD
from ebjdat.statistics import Rate
from tests.synthetic import rate, rates_of_protocol

HEALTHY = {name: one for rates in rates_of_protocol(STANDARD, 0.6, seed=0).values() for name, one in rates.items()}


def verdicts(changes: Mapping[str, Rate] | None = None, values: Mapping[str, float] | None = None) -> dict[str, bool]:
    found, _ = masking.decide({**HEALTHY, **(changes or {})}, values or {}, "standard")
    return {one.name: one.passed for one in found}


def share(value: float) -> Rate:
    return rate(value, 0)


def test_a_healthy_model_passes_every_indicator() -> None:
    found = verdicts(values={"self-test/planted": 1.0, "self-test/undefended": 0.0})
    assert set(found) == {
        "radius", "unbounded", "iterations", "one-step", "randomness", "square", "transfer", "noise", "self-test",
    }  # fmt: skip
    assert all(found.values())


@pytest.mark.parametrize(
    ("indicator", "changes"),
    [
        ("radius", {"apgd-ce/radius-4/steps-20": 0.6, "apgd-ce/radius-0.5/steps-20": 0.6}),
        ("radius", {"apgd-ce/radius-4/steps-20": 0.9}),
        ("unbounded", {"unbounded": 0.1}),
        ("iterations", {"apgd-ce/radius-1/steps-50": 0.85}),
        ("one-step", {"apgd-ce/radius-1/steps-1": 0.3}),
        ("one-step", {"pgd-1": 0.3}),
        ("randomness", {"eot-pgd/plain/samples-2/radius-1": 0.8}),
        ("randomness", {"eot-pgd/noise/samples-20/radius-1": 0.8}),
        ("square", {"square": 0.3}),
        ("transfer", {"transfer/worst": 0.3}),
        ("noise", {"uniform-noise": 0.7}),
    ],
)
def test_a_sign_of_masking_fails_its_indicator(indicator: str, changes: dict[str, float]) -> None:
    found = verdicts({f"standard/{name}": share(value) for name, value in changes.items()})
    assert found[indicator] is False


@pytest.mark.parametrize("values", [{"self-test/planted": 0.9}, {"self-test/undefended": 0.2}])
def test_a_harness_that_misses_planted_examples_fails(values: dict[str, float]) -> None:
    assert verdicts(values=values)["self-test"] is False


def test_a_claim_that_too_few_images_can_decide_is_not_rejected_rather_than_shown() -> None:
    few, many = (Rate.of(np.array([True] * 9 * n + [False] * n)) for n in (2, 200))
    assert masking.no_higher(many, many, 0.02) == "shown"
    assert masking.no_higher(few, few, 0.02) == "not rejected"
    assert masking.no_higher(share(0.9), share(0.5), 0.02) == "failed"
    assert masking.worst(["shown", "not rejected"]) == "not rejected"
    by_name = {one.name: one for one in masking.decide(HEALTHY, {"self-test/planted": 1.0}, "standard")[0]}
    assert by_name["iterations"].verdict == "not rejected" and by_name["iterations"].passed
    assert by_name["self-test"].verdict == "shown"


def test_a_difference_of_two_images_is_chance() -> None:
    base = HEALTHY["standard/apgd-ce/radius-1/steps-20"].per_image()
    more = base.copy()
    more[np.flatnonzero(~base)[:2]] = True
    assert masking.no_higher(Rate.of(more), Rate.of(base)) == "not rejected"
    assert verdicts({"standard/apgd-ce/radius-1/steps-50": Rate.of(more)})["iterations"] is True


def test_square_alone_cannot_clear_itself_through_the_cascade_that_contains_it() -> None:
    weak = {f"standard/{name}": share(0.6) for name in ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t")}
    found = verdicts({**weak, "standard/square": share(0.3), "standard/autoattack": share(0.3)})
    assert found["square"] is False


def test_what_was_not_measured_is_named_and_not_passed() -> None:
    found, missing = masking.decide({"standard/clean": share(0.9)}, {}, "standard")
    assert found == []
    assert {"radius", "square", "self-test"} <= set(missing)
    assert masking.evaluate({"standard/clean": share(0.9)}, {}, ("standard",)).values == {}


def test_the_result_has_a_verdict_and_the_numbers_per_indicator_and_one_failure_fails_the_whole() -> None:
    result = masking.evaluate({**HEALTHY, "standard/unbounded": share(0.5)}, {}, ("standard", "released"))
    assert result.values["masking/standard/unbounded"] == 0.0
    assert result.values["masking/standard/radius"] == 1.0
    assert result.values["masking/passed"] == 0.0
    audit = result.audits["standard/unbounded"]
    assert (audit["passed"], audit["verdict"]) == (False, "failed")
    assert audit["numbers"] == {"accuracy": share(0.5).accuracy, "n": 80}
    assert "unbounded" in str(audit["rule"])
    assert len(result.warnings["released"]) == 9


def test_a_model_that_any_attack_breaks_shows_no_masking_by_its_flat_curve() -> None:
    broken = {f"standard/apgd-ce/radius-{r}/steps-20": share(0.0) for r in ("0.5", "1", "2", "4")}
    assert verdicts(broken)["radius"] is True
