"""Evaluations: what the records of the attack stages hold, and how their numbers relate."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from ebjdat import files
from ebjdat.attacks.apgd import APGD
from ebjdat.attacks.audit import Audit
from ebjdat.attacks.autoattack import CASCADE, Outcome
from ebjdat.attacks.batches import Batches, correct
from ebjdat.attacks.linf import PGD
from ebjdat.errors import AuditError, UserError
from ebjdat.evaluation import cases, clean, distributions, eot, robustness, selftest, sweep, transfer
from ebjdat.evaluation.cases import attack_case, make_cases, noisy
from ebjdat.evaluation.outcomes import NOTHING
from ebjdat.evaluation.outliers import outliers
from ebjdat.evaluation.statistics import Result, paired
from ebjdat.protocols import PROTOCOLS, AutoAttackCell, EotCell, Table1
from ebjdat.provenance import ROOT
from tests.small_models import digits, held_out, saved, trained

RADIUS = 24 / 255
N = 30
NAME = re.compile(r"[a-z0-9._/-]+")


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    return held_out(N)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The protocols with smaller budgets."""
    for name, protocol in PROTOCOLS.items():
        alone = tuple(
            replace(cell, steps={"square": 40, "fab-t": 5, "apgd-t": 5}.get(cell.attack, cell.steps))
            for cell in protocol.table1.alone
        )
        cells = tuple(replace(cell, samples=min(cell.samples, 3)) for cell in protocol.eot.cells)
        monkeypatch.setitem(
            cases.PROTOCOLS,
            name,
            replace(
                protocol,
                table1=Table1(alone=alone, cascade=False),
                transfer=replace(protocol.transfer, neighbours=tuple(n // 2 for n in protocol.transfer.neighbours)),
                eot=replace(protocol.eot, cells=cells),
            ),
        )
    yield


def accuracy(result: Result, name: str) -> float:
    return result.rates[name].accuracy


def names_are_sound(result: Result) -> bool:
    """What every record must satisfy."""
    return (
        all(NAME.fullmatch(name) for name in (*result.rates, *result.values))
        and all(rate.n == result.n for rate in result.rates.values())
        and all(np.isfinite(value) for value in result.values.values())
        and bool(result.arrays)
    )


# Cases


def test_both_protocols_share_images_unless_the_variant_has_input_noise(images: tuple[Tensor, Tensor]) -> None:
    for variant, shared in (("sadajem", True), (None, True), ("jem", False), ("jempp", False)):
        standard, released = make_cases(*images, RADIUS, variant)
        assert torch.equal(standard.x, images[0])
        assert torch.equal(released.x, images[0]) is shared
        assert (standard.radius, released.radius) == (RADIUS, RADIUS / 2)


def test_input_noise_is_one_fixed_draw_clipped_to_the_range(images: tuple[Tensor, Tensor]) -> None:
    x, _ = images
    drawn = noisy(x, 0.015, 0)
    assert torch.equal(drawn, noisy(x, 0.015, 0)) and not torch.equal(drawn, noisy(x, 0.015, 1))
    assert torch.equal(drawn[:7], noisy(x[:7], 0.015, 0)), "image i has the same noise whatever their number"
    assert float(drawn.min()) >= 0.0 and float(drawn.max()) <= 1.0
    inside = (x > 0.1) & (x < 0.9)
    assert float((drawn - x)[inside].std()) == pytest.approx(0.015, rel=0.15)


def test_misclassified_images_are_not_attacked_but_counted(images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    y = y.clone()
    y[:5] = (y[:5] + 1) % 10
    seen: list[int] = []

    def craft(wanted: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        seen.append(len(wanted))
        return wanted

    attacked = attack_case("attack", trained(), x, y, RADIUS, craft)
    assert seen == [int(attacked.robust.sum())] and not attacked.robust[:5].any()
    assert len(attacked.robust) == N and attacked.audit.changed == 0


def test_a_model_that_is_never_right_needs_no_attack(images: tuple[Tensor, Tensor]) -> None:
    x, _ = images
    predicted = trained()(x).argmax(1)

    def never(*_: Tensor) -> Tensor:
        raise AssertionError("nothing to attack")

    assert not attack_case("attack", trained(), x, (predicted + 1) % 10, RADIUS, never).robust.any()


def test_a_broken_attack_fails_the_evaluation(images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PGD, "__call__", lambda self, model, x, y, generator, start=None: (x + 0.5).clamp(0, 1))
    with pytest.raises(AuditError, match=r"standard/pgd-20: \d+ of 30 images leave the ball"):
        clean.evaluate({"best": trained(), "last": trained()}, *images, nominal=RADIUS, variant=None)


# Clean


def evaluate_clean(images: tuple[Tensor, Tensor], **options: Any) -> Result:
    models = {"best": trained(adversarial=True), "last": trained()}
    return clean.evaluate(models, *images, nominal=RADIUS, **{"variant": "jempp", **options})


def test_clean_reports_both_checkpoints_under_both_protocols(images: tuple[Tensor, Tensor]) -> None:
    result = evaluate_clean(images)
    parts = ("clean", "pgd-20", "clean-last", "pgd-20-last")
    assert set(result.rates) == {f"{protocol}/{part}" for protocol in PROTOCOLS for part in parts}
    assert names_are_sound(result)
    assert (
        accuracy(result, "standard/pgd-20") < accuracy(result, "released/pgd-20") <= accuracy(result, "released/clean")
    )
    assert accuracy(result, "standard/pgd-20-last") < accuracy(result, "standard/pgd-20"), "the plain one is weaker"
    assert result.audits["standard/pgd-20"]["eps"] == RADIUS
    assert result.settings["released"]["input_noise"] == 0.015


def test_energies_have_gaps_with_their_sign_and_overlaps(images: tuple[Tensor, Tensor]) -> None:
    result = evaluate_clean(images, generated={"generated": images[0], "generated-fresh": images[0]})
    arrays, values = result.arrays or {}, result.values
    for kind in ("adversarial", "targeted", "generated", "uniform-noise", "photographs", "interpolated"):
        gap = float(arrays[f"{kind}/energy"].mean() - arrays["clean/energy"].mean())
        assert values[f"energy/gap-{kind}"] == pytest.approx(gap, abs=1e-5)
    for kind in ("adversarial", "targeted", "generated"):
        assert 0.0 <= values[f"energy/overlap-{kind}"] <= 1.0
    assert values["energy/gap-generated"] == 0.0 and values["energy/overlap-generated"] == pytest.approx(1.0)
    three = [arrays[f"{kind}/energy"] for kind in ("clean", "adversarial", "generated")]
    assert values["energy/overlap-all"] == pytest.approx(distributions.overlap(*three))
    assert values["energy/overlap-all-fresh"] == values["energy/overlap-all"], "the same images under another name"
    assert values["energy/gap-generated-fresh"] == 0.0
    assert values["energy/overlap-adversarial"] == pytest.approx(distributions.overlap(*three[:2]))


def test_generated_images_far_away_do_not_change_how_adversarial_ones_overlap(images: tuple[Tensor, Tensor]) -> None:
    near, far = (
        evaluate_clean(images, generated={"generated": x}).values for x in (images[0], torch.zeros_like(images[0]))
    )
    assert near["energy/gap-generated"] != far["energy/gap-generated"]
    assert near["energy/overlap-adversarial"] == far["energy/overlap-adversarial"]


def test_per_image_energies_and_margins_are_those_of_the_logits(images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    arrays = evaluate_clean(images).arrays or {}
    logits = trained(adversarial=True)(x).detach()
    np.testing.assert_allclose(arrays["clean/energy"], -logits.logsumexp(1), rtol=1e-5)
    np.testing.assert_allclose(arrays["clean/label-energy"], -logits[torch.arange(N), y], rtol=1e-5)
    np.testing.assert_array_equal(arrays["clean/margin"] > 0, (logits.argmax(1) == y).numpy())
    np.testing.assert_array_equal(arrays["label"], y)


def test_the_first_images_of_each_class_are_kept_with_their_attacked_versions(images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    arrays = evaluate_clean(images).arrays or {}
    clean, attacked = arrays["pictures/clean"], arrays["pictures/adversarial"]
    assert clean.dtype == attacked.dtype == np.uint8 and clean.shape == attacked.shape
    first = [int(place) for label in y.unique() for place in (y == label).nonzero()[:2]]
    np.testing.assert_array_equal(arrays["pictures/label"], y[first])
    np.testing.assert_array_equal(clean, (x[first] * 255).round().byte())
    difference = np.abs(attacked.astype(int) - clean.astype(int))
    assert 0 < difference.max() <= 33
    predicted = trained(adversarial=True)(x[first]).argmax(1)
    np.testing.assert_array_equal(arrays["pictures/clean-prediction"], predicted)
    assert arrays["pictures/adversarial-prediction"].shape == predicted.shape


def test_the_training_adversary_is_audited_against_its_own_bound(images: tuple[Tensor, Tensor]) -> None:
    def craft(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return (x + 0.2).clamp(0, 1)

    result = evaluate_clean(images, adversary=clean.Adversary(craft, 0.2))
    assert result.audits["training-adversary"]["eps"] == 0.2
    assert "energy/gap-training-adversary" in result.values
    with pytest.raises(AuditError, match=r"training-adversary: 30 of 30 images leave the ball of radius 0\.1"):
        evaluate_clean(images, adversary=clean.Adversary(craft, 0.1))


def test_outliers_are_images_of_the_same_shape_and_not_the_data(images: tuple[Tensor, Tensor]) -> None:
    for colour in (images[0], images[0].repeat(1, 3, 4, 4)):
        sets = outliers(colour, 0)
        assert set(sets) == {"photographs", "interpolated", "uniform-noise"}
        for name, found in sets.items():
            assert found.shape == colour.shape and found.dtype == torch.float32, name
            assert float(found.min()) >= 0.0 and float(found.max()) <= 1.0
            assert not torch.equal(found, colour) and float(found.std()) > 0.05
        assert all(torch.equal(found, outliers(colour, 0)[name]) for name, found in sets.items())


# Distributions


def test_overlap_is_one_for_equal_and_zero_for_apart_distributions() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    assert distributions.overlap(values, values) == pytest.approx(1.0)
    assert distributions.overlap(values, values + 50) == 0.0


def test_overlap_of_two_shifted_gaussians_is_near_its_known_value() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=20000), random.normal(size=20000) + 1.0
    assert distributions.overlap(first, second) == pytest.approx(0.6171, abs=0.02)
    assert distributions.gap(second, first) == pytest.approx(1.0, abs=0.03)
    assert distributions.gap(first, second) == pytest.approx(-1.0, abs=0.03)


def test_one_extreme_value_does_not_swallow_the_histogram() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    extreme = np.append(values, 1e9)
    assert distributions.overlap(extreme, values + 50) < 0.05


def test_auroc_counts_pairs_and_ties() -> None:
    assert distributions.auroc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0
    assert distributions.auroc(np.array([1.0]), np.array([1.0])) == 0.5
    random = np.random.default_rng(0)
    higher, lower = random.integers(0, 9, 50).astype(float), random.integers(0, 7, 40).astype(float)
    pairs = (higher[:, None] > lower).mean() + 0.5 * (higher[:, None] == lower).mean()
    assert distributions.auroc(higher, lower) == pytest.approx(pairs)


def test_calibration_error_of_a_hand_made_case() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    table = distributions.reliability(confidence, right)
    assert table["count"].sum() == 6
    assert distributions.expected_calibration_error(table) == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)


def test_full_confidence_falls_into_the_last_bin() -> None:
    assert distributions.reliability(np.array([1.0]), np.array([True]))["count"][-1] == 1


# AutoAttack


def evaluate_robustness(images: tuple[Tensor, Tensor], folder: Path, **options: Any) -> Result:
    weights = folder / "weights.pt"
    torch.save(trained(adversarial=True).state_dict(), weights)
    settings: dict[str, Any] = {"nominal": RADIUS, "variant": None, "slice_size": 20, "made_by": {"model": "m"}}
    load = {"best": partial(saved, weights)} | options.pop("load", {})
    return robustness.evaluate(load, *images, folder=folder / "states", **(settings | options))


def test_table_1_has_every_attack_alone_and_their_union(
    short: None, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    result = evaluate_robustness(images, tmp_path)
    standard = {"apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"}
    released = standard - {"apgd-t"}
    expected = {f"standard/{name}" for name in standard} | {f"released/{name}" for name in released}
    assert set(result.rates) == expected | {f"{p}/{name}" for p in PROTOCOLS for name in ("clean", "union")}
    assert names_are_sound(result)
    for protocol, attacks in (("standard", standard), ("released", released)):
        flags = [result.rates[f"{protocol}/{name}"].per_image() for name in attacks]
        np.testing.assert_array_equal(result.rates[f"{protocol}/union"].per_image(), np.logical_and.reduce(flags))
    assert accuracy(result, "standard/union") < accuracy(result, "released/union") <= accuracy(result, "released/clean")
    assert result.audits["standard/apgd-ce"]["images"] == N, "both slices are in the audit"
    assert result.values["standard/warnings/zero-gradient"] == 0.0
    assert result.settings["package"].startswith("pyautoattack ")


def test_apgd_ce_alone_is_read_from_the_cascade_only_where_both_run_the_same(images: tuple[Tensor, Tensor]) -> None:
    standard, released = (robustness.plan(case, 20) for case in make_cases(*images, RADIUS, None))
    assert list(standard) == ["cascade", "apgd-dlr", "apgd-t", "fab-t", "square"]
    assert list(released) == ["apgd-ce", "apgd-dlr", "fab-t", "square"]
    assert [(task.first, task.last) for task in standard["cascade"]] == [(0, 20), (20, 30)]
    last = robustness.plan(make_cases(*images, RADIUS, None)[0], 20, 21)["last"]
    assert [(task.first, task.attack, task.checkpoint) for task in last] == [
        (0, "cascade-start", "last"),
        (20, "cascade-start", "last"),
    ]
    protocol = replace(
        PROTOCOLS["standard"], table1=Table1(alone=(AutoAttackCell(attack="apgd-ce", steps=50),), cascade=True)
    )
    other = cases.Case(protocol, *images, RADIUS, 0.0)
    assert list(robustness.plan(other, 20)) == ["cascade", "apgd-ce"]


def outcome(right: list[int], *robust: list[int]) -> Outcome:
    flags = [np.array(found, dtype=bool) for found in robust]
    audit = Audit(len(right), RADIUS, 0.05, 0.0, 1.0, 0, 1).plain()
    return Outcome(np.array(right, dtype=bool), dict(zip(CASCADE, flags, strict=True)), audit, {"w": 1})


def test_the_first_successful_attack_of_the_cascade_is_kept_per_image() -> None:
    found = [
        outcome([1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 0]),
        outcome([1], [1], [0], [0], [0]),
    ]
    right = np.array([1, 0, 1, 1, 1], dtype=bool)
    np.testing.assert_array_equal(robustness.first_success(right, found), [0, -1, 1, 4, 2])


def test_a_cascade_fills_autoattack_and_apgd_ce(
    short: None, images: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = cases.PROTOCOLS["standard"]
    monkeypatch.setitem(cases.PROTOCOLS, "standard", replace(protocol, table1=replace(protocol.table1, cascade=True)))

    def planned(jobs: list[Any], *_: Any, **__: Any) -> dict[Any, Outcome]:
        results = {}
        for task in jobs:
            n = task.last - task.first
            ones = np.ones(n, dtype=bool)
            after = [np.arange(n) >= k for k in range(1, 5)]
            robust = dict(zip(task.attacks, after[task.checkpoint == "last" :], strict=False))
            results[task] = Outcome(ones, robust, Audit(n, task.eps, 0.0, 0.0, 1.0, 0, n).plain(), {"odd text": 2})
        return results

    monkeypatch.setattr(robustness, "run_jobs", planned)
    result = evaluate_robustness(images, tmp_path)
    assert result.rates["standard/apgd-ce"].correct == N - 2
    assert result.rates["standard/autoattack"].correct == N - 8
    assert (result.arrays or {})["standard/first-success"].tolist()[:5] == [1, 2, 3, 4, 0]
    assert result.warnings["standard/cascade"] == ["odd text (4 times)"]
    assert result.values["standard/warnings/other"] == 2.0 * 2 * 5
    assert result.rates["standard/apgd-ce-t"].correct == N - 4
    assert "standard/apgd-ce-t-last" not in result.rates, "there is no last checkpoint"
    other = evaluate_robustness(images, tmp_path, load={"last": trained}, last_images=1)
    assert (other.rates["standard/apgd-ce-t-last"].correct, other.rates["standard/apgd-ce-t-last"].n) == (17, 20)
    assert other.settings["last"]["weights"] == "other than best"
    same = evaluate_robustness(images, tmp_path, load={"last": partial(trained, adversarial=True)}, last_images=N)
    assert same.rates["standard/apgd-ce-t-last"] == same.rates["standard/apgd-ce-t"], "equal weights, no new attack"


def test_a_fab_that_finds_almost_nothing_fails_the_stage(
    short: None, images: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fab = pytest.importorskip("pyautoattack.fab_base")
    monkeypatch.setattr(fab.FABAttack, "attack_single_run", lambda self, x, y, **_: x)
    with pytest.raises(AuditError, match=r"standard/fab-t: breaks 0 of .* apgd-t breaks"):
        evaluate_robustness(images, tmp_path, nominal=3 * RADIUS)


# Transfer


def test_table_2_has_every_attack_and_its_worst_case_per_image(short: None, images: tuple[Tensor, Tensor]) -> None:
    surrogates = {"pgd_at": trained(adversarial=True), "undefended": trained()}
    result = transfer.evaluate(
        "ebjdat-jem", trained(adversarial=True), surrogates, *images, nominal=RADIUS, variant="jem"
    )
    assert names_are_sound(result)
    attacks = ("pgd", "mi-fgsm", "vmi-fgsm/neighbours-2", "vni-fgsm/neighbours-10")
    assert {f"standard/transfer/{s}/{a}" for s in surrogates for a in attacks} <= set(result.rates)
    assert not any("neighbours-10" in name for name in result.rates if name.startswith("released"))
    for protocol in PROTOCOLS:
        parts = [rate.per_image() for name, rate in result.rates.items() if name.startswith(f"{protocol}/transfer/")
                 and not name.endswith("worst")]  # fmt: skip
        np.testing.assert_array_equal(
            result.rates[f"{protocol}/transfer/worst"].per_image(), np.logical_and.reduce(parts)
        )
    assert result.settings["white-box"] == []
    assert 0.0 <= result.values["self-test/undefended"] <= 0.1


def test_the_model_itself_as_surrogate_is_white_box_and_outside_the_worst_case(
    short: None, images: tuple[Tensor, Tensor]
) -> None:
    surrogates = {"pgd_at": trained(), "undefended": trained(adversarial=True)}
    result = transfer.evaluate("pgd_at", trained(), surrogates, *images, nominal=2 * RADIUS, variant=None)
    assert result.settings["white-box"] == ["pgd_at"]
    assert accuracy(result, "standard/transfer/pgd_at/pgd") < accuracy(result, "standard/transfer/worst")
    parts = [
        rate.per_image() for name, rate in result.rates.items() if name.startswith("standard/transfer/undefended/")
    ]
    np.testing.assert_array_equal(result.rates["standard/transfer/worst"].per_image(), np.logical_and.reduce(parts))
    on_itself = result.values["standard/transfer/pgd_at/pgd/on-surrogate"]
    assert on_itself == pytest.approx(accuracy(result, "standard/transfer/pgd_at/pgd"))
    own = result.rates["standard/transfer/pgd_at/worst"], result.rates["standard/transfer/undefended/worst"]
    assert own[1] == result.rates["standard/transfer/worst"] and own[0].correct < own[1].correct


# Sweep and EOT


def test_table_3_sweeps_radius_and_iterations(images: tuple[Tensor, Tensor]) -> None:
    result = sweep.evaluate(trained(adversarial=True), *images, nominal=RADIUS, variant=None)
    assert names_are_sound(result)
    radii = [f"radius-{multiple}" for multiple in ("0.5", "1", "2", "4")]
    assert {f"standard/apgd-ce/{radius}/steps-{steps}" for radius in radii for steps in (20, 100)} <= set(result.rates)
    assert {f"released/apgd-ce/radius-1/steps-{steps}" for steps in (1, 10, 20, 50)} <= set(result.rates)
    assert "released/apgd-ce/radius-2/steps-100" not in result.rates
    falling = [accuracy(result, f"standard/apgd-ce/{radius}/steps-100") for radius in radii]
    assert falling == sorted(falling, reverse=True) and falling[0] > falling[2]
    assert accuracy(result, "standard/unbounded") == accuracy(result, "released/unbounded") == 0.0
    assert accuracy(result, "standard/uniform-noise") > accuracy(result, "standard/pgd-1")
    assert accuracy(result, "standard/pgd-1") >= accuracy(result, "standard/apgd-ce/radius-1/steps-100")


def test_protocols_share_a_cell_where_images_radius_and_steps_are_equal(
    images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[sweep.Cell] = []
    original = sweep._walk

    def counting(model: nn.Module, cells: list[sweep.Cell], *rest: Any) -> list[Tensor]:
        walked.extend(cells)
        return original(model, cells, *rest)

    monkeypatch.setattr(sweep, "_walk", counting)
    result = sweep.evaluate(trained(adversarial=True), *images, nominal=RADIUS, variant="sadajem")
    assert len(walked) == len(set(walked)) < sum(len(sweep.cells_of(c)) for c in make_cases(*images, RADIUS, None))
    standard, released = (
        result.rates[name] for name in ("standard/apgd-ce/radius-0.5/steps-20", "released/apgd-ce/radius-1/steps-20")
    )
    assert standard == released


def test_a_cell_does_not_depend_on_the_cells_it_walks_with(images: tuple[Tensor, Tensor]) -> None:
    model = trained(adversarial=True)
    (case, _) = make_cases(*images, RADIUS, None)
    cell = sweep.Cell(0.0, RADIUS, 10)
    others = [sweep.Cell(0.0, 0.02, 10), cell, sweep.Cell(0.0, 0.4, 10)]
    alone, _ = sweep._attack_cells(model, [cell], {0.0: case}, Batches(), NOTHING)
    together, _ = sweep._attack_cells(model, others, {0.0: case}, Batches(), NOTHING)
    assert torch.equal(alone[cell], together[cell])


def test_eot_is_reported_plain_and_with_noise_inside(short: None, images: tuple[Tensor, Tensor]) -> None:
    result = eot.evaluate(trained(adversarial=True), *images, nominal=RADIUS, variant=None)
    assert names_are_sound(result)
    for name in (
        "standard/eot-pgd/plain/samples-2",
        "standard/eot-pgd/noise/samples-3",
        "released/eot-pgd/plain/samples-2",
    ):
        robust = [accuracy(result, f"{name}/radius-{multiple}") for multiple in ("0.5", "1", "2", "4")]
        assert robust == sorted(robust, reverse=True) and robust[0] > robust[2]
    assert not any(name.startswith("released/eot-pgd/noise") for name in result.rates)
    assert result.settings["standard"]["eot"]["sigma"] == 0.015


def test_eot_on_the_plain_model_is_pgd_of_the_same_steps(images: tuple[Tensor, Tensor]) -> None:
    model = trained(adversarial=True)
    (case, _) = make_cases(*images, RADIUS, None)
    flags, _ = eot._radii(model, case, EotCell(noise="plain", samples=2), Batches())
    attack = PGD(eps=RADIUS, step=RADIUS / 8, steps=20, random_start=True)
    start = attack.start(case.x, cases.stream(0, "eot"))
    x_adv = attack(model, case.x, case.y, torch.Generator(), start)
    robust = correct(model, case.x, case.y) & correct(model, x_adv, case.y)
    assert torch.equal(flags["standard/eot-pgd/plain/samples-2/radius-1"], robust)


def test_a_random_models_prediction_is_the_same_at_every_call(images: tuple[Tensor, Tensor]) -> None:
    judged = eot.Judged(trained(), EotCell(noise="noise", samples=2), 0.2, 0, Batches())
    assert torch.equal(judged.correct(*images), judged.correct(*images))


# All of them


@pytest.mark.parametrize("eps", [2 / 255, 8 / 255, 24 / 255])
def test_the_harness_finds_exactly_the_adversarial_examples_that_exist(eps: float) -> None:
    x = held_out(200)[0]
    model = selftest.Plane(x.mean(0), torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    result = sweep.evaluate(model, x, y, nominal=eps, variant=None)
    robust = ~model.breakable(x, eps).numpy()
    for name in ("standard/pgd-1", "standard/apgd-ce/radius-1/steps-20", "standard/apgd-ce/radius-1/steps-100"):
        np.testing.assert_array_equal(result.rates[name].per_image(), robust)
    assert 0 < robust.sum() < len(x)
    assert result.values["self-test/planted"] == 1.0


def test_the_self_test_notices_a_harness_that_finds_nothing(
    images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(APGD, "__call__", lambda self, model, x, y, generator, start=None: x)
    assert selftest.planted(images[0], RADIUS, 0, Batches()) == 0.0
    assert selftest.undefended(trained(), *images, RADIUS, 0, Batches()) > 0.8


def test_the_self_test_breaks_an_undefended_network(images: tuple[Tensor, Tensor]) -> None:
    assert selftest.undefended(trained(), *images, RADIUS, 0, Batches()) <= 0.02


def test_no_planted_example_means_no_number(images: tuple[Tensor, Tensor]) -> None:
    assert selftest.planted(images[0], 1e-9, 0, Batches()) is None


def test_flags_of_two_models_can_be_compared_image_by_image(images: tuple[Tensor, Tensor]) -> None:
    robust, plain = (
        sweep.evaluate(model, *images, nominal=RADIUS, variant=None).rates["standard/apgd-ce/radius-1/steps-100"]
        for model in (trained(adversarial=True), trained())
    )
    comparison = paired(robust, plain)
    assert comparison.difference == pytest.approx(robust.accuracy - plain.accuracy)
    assert comparison.only_first > comparison.only_second


# Stages


@pytest.fixture
def workspace(short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small data, untrained models and parameters, as the pipeline would leave it."""
    from ebjdat.config import load_params
    from ebjdat.data.prepared import save_prepared
    from ebjdat.data.source import Source
    from ebjdat.model.store import Architecture, new_model, save_model

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    plain = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    plain |= {"profile": "digits", "variant": "jempp", "method": "ebjdat", "device": "cpu"}
    digits_profile = plain["profiles"]["digits"]
    digits_profile["data"] |= {"train": 200, "validation": 20, "test": 24}
    for stage in ("clean", "autoattack", "transfer", "sweep", "eot"):
        digits_profile["evaluation"][stage]["images"] = 20
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    images, labels = digits()
    levels, classes = (images * 16).round().to(torch.uint8).numpy(), labels.to(torch.uint8).numpy()
    source = Source("digits", levels, classes, test_images=None, test_labels=None, levels=16)
    save_prepared(tmp_path / "data" / "digits", source, load_params().current.data)
    architecture = Architecture(depth=10, width=1, channels=1, classes=10, norm="batch")
    for name in ("ebjdat-jempp", "pgd_at", "undefended", "surrogates/ebjdat-jempp", "surrogates/ebjdat-sadajem"):
        for checkpoint in ("best", "last"):
            save_model(
                tmp_path / "models" / "digits" / name / f"{checkpoint}.pt", new_model(architecture, 0), architecture
            )
    np.savez(tmp_path / "models" / "digits" / "ebjdat-jempp" / "buffer.npz", images=images[:20].numpy())
    return tmp_path


@pytest.mark.parametrize("stage", ["clean", "autoattack", "transfer", "sweep", "eot"])
def test_a_stage_writes_its_record_side_file_and_arrays_and_again_the_same(
    workspace: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"stages.{stage}")
    monkeypatch.setattr(sys, "argv", [stage])
    if stage == "autoattack":
        monkeypatch.setattr(module, "evaluators", lambda device, devices: 1)
    folder = workspace / "results" / "digits" / "ebjdat-jempp"
    module.main()
    first = (folder / f"{stage}.json").read_bytes(), (folder / f"{stage}.npz").read_bytes()
    assert (folder / f"{stage}.side.json").is_file()
    module.main()
    assert ((folder / f"{stage}.json").read_bytes(), (folder / f"{stage}.npz").read_bytes()) == first
    record = json.loads(first[0])
    assert record["n"] == 20 and record["audits"] and set(record["settings"]) >= set(PROTOCOLS)
    assert not list(workspace.rglob("autoattack/*/*.json")), "finished states are cleaned up"


def test_a_stage_of_a_baseline_writes_into_its_own_folder(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages import clean as stage

    monkeypatch.setattr(sys, "argv", ["clean", "--model", "pgd_at"])
    stage.main()
    record = json.loads((workspace / "results" / "digits" / "pgd_at" / "clean.json").read_text())
    assert "energy/gap-training-adversary" in record["values"]
    assert "energy/gap-generated" not in record["values"], "a baseline has no samples"
    assert record["settings"]["released"]["input_noise"] == 0.0


@pytest.mark.parametrize("stage", ["transfer", "sweep", "eot"])
def test_a_killed_stage_goes_on_with_the_same_flags_and_refuses_outcomes_of_another_evaluation(
    workspace: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"stages.{stage}")
    monkeypatch.setattr(sys, "argv", [stage])
    folder, scratch = workspace / "results" / "digits" / "ebjdat-jempp", workspace / ".mlflow" / stage
    module.main()
    expected = (folder / f"{stage}.json").read_bytes(), (folder / f"{stage}.npz").read_bytes()
    shutil.rmtree(folder)
    child = os.fork()
    if child == 0:
        write, written = files.write_json, []

        def killed(path: Path, value: object) -> None:
            written.append(path)
            if len(written) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            write(path, value)

        files.write_json = killed
        module.main()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = sorted(scratch.glob("*/*.json"))
    assert len(left) == 2
    content = json.loads(left[0].read_text())
    for name in ("models", "data slice", "radius", "code"):
        other = {**content, "identity": {**content["identity"], name: "another"}}
        left[0].write_text(json.dumps(other))
        with pytest.raises(UserError, match=f"another evaluation \\({name}: expected .*, found another\\)"):
            module.main()
    left[0].write_text("{}")
    with pytest.raises(UserError, match="not the outcome of an attack"):
        module.main()
    left[0].write_text(json.dumps(content))
    module.main()
    assert ((folder / f"{stage}.json").read_bytes(), (folder / f"{stage}.npz").read_bytes()) == expected
    assert not list(scratch.rglob("*.json"))
