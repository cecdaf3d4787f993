"""The results in a minute: a few sentences, and one line to check a reproduction against.

Every sentence gives verdicts of :mod:`ebjdat.results.findings`; docs/statistics.md explains them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator

from scipy import stats

from ebjdat.results.findings import RIVALS, Finding, Question, findings
from ebjdat.results.frame import Results
from ebjdat.results.names import COMPARED, display_name
from ebjdat.results.statistics import count_seeds
from ebjdat.statistics import spread, wilson

AUTOATTACK = COMPARED["AutoAttack"]
ROBUST = ("AutoAttack", "PGD-20")
ACCURACIES = (*ROBUST, "clean accuracy")
ENERGIES = ("E(x_adv) - E(x)", "d'")
DISTANCES = ("Fréchet distance", "FID")


def texts(results: Results) -> dict[str, str]:
    """Markdown by the label that pages use: all sentences, the most important ones, and the line to check."""
    start = list(_sentences(results, "start", DISTANCES))
    every = [one for rival in ("base", "pgd_at") for one in _sentences(results, rival, ACCURACIES)]
    every += _sentences(results, "control", (*ACCURACIES, *ENERGIES))
    short = [*_sentences(results, "control", (*ROBUST, *ENERGIES)), *_sentences(results, "pgd_at", ROBUST)]
    return {
        "answers": _listed([*every, *start]),
        "short": _listed([*short, *start]),
        "check": f"{wrapped(check(results))}\n",
    }


def _listed(sentences: Iterable[str]) -> str:
    return "".join(f"{wrapped(f'- {sentence}')}\n" for sentence in sentences)


def wrapped(text: str) -> str:
    """Lines of at most 120 characters, those after the first of a list's item indented."""
    return textwrap.fill(text, 120, subsequent_indent="  " if text.startswith("- ") else "", break_on_hyphens=False)


def _sentences(results: Results, rival: str, quantities: Iterable[str]) -> Iterator[str]:
    """Both forms of the selected variant, the code's and the equations', against a rival."""
    variant, found = results.params.variant, findings(results)
    for model in (f"ebjdat-{variant}", f"ebjdat-{variant}_energy"):
        asked = [(quantity, found.get(Question(model, quantity, rival))) for quantity in quantities]
        told = [f"{quantity} {_told(one)}" for quantity, one in asked if one]
        if told:
            yield f"{display_name(results.params, model)} minus {RIVALS[rival]}: {'; '.join(told)}."


def _told(one: Finding) -> str:
    margin = f" within {one.margin:g}" if one.verdict.startswith("equal") else ""
    images = f"{one.difference.images} images, " if one.difference.images else ""
    unit = f" {one.unit}" if one.unit in ("points", "nats") else ""
    return f"{one.verdict}{margin}, {one.numbers}{unit} ({images}{count_seeds(one.difference.seeds)})"


def check(results: Results) -> str:
    """What another machine should find for the first seed, whose trained weights differ there."""
    model, seed = f"ebjdat-{results.params.variant}", results.params.seeds[0]
    values = 100 * results.values(model, AUTOATTACK)
    if seed not in values:
        return f"No record of {display_name(results.params, model)} under AutoAttack."
    low, high = _next(list(values), min(results.images(model, AUTOATTACK)))
    return (
        f"You should see AutoAttack {low:.0f} to {high:.0f} % for {display_name(results.params, model)}, seed {seed} "
        f"(ours: {values[seed]:.1f} %; 95 % range for one new training, from {count_seeds(len(values))})."
    )


def _next(values: list[float], n: int) -> tuple[float, float]:
    """95 % range of one more training run on the same images, in per cent; of one run, its Wilson interval."""
    over = spread(values)
    if over.seeds == 1:
        low, high = wilson(over.mean * n / 100, n)
        return 100 * low, 100 * high
    half = float(stats.t.ppf(0.975, over.seeds - 1)) * over.deviation * math.sqrt(1 + 1 / over.seeds)
    return max(0.0, over.mean - half), min(100.0, over.mean + half)
