"""Evaluations: what the records of the attack stages hold, and how their numbers relate."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ebjdat import files
from ebjdat.attacks.apgd import APGD
from ebjdat.attacks.audit import Audit
from ebjdat.attacks.autoattack import CASCADE, Job, Outcome
from ebjdat.attacks.batches import Batches, correct
from ebjdat.attacks.linf import PGD
from ebjdat.attacks.outcomes import NOTHING
from ebjdat.data.prepared import load_prepared
from ebjdat.errors import AuditError, UserError
from ebjdat.evaluation import cases, clean, distributions, eot, robustness, selftest, sweep, transfer
from ebjdat.evaluation.cases import attack_case, make_cases, noisy
from ebjdat.evaluation.outliers import outliers
from ebjdat.model import description
from ebjdat.model.store import new_model, save_model
from ebjdat.protocols import PROTOCOLS, AutoAttackCell, EotCell, Table1
from ebjdat.run import Run
from ebjdat.statistics import Result
from tests import tiny
from tests.small_models import held_out, trained
from tests.small_runs import TINY, in_child, run_stage
from tests.synthetic import setup_of

RADIUS = 24 / 255
N = 30
IMAGES = X, Y = held_out(N)
NAME = re.compile(r"[a-z0-9._/-]+")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocols with smaller budgets."""
    for name, protocol in list(PROTOCOLS.items()):
        alone = tuple(
            replace(cell, steps={"square": 40, "fab-t": 5, "apgd-t": 5}.get(cell.attack, cell.steps))
            for cell in protocol.table1.alone
        )
        cells = tuple(replace(cell, samples=min(cell.samples, 3)) for cell in protocol.eot.cells)
        changed = {
            "table1": replace(protocol.table1, alone=alone, cascade=False),
            "transfer": replace(protocol.transfer, neighbours=tuple(n // 2 for n in protocol.transfer.neighbours)),
            "eot": replace(protocol.eot, cells=cells),
        }
        monkeypatch.setitem(cases.PROTOCOLS, name, replace(protocol, **changed))


def asked(radius: float = RADIUS, noise: float = 0.0, images: tuple[Tensor, Tensor] = IMAGES) -> dict[str, Any]:
    """Both protocols on images, as arguments of every evaluation."""
    return {"cases": make_cases(*images, radius, noise), "batches": Batches()}


def accuracy(result: Result, name: str) -> float:
    return result.rates[name].accuracy


def names_are_sound(result: Result) -> bool:
    """What every record must satisfy."""
    return (
        all(NAME.fullmatch(name) for name in (*result.rates, *result.values))
        and all(rate.n == result.n for rate in result.rates.values())
        and all(np.isfinite(value) for value in result.values.values())
    )


# Cases


def test_both_protocols_share_images_unless_the_variant_has_input_noise() -> None:
    for noise, shared in ((0.0, True), (0.03, False)):
        standard, released = make_cases(*IMAGES, RADIUS, noise)
        assert torch.equal(standard.x, X)
        assert torch.equal(released.x, X) is shared
        assert (standard.radius, released.radius) == (RADIUS, RADIUS / 2)


def test_input_noise_is_one_fixed_draw_clipped_to_the_range() -> None:
    drawn = noisy(X, 0.015, 0)
    assert torch.equal(drawn, noisy(X, 0.015, 0)) and not torch.equal(drawn, noisy(X, 0.015, 1))
    assert torch.equal(drawn[:7], noisy(X[:7], 0.015, 0)), "image i has the same noise whatever their number"
    assert float(drawn.min()) >= 0.0 and float(drawn.max()) <= 1.0
    inside = (X > 0.1) & (X < 0.9)
    assert float((drawn - X)[inside].std()) == pytest.approx(0.015, rel=0.15)


def test_misclassified_images_are_not_attacked_but_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    y = Y.clone()
    y[:5] = (y[:5] + 1) % 10
    seen: list[int] = []
    monkeypatch.setattr(PGD, "__call__", lambda self, model, x, *_: seen.append(len(x)) or x)
    attack, generator = PGD(eps=RADIUS, step=RADIUS, steps=1), torch.Generator()
    attacked = attack_case("attack", trained(), X, y, attack, generator)
    assert seen == [int(attacked.robust.sum())] and not attacked.robust[:5].any()
    assert len(attacked.robust) == N and attacked.audit.changed == 0
    wrong = (trained()(X).argmax(1) + 1) % 10
    assert not attack_case("attack", trained(), X, wrong, attack, generator).robust.any()
    assert len(seen) == 1, "a model that is never right needs no attack"


def test_a_broken_attack_fails_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PGD, "__call__", lambda self, model, x, y, generator, start=None: (x + 0.5).clamp(0, 1))
    with pytest.raises(AuditError, match=r"standard/pgd-20: \d+ of 30 images leave the ball"):
        clean.evaluate({"best": trained(), "last": trained()}, **asked())


# Clean


def evaluate_clean(**options: Any) -> Result:
    models = {"best": trained(adversarial=True), "last": trained()}
    return clean.evaluate(models, **asked(noise=0.03), **options)


@functools.cache
def plain() -> Result:
    """Without samples, and without the adversary of training."""
    return evaluate_clean()


def test_clean_reports_both_checkpoints_under_both_protocols() -> None:
    result = plain()
    parts = ("clean", "pgd-20", "clean-last", "pgd-20-last")
    assert set(result.rates) == {f"{protocol}/{part}" for protocol in PROTOCOLS for part in parts}
    assert names_are_sound(result)
    assert (
        accuracy(result, "standard/pgd-20") < accuracy(result, "released/pgd-20") <= accuracy(result, "released/clean")
    )
    assert accuracy(result, "standard/pgd-20-last") < accuracy(result, "standard/pgd-20"), "the plain one is weaker"
    assert result.audits["standard/pgd-20"]["eps"] == RADIUS
    assert result.settings["released"]["input_noise"] == 0.015


def test_energies_have_gaps_with_their_sign_and_overlaps() -> None:
    result = evaluate_clean(generated={"generated": X, "generated-fresh": X})
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


def test_generated_images_far_away_do_not_change_how_adversarial_ones_overlap() -> None:
    near, far = (evaluate_clean(generated={"generated": x}).values for x in (X, torch.zeros_like(X)))
    assert near["energy/gap-generated"] != far["energy/gap-generated"]
    assert near["energy/overlap-adversarial"] == far["energy/overlap-adversarial"]


def test_per_image_energies_and_margins_are_those_of_the_logits() -> None:
    arrays = plain().arrays or {}
    logits = trained(adversarial=True)(X).detach()
    np.testing.assert_allclose(arrays["clean/energy"], -logits.logsumexp(1), rtol=1e-5)
    np.testing.assert_allclose(arrays["clean/label-energy"], -logits[torch.arange(N), Y], rtol=1e-5)
    np.testing.assert_array_equal(arrays["clean/margin"] > 0, (logits.argmax(1) == Y).numpy())
    np.testing.assert_array_equal(arrays["label"], Y)


def test_the_first_images_of_each_class_are_kept_with_their_attacked_versions() -> None:
    arrays = plain().arrays or {}
    clean, attacked = arrays["pictures/clean"], arrays["pictures/adversarial"]
    assert clean.dtype == attacked.dtype == np.uint8 and clean.shape == attacked.shape
    first = [int(place) for label in Y.unique() for place in (label == Y).nonzero()[:2]]
    np.testing.assert_array_equal(arrays["pictures/label"], Y[first])
    np.testing.assert_array_equal(clean, (X[first] * 255).round().byte())
    difference = np.abs(attacked.astype(int) - clean.astype(int))
    assert 0 < difference.max() <= 33
    predicted = trained(adversarial=True)(X[first]).argmax(1)
    np.testing.assert_array_equal(arrays["pictures/clean-prediction"], predicted)
    assert arrays["pictures/adversarial-prediction"].shape == predicted.shape


def test_the_training_adversary_is_audited_against_its_own_bound() -> None:
    def craft(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return (x + 0.2).clamp(0, 1)

    result = evaluate_clean(adversary=clean.Adversary(craft, 0.2))
    assert result.audits["training-adversary"]["eps"] == 0.2
    assert "energy/gap-training-adversary" in result.values
    with pytest.raises(AuditError, match=r"training-adversary: 30 of 30 images leave the ball of radius 0\.1"):
        evaluate_clean(adversary=clean.Adversary(craft, 0.1))


def test_a_scale_of_the_logits_that_rounds_gradients_to_zero_hides_nothing_from_a_pgd_that_takes_it_back() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * trained()(x)

    plain, scaled = (clean.evaluate({"best": one}, **asked()) for one in (trained(), Scaled().eval()))
    assert plain.values["gradient/zero-share"] == 0.0 and "standard/pgd-20-rescaled" not in plain.rates
    assert scaled.values["gradient/zero-share"] > 0.5
    robust, hidden = (one.rates["standard/pgd-20"].correct for one in (plain, scaled))
    found = scaled.rates["standard/pgd-20-rescaled"].correct
    assert hidden > found + 10 and found - robust < 10


def test_outliers_are_images_of_the_same_shape_and_not_the_data() -> None:
    for colour in (X, X.repeat(1, 3, 4, 4)):
        sets = outliers(colour, 0)
        assert set(sets) == {"photographs", "interpolated", "uniform-noise"}
        for name, found in sets.items():
            assert found.shape == colour.shape and found.dtype == torch.float32, name
            assert float(found.min()) >= 0.0 and float(found.max()) <= 1.0
            assert not torch.equal(found, colour) and float(found.std()) > 0.05
        assert all(torch.equal(found, outliers(colour, 0)[name]) for name, found in sets.items())


# Distributions


def test_overlap_is_one_for_equal_zero_for_apart_and_known_for_shifted_gaussians() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=20000), random.normal(size=20000) + 1.0
    assert distributions.overlap(first, first) == pytest.approx(1.0)
    assert distributions.overlap(first, first + 50) == 0.0
    assert distributions.overlap(first, second) == pytest.approx(0.6171, abs=0.02)
    assert distributions.gap(second, first) == pytest.approx(1.0, abs=0.03)
    assert distributions.gap(first, second) == pytest.approx(-1.0, abs=0.03)
    extreme = np.append(first, 1e9)
    assert distributions.overlap(extreme, first + 50) < 0.05, "one extreme value does not swallow the histogram"


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
    assert distributions.reliability(np.array([1.0]), np.array([True]))["count"][-1] == 1, "full confidence has a bin"


# AutoAttack


@pytest.fixture
def cascade(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard protocol has its cascade, whose attacks are played."""
    protocol = cases.PROTOCOLS["standard"]
    monkeypatch.setitem(cases.PROTOCOLS, "standard", replace(protocol, table1=replace(protocol.table1, cascade=True)))
    monkeypatch.setattr(robustness, "run_jobs", lambda jobs, *_, **__: {task: played(task) for task in jobs})


def played(task: Job) -> Outcome:
    """Each attack of a cascade breaks one image more than the one before; the sixth is misclassified."""
    n = task.last - task.first
    right = np.arange(n) != 5
    after = [right & (np.arange(n) >= k) for k in range(1, 5)]
    robust = dict(zip(task.attacks, after[task.checkpoint == "last" :], strict=False))
    audit = Audit(n, task.eps, 0.0, 0.0, 1.0, 0, n).plain()
    return Outcome(right, robust, audit, {"odd text": 2})


def evaluate_robustness(radius: float = RADIUS, **options: Any) -> Result:
    load = {"best": partial(trained, adversarial=True)} | options.pop("load", {})
    return robustness.evaluate(load, make_cases(*IMAGES, radius), slice_size=20, **options)


def test_table_1_has_every_attack_alone_and_their_union(short: None) -> None:
    result = evaluate_robustness()
    standard = {"apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"}
    released = standard - {"apgd-t"}
    expected = {f"standard/{name}" for name in standard} | {f"released/{name}" for name in released}
    expected |= {f"{p}/{name}" for p in PROTOCOLS for name in ("clean", "union")}
    assert set(result.rates) == expected | {"standard/autoattack", "released/union-with-fab"}
    assert names_are_sound(result)
    for name, attacks in {
        "standard/union": standard,
        "standard/autoattack": set(CASCADE),
        "released/union": released - {"fab-t"},
        "released/union-with-fab": released,
    }.items():
        flags = [result.rates[f"{name.split('/')[0]}/{attack}"].per_image() for attack in attacks]
        np.testing.assert_array_equal(result.rates[name].per_image(), np.logical_and.reduce(flags))
    assert accuracy(result, "standard/union") < accuracy(result, "released/union") <= accuracy(result, "released/clean")
    assert result.audits["standard/apgd-ce"]["images"] == N, "both slices are in the audit"
    assert result.values["standard/warnings/zero-gradient"] == 0.0
    assert result.settings["package"].startswith("pyautoattack ")


def test_apgd_ce_alone_is_read_from_the_cascade_only_where_both_run_the_same() -> None:
    standard, released = (robustness.plan(case, 20) for case in make_cases(*IMAGES, RADIUS))
    assert list(standard) == ["cascade", "apgd-dlr", "apgd-t", "fab-t", "square"]
    assert list(released) == ["apgd-ce", "apgd-dlr", "fab-t", "square"]
    assert [(task.first, task.last) for task in standard["cascade"]] == [(0, 20), (20, 30)]
    first = make_cases(*IMAGES, RADIUS)[0]
    assert list(robustness.plan(first, 20, cascade=False)) == ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
    assert list(robustness.plan(first, 20, alone=False)) == ["cascade"]
    last = robustness.plan(first, 20, last_images=21)["last"]
    assert [(task.first, task.attack, task.checkpoint) for task in last] == [
        (0, "cascade-start", "last"),
        (20, "cascade-start", "last"),
    ]
    protocol = replace(
        PROTOCOLS["standard"], table1=Table1(alone=(AutoAttackCell(attack="apgd-ce", steps=50),), cascade=True)
    )
    other = cases.Case(protocol, *IMAGES, RADIUS, 0.0)
    assert list(robustness.plan(other, 20)) == ["cascade", "apgd-ce"]


def test_the_cascade_alone_runs_nothing_under_released(cascade: None) -> None:
    result = evaluate_robustness(alone=False)
    names = {"apgd-ce", "apgd-ce-t", "autoattack", "clean"}
    assert set(result.rates) == {f"standard/{name}" for name in names}
    assert "released" not in result.settings


def test_a_cascade_fills_autoattack_and_apgd_ce(cascade: None) -> None:
    result = evaluate_robustness()
    assert result.rates["standard/apgd-ce"].correct == N - 4
    assert result.rates["standard/autoattack"].correct == N - 10
    assert (result.arrays or {})["standard/first-success"].tolist()[:6] == [1, 2, 3, 4, 0, -1]
    assert result.warnings["standard/cascade"] == ["odd text (4 times)"]
    assert result.values["standard/warnings/other"] == 2.0 * 2 * 5
    assert result.rates["standard/apgd-ce-t"].correct == N - 6
    assert "standard/apgd-ce-t-last" not in result.rates, "there is no last checkpoint"
    other = evaluate_robustness(load={"last": trained}, last_images=1)
    assert (other.rates["standard/apgd-ce-t-last"].correct, other.rates["standard/apgd-ce-t-last"].n) == (16, 20)
    assert other.settings["last"]["weights"] == "other than best"
    same = evaluate_robustness(load={"last": partial(trained, adversarial=True)}, last_images=N)
    assert same.rates["standard/apgd-ce-t-last"] == same.rates["standard/apgd-ce-t"], "equal weights, no new attack"


def test_a_fab_that_finds_almost_nothing_fails_the_stage(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fab = pytest.importorskip("pyautoattack.fab_base")
    monkeypatch.setattr(fab.FABAttack, "attack_single_run", lambda self, x, y, **_: x)
    with pytest.raises(AuditError, match=r"standard/fab-t: breaks 0 of .* apgd-t breaks"):
        evaluate_robustness(radius=3 * RADIUS)


# Transfer


def crafting(radius: float = RADIUS, *noises: float) -> dict[str, Any]:
    return {"nominal": radius, "trained_with": noises, "batches": Batches()}


def evaluate_transfer(
    folder: Path,
    surrogates: dict[str, nn.Module],
    name: str,
    radius: float = RADIUS,
    noise: float = 0.0,
) -> Result:
    """Craft on the surrogates, try on an adversarially trained model, or on the surrogate of its own name."""
    options = crafting(radius, 0.03)
    crafted = {}
    for surrogate, model in surrogates.items():
        transfer.craft(folder / surrogate, surrogate, model, "sha", *IMAGES, **options)
        crafted[surrogate] = transfer.load_crafted(folder / surrogate, folder / "none.pt", *IMAGES, radius)
    model = surrogates.get(name, trained(adversarial=True))
    return transfer.evaluate(name, model, crafted, **asked(radius, noise))


def test_table_2_has_every_attack_and_its_worst_case_per_image(short: None, tmp_path: Path) -> None:
    surrogates: dict[str, nn.Module] = {"pgd_at": trained(adversarial=True), "undefended": trained()}
    result = evaluate_transfer(tmp_path, surrogates, "ebjdat-jem", noise=0.03)
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


def test_the_model_itself_as_surrogate_is_white_box_and_outside_the_worst_case(short: None, tmp_path: Path) -> None:
    surrogates: dict[str, nn.Module] = {"pgd_at": trained(), "undefended": trained(adversarial=True)}
    result = evaluate_transfer(tmp_path, surrogates, "pgd_at", 2 * RADIUS)
    assert result.settings["white-box"] == ["pgd_at"]
    assert accuracy(result, "standard/transfer/pgd_at/pgd") < accuracy(result, "standard/transfer/worst")
    on_itself = result.values["standard/transfer/pgd_at/pgd/on-surrogate"]
    assert on_itself == pytest.approx(accuracy(result, "standard/transfer/pgd_at/pgd"))
    own = result.rates["standard/transfer/pgd_at/worst"], result.rates["standard/transfer/undefended/worst"]
    assert own[1] == result.rates["standard/transfer/worst"] and own[0].correct < own[1].correct


def test_images_are_crafted_per_protocol_noise_and_attack_and_lie_around_the_noisy_images(
    short: None, tmp_path: Path
) -> None:
    folder = tmp_path / "crafted" / "0" / "pgd_at"
    manifest = transfer.craft(folder, "pgd_at", trained(), "sha", *IMAGES, **crafting(RADIUS, 0.0, 0.03))
    files_of = {path.stem for path in folder.glob("*.npz")}
    assert files_of == set(manifest["found"])
    assert {"standard-noise-0-pgd", "released-noise-0.015-vni-fgsm-neighbours-2"} <= files_of
    assert not any(name.startswith("standard-noise-0.015") for name in files_of)
    crafted = transfer.load_crafted(folder, tmp_path / "none.pt", *IMAGES, RADIUS)
    for case in make_cases(*IMAGES, RADIUS, 0.03):
        x_adv, accuracy = crafted.read(case, "pgd")
        assert float((x_adv - case.x).abs().max()) <= case.radius + 1e-6
        assert accuracy == float(correct(trained(), x_adv, case.y).float().mean())
    with pytest.raises(UserError, match=r"no recipe had this input noise.*stages\.craft --model pgd_at --seed 0"):
        crafted.read(make_cases(*IMAGES, RADIUS, 0.06)[1], "pgd")
    (folder / "standard-noise-0-pgd.npz").write_bytes(b"half")
    with pytest.raises(UserError, match="missing or damaged"):
        crafted.read(make_cases(*IMAGES, RADIUS)[0], "pgd")


def test_images_crafted_for_something_else_are_refused_by_name(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, weights = tmp_path / "0" / "pgd_at", tmp_path / "best.pt"
    weights.write_bytes(b"weights")
    with pytest.raises(UserError, match=r"is missing: run `python -m stages\.craft --model pgd_at --seed 0`"):
        transfer.load_crafted(folder, weights, *IMAGES, RADIUS)
    transfer.craft(folder, "pgd_at", trained(), files.file_hash(weights), *IMAGES, **crafting())
    assert transfer.load_crafted(folder, weights, *IMAGES, RADIUS).manifest["model"] == "pgd_at"
    with pytest.raises(UserError, match="crafted for other images, radius"):
        transfer.load_crafted(folder, weights, X.flip(0), Y, 0.1)
    weights.write_bytes(b"other weights")
    with pytest.raises(UserError, match="crafted for other weights"):
        transfer.load_crafted(folder, weights, *IMAGES, RADIUS)
    weights.unlink()
    standard = PROTOCOLS["standard"]
    monkeypatch.setitem(PROTOCOLS, "standard", replace(standard, transfer=replace(standard.transfer, steps=3)))
    with pytest.raises(UserError, match="crafted for other protocols"):
        transfer.load_crafted(folder, weights, *IMAGES, RADIUS)


# Sweep and EOT


def test_table_3_sweeps_radius_and_iterations_and_protocols_share_equal_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[sweep.Cell] = []
    original = sweep._walk

    def counting(model: nn.Module, cells: list[sweep.Cell], *rest: Any) -> list[Tensor]:
        walked.extend(cells)
        return original(model, cells, *rest)

    monkeypatch.setattr(sweep, "_walk", counting)
    result = sweep.evaluate(trained(adversarial=True), **asked())
    assert len(walked) == len(set(walked)) < sum(len(sweep.cells_of(c)) for c in make_cases(*IMAGES, RADIUS))
    rates = result.rates
    assert rates["standard/apgd-ce/radius-0.5/steps-20"] == rates["released/apgd-ce/radius-1/steps-20"]
    assert names_are_sound(result)
    radii = [f"radius-{multiple}" for multiple in ("0.5", "1", "2", "4")]
    assert {f"standard/apgd-ce/{radius}/steps-{steps}" for radius in radii for steps in (20, 100)} <= set(rates)
    assert {f"released/apgd-ce/radius-1/steps-{steps}" for steps in (1, 10, 20, 50)} <= set(rates)
    assert "released/apgd-ce/radius-2/steps-100" not in rates
    falling = [accuracy(result, f"standard/apgd-ce/{radius}/steps-100") for radius in radii]
    assert falling == sorted(falling, reverse=True) and falling[0] > falling[2]
    assert accuracy(result, "standard/unbounded") == accuracy(result, "released/unbounded") == 0.0
    assert accuracy(result, "standard/uniform-noise") > accuracy(result, "standard/pgd-1") >= falling[1]


def test_a_cell_does_not_depend_on_the_cells_it_walks_with() -> None:
    model = trained(adversarial=True)
    (case, _) = make_cases(*IMAGES, RADIUS)
    cell = sweep.Cell(0.0, RADIUS, 10)
    others = [sweep.Cell(0.0, 0.02, 10), cell, sweep.Cell(0.0, 0.4, 10)]
    (alone, _), (together, _) = (
        sweep._attack_cells(model, {str(one): one for one in cells}, [case], Batches(), NOTHING, "sweep")
        for cells in ([cell], others)
    )
    np.testing.assert_array_equal(alone[cell], together[cell])


def test_eot_is_reported_plain_and_with_noise_inside(short: None) -> None:
    result = eot.evaluate(trained(adversarial=True), **asked())
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


def test_a_random_models_prediction_is_the_same_at_every_call() -> None:
    judged = eot.Judged(trained(), EotCell(noise="noise", samples=2), 0.2, 0, Batches())
    assert torch.equal(judged.correct(*IMAGES), judged.correct(*IMAGES))


# All of them


@pytest.mark.parametrize("eps", [2 / 255, 8 / 255, 24 / 255])
def test_the_harness_finds_exactly_the_adversarial_examples_that_exist(eps: float) -> None:
    x = held_out(200)[0]
    model = selftest.Plane(x.mean(0), torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    result = sweep.evaluate(model, **asked(eps, images=(x, y)))
    robust = ~model.breakable(x, eps).numpy()
    for name in ("standard/pgd-1", "standard/apgd-ce/radius-1/steps-20", "standard/apgd-ce/radius-1/steps-100"):
        np.testing.assert_array_equal(result.rates[name].per_image(), robust)
    assert 0 < robust.sum() < len(x)
    assert result.values["self-test/planted"] == 1.0


def test_the_self_test_breaks_an_undefended_network_and_notices_a_harness_that_finds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert selftest.undefended(trained(), *IMAGES, RADIUS, 0, Batches()) <= 0.02
    assert selftest.planted(X, 1e-9, 0, Batches()) is None, "no planted example means no number"
    monkeypatch.setattr(APGD, "__call__", lambda self, model, x, y, generator, start=None: x)
    assert selftest.planted(X, RADIUS, 0, Batches()) == 0.0
    assert selftest.undefended(trained(), *IMAGES, RADIUS, 0, Batches()) > 0.8


# Stages


OURS = Run("digits", "ebjdat-jempp", 0)


@pytest.fixture
def pipeline(short: None, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small data, untrained models and parameters, as the pipeline would leave it."""
    monkeypatch.setattr("ebjdat.device.evaluators", lambda device, devices: 1)
    params = tiny.write_params(workspace, device="cpu")
    tiny.prepare(params)
    for name in ("ebjdat-jempp", "pgd_at", "undefended"):
        setup = setup_of(params, name)
        described = description.describe(setup, load_prepared(setup.run.data_dir))
        files.write_json(setup.run.model_dir / description.NAME, described.plain())
        for checkpoint in ("best", "last"):
            save_model(setup.run.model_dir / f"{checkpoint}.pt", new_model(TINY, 0))
    np.savez(OURS.model_dir / "buffer.npz", images=held_out(20)[0].numpy())
    return workspace


def check(stage: str) -> bytes:
    """What a stage left: its record is complete, and nothing else lies about. Its bytes."""
    assert not list(Path(".scratch/outcomes").rglob("*.json")), "finished states are cleaned up"
    if stage == "craft":
        return b"".join(path.read_bytes() for path in sorted(OURS.crafted().iterdir()))
    record = files.read_json(OURS.record(stage))
    assert record["n"] == tiny.IMAGES[stage] and record["audits"] and set(record["settings"]) >= set(PROTOCOLS)
    kept = OURS.arrays(stage) / "arrays.npz"
    assert kept.is_file() is (stage in ("clean", "autoattack")), "flags of the others are in the record"
    return OURS.record(stage).read_bytes() + (kept.read_bytes() if kept.is_file() else b"")


@pytest.mark.parametrize("stage", ["clean", "autoattack", "transfer"])
def test_a_stage_writes_its_record_and_again_the_same(pipeline: Path, stage: str) -> None:
    if stage == "transfer":
        for surrogate in ("pgd_at", "undefended"):
            run_stage("craft", "--model", surrogate)
    run_stage(stage)
    first = check(stage)
    run_stage(stage, "--model", "ebjdat-jempp", "--seed", "0")
    assert check(stage) == first


def test_a_baseline_has_no_samples_and_no_input_noise(pipeline: Path) -> None:
    run_stage("clean", "--model", "pgd_at")
    record = files.read_json(Run("digits", "pgd_at", 0).record("clean"))
    assert "energy/gap-training-adversary" in record["values"]
    assert "energy/gap-generated" not in record["values"]
    assert record["settings"]["released"]["input_noise"] == 0.0


def test_warnings_of_the_official_code_are_shown_with_their_count(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Result(n=8, warnings={"standard/cascade": ["there are 3 points with zero gradient! (2 times)"]})
    monkeypatch.setattr(robustness, "evaluate", lambda *_, **__: found)
    run_stage("autoattack")
    shown = "warning: standard/cascade: there are 3 points with zero gradient! (2 times)"
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["sweep", "eot", "craft"])
def test_a_killed_stage_goes_on_with_the_same_flags_and_refuses_outcomes_of_another_evaluation(
    pipeline: Path, stage: str
) -> None:
    scratch = pipeline / ".scratch" / "outcomes" / stage
    run_stage(stage)
    expected = check(stage)
    OURS.record(stage).unlink(missing_ok=True)
    shutil.rmtree(OURS.crafted(), ignore_errors=True)

    def killed() -> None:
        write, written = files.write_json, []

        def third(path: Path, value: object) -> None:
            written.append(path)
            if len(written) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            write(path, value)

        files.write_json = third
        run_stage(stage)

    assert in_child(killed) == -signal.SIGKILL
    left = sorted(scratch.glob("*/*.json"))
    assert len(left) == 2
    content = json.loads(left[0].read_text())
    for name in ("weights", "data slice", "params", "revisions"):
        other = {**content, "decided by": {**content["decided by"], name: "another"}}
        left[0].write_text(json.dumps(other))
        with pytest.raises(UserError, match=f"another evaluation \\({name}: expected .*, found another\\)"):
            run_stage(stage)
    left[0].write_text("{}")
    with pytest.raises(UserError, match="not the outcome of an attack"):
        run_stage(stage)
    left[0].write_text(json.dumps(content))
    run_stage(stage)
    assert check(stage) == expected


def test_a_model_that_was_trained_with_other_parameters_is_refused(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (pipeline / "params.yaml").read_text(encoding="utf-8")
    monkeypatch.setattr("ebjdat.config.PARAMS", Path("other.yaml"))
    (pipeline / "other.yaml").write_text(text.replace("w_px: 1.0", "w_px: 2.0"), encoding="utf-8")
    with pytest.raises(UserError, match=r"ebjdat-jempp/0 was trained with other parameters \(recipe\): train it again"):
        run_stage("eot")
