"""What the numbers of a profile answer: the paper's questions, each with a verdict and what it rests on."""

from __future__ import annotations

from ebjdat.config import VARIANTS
from ebjdat.evaluation.statistics import paired
from ebjdat.reporting.comparisons import PAIRED, alignment, display_name
from ebjdat.reporting.layout import Column, Entry, Row, Table
from ebjdat.reporting.lookup import Numbers, show_value
from ebjdat.reporting.seeds import mean_interval, pairs
from ebjdat.subject import Subject

NOT_KNOWN = Entry("not run")


def findings_table(numbers: Numbers, distance: str) -> Table:
    """The questions as rows, the EB-JDAT variants that were run as columns.

    Args:
        distance: metric name of the distance between samples and training images.
    """
    profile, seed = numbers.params.profile, numbers.params.seed
    variants = [Subject(profile, "ebjdat", variant, seed) for variant in VARIANTS]
    variants = [one for one in variants if numbers.cell(one, "clean", "standard/clean").state == "value"]

    def base(one: Subject) -> Subject:
        return Subject(profile, "base", one.variant, seed)

    def control(one: Subject) -> Subject:
        return Subject(profile, "control", one.variant, seed)

    def surrogate(_: Subject) -> Subject:
        return Subject.baseline(numbers.params, "pgd_at")

    rows = [
        Row(f"{question} {rival}", tuple(answer(numbers, one, other(one)) for one in variants))
        for question, answer in (("AutoAttack: above", _robust), ("clean accuracy: above", _accurate))
        for rival, other in (("the plain variant", base), ("its control", control), ("PGD-AT", surrogate))
    ]
    rows += [
        Row(f"energies aligned more than in {rival}", tuple(_aligned(numbers, one, other(one)) for one in variants))
        for rival, other in (("the plain variant", base), ("its control", control), ("PGD-AT", surrogate))
    ]
    rows.append(
        Row(
            "samples nearer to the data than the chains' start",
            tuple(_nearer(numbers, one, distance) for one in variants),
        )
    )
    text = (
        f"Protocol standard, profile {profile}. Above: mean difference over seeds in points, paired by image, with its "
        "95 % interval at n images; yes or no where the interval excludes 0. Control: EB-JDAT without its energy term. "
        "Aligned: overlap of the energies of clean, adversarial and generated images (of clean and adversarial ones "
        "beside PGD-AT), ours and the other's; open where the difference is within the standard deviations over seeds. "
        f"Nearer: {distance} of samples and of the start, in how many seeds lower."
    )
    columns = tuple(Column(display_name(one)) for one in variants)
    return Table("findings", f"What was found on {profile}", text, "Is it so?", columns, tuple(rows))


def _difference(numbers: Numbers, ours: Subject, other: Subject, what: str) -> Entry:
    found = list(pairs(numbers, ours, other, *PAIRED[what]).values())
    if not found:
        return NOT_KNOWN
    difference = sum(paired(*pair).difference for pair in found) / len(found)
    low, high = mean_interval(found)
    verdict = "yes" if low > 0 else "no" if high < 0 else "open"
    return Entry(verdict, f"{100 * difference:+.1f}", f"[{100 * low:+.1f}, {100 * high:+.1f}]")


def _robust(numbers: Numbers, ours: Subject, other: Subject) -> Entry:
    return _difference(numbers, ours, other, "AutoAttack")


def _accurate(numbers: Numbers, ours: Subject, other: Subject) -> Entry:
    return _difference(numbers, ours, other, "clean accuracy")


def _aligned(numbers: Numbers, ours: Subject, other: Subject) -> Entry:
    _, first, second, direction = alignment(numbers, ours, other)
    if direction == "not known":
        return NOT_KNOWN
    verdict = {"more": "yes", "less": "no"}.get(direction.split()[0], "open")
    seeds = min(first.spread.seeds, second.spread.seeds)
    return Entry(verdict, f"{show_value(first).text}, {show_value(second).text}", "(one seed)" if seeds == 1 else "")


def _nearer(numbers: Numbers, ours: Subject, distance: str) -> Entry:
    samples, start = (numbers.cell(ours, "generate", f"generation/{kind}{distance}") for kind in ("", "start-"))
    if samples.state != "value" or start.state != "value":
        return NOT_KNOWN
    by_seed = {reading.seed: reading.value for reading in start.readings}
    lower = [reading.value < by_seed[reading.seed] for reading in samples.readings if reading.seed in by_seed]
    verdict = "yes" if all(lower) else "no" if not any(lower) else "open"
    values = f"{show_value(samples).text}, {show_value(start).text}"
    return Entry(verdict, values, f"({sum(lower)} of {len(lower)})")
