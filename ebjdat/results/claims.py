"""results/claims.md: every published number beside ours, and what may be concluded from the pair.

The released code at 327ea16 attacks images that are already in [-1, 1] with its eps in that scale, half the printed
radius in pixel units, in training and in evaluation. So a published robust number may be called reproduced, or not,
only by a model trained at 4/255 under the protocol ``released``, on the published network and schedule, on images
enough. Every other pair is shown and called not comparable, with one reason. A number of another data set is no
attempt at the published one and is not shown.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pandas as pd

from ebjdat import files
from ebjdat.config import load_params
from ebjdat.protocols import PROTOCOLS, as_fraction
from ebjdat.results import frame, published
from ebjdat.results.cells import either
from ebjdat.results.frame import Results
from ebjdat.results.names import display_name, made_like
from ebjdat.results.published import Claim
from ebjdat.results.tables import MARK
from ebjdat.run import BASELINES
from ebjdat.statistics import wilson

VERDICTS = ("reproduced", "explained by protocol", "not reproduced", "not comparable", "not run")
REFERENCE_NETWORK = (28, 10)
"""Depth and width of the published network, WRN-28-10."""
RELEASED_EPS = 4 / 255
"""Radius that the released code at 327ea16 trains with, in pixel units."""
NOISE_FLOOR = 0.4
"""Points between runs of the same published recipe (inferred from its tables)."""
GENERATION_TOLERANCE = 0.05
"""Relative; a distance from one set of samples has no interval."""
LARGEST_HALF_WIDTH = 1.0
"""Points; a wider 95 % interval would meet almost any published number."""
FEWEST_SAMPLES = 10_000
"""Generated images behind a published distance."""
PAGE = Path("results") / "claims.md"


@dataclass(frozen=True)
class Judged:
    """What one of our numbers says about a claim.

    Attributes:
        results, model, protocol: where the number stands; None and empty without one.
        verdict: one of :data:`VERDICTS`.
        reasons: why the pair is not comparable, or there is no number; the page gives the first.
    """

    results: Results | None
    model: str
    protocol: str
    verdict: str
    reasons: list[str] = field(default_factory=list)


def collect(current: Results) -> list[Results]:
    """The current profile's numbers, and those of every other profile that has records and is no smoke run."""
    names = {path.parent.name for path in Path("results").glob("*/records")} - {current.profile}
    found = [current, *(frame.load(load_params(profile=name)) for name in sorted(names))]
    return [results for results in found if not results.profile.endswith("-smoke")]


def judge(claim: Claim, results: Results, model: str, protocol: str) -> Judged:
    """What our number of one profile and protocol says about a published one, and why."""
    metric = claim.metric_under(protocol)
    values = results.values(model, metric)
    if values.empty:
        return Judged(results, model, protocol, "not run", [f"{results.missing(model, metric)} on {results.profile}"])
    reasons = not_comparable(claim, results, model, protocol)
    if reasons:
        return Judged(results, model, protocol, "not comparable", reasons)
    if _meets(claim, results, model, metric):
        return Judged(results, model, protocol, "reproduced")
    clean = metric.replace("fab-t", "clean")
    explained = clean != metric and _meets(claim, results, model, clean)
    return Judged(results, model, protocol, "explained by protocol" if explained else "not reproduced")


def not_comparable(claim: Claim, results: Results, model: str, protocol: str) -> list[str]:
    """Every reason why the pair says nothing about the published number."""
    setup, network, metric = results.setup(model), results.params.current.network, claim.metric_under(protocol)
    recipe, training, wanted = setup.recipe, setup.training, published.recipe(claim.model)
    reasons = ["surrogate not stated"] if claim.kind == "transfer" else []
    if (network.depth, network.width) != REFERENCE_NETWORK:
        reasons.append(f"another network (WRN-{network.depth}-{network.width})")
    if protocol != "released":
        reasons.append("another protocol")
    if training is not None:
        adversarial = model in BASELINES or (recipe is not None and recipe.w_adversarial > 0)
        if adversarial and abs(training.train_eps - RELEASED_EPS) > 1e-9:
            reasons.append(f"trained at {as_fraction(training.train_eps)}")
        if training.epochs != wanted.get("epochs", training.epochs):
            reasons.append(f"{training.epochs} of {wanted['epochs']} epochs")
    for name in ("reading", "w_energy"):
        if recipe is not None and getattr(recipe, name) != wanted.get(name, getattr(recipe, name)):
            reasons.append(f"{name} {getattr(recipe, name)}")
    reasons += filter(None, [results.remark(model, metric)])
    if claim.kind == "generation":
        samples = results.params.current.evaluation.generation.samples
        return [*reasons, f"too few samples ({samples})"] if samples < FEWEST_SAMPLES else reasons
    low, high = _interval(results, model, metric)
    wide = (high - low) / 2 > LARGEST_HALF_WIDTH
    return [*reasons, f"too few images ({min(results.images(model, metric))})"] if wide else reasons


