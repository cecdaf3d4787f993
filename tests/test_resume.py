"""A stopped run continues to the byte; damaged and foreign checkpoints; divergence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ebjdat.data.prepared import Prepared
from ebjdat.errors import DivergenceError, UserError
from ebjdat.training.loop import Trainer
from ebjdat.training.supervisor import Supervisor
from tests.small_runs import fingerprint, small, stopped_at, tiny_data, trainer

METHODS = [("ebjdat", "jempp"), ("ebjdat", "sadajem"), ("ebjdat", "jem"), ("base", "jempp"), ("trades", None)]


@pytest.fixture(scope="module")
def data() -> Prepared:
    return tiny_data()


@pytest.mark.parametrize("subject", METHODS, ids=lambda s: f"{s[0]}-{s[1]}")
def test_a_run_stopped_twice_ends_as_one_that_was_never_stopped(
    data: Prepared, tmp_path: Path, subject: tuple[str, str | None]
) -> None:
    expected = fingerprint(trainer(data, subject, None).run())
    stopped_at(trainer(data, subject, tmp_path / "run"), 2)
    stopped_at(trainer(data, subject, tmp_path / "run"), 5)
    assert fingerprint(trainer(data, subject, tmp_path / "run").run()) == expected


@pytest.mark.parametrize("subject", [("ebjdat", "sadajem"), ("ebjdat", "jem")], ids=lambda s: s[1])
def test_the_same_holds_in_bfloat16(data: Prepared, tmp_path: Path, subject: tuple[str, str | None]) -> None:
    params = small(epochs=2, precision="bfloat16")
    expected = fingerprint(trainer(data, subject, None, params=params).run())
    stopped_at(trainer(data, subject, tmp_path / "run", params=params), 5)
    assert fingerprint(trainer(data, subject, tmp_path / "run", params=params).run()) == expected
    assert expected != fingerprint(trainer(data, subject, None, params=small(epochs=2)).run())


def test_training_does_not_depend_on_the_global_random_state(data: Prepared) -> None:
    torch.manual_seed(1)
    first = fingerprint(trainer(data, ("ebjdat", "jempp"), None).run())
    torch.manual_seed(2)
    assert fingerprint(trainer(data, ("ebjdat", "jempp"), None).run()) == first


def _interrupted_run(data: Prepared, folder: Path, iterations: int = 9) -> list[Path]:
    stopped_at(trainer(data, ("ebjdat", "jempp"), folder), iterations)
    return sorted(folder.glob("step-*"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "no manifest", "no best"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    data: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    expected = fingerprint(trainer(data, ("ebjdat", "jempp"), None).run())
    newest = _interrupted_run(data, tmp_path)[-1]
    state = newest / "state.pt"
    content = state.read_bytes()
    if damage == "flip":
        state.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif damage == "truncate":
        state.write_bytes(content[:1000])
    elif damage == "empty":
        state.write_bytes(b"")
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text('{"schema": 2, "key": {"width": 1}, "files": {"best-x.pt": "0"}}')
    run = trainer(data, ("ebjdat", "jempp"), tmp_path)
    assert fingerprint(run.run()) == expected
    assert f"warning: {newest} is not used" in capsys.readouterr().err


def test_no_whole_checkpoint_is_an_error_and_never_a_silent_fresh_start(data: Prepared, tmp_path: Path) -> None:
    for path in _interrupted_run(data, tmp_path):
        (path / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        trainer(data, ("ebjdat", "jempp"), tmp_path).run()


def test_a_checkpoint_of_other_parameters_is_refused_with_the_differing_keys(data: Prepared, tmp_path: Path) -> None:
    _interrupted_run(data, tmp_path)
    with pytest.raises(UserError, match=r"these differ: width \(1, now 2\)"):
        trainer(data, ("ebjdat", "jempp"), tmp_path, key={"width": 2}).run()


def test_leftovers_of_a_save_that_was_killed_are_cleaned(data: Prepared, tmp_path: Path) -> None:
    _interrupted_run(data, tmp_path)
    leftover = tmp_path / ".step-0000-000009-00000000.1"
    leftover.mkdir()
    (leftover / "state.pt").write_bytes(b"half")
    trainer(data, ("ebjdat", "jempp"), tmp_path).run()
    assert not leftover.exists()


def test_two_checkpoints_and_the_best_are_kept(data: Prepared, tmp_path: Path) -> None:
    trainer(data, ("ebjdat", "jempp"), tmp_path).run()
    assert len(list(tmp_path.glob("step-*"))) == 2
    assert 1 <= len(list(tmp_path.glob("best-*.pt"))) <= 2


def _poisoned(run: Trainer, at: set[int]) -> list[float]:
    """NaN in the loss at some iterations; returns the list of optimiser steps taken."""
    original, calls, steps = run.recipe.objective.loss, [0], []

    class Poison:
        def __init__(self, objective: Any) -> None:
            self.prepare = objective.prepare

        def loss(self, model: Any, prepared: Any) -> Any:
            total, terms = original(model, prepared)
            calls[0] += 1
            if calls[0] in at:
                total = total * float("nan")
                terms = {**terms, "loss": total.detach()}
            return total, terms

    object.__setattr__(run.recipe, "objective", Poison(run.recipe.objective))
    step = run.state.optimiser.step

    def counted(*arguments: Any, **options: Any) -> Any:
        assert all(bool(p.grad.isfinite().all()) for p in run.state.model.parameters() if p.grad is not None)
        steps.append(1.0)
        return step(*arguments, **options)

    run.state.optimiser.step = counted  # type: ignore[method-assign]
    return steps


def test_a_nan_takes_no_step_and_rolls_back_with_a_logged_cause(data: Prepared) -> None:
    run = trainer(data, ("ebjdat", "jempp"), None)
    steps = _poisoned(run, {6})
    outcome = run.run()
    assert len(steps) == 12 + 1  # one iteration of the epoch was done twice
    assert outcome.events == [{"retry": 1, "epoch": 1, "step": 1, "cause": "loss is nan"}]
    assert all(bool(p.isfinite().all()) for p in outcome.last.parameters())


def test_retries_are_bounded(data: Prepared) -> None:
    run = trainer(data, ("ebjdat", "jempp"), None, supervisor=Supervisor(max_retries=2))
    _poisoned(run, set(range(1, 100)))
    with pytest.raises(DivergenceError, match="2 retries did not help") as error:
        run.run()
    assert error.value.exit_code == 3


def test_a_drifting_energy_gap_is_caught_before_an_overflow(data: Prepared) -> None:
    supervisor = Supervisor(max_retries=0, gap_limit=0.01)
    run = trainer(data, ("ebjdat", "jempp"), None, supervisor=supervisor)
    with pytest.raises(DivergenceError, match="mean energy gap"):
        run.run()
