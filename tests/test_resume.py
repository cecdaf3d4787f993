"""A stopped run continues to the byte; damaged and foreign checkpoints; divergence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ebjdat.errors import DivergenceError, UserError
from ebjdat.training.supervisor import Supervisor
from tests.small_runs import fingerprint, short_run, small, stopped_at, undisturbed

MODEL = "ebjdat-jempp"
MODELS = ["ebjdat-jempp", "ebjdat-sadajem", "ebjdat-jem", "base-jempp", "trades", "dhat"]


@pytest.mark.parametrize("model", MODELS)
def test_a_run_stopped_twice_ends_as_one_that_was_never_stopped(tmp_path: Path, model: str) -> None:
    expected = undisturbed(model)
    stopped_at(short_run(model, tmp_path / "run"), 2)
    stopped_at(short_run(model, tmp_path / "run"), 5)
    assert fingerprint(short_run(model, tmp_path / "run").run()) == expected


@pytest.mark.parametrize("model", ["ebjdat-sadajem", "ebjdat-jem"])
def test_the_same_holds_in_bfloat16(tmp_path: Path, model: str) -> None:
    values = {"epochs": 1, "steps": 1, "attack_steps": 1, "bn_images": 10}  # most processors are slow at it
    setup = small(model, precision="bfloat16", **values)
    expected = fingerprint(short_run(setup).run())
    stopped_at(short_run(setup, tmp_path / "run"), 2)
    assert fingerprint(short_run(setup, tmp_path / "run").run()) == expected
    assert expected != fingerprint(short_run(small(model, **values)).run())


def test_training_does_not_depend_on_the_global_random_state() -> None:
    expected = undisturbed()
    torch.manual_seed(2)
    assert fingerprint(short_run(MODEL).run()) == expected


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a run that was stopped in its last epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    stopped_at(short_run(MODEL, folder), 9)
    return folder


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "no manifest", "no best"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    newest = max(tmp_path.glob("step-*"))
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
    assert fingerprint(short_run(MODEL, tmp_path).run()) == undisturbed()
    assert f"warning: {newest} is not used" in capsys.readouterr().err


def test_no_whole_checkpoint_is_an_error_and_never_a_silent_fresh_start(stopped: Path, tmp_path: Path) -> None:
    for path in Path(shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)).glob("step-*"):
        (path / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        short_run(MODEL, tmp_path).run()


def test_two_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    short_run(MODEL, tmp_path).run()
    assert len(list(tmp_path.glob("step-*"))) == 2
    assert 1 <= len(list(tmp_path.glob("best-*.pt"))) <= 2


def test_a_drifting_energy_gap_is_caught_before_an_overflow() -> None:
    run = short_run(MODEL, supervisor=Supervisor(max_retries=0, gap_limit=0.01))
    with pytest.raises(DivergenceError, match="mean energy gap"):
        run.run()
