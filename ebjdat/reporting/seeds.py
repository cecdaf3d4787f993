"""EB-JDAT against its base, its control and the baselines over several seeds, paired by image and seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ebjdat.config import VARIANTS
from ebjdat.evaluation.statistics import Paired, Rate, paired, spread
from ebjdat.reporting.comparisons import PAIRED, display_name
from ebjdat.reporting.layout import Column, Entry, Row, Table
from ebjdat.reporting.lookup import Numbers
from ebjdat.subject import Subject

RIVALS = ("base", "control", "pgd_at", "trades")


def _pairs(numbers: Numbers, first: Subject, second: Subject, stage: str, metric: str) -> dict[int, tuple[Rate, Rate]]:
    """Per-image results of both models, by seed, for the seeds that both have."""
    found = {}
    for seed in sorted({record["seed"] for record in numbers.records}):
        rates = [
            numbers.rate(Subject(one.profile, one.method, one.variant, seed), stage, metric) for one in (first, second)
        ]
        if rates[0] is not None and rates[1] is not None:
            found[seed] = (rates[0], rates[1])
    return found


def _pooled(pairs: Sequence[tuple[Rate, Rate]]) -> Paired:
    """All seeds as one sample of image and seed."""
    sides = [np.concatenate([pair[side].per_image() for pair in pairs]) for side in (0, 1)]
    return paired(Rate.of(sides[0]), Rate.of(sides[1]))


def seeds_table(numbers: Numbers) -> Table:
    """Differences under AutoAttack, protocol ``standard``: per seed, their mean, and pooled."""
    stage, metric = PAIRED["AutoAttack"]
    profile = numbers.params.profile
    rows = []
    for variant in VARIANTS:
        ours = Subject(profile, "ebjdat", variant, 0)
        for method in RIVALS:
            rival = Subject(profile, method, variant if method in ("base", "control") else None, 0)
            pairs = _pairs(numbers, ours, rival, stage, metric)
            if not pairs:
                continue
            pooled = _pooled(list(pairs.values()))
            each = [100 * paired(*pair).difference for pair in pairs.values()]
            over = spread(each)
            low, high = pooled.interval()
            entries = (
                Entry(", ".join(map(str, pairs))),
                Entry(", ".join(f"{one:+.1f}" for one in each)),
                Entry(f"{over.mean:+.1f}", f"±{over.deviation:.1f}" if over.seeds > 1 else ""),
                Entry(f"[{100 * low:+.1f}, {100 * high:+.1f}]"),
                Entry(f"{pooled.p_value():.2g}"),
                Entry(str(pooled.n)),
            )
            rows.append(Row(f"{display_name(ours)} vs. {display_name(rival)}", entries))
    names = ("seeds", "difference per seed (points)", "mean", "pooled interval", "p", "n")
    text = (
        f"Protocol standard, profile {profile}, AutoAttack (cascade), best checkpoints, test split. Both models of a "
        "pair have the same seed and images. Pooled: 95 % interval of the difference (Bonett and Price) and McNemar's "
        "exact p-value over image-seed pairs, which treats seeds as further images; the mean has the spread over seeds."
    )
    columns = tuple(Column(name) for name in names)
    return Table("seeds", "AutoAttack over seeds, paired", text, "Models", columns, tuple(rows))
