"""What the numbers of a profile answer: the paper's questions, each with a verdict and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass

from ebjdat.config import VARIANTS
from ebjdat.protocols import STANDARD, as_fraction
from ebjdat.reporting import figures
from ebjdat.reporting.comparisons import (
    PAIRED,
    alignment,
    display_name,
    energy_terms,
    per_seed,
    rival,
    seed_interval,
    training_radius,
)
from ebjdat.reporting.layout import Column, Entry, Row, Table
from ebjdat.reporting.lookup import Cell, Numbers, show_value
from ebjdat.reporting.seeds import joint_interval, pairs, per_image
from ebjdat.subject import Subject

RIVALS = {"the plain variant": "base", "its control": "control", "PGD-AT": "pgd_at"}
"""What EB-JDAT is compared with: method by its name in the questions."""
SHORT = {"base": "plain", "control": "control", "pgd_at": "PGD-AT"}
"""The same in the picture."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far EB-JDAT lies above another model, in [-1, 1], with its 95 % interval, images and seeds behind it."""

    mean: float
    low: float
    high: float
    n: int
    seeds: int

    @property
    def verdict(self) -> str:
        """Whether it is above: yes or no where the interval excludes 0."""
        verdict = "yes" if self.low > 0 else "no" if self.high < 0 else "open"
        return f"{verdict}, this pair" if self.seeds == 1 and verdict != "open" else verdict

    def text(self) -> tuple[str, str]:
        """Mean in points; interval and what it rests on."""
        interval = f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{100 * self.mean:+.1f}", f"{interval} (n = {self.n}, {_seeds(self.seeds)})"


def difference(numbers: Numbers, ours: Subject, other: Subject, what: str) -> Difference | None:
    """Of two models, paired by image, over the seeds that both have; None without any.

    Args:
        what: a key of :data:`~ebjdat.reporting.comparisons.PAIRED`.
    """
    found = list(pairs(numbers, ours, other, *PAIRED[what]).values())
    if not found:
        return None
    each = per_image(found)
    return Difference(float(each.mean()), *joint_interval(found), len(each), len(found))


def ours_with_numbers(numbers: Numbers) -> list[Subject]:
    """The EB-JDAT variants that have numbers."""
    variants = [Subject(numbers.params.profile, "ebjdat", variant, numbers.params.seed) for variant in VARIANTS]
    return [one for one in variants if any(numbers.cell(one, *key).state == "value" for key in PAIRED.values())]


def differences_figure(numbers: Numbers) -> tuple[str, str] | None:
    """The differences to each rival as an ``<svg>`` element, and the same in words; None where there are none."""
    groups: dict[str, list[figures.Point]] = {}
    words = []
    for what in reversed(PAIRED):
        for name, method in RIVALS.items():
            for ours in ours_with_numbers(numbers):
                found = difference(numbers, ours, rival(numbers, ours, method), what)
                if found is not None:
                    point = figures.Point(f"{what}, vs. {SHORT[method]}", found.mean, found.low, found.high)
                    groups.setdefault(display_name(ours), []).append(point)
                    words.append(f"{display_name(ours)}, {what}, minus {name}: {' '.join(found.text())}")
    if not groups:
        return None
    picture = figures.intervals("differences", groups, "EB-JDAT minus the other (points)", zero=True)
    return picture, "; ".join(words)


def findings_table(numbers: Numbers, distance: str) -> Table:
    """The questions as rows, the EB-JDAT variants that have numbers as columns.

    Args:
        distance: metric name of the distance between samples and training images.
    """
    profile, variants = numbers.params.profile, ours_with_numbers(numbers)
    both = {name: [(one, rival(numbers, one, method)) for one in variants] for name, method in RIVALS.items()}
    rows = [
        Row(f"{what}: above {name}", tuple(_above(numbers, *pair, what) for pair in both[name]))
        for what in ("AutoAttack", "PGD-20", "clean accuracy")
        for name in RIVALS
    ]
    for images, fresh in (("buffer", False), ("fresh chains", True)):
        rows += [
            Row(
                f"energies: aligned more than in {name} ({images})",
                tuple(_aligned(numbers, *pair, fresh) for pair in both[name]),
            )
            for name in RIVALS
            if name != "PGD-AT"
        ]
    rows.append(
        Row(
            "energies: aligned more than in PGD-AT (clean and adversarial)",
            tuple(_aligned(numbers, *pair) for pair in both["PGD-AT"]),
        )
    )
    nearer = tuple(_nearer(numbers, one, distance) for one in variants)
    rows.append(Row("samples: nearer to the data than the chains' start", nearer))
    radius = as_fraction(STANDARD.radius(numbers.profile.evaluation.radius))
    text = (
        f"Protocol standard at {radius}, profile {profile}. {training_radius(numbers, variants)} "
        f"{energy_terms(numbers, variants)} Control: EB-JDAT without it. Above: mean difference over seeds in points, "
        "paired by image, with its 95 % interval over images and seeds (that over the n images and Student's over "
        "seeds, in quadrature), which with one seed is about this pair of trained models only. Aligned: overlap of the "
        "energies of clean, adversarial and generated images, ours and the other's, with the 95 % t interval of their "
        "difference over seeds. Yes or no: the interval excludes 0; not adjusted for the number of questions. "
        f"Nearer: {distance} of samples from fresh chains of "
        f"{numbers.profile.evaluation.generation.chain_steps} steps and of their start, and in how many seeds that of "
        "samples is lower."
    )
    if not variants:
        text = f"No EB-JDAT model has numbers in profile {profile}."
    columns = tuple(Column(display_name(one)) for one in variants)
    return Table(
        "findings", f"What was found on {profile}", text, "Is it so?", columns, tuple(rows if variants else ())
    )


def _missing(*found: Cell) -> Entry:
    """Why there is no answer: the state of the first cell without a value, or that no seed has both."""
    return Entry(next((cell.state for cell in found if cell.state != "value"), "no common seed"))


def _above(numbers: Numbers, ours: Subject, other: Subject, what: str) -> Entry:
    found = difference(numbers, ours, other, what)
    if found is None:
        return _missing(numbers.cell(ours, *PAIRED[what]), numbers.cell(other, *PAIRED[what]))
    return Entry(found.verdict, *found.text())


def _aligned(numbers: Numbers, ours: Subject, other: Subject, fresh: bool = False) -> Entry:
    _, first, second, direction = alignment(numbers, ours, other, fresh)
    differences = per_seed(first, second)
    if not differences:
        return _missing(first, second)
    verdict = {"more": "yes", "less": "no"}.get(direction, "open")
    rests_on = f"({_seeds(len(differences))})"
    if len(differences) > 1:
        low, high = seed_interval(differences)
        rests_on = f"[{low:+.2f}, {high:+.2f}] {rests_on}"
    return Entry(verdict, f"{show_value(first).text}, {show_value(second).text}", rests_on)


def _nearer(numbers: Numbers, ours: Subject, distance: str) -> Entry:
    samples, start = (numbers.cell(ours, "generate", f"generation/{kind}{distance}") for kind in ("", "start-"))
    ends = [{reading.seed: reading.value for reading in cell.readings} for cell in (samples, start)]
    common = sorted(set(ends[0]) & set(ends[1]))
    if not common:
        return _missing(samples, start)
    lower = sum(ends[0][seed] < ends[1][seed] for seed in common)
    means = [sum(end[seed] for seed in common) / len(common) for end in ends]
    return Entry(f"in {lower} of {len(common)}", f"{means[0]:.2f}, {means[1]:.2f}")


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
