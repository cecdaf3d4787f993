"""Differences of two models over images and seeds: intervals, exact p-values, verdicts. See docs/statistics.md.

``pairs`` is always one (Rate, Rate) per seed, of two models on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ebjdat.statistics import Z95, Rate, spread

Pairs = Sequence[tuple[Rate, Rate]]


def differences(pairs: Pairs) -> np.ndarray:
    """(seeds, n) first minus second, -1, 0 or 1, on the images that all seeds have."""
    n = min(rate.n for pair in pairs for rate in pair)
    return np.array([a.per_image()[:n].astype(float) - b.per_image()[:n] for a, b in pairs])


def mean_interval(pairs: Pairs) -> tuple[float, float]:
    """95 % interval of the mean difference over seeds, in [-1, 1], images being the sample.

    Bonett and Price's (2012), as in :class:`ebjdat.statistics.Paired` for one seed: one image more in favour of each
    side, then the normal interval of the mean. With several seeds an image counts with its mean over them.
    """
    values = np.concatenate([differences(pairs).mean(axis=0), [1.0, -1.0]])
    mean, half = float(values.mean()), Z95 * float(values.std()) / math.sqrt(len(values))
    return max(-1.0, mean - half), min(1.0, mean + half)


def seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % Student t interval of the mean of one number per training run; at least two of them."""
    over = spread(values)
    half = float(stats.t.ppf(0.975, over.seeds - 1)) * over.deviation / math.sqrt(over.seeds)
    return over.mean - half, over.mean + half


def seed_verdict(values: Sequence[float]) -> str:
    """``yes`` or ``no`` where the interval of differences over seeds lies above or below 0, else ``open``."""
    if len(values) < 2:
        return "open"
    low, high = seed_interval(values)
    return "yes" if low > 0 else "no" if high < 0 else "open"


def joint_interval(pairs: Pairs) -> tuple[float, float]:
    """95 % interval of the mean difference, in [-1, 1], other images and other training runs being possible.

    Images and seeds are crossed. The bounds of :func:`mean_interval` (images) and :func:`seed_interval` are combined
    as Zou and Donner (2008) do, the root of their squared distances from the mean. One seed says nothing about
    others: then the images' interval.
    """
    low, high = mean_interval(pairs)
    if len(pairs) == 1:
        return low, high
    per_seed = differences(pairs).mean(axis=1)
    least, most = seed_interval([float(value) for value in per_seed])
    mean = float(per_seed.mean())
    return max(-1.0, mean - math.hypot(mean - low, mean - least)), min(1.0, mean + math.hypot(high - mean, most - mean))


def sign_flip_p(pairs: Pairs) -> float:
    """Two-sided p-value: a fair coin per image decides which model all its seeds favoured; one seed is McNemar's test.

    Exact: the distribution of the sum of the images' differences under all sign flips, by convolution.
    """
    of_images = differences(pairs).sum(axis=0).astype(int)
    chances = np.ones(1)
    for step in np.abs(of_images[of_images != 0]):
        coin = np.zeros(2 * step + 1)
        coin[[0, -1]] = 0.5
        chances = np.convolve(chances, coin)
    sums = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(sums) >= abs(int(of_images.sum()))].sum()))


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a model lies above another, in [-1, 1], with its 95 % interval, images and seeds behind it."""

    mean: float
    low: float
    high: float
    n: int
    seeds: int

    @classmethod
    def of(cls, pairs: Pairs) -> Difference:
        """The mean difference with its :func:`joint_interval`."""
        each = differences(pairs).mean(axis=0)
        return cls(float(each.mean()), *joint_interval(pairs), len(each), len(pairs))

    @property
    def verdict(self) -> str:
        """Whether the first is above: yes or no where the interval excludes 0."""
        verdict = "yes" if self.low > 0 else "no" if self.high < 0 else "open"
        return f"{verdict}, this pair" if self.seeds == 1 and verdict != "open" else verdict

    def __str__(self) -> str:
        """Mean in points, interval, and what it rests on."""
        return f"{100 * self.mean:+.1f} {points(self.low, self.high)} (n = {self.n}, {count_seeds(self.seeds)})"


def points(low: float, high: float) -> str:
    """An interval of differences in points."""
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def count_seeds(count: int) -> str:
    """``one seed``, ``3 seeds``."""
    return "one seed" if count == 1 else f"{count} seeds"
