"""The paper's questions: how far EB-JDAT lies from its rivals in accuracy, energies and generation, with verdicts.

What is asked, of whom and with which margins stands in studies.yaml; the verdicts are those of
:func:`ebjdat.results.statistics.verdicts`, together for all questions about one model.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ebjdat.protocols import STANDARD
from ebjdat.results import cells, names
from ebjdat.results.cells import Table
from ebjdat.results.frame import Results
from ebjdat.results.statistics import Difference, verdicts

RIVALS = {
    "control": "the control",
    "base": "the plain variant",
    "pgd_at": "PGD-AT",
    "matched": "PGD-AT on its network",
    "compute": "PGD-AT of equal compute",
    "unweighted": "the same with w2 = 0",
    "start": "the start of the chains",
}
"""What a model is compared with, and its name there; ``start`` is about samples of the same model."""


class Question(NamedTuple):
    """What is asked: the first model, the quantity by its name in studies.yaml, the rival (of :data:`RIVALS`)."""

    model: str
    quantity: str
    rival: str


@dataclass(frozen=True, slots=True)
class Finding:
    """An answer: the difference, ``model`` minus ``rival``, and its verdict.

    One seed answers for the two trained models alone, and the verdict says so.
    """

    difference: Difference
    verdict: str
    unit: str
    margin: float

    @property
    def numbers(self) -> str:
        """Mean and 95 % interval."""
        return self.difference.text(1 if self.unit == "points" else 2)

    @property
    def shown_unit(self) -> str:
        """The unit where it is not clear from the quantity, else empty."""
        return self.unit if self.unit in ("points", "nats") else ""

    def __str__(self) -> str:
        """Mean, interval, verdict and number of seeds; said is why an interval without 0 decides nothing."""
        low, high = self.difference.interval
        corrected = " after correction" if self.verdict == "undecided" and low * high > 0 else ""
        return f"{self.numbers} {self.verdict}{corrected} ({self.difference.seeds})"


def rivals(model: str) -> dict[str, str]:
    """Models that ``model`` is compared with, by :data:`RIVALS`."""
    variant = model.partition("-")[2]
    default = {"control": f"control-{variant}", "base": f"base-{variant}", "pgd_at": "pgd_at"}
    return dict(names.studies()["rivals"].get(model, default))


def _asked(results: Results, model: str) -> Iterator[tuple[Question, Difference]]:
    for quantity, about in names.studies()["quantities"].items():
        metric = about["metric"]
        for rival, other in rivals(model).items():
            pairs = list(results.pairs(model, other, metric).values())
            values = list((results.values(model, metric) - results.values(other, metric)).dropna())
            if pairs or values:
                found = Difference.of_rates(pairs) if pairs else Difference.of_values(values)
                yield Question(model, quantity, rival), found
        start = results.values(model, metric.replace("/generation/", "/generation/start-"))
        values = list((results.values(model, metric) - start).dropna())
        if metric.startswith("generate/") and values:
            yield Question(model, quantity, "start"), Difference.of_values(values)


@functools.lru_cache(maxsize=2)
def findings(results: Results) -> dict[Question, Finding]:
    """Every question that the records answer; the EB-JDAT models with a place in every table are asked about."""
    found, quantities = {}, names.studies()["quantities"]
    for model in (f"ebjdat-{variant}" for variant in names.variants(results, *names.studies()["rivals"])):
        asked = dict(_asked(results, model))
        margins = [quantities[question.quantity]["margin"] for question in asked]
        for (question, one), verdict in zip(asked.items(), verdicts(list(asked.values()), margins), strict=True):
            about = quantities[question.quantity]
            alone = ", this pair" if one.seeds == 1 and verdict != "undecided" else ""
            found[question] = Finding(one, verdict + alone, about["unit"], about["margin"])
    return found


def table(results: Results) -> Table:
    """Questions as rows, EB-JDAT models as columns."""
    found = findings(results)
    models = list(dict.fromkeys(question.model for question in found))
    rows = {}
    for quantity, about in names.studies()["quantities"].items():
        for rival, name in RIVALS.items():
            asked = [found.get(Question(model, quantity, rival)) for model in models]
            if any(asked):
                unit = next(one.shown_unit for one in asked if one)
                margin = f"{about['margin']:g} {unit}".strip()
                rows[f"{quantity}: minus {name}"] = [margin, *(str(one or "") for one in asked)]
    questions = max((sum(one.model == model for one in found) for model in models), default=0)
    extra = f"Difference, 95 % interval, verdict (seeds); at most {questions} questions about a model (Holm)."
    metrics = [about["metric"] for about in names.studies()["quantities"].values()]
    text = cells.caption(results, models, metrics, STANDARD, extra)
    heads = ["margin", *(names.display_name(results.params, model) for model in models)]
    return Table("findings", f"What was found on {results.profile}", text, cells.grid("Difference in", heads, rows))
