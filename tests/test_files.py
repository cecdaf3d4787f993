"""Files that are whole or absent, digests, and commands that say what went wrong."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ebjdat import command, files, progress
from ebjdat.errors import AuditError, DivergenceError, Interrupted, UserError
from ebjdat.progress import Progress, duration
from tests import ROOT


def test_equal_values_have_equal_digests_whatever_their_order() -> None:
    assert files.digest({"a": 1, "b": [1.5, None]}) == files.digest({"b": (1.5, None), "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        files.digest(float("nan"))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.atomic(path) as handle:
        handle.write(b"half")
        raise RuntimeError("killed")
    with pytest.raises(UserError, match="NaN"):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_told_in_one_sentence(tmp_path: Path, code: int) -> None:
    path, reason = tmp_path / "value.txt", os.strerror(code)
    with pytest.raises(UserError, match=rf"value\.txt could not be written: {reason}; mend that"), files.atomic(path):
        raise OSError(code, reason)
    assert not path.exists()


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    arrays = {"b": np.arange(5), "a": np.array([True, False])}
    files.write_npz(tmp_path / "one.npz", arrays)
    files.write_npz(tmp_path / "two.npz", dict(reversed(arrays.items())))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz", allow_pickle=False) as stored:
        assert stored["b"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        files.write_npz(tmp_path / "objects.npz", {"a": np.array([{}])})


def test_a_second_holder_is_told_who_holds_and_a_dead_holder_is_replaced(tmp_path: Path) -> None:
    lock = tmp_path / "run.lock"
    code = f"import os; from ebjdat import files\nwith files.hold({str(lock)!r}, 'the run'):\n    {{}}"
    with files.hold(lock, "the run"):
        run = subprocess.run(
            [sys.executable, "-c", code.format("print('held')")], capture_output=True, text=True, cwd=ROOT
        )
        assert run.returncode != 0
        assert "the run is in use by process" in run.stderr
    subprocess.run([sys.executable, "-c", code.format("os._exit(9)")], cwd=ROOT, check=False)
    with files.hold(lock, "the run"):
        assert lock.exists()


def test_the_main_checkout_is_dvcs_root_or_the_folder_above_with_dvc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "a ü" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert files.main_checkout() == inner
    (tmp_path / "a ü" / ".dvc").mkdir()
    assert files.main_checkout() == tmp_path / "a ü"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert files.main_checkout() == tmp_path


def _raise(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("a wrong\nkey"), 2, "error: a wrong key\n"),
        (AuditError("outside"), 4, "error: outside\n"),
        (DivergenceError("nan"), 3, "error: nan\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Interrupted(143), 143, "interrupted; the same command goes on from the checkpoint\n"),
    ],
)
def test_a_stage_ends_with_one_line_and_a_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command.run(_raise(error))
    assert stop.value.code == code
    assert capsys.readouterr().err == message


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command.run(_raise(ZeroDivisionError()))


def test_a_python_without_the_packages_is_told_in_one_line(tmp_path: Path) -> None:
    bare = [sys.executable, "-S", "-m", "stages.prepare"]  # -S: without site-packages
    told = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert told.stderr.startswith("error: ") and told.stderr.count("\n") == 1
    assert "(pydantic, ruamel, torch): activate its environment" in told.stderr


# Progress for people: a log of sparse lines, honest about what an earlier run has done


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_sparse_lines_with_share_rate_time_left_and_values(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(100, "sweep", unit="images")
    for _ in range(100):
        clock[0] += 1.0
        shown.advance(1, robust=0.625)
    lines = capsys.readouterr().err.splitlines()
    assert "sweep: 61 %, 61/100 images (1 images/s, 1 min 01 s elapsed, 39 s left), robust 0.625" in lines
    assert len(lines) == 5 and lines[-1].startswith("sweep: 100 %, 100/100 images")


def test_work_of_an_earlier_run_counts_as_done_and_not_as_fast(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(100, "sweep")
    shown.skip(80)
    clock[0] = 10.0
    shown.advance(10)
    assert capsys.readouterr().err == "sweep: 90 %, 90/100 it (1 it/s, 10 s elapsed, 10 s left)\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_that_rewrites_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(4, "eot") as progress:
        progress.skip(2)
        progress.advance(2, robust=0.5)
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "\r" in shown and "eot: 100%" in shown and "4/4" in shown and "robust=0.5" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (float("nan"), "?")]
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
