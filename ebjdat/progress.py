"""How far a long loop is: a bar in a terminal, sparse lines in a log file.

Both show the label, the share done, the time left and the current values (loss, robust accuracy),
so that a person who looks at a job of hours knows whether to wait or to stop it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

QUIET_SECONDS = 10.0
"""Least time between two lines of a log."""


class Progress:
    """Progress of ``total`` units.

    >>> with Progress(3, "autoattack", unit="slice") as progress:
    ...     progress.advance(1, robust=0.62)

    Args:
        total: units of work.
        label: what is running.
        unit: name of one unit.
        stream: where to write; stderr by default, so that stdout stays for results.
        silent: write nothing.
        clock: seconds; replaced in tests.
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        unit: str = "it",
        stream: TextIO | None = None,
        silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = 0
        self._stream = sys.stderr if stream is None else stream
        self._silent = silent
        self._clock = clock
        self._started = clock()
        self._written = -float("inf")
        self._bar = self._terminal_bar()

    def _terminal_bar(self) -> Any:
        if self._silent or not self._stream.isatty():
            return None
        try:
            from tqdm import tqdm  # type: ignore[import-untyped]
        except ImportError:  # training needs torch and numpy only; lines will do
            return None
        return tqdm(total=self.total, desc=self.label, unit=self.unit, file=self._stream, dynamic_ncols=True)

    def advance(self, units: int = 1, **values: float) -> None:
        """Count ``units`` as done and show the current ``values``."""
        self.done += units
        if self._bar is not None:
            self._bar.set_postfix({name: _short(value) for name, value in values.items()}, refresh=False)
            self._bar.update(units)
            return
        now = self._clock()
        if self._silent:
            return
        if now - self._written >= QUIET_SECONDS or self.done >= self.total:
            self._written = now
            print(self._line(now, values), file=self._stream, flush=True)

    def _line(self, now: float, values: dict[str, float]) -> str:
        elapsed = now - self._started
        left = elapsed / self.done * (self.total - self.done) if self.done else float("nan")
        times = f"{duration(elapsed)} elapsed, {duration(left)} left"
        shown = "".join(f", {name} {_short(value)}" for name, value in values.items())
        return f"{self.label}: {self.done}/{self.total} {self.unit} ({times}){shown}"

    def close(self) -> None:
        """End the bar; a log needs nothing."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def duration(seconds: float) -> str:
    """Seconds for people: ``45 s``, ``3 min 20 s``, ``2 h 05 min``; ``?`` when unknown."""
    if math.isnan(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _short(value: float) -> str:
    return f"{value:.4g}"
