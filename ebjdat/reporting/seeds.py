"""EB-JDAT against its base, its control and the baselines over several seeds, paired by image and seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ebjdat.config import VARIANTS
from ebjdat.evaluation.statistics import Z95, Rate, paired, spread
from ebjdat.reporting.comparisons import PAIRED, display_name, rival, seed_interval
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


def differences(found: Sequence[tuple[Rate, Rate]]) -> np.ndarray:
    """(seeds, n) first minus second, -1, 0 or 1, on the images that all seeds have."""
    n = min(rate.n for pair in found for rate in pair)
    return np.array([a.per_image()[:n].astype(float) - b.per_image()[:n] for a, b in found])


def per_image(found: Sequence[tuple[Rate, Rate]]) -> np.ndarray:
    """(n,) mean over seeds of first minus second, in [-1, 1]."""
    return np.asarray(differences(found).mean(axis=0))


def mean_interval(found: Sequence[tuple[Rate, Rate]]) -> tuple[float, float]:
    """95 % interval of the mean difference over seeds, in [-1, 1], images being the sample.

    Bonett and Price's (2012) of :class:`~ebjdat.evaluation.statistics.Paired` for one seed: one image more in favour
    of each side, then the normal interval of the mean. With several seeds an image counts with its mean over them, so
    seeds average out what differs between them and nothing of what the images have in common.
    """
    values = np.concatenate([per_image(found), [1.0, -1.0]])
    mean, half = float(values.mean()), Z95 * float(values.std()) / math.sqrt(len(values))
    return max(-1.0, mean - half), min(1.0, mean + half)


def joint_interval(found: Sequence[tuple[Rate, Rate]]) -> tuple[float, float]:
    """95 % interval of the mean difference, in [-1, 1], other images and other training runs being possible.

    Images and seeds are crossed: every seed meets every image, and the variance of the mean has a share of each. The
    bounds of :func:`mean_interval` (images) and Student's (seeds) are combined as Zou and Donner (2008) do, the root
    of their squared distances from the mean. One seed says nothing about others: then the images' interval.
    """
    low, high = mean_interval(found)
    if len(found) == 1:
        return low, high
    per_seed = differences(found).mean(axis=1)
    least, most = seed_interval([float(value) for value in per_seed])
    mean = float(per_seed.mean())
    return max(-1.0, mean - math.hypot(mean - low, mean - least)), min(1.0, mean + math.hypot(high - mean, most - mean))


def sign_flip_p(found: Sequence[tuple[Rate, Rate]]) -> float:
    """Two-sided p-value: a fair coin per image decides which model all its seeds favoured; one seed is McNemar's test.

    Exact: the distribution of the sum of the images' differences under all sign flips, by convolution.
    """
    sums_of_seeds = differences(found).sum(axis=0).astype(int)
    chances = np.ones(1)
    for step in np.abs(sums_of_seeds[sums_of_seeds != 0]):
        coin = np.zeros(2 * step + 1)
        coin[[0, -1]] = 0.5
        chances = np.convolve(chances, coin)
    sums = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(sums) >= abs(int(sums_of_seeds.sum()))].sum()))


def seeds_table(numbers: Numbers) -> Table:
    """Differences under AutoAttack, protocol ``standard``: per seed, and their mean."""
    stage, metric = PAIRED["AutoAttack"]
    profile = numbers.params.profile
    rows = []
    for variant in VARIANTS:
        ours = Subject(profile, "ebjdat", variant, 0)
        for method in RIVALS:
            other = rival(numbers, ours, method)
            found = pairs(numbers, ours, other, stage, metric)
            if not found:
                continue
            each = [100 * paired(*pair).difference for pair in found.values()]
            over = spread(each)
            by_images, by_both = (interval(list(found.values())) for interval in (mean_interval, joint_interval))
            entries = (
                Entry(", ".join(map(str, found))),
                Entry(", ".join(f"{one:+.1f}" for one in each)),
                Entry(f"{over.mean:+.1f}", f"±{over.deviation:.1f}" if over.seeds > 1 else ""),
                *(Entry(f"[{100 * low:+.1f}, {100 * high:+.1f}]") for low, high in (by_images, by_both)),
                Entry(f"{sign_flip_p(list(found.values())):.2g}"),
                Entry(str(len(per_image(list(found.values()))))),
            )
            rows.append(Row(f"{display_name(ours)} vs. {display_name(other)}", entries))
    names = ("seeds", "difference per seed (points)", "mean", "interval, images", "images and seeds", "p", "n")
    text = (
        f"Protocol standard, profile {profile}, AutoAttack (cascade), best checkpoints, test split. Both models of a "
        "pair have the same images; only the control shares EB-JDAT's initial weights and random numbers, for the "
        "others an equal seed is an independent run. Intervals: 95 %, of the mean difference, over the n images "
        "(Bonett and Price; an image counts with its mean over seeds), and over images and seeds (with Student's over "
        "seeds, in quadrature; one seed adds nothing); p: exact, two-sided, by sign flips of images with all their "
        "seeds, which like the first interval says nothing of further seeds."
    )
    columns = tuple(Column(name) for name in names)
    return Table("seeds", "AutoAttack over seeds, paired", text, "Models", columns, tuple(rows))
