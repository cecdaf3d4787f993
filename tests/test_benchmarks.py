"""The benchmarks compare like with like; the plain iterations are those of the algorithm."""

from __future__ import annotations

import pytest
import torch

from benchmarks import attack, harness, pages, small_runs, step
from ebjdat.subject import Subject


@pytest.fixture(scope="module", params=["jempp", "sadajem"])
def setting(request: pytest.FixtureRequest) -> step.Setting:
    return step.Setting("10-1", 8, 4, request.param, torch.device("cpu"))


def test_released_lean_and_engine_come_to_the_same_loss_and_gradients(setting: step.Setting) -> None:
    differences = step.check(setting)
    for mode in ("lean", "engine-float32"):
        assert differences[mode]["loss"] < 1e-5 and differences[mode]["gradient"] < 1e-3
    assert differences["engine-bfloat16"]["loss"] < 0.05


def test_a_mode_that_computes_something_else_is_refused(setting: step.Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    original = step.PlainRun.__init__

    def shifted(self: step.PlainRun, *arguments: object, released: bool, double: bool = False) -> None:
        original(self, *arguments, released=released, double=double)  # type: ignore[arg-type]
        self.plain.eps *= 1.0 if released else 0.5

    monkeypatch.setattr(step.PlainRun, "__init__", shifted)
    with pytest.raises(SystemExit, match="lean does not compute"):
        step.check(setting)


def test_forwards_per_image_are_counted_from_the_recipe() -> None:
    counts = {name: step.forward_equivalents(step.load_params().variants[name]) for name in ("jempp", "sadajem")}
    assert counts == {"jempp": 43, "sadajem": 55}


def test_the_flops_of_a_forward_are_those_of_its_convolutions() -> None:
    layer = torch.nn.Conv2d(3, 16, 3, padding=1)
    assert harness.forward_flops(layer, torch.rand(2, 3, 8, 8)) == 2 * 2 * 64 * 16 * 27


@pytest.mark.parametrize("name", ["28x10", "wide", ""])
def test_a_network_that_is_no_depth_and_width_is_refused(name: str) -> None:
    with pytest.raises(SystemExit, match="expected depth-width"):
        harness.depth_and_width(name)


@pytest.mark.parametrize("name", ["adversary", "pgd20"])
def test_all_modes_of_an_attack_move_the_same_pixels(setting: step.Setting, name: str) -> None:
    differences = attack.differing(setting, name)
    assert max(share for mode, share in differences.items() if "bfloat16" not in mode) < attack.ALLOWED


def test_the_precision_page_shows_what_the_recorded_measurements_say() -> None:
    assert pages.filled() == pages.PAGE.read_text(encoding="utf-8")


def test_forwards_of_a_whole_training_agree_with_those_of_an_iteration() -> None:
    params = step.load_params()
    for variant in ("jempp", "sadajem"):
        counted = small_runs.image_forwards(params, Subject("digits", "ebjdat", variant, 0))
        assert counted == step.forward_equivalents(params.variants[variant])
    costs = {name: small_runs.image_forwards(params, Subject("digits", name, None, 0)) for name in ("pgd_at", "trades")}
    assert costs == {"pgd_at": 23, "trades": 27}


def test_a_training_that_was_stopped_counts_with_all_its_calls() -> None:
    line = {"row": "trades-0-x", "command": ["stages.baseline", "--model", "trades"], "seconds": 2.0}
    (row,) = small_runs.rows_of(step.load_params(), [line, line, line | {"command": ["stages.clean"]}])
    assert row["model"] == "trades" and row["seconds"] == 4.0
