"""EB-JDAT against its base, its control and the baselines over several seeds, paired by image and seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ebjdat.config import VARIANTS
from ebjdat.evaluation.statistics import Z95, Rate, paired, spread
from ebjdat.reporting.comparisons import PAIRED, display_name
from ebjdat.reporting.layout import Column, Entry, Row, Table
from ebjdat.reporting.lookup import Numbers
from ebjdat.subject import Subject

RIVALS = ("base", "control", "pgd_at", "trades")


def pairs(numbers: Numbers, first: Subject, second: Subject, stage: str, metric: str) -> dict[int, tuple[Rate, Rate]]:
    """Per-image results of both models, by seed, for the seeds that both have."""
    found = {}
    for seed in sorted({record["seed"] for record in numbers.records}):
        rates = [
            numbers.rate(Subject(one.profile, one.method, one.variant, seed), stage, metric) for one in (first, second)
        ]
        if rates[0] is not None and rates[1] is not None:
            found[seed] = (rates[0], rates[1])
    return found


def mean_interval(found: Sequence[tuple[Rate, Rate]]) -> tuple[float, float]:
    """95 % interval of the mean difference over seeds, in [-1, 1].

    The interval of Bonett and Price (2012), as in :class:`Paired`, for the seeds' mean counts at n images: seeds
    share their test images, so more seeds do not narrow what the images leave open.
    """
    each = [paired(*pair) for pair in found]
    total = min(one.n for one in each) + 2
    first = (float(np.mean([one.only_first for one in each])) + 1) / total
    second = (float(np.mean([one.only_second for one in each])) + 1) / total
    half = Z95 * math.sqrt((first + second - (first - second) ** 2) / total)
    return max(-1.0, first - second - half), min(1.0, first - second + half)


def sign_flip_p(found: Sequence[tuple[Rate, Rate]]) -> float:
    """Two-sided p-value: a fair coin per image decides which model all its seeds favoured; one seed is McNemar's test.

    Exact: the distribution of the sum of the images' differences under all sign flips, by convolution.
    """
    n = min(rate.n for pair in found for rate in pair)
    per_image = sum(a.per_image()[:n].astype(int) - b.per_image()[:n].astype(int) for a, b in found)
    chances = np.ones(1)
    for step in np.abs(per_image[per_image != 0]):
        coin = np.zeros(2 * step + 1)
        coin[[0, -1]] = 0.5
        chances = np.convolve(chances, coin)
    sums = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(sums) >= abs(int(per_image.sum()))].sum()))


def seeds_table(numbers: Numbers) -> Table:
    """Differences under AutoAttack, protocol ``standard``: per seed, and their mean."""
    stage, metric = PAIRED["AutoAttack"]
    profile = numbers.params.profile
    rows = []
    for variant in VARIANTS:
        ours = Subject(profile, "ebjdat", variant, 0)
        for method in RIVALS:
            rival = Subject(profile, method, variant if method in ("base", "control") else None, 0)
            found = pairs(numbers, ours, rival, stage, metric)
            if not found:
                continue
            each = [100 * paired(*pair).difference for pair in found.values()]
            over = spread(each)
            low, high = mean_interval(list(found.values()))
            entries = (
                Entry(", ".join(map(str, found))),
                Entry(", ".join(f"{one:+.1f}" for one in each)),
                Entry(f"{over.mean:+.1f}", f"±{over.deviation:.1f}" if over.seeds > 1 else ""),
                Entry(f"[{100 * low:+.1f}, {100 * high:+.1f}]"),
                Entry(f"{sign_flip_p(list(found.values())):.2g}"),
                Entry(str(paired(*next(iter(found.values()))).n)),
            )
            rows.append(Row(f"{display_name(ours)} vs. {display_name(rival)}", entries))
    names = ("seeds", "difference per seed (points)", "mean", "interval", "p", "n")
    text = (
        f"Protocol standard, profile {profile}, AutoAttack (cascade), best checkpoints, test split. Both models of a "
        "pair have the same seed and images. Interval: 95 %, of the mean difference at n images (Bonett and Price), "
        "because seeds share their images; p: exact, two-sided, by sign flips of images with all their seeds. "
        "Neither includes what further seeds would give: that is the spread."
    )
    columns = tuple(Column(name) for name in names)
    return Table("seeds", "AutoAttack over seeds, paired", text, "Models", columns, tuple(rows))
