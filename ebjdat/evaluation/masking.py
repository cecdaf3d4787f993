"""Does the defence hide its gradients? A decision from numbers that other stages measured.

The supplement's three indicators of gradient masking, after Athalye, Carlini and Wagner (ICML 2018,
arXiv:1802.00420), and four checks around them: black-box attacks, an unbounded radius, random noise,
and a self-test of the harness. Every comparison is a claim that one accuracy exceeds another on the same
images by no more than a tolerance, and has three outcomes. ``failed``: the 95 % interval of the paired
difference lies wholly beyond the tolerance, so that a few images, which chance explains, fail nothing.
``shown``: it lies wholly within. ``not rejected``: it lies on both sides, and more images would be needed
to decide. An indicator is as good as its worst comparison.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from ebjdat.statistics import Rate, Result, paired_interval

NOTHING_LEFT = 0.02
"""An accuracy is about 0 when it is at most this, and not known to be above when its 95 % interval reaches it."""
HARMLESS = 0.05
"""Largest loss of accuracy to random noise of the attack's radius."""
EOT_SLACK = 0.02
"""EOT-PGD and PGD-20 differ in step size and start; this much is no indicator."""

Rates = Mapping[str, Rate]
Verdict = Literal["failed", "not rejected", "shown"]
VERDICTS: tuple[Verdict, ...] = ("failed", "not rejected", "shown")
"""Worst first."""


@dataclass(frozen=True, slots=True)
class Indicator:
    """One check under one protocol: its verdict, the numbers that decided it, the decision in words."""

    name: str
    verdict: Verdict
    numbers: dict[str, float]
    rule: str

    @property
    def passed(self) -> bool:
        """No sign of masking beyond chance."""
        return self.verdict != "failed"


def no_higher(first: Rate, second: Rate, tolerance: float = 0.0) -> Verdict:
    """The claim that the first accuracy exceeds the second by at most ``tolerance``, on shared images."""
    low, high = paired_interval(first, second)
    return "failed" if low > tolerance else "shown" if high <= tolerance else "not rejected"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of several verdicts."""
    return min(verdicts, key=VERDICTS.index)


def decide(rates: Rates, values: Mapping[str, float], protocol: str) -> tuple[list[Indicator], list[str]]:
    """All checks whose numbers exist, and the names of those that were not measured.

    Args:
        rates, values: accuracies and other numbers of the stages clean, autoattack, transfer, sweep and eot.
        protocol: first part of their names.
    """
    own = {name.removeprefix(f"{protocol}/"): rate for name, rate in rates.items() if name.startswith(f"{protocol}/")}
    checks = {
        "radius": _radius(own),
        "unbounded": _unbounded(own),
        "iterations": _iterations(own),
        "one-step": _one_step(own),
        "randomness": _randomness(own),
        "square": _black_box(own, "square", _white_box(own)),
        "transfer": _black_box(own, "transfer/worst", own.get("pgd-20")),
        "noise": _noise(own),
        "self-test": _self_test(values, protocol),
    }
    return [found for found in checks.values() if found], [name for name, found in checks.items() if not found]


def _series(own: Rates, pattern: str, *numbers: str) -> dict[str, Rate]:
    """Rates of a pattern with one ``{}``, those that exist."""
    return {n: own[pattern.format(n)] for n in numbers if pattern.format(n) in own}


def _radius(own: Rates) -> Indicator | None:
    """(i) Robustness falls as the radius grows."""
    series = _series(own, "apgd-ce/radius-{}/steps-20", "0.5", "1", "2", "4")
    if len(series) < 2:
        return None
    rates = list(series.values())
    falls = no_higher(rates[0], rates[-1]) == "failed" or _about_zero(rates[0]) != "failed"
    verdict = worst(no_higher(larger, smaller) for smaller, larger in pairwise(rates)) if falls else "failed"
    rule = "APGD-CE: falls from the smallest to the largest radius, rises nowhere between"
    return Indicator("radius", verdict, {f"x{radius}": rate.accuracy for radius, rate in series.items()}, rule)


def _about_zero(rate: Rate) -> Verdict:
    if rate.accuracy <= NOTHING_LEFT:
        return "shown"
    return "failed" if rate.interval()[0] > NOTHING_LEFT else "not rejected"


def _unbounded(own: Rates) -> Indicator | None:
    """(i) An unbounded attack leaves about nothing."""
    rate = own.get("unbounded")
    if rate is None:
        return None
    rule = f"an unbounded radius leaves at most {100 * NOTHING_LEFT:g} % of the images"
    return Indicator("unbounded", _about_zero(rate), {"accuracy": rate.accuracy, "n": rate.n}, rule)


def _iterations(own: Rates) -> Indicator | None:
    """More iterations never help the defence."""
    series = _series(own, "apgd-ce/radius-1/steps-{}", "1", "10", "20", "50", "100")
    if len(series) < 2:
        return None
    verdict = worst(no_higher(more, fewer) for fewer, more in pairwise(series.values()))
    numbers = {f"steps {steps}": rate.accuracy for steps, rate in series.items()}
    return Indicator("iterations", verdict, numbers, "APGD-CE: more iterations never help the defence")


def _one_step(own: Rates) -> Indicator | None:
    """(ii) Iterated attacks are at least as strong as one step."""
    steps = {"one step": own.get("apgd-ce/radius-1/steps-1"), "PGD, one step": own.get("pgd-1")}
    many = own.get("apgd-ce/radius-1/steps-50")
    if steps["one step"] is None or many is None:
        return None
    found = {name: rate for name, rate in steps.items() if rate is not None}
    numbers = {name: rate.accuracy for name, rate in (found | {"50 steps": many}).items()}
    rule = "iterated attacks are at least as strong as one step (APGD's first step starts from noise and is 2 eps long)"
    return Indicator("one-step", worst(no_higher(many, one) for one in found.values()), numbers, rule)


def _randomness(own: Rates) -> Indicator | None:
    """(iii) Robustness does not rest on stochastic gradients."""
    plain, pgd = own.get("eot-pgd/plain/samples-2/radius-1"), own.get("pgd-20")
    if plain is None or pgd is None:
        return None
    numbers = {"PGD-20": paired_accuracy(pgd, plain), "EOT-PGD": paired_accuracy(plain, pgd)}
    verdicts = [no_higher(plain, pgd, EOT_SLACK)]
    few, many = (own.get(f"eot-pgd/noise/samples-{n}/radius-1") for n in (2, 20))
    if few is not None and many is not None:
        numbers |= {"noise, 2 samples": few.accuracy, "noise, 20 samples": many.accuracy}
        verdicts.append(no_higher(many, few, EOT_SLACK))
    rule = f"EOT-PGD is at least as strong as PGD-20, and 20 samples as 2, within {100 * EOT_SLACK:g} points"
    return Indicator("randomness", worst(verdicts), numbers, rule)


def paired_accuracy(rate: Rate, other: Rate) -> float:
    """Accuracy of ``rate`` on the images that both have."""
    return float(rate.per_image()[: min(rate.n, other.n)].mean())


def _white_box(own: Rates) -> Rate | None:
    """Images robust against every gradient attack of AutoAttack; its Square would decide against itself."""
    found = [own[name].per_image() for name in ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t") if name in own]
    return Rate.of(np.logical_and.reduce(found)) if found else None


def _black_box(own: Rates, attack: str, white: Rate | None) -> Indicator | None:
    """Black-box attacks are no stronger than white-box ones at the same radius."""
    black = own.get(attack)
    if black is None or white is None:
        return None
    numbers = {"black-box": paired_accuracy(black, white), "white-box": paired_accuracy(white, black)}
    name = attack.split("/", maxsplit=1)[0]
    reference = "PGD-20" if name == "transfer" else "AutoAttack's gradient attacks together"
    rule = f"{name} leaves no fewer images correct than {reference} at one radius"
    return Indicator(name, no_higher(white, black), numbers, rule)


def _noise(own: Rates) -> Indicator | None:
    """Uniform noise of the attack's radius is harmless."""
    clean, noisy = own.get("clean"), own.get("uniform-noise")
    if clean is None or noisy is None:
        return None
    numbers = {"clean": paired_accuracy(clean, noisy), "noise": paired_accuracy(noisy, clean)}
    rule = f"uniform noise of the same radius costs at most {100 * HARMLESS:g} points"
    return Indicator("noise", no_higher(clean, noisy, HARMLESS), numbers, rule)


