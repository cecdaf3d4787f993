"""The benchmarks compare like with like; the plain iterations are those of the algorithm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import harness, pages, step


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
    counts = {
        name: step.forward_equivalents(harness.setup_of("cifar10", f"ebjdat-{name}").recipe)
        for name in ("jempp", "sadajem")
    }
    assert counts == {"jempp": 43, "sadajem": 55}


@pytest.mark.parametrize("name", ["28x10", "wide", ""])
def test_a_network_that_is_no_depth_and_width_is_refused(name: str) -> None:
    with pytest.raises(SystemExit, match="expected depth-width"):
        harness.depth_and_width(name)


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_a_page_shows_what_the_recorded_measurements_say(page: Path) -> None:
    assert pages.filled(page) == page.read_text(encoding="utf-8"), "run `python -m benchmarks.pages`"