def _interval(results: Results, model: str, metric: str) -> tuple[float, float]:
    """95 % Wilson interval of the mean accuracy in percent."""
    n = min(results.images(model, metric))
    low, high = wilson(min(float(results.values(model, metric).mean()) * n, n), n)
    return 100 * low, 100 * high


def _meets(claim: Claim, results: Results, model: str, metric: str) -> bool:
    """Whether the published value or range touches ours with its uncertainty."""
    if claim.kind == "generation":
        slack = GENERATION_TOLERANCE * claim.value
        return claim.value - slack <= results.values(model, metric).mean() <= claim.upper + slack
    if results.values(model, metric).empty:
        return False
    low, high = _interval(results, model, metric)
    return claim.value - NOISE_FLOOR <= high and low <= claim.upper + NOISE_FLOOR


def overall(claim: Claim, everything: Iterable[Results]) -> Judged:
    """The verdict of the most comparable of our numbers: the one with the fewest reasons against it, not the best."""
    same = [results for results in everything if results.params.current.data.dataset == claim.dataset]
    reason = "hours on another device" if claim.kind == "cost" else "" if claim.metric else "not measured here"
    reason = (
        reason
        or ("" if same else f"nothing was run on {claim.dataset}")
        or ("" if claim.model else "no such model here")
    )
    if reason:
        return Judged(None, "", "", "not comparable" if claim.kind == "cost" else "not run", [reason])
    asked = [(results, model) for results in same for model in made_like(results.params, claim.model)]
    judged = [judge(claim, results, model, protocol) for results, model in asked for protocol in PROTOCOLS]
    return min(judged, key=lambda one: (one.verdict == "not run", len(one.reasons), one.protocol != "released"))


def page(everything: Sequence[Results]) -> str:
    """The page: one table per table of the supplement, and of the main paper's numbers."""
    verdicts = [(claim, overall(claim, everything)) for claim in published.claims()]
    counts = "; ".join(f"{name}: {sum(one.verdict == name for _, one in verdicts)}" for name in VERDICTS)
    profiles = ", ".join(results.profile for results in everything) or "none"
    parts = [
        f"<!-- {MARK} -->",
        "# Claims",
        f"{len(verdicts)} published numbers; {counts}. Profiles with records: {profiles}.",
        "docs/statistics.md says when a number is called reproduced. Ours: mean, deviation, seeds and 95 % interval.",
    ]
    for table, group in groupby(verdicts, key=lambda pair: pair[0].table):
        parts.append(_section(table, list(group)))
    return "\n\n".join(parts) + "\n"


def _section(table: str, verdicts: Sequence[tuple[Claim, Judged]]) -> str:
    """One table with its notes; above it, once, which model answers for a row, and a reason that all rows share."""
    run = [(claim, one) for claim, one in verdicts if one.results and one.verdict != "not run"]
    where = " and ".join(sorted({one.results.profile for _, one in run if one.results}))
    others = {(claim.row, other) for claim, one in run if (other := _other(claim, one))}
    named = dict(others) if len(dict(others)) == len(others) else {}  # else two models answer for one row
    reasons = {tuple(one.reasons[:1]) for _, one in run}
    reason = reasons.pop()[0] if len(reasons) == 1 and () not in reasons else ""
    sentences = ["Second-hand, from reading notes about the paper."] if verdicts[0][0].second_hand else []
    sentences += [f"Numbers of {where}."] if where else []
    sentences += [f"Row {row}: {other}." for row, other in sorted(named.items())]
    sentences += [f"Not comparable: {reason}."] if reason else []
    sentences += [f"{note[0].upper()}{note[1:]}." for note in published.notes(table)]
    rows = []
    for claim, one in verdicts:
        said = [_ours(claim, one, protocol) for protocol in PROTOCOLS]
        model = _other(claim, one) if one.verdict != "not run" else ""
        ours = [f"{number} ({model})" if model and claim.row not in named else number for number in said]
        why = [text for text in one.reasons[:1] if text != reason]
        verdict = ": ".join([one.verdict, *why]) if one.verdict != "not run" else one.reasons[0]
        rows.append([claim.row, claim.column, claim.text(), *ours, verdict])
    heads = ["Row", "Column", "Published", *(f"Ours, {protocol}" for protocol in PROTOCOLS), "Verdict"]
    aligned = ("left", "left", "right", "right", "right", "left")
    body = pd.DataFrame(rows, columns=heads).to_markdown(index=False, colalign=aligned, disable_numparse=True)
    return "\n\n".join(filter(None, [f"## {table}", " ".join(sentences), body]))


def _other(claim: Claim, one: Judged) -> str:
    """The name of the model that answers, where it is not the claim's own."""
    return display_name(one.results.params, one.model) if one.results and one.model != claim.model else ""


def _ours(claim: Claim, one: Judged, protocol: str) -> str:
    return either(one.results, one.model, claim.metric_under(protocol)) if one.results else ""


def write_claims(current: Results) -> Path:
    """Write ``results/claims.md``; returns its path."""
    files.write_text(PAGE, page(collect(current)))
    return PAGE