def _self_test(values: Mapping[str, float], protocol: str) -> Indicator | None:
    """The harness finds planted adversarial examples and breaks an undefended model."""
    prefixes = ("self-test/", f"{protocol}/self-test/")
    found = {name.split("self-test/")[1]: value for name, value in values.items() if name.startswith(prefixes)}
    if not found:
        return None
    rule = f"the harness finds every planted example and leaves an undefended model at most {100 * NOTHING_LEFT:g} %"
    works = found.get("planted", 1.0) >= 1.0 and found.get("undefended", 0.0) <= NOTHING_LEFT
    return Indicator("self-test", "shown" if works else "failed", found, rule)


def evaluate(rates: Rates, values: Mapping[str, float], protocols: tuple[str, ...]) -> Result:
    """The masking report as a result: a verdict per indicator, the numbers behind it, what is missing."""
    verdicts: dict[str, float] = {}
    audits: dict[str, dict[str, object]] = {}
    warnings: dict[str, list[str]] = {}
    for protocol in protocols:
        found, missing = decide(rates, values, protocol)
        for one in found:
            verdicts[f"masking/{protocol}/{one.name}"] = float(one.passed)
            told = {"verdict": one.verdict, "numbers": one.numbers, "rule": one.rule}
            audits[f"{protocol}/{one.name}"] = {"passed": one.passed, **told}
        if missing:
            warnings[protocol] = [f"not measured: {name}" for name in missing]
    if verdicts:
        verdicts["masking/passed"] = min(verdicts.values())
    images = min((rate.n for rate in rates.values()), default=0)
    settings = {"about zero": NOTHING_LEFT, "harmless": HARMLESS, "eot slack": EOT_SLACK}
    return Result(n=images, values=verdicts, audits=audits, warnings=warnings, settings=settings)
