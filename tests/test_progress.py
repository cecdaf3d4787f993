"""Progress for people: a log of sparse lines, honest about what an earlier run has done."""

from __future__ import annotations

import io
import sys

import pytest

from ebjdat import progress
from ebjdat.progress import Progress, duration


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
