"""Differences of two models over images and seeds, and what may be said of them; docs/statistics.md explains both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats takes a second to import

from ebjdat.statistics import Rate

LEVEL = 0.05
"""Chance of any wrong ``higher`` or ``lower``, and of any wrong ``equal``, among verdicts given together, at most."""

VERDICTS = ("higher", "lower", "equal", "undecided")


@dataclass(frozen=True, slots=True)
class Difference:
    """First model minus second.

    Attributes:
        mean: in points for accuracies, else in the unit of the values.
        error: its standard error; NaN where one seed says nothing about others.
        freedom: degrees of freedom of Student's t.
        seeds, images: behind it; no images for plain values.
    """

    mean: float
    error: float
    freedom: float
    seeds: int
    images: int = 0

    @classmethod
    def of_values(cls, values: Sequence[float]) -> Self:
        """From one difference per seed."""
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), error, len(values) - 1, len(values))

    @classmethod
    def of_rates(cls, pairs: Sequence[tuple[Rate, Rate]]) -> Self:
        """From one pair of rates per seed, all on the same images (the shortest n), in points.

        Seeds and images are crossed: the variance is that of the pigeonhole bootstrap (Owen 2007) over both, in closed
        form. One more image in favour of each side keeps few images honest, as in Bonett and Price (2012). Degrees of
        freedom after Satterthwaite (1946). One seed leaves the images alone.
        """
        n = min(rate.n for pair in pairs for rate in pair)
        found = 100.0 * np.array([a.per_image()[:n].astype(float) - b.per_image()[:n] for a, b in pairs])
        per_image, per_seed = np.append(found.mean(axis=0), [100.0, -100.0]), found.mean(axis=1)
        images = per_image.var(ddof=1) / len(per_image)
        seeds = per_seed.var(ddof=1) / len(pairs) if len(pairs) > 1 else 0.0
        freedom = (images + seeds) ** 2 / (images**2 / (n + 1) + seeds**2 / max(len(pairs) - 1, 1))
        return cls(float(found.mean()), math.sqrt(images + seeds), float(freedom), len(pairs), n)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, not adjusted for other questions; NaN for one seed of plain values."""
        half = float(stdtrit(self.freedom, 1 - LEVEL / 2)) * self.error if self.freedom else math.nan
        return self.mean - half, self.mean + half

    def p_values(self, margin: float) -> tuple[float, float]:
        """Of "no difference" (two-sided t test), and of "differs by the margin or more" (two one-sided t tests)."""
        if math.isnan(self.error):
            return 1.0, 1.0
        different, equal = (self._tail(distance) for distance in (abs(self.mean), margin - abs(self.mean)))
        return min(1.0, 2 * different), equal

    def _tail(self, distance: float) -> float:
        """Chance of a deviation of at least ``distance`` above the truth."""
        if not self.error:
            return 0.5 if distance == 0 else float(distance < 0)
        return float(stdtr(self.freedom, -distance / self.error))

    def text(self, digits: int) -> str:
        """Mean and interval."""
        mean, low, high = (f"{round(one, digits) + 0.0:+.{digits}f}" for one in (self.mean, *self.interval))
        return mean if math.isnan(self.error) else f"{mean} [{low}, {high}]"


def verdicts(found: Sequence[Difference], margins: Sequence[float]) -> list[str]:
    """``higher``, ``lower``, ``equal`` (within the margin) or ``undecided``, of questions that are asked together.

    Each is tested for a difference and for equality, with Holm's correction (1979) over the questions for either. What
    is both different and within the margin is called equal.
    """
    p = np.array([one.p_values(margin) for one, margin in zip(found, margins, strict=True)]).reshape(-1, 2)
    words = []
    for one, (different, equal) in zip(found, np.column_stack([holm(tests) for tests in p.T]) <= LEVEL, strict=True):
        words.append("equal" if equal else "undecided" if not different else "higher" if one.mean > 0 else "lower")
    return words


def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values (N,) of p-values (N,)."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return adjusted.clip(max=1.0)


def count_seeds(count: int) -> str:
    """``one seed``, ``3 seeds``."""
    return "one seed" if count == 1 else f"{count} seeds"
