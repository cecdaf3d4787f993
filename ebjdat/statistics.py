"""Counts with their uncertainty: Wilson intervals, paired tests on the same images.

A robust accuracy on 100 images is known to about +-10 points; two models judged on the same images
are compared pair by pair, which is far sharper than comparing two intervals.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Rate:
    """An accuracy and which images make it up.

    Attributes:
        correct: images answered correctly.
        n: images asked about: the first n of the fixed test order.
        flags: per image whether it was answered correctly, bit-packed, as hex.
    """

    correct: int
    n: int
    flags: str

    @classmethod
    def of(cls, correct: Any) -> Self:
        """From one boolean per image (any sequence or array of shape (N,)).

        Raises:
            ValueError: not one-dimensional, empty or not boolean.
        """
        array = np.asarray(correct)
        if array.ndim != 1 or array.size == 0 or array.dtype != np.bool_:
            raise ValueError(f"expected booleans of shape (N,), N > 0, got {array.dtype} {array.shape}")
        return cls(int(array.sum()), int(array.size), np.packbits(array).tobytes().hex())

    @property
    def accuracy(self) -> float:
        """Share of correct images in [0, 1]."""
        return self.correct / self.n

    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson(self.correct, self.n)

    def per_image(self) -> np.ndarray:
        """The flags as a boolean array of shape (n,)."""
        packed = np.frombuffer(bytes.fromhex(self.flags), dtype=np.uint8)
        return np.unpackbits(packed, count=self.n).astype(bool)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What an evaluation stage found; :func:`ebjdat.record.write_record` makes it a record.

    Attributes:
        n: images (or samples) that the stage worked on.
        rates: accuracies by metric name, for example ``standard/apgd-ce``.
        values: other numbers by metric name; finite.
        audits: per attack, the measured properties (largest distance, range, changed images).
        warnings: per attack, what its code warned about.
        settings: the protocol cells as they were resolved (radius, steps, samples).
        arrays: per-image arrays, written beside the record; not part of it.
    """

    n: int
    rates: dict[str, Rate] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    audits: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] | None = None


def wilson(correct: float, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927), inside [0, 1]; a mean count may be fractional.

    Raises:
        ValueError: not 0 <= correct <= n with n > 0.
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"expected 0 <= correct <= n, n > 0, got {correct} of {n}")
    share, z2 = correct / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == n else centre + half
    return low, high


def paired_interval(first: Rate, second: Rate) -> tuple[float, float]:
    """95 % interval of the first accuracy minus the second, in [-1, 1], on the images that both have.

    After Bonett and Price (2012): one pseudo-count per discordant cell keeps it honest where few images differ. Both
    rates count the same fixed test order from its start.
    """
    n = min(first.n, second.n)
    a, b = first.per_image()[:n], second.per_image()[:n]
    more, less = (int((a & ~b).sum()) + 1) / (n + 2), (int((b & ~a).sum()) + 1) / (n + 2)
    half = Z95 * math.sqrt((more + less - (more - less) ** 2) / (n + 2))
    return max(-1.0, more - less - half), min(1.0, more - less + half)
