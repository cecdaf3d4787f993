"""A stopped run continues to the byte; damaged and foreign checkpoints; divergence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ebjdat.data.prepared import Prepared
from ebjdat.errors import DivergenceError, UserError
from ebjdat.training.supervisor import Supervisor
from tests.small_runs import break_at, fingerprint, small, stopped_at, tiny_data, trainer

MODEL = "ebjdat-jempp"
MODELS = ["ebjdat-jempp", "ebjdat-sadajem", "ebjdat-jem", "base-jempp", "trades", "dhat"]


@pytest.fixture(scope="module")
def data() -> Prepared:
    return tiny_data()


@pytest.mark.parametrize("model", MODELS)
def test_a_run_stopped_twice_ends_as_one_that_was_never_stopped(data: Prepared, tmp_path: Path, model: str) -> None:
    expected = fingerprint(trainer(data, model).run())
    stopped_at(trainer(data, model, tmp_path / "run"), 2)
    stopped_at(trainer(data, model, tmp_path / "run"), 5)
    assert fingerprint(trainer(data, model, tmp_path / "run").run()) == expected


@pytest.mark.parametrize("model", ["ebjdat-sadajem", "ebjdat-jem"])
def test_the_same_holds_in_bfloat16(data: Prepared, tmp_path: Path, model: str) -> None:
    setup = small(model, epochs=2, precision="bfloat16")
    expected = fingerprint(trainer(data, setup).run())
    stopped_at(trainer(data, setup, tmp_path / "run"), 5)
    assert fingerprint(trainer(data, setup, tmp_path / "run").run()) == expected
    assert expected != fingerprint(trainer(data, small(model, epochs=2)).run())


def test_training_does_not_depend_on_the_global_random_state(data: Prepared) -> None:
    torch.manual_seed(1)
    first = fingerprint(trainer(data, MODEL).run())
    torch.manual_seed(2)
    assert fingerprint(trainer(data, MODEL).run()) == first


def _interrupted_run(data: Prepared, folder: Path, iterations: int = 9) -> list[Path]:
    stopped_at(trainer(data, MODEL, folder), iterations)
    return sorted(folder.glob("step-*"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "no manifest", "no best"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    data: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    expected = fingerprint(trainer(data, MODEL).run())
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
    run = trainer(data, MODEL, tmp_path)
    assert fingerprint(run.run()) == expected
    assert f"warning: {newest} is not used" in capsys.readouterr().err


def test_no_whole_checkpoint_is_an_error_and_never_a_silent_fresh_start(data: Prepared, tmp_path: Path) -> None:
    for path in _interrupted_run(data, tmp_path):
        (path / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        trainer(data, MODEL, tmp_path).run()


def test_leftovers_of_a_save_that_was_killed_are_cleaned(data: Prepared, tmp_path: Path) -> None:
    _interrupted_run(data, tmp_path)
    leftover = tmp_path / ".step-0000-000009-00000000.1"
    leftover.mkdir()
    (leftover / "state.pt").write_bytes(b"half")
    trainer(data, MODEL, tmp_path).run()
    assert not leftover.exists()


def test_two_checkpoints_and_the_best_are_kept(data: Prepared, tmp_path: Path) -> None:
    trainer(data, MODEL, tmp_path).run()
    assert len(list(tmp_path.glob("step-*"))) == 2
    assert 1 <= len(list(tmp_path.glob("best-*.pt"))) <= 2


def test_retries_are_bounded(data: Prepared) -> None:
    run = trainer(data, MODEL, supervisor=Supervisor(max_retries=2))
    break_at(run, "loss", float("nan"), {(0, 0)}, retries=99)
    with pytest.raises(DivergenceError, match="2 retries did not help") as error:
        run.run()
    assert error.value.exit_code == 3


def test_a_drifting_energy_gap_is_caught_before_an_overflow(data: Prepared) -> None:
    run = trainer(data, MODEL, supervisor=Supervisor(max_retries=0, gap_limit=0.01))
    with pytest.raises(DivergenceError, match="mean energy gap"):
        run.run()
