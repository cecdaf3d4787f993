"""How far a long loop is: a bar in a terminal, sparse lines in a log file.

Both show the label, the share done, rate, time left and the current values (loss, robust accuracy), so that a person
who looks at a job of hours knows whether to wait or to stop it.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any, Self

QUIET_SECONDS = 30.0
"""Least time between two lines of a log."""


class Progress:
    """Progress of ``total`` units.

    >>> with Progress(3, "autoattack", unit="slice") as progress:
    ...     progress.advance(1, robust=0.62)

    It goes to stderr, so that stdout stays for results; ``silent``: nothing is written.
    """

    def __init__(self, total: int, label: str, *, unit: str = "it", silent: bool = False) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = self.skipped = 0
        self.values: dict[str, float] = {}
        self._silent, self._started, self._written = silent, time.monotonic(), -math.inf
        self._bar: Any = None
        if not silent and sys.stderr.isatty():
            from tqdm import tqdm  # type: ignore[import-untyped]

            self._bar = tqdm(total=total, desc=label, unit=unit, file=sys.stderr, dynamic_ncols=True)

    def skip(self, units: int) -> None:
        """Count ``units`` that an earlier run has done: part of the share, not of the rate."""
        self.done, self.skipped = self.done + units, self.skipped + units
        if self._bar is not None:
            for count in ("n", "last_print_n", "initial"):  # so that they stay out of its rate
                setattr(self._bar, count, getattr(self._bar, count) + units)

    def advance(self, units: int = 1, **values: float) -> None:
        """Count ``units`` as done and show the ``values``; a value stays until it is given again."""
        self.done += units
        self.values |= values
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in self.values.items()}, refresh=False)
            self._bar.update(units)
            return
        now = time.monotonic()
        if not self._silent and (now - self._written >= QUIET_SECONDS or self.done >= self.total > self.done - units):
            self._written = now
            print(self._line(now - self._started), file=sys.stderr, flush=True)

    def _line(self, elapsed: float) -> str:
        rate = (self.done - self.skipped) / elapsed if elapsed > 0 else 0.0
        left = (self.total - self.done) / rate if rate else math.nan
        times = f"{rate:.3g} {self.unit}/s, {duration(elapsed)} elapsed, {duration(left)} left"
        shown = "".join(f", {name} {value:.4g}" for name, value in self.values.items())
        share = 100 * self.done / self.total if self.total else 100.0
        return f"{self.label}: {share:.0f} %, {self.done}/{self.total} {self.unit} ({times}){shown}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


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
