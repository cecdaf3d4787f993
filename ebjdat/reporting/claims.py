"""The claim ledger: every published number beside ours, and what may be concluded from the pair.

The released code at 327ea16 attacks images that are already in [-1, 1] with its eps in that scale,
half the printed radius in pixel units, in training and in evaluation. So a published robust number
may be called reproduced, or not, only by a 4/255-trained model under the protocol ``released``;
every other pair is shown and called not comparable, with the reason.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ebjdat import files
from ebjdat.config import Params
from ebjdat.protocols import PROTOCOLS, as_fraction
from ebjdat.reporting import ledger, published
from ebjdat.reporting.layout import MARK
from ebjdat.reporting.lookup import Cell, Numbers, load_numbers, show_percent, show_value, with_recorded_code
from ebjdat.reporting.published import NOISE_FLOOR, Published
from ebjdat.reporting.records import subject_of
from ebjdat.subject import Subject

Verdict = Literal["reproduced", "explained by protocol", "not reproduced", "not comparable", "not run"]

VERDICTS: tuple[Verdict, ...] = ("reproduced", "explained by protocol", "not reproduced", "not comparable", "not run")
"""Best first: a claim gets the best verdict that any of our numbers supports."""

REFERENCE_PROFILE = "cifar10"
SMOKE_PROFILE = "cifar10-smoke"
"""Proves that every path runs; its numbers mean nothing and stand beside no published one."""
REFERENCE_NETWORK = (28, 10)
"""Depth and width of the published network, WRN-28-10."""
RELEASED_EPS = 4 / 255
"""Radius that the released code at 327ea16 trains with, in pixel units."""
GENERATION_TOLERANCE = 0.05
"""Relative; a distance from one set of samples has no interval."""

JSON_PATH = Path("results") / "claims.json"
PAGE_PATH = Path("results") / "claims.md"


@dataclass(frozen=True)
class Measured:
    """Our number for a claim under one protocol and training radius.

    Attributes:
        profile, protocol: where it was measured.
        train_eps: training radius of our model, pixel units.
        cell: the number over seeds.
        runs: names of the MLflow runs behind it.
        command: what makes it.
        verdict, reason: what it says about the published number.
    """

    profile: str
    protocol: str
    train_eps: float
    cell: Cell
    runs: tuple[str, ...]
    command: str
    verdict: Verdict
    reason: str


def collect(params: Params, current: Numbers) -> list[Numbers]:
    """The current profile's numbers, and those of every other profile that has a ledger and is no smoke run."""
    others = [
        load_numbers(dataclasses.replace(params, profile=name))
        for name in params.profiles
        if name not in (params.profile, SMOKE_PROFILE) and ledger.ledger_path(name).is_file()
    ]
    return [current, *others]


def measured(claim: Published, numbers: Numbers) -> list[Measured]:
    """Our numbers for a claim in one profile, under every protocol and known training radius."""
    if claim.model is None:
        return []
    subject = _subject(claim.model, numbers)
    found = []
    for eps in _training_radii(subject, numbers):
        at = numbers.at(_with_train_eps(numbers.params, subject, eps))
        for protocol in PROTOCOLS:
            cell = at.cell(subject, claim.stage, claim.key(protocol))
            instead = at.cell(subject, "clean", claim.instead_key(protocol))
            verdict, reason = judge(claim, numbers, protocol, eps, cell, instead)
            runs = tuple(f"{subject.name}-{reading.seed} {claim.stage}" for reading in cell.readings)
            command = command_for(subject, eps)
            found.append(Measured(numbers.params.profile, protocol, eps, cell, runs, command, verdict, reason))
    return found


def _subject(name: str, numbers: Numbers) -> Subject:
    method, _, variant = name.partition("-")
    return Subject(numbers.params.profile, method, variant or None, numbers.params.seed)


def _training_radii(subject: Subject, numbers: Numbers) -> list[float]:
    """Training radii that the ledger has for this model, and today's."""
    radii = {subject.schedule(numbers.params).train_eps}
    for record in numbers.records:
        if subject_of(record).name == subject.name:
            radii.add(record["params"]["schedule"]["train_eps"])
    return sorted(radii)


def _with_train_eps(params: Params, subject: Subject, eps: float) -> Params:
    """The parameters with another training radius for this model."""
    schedule: Any = dataclasses.replace(subject.schedule(params), train_eps=eps)
    name, training = subject.method, params.current.training
    if subject.variant is not None:
        name = "base" if subject.method == "base" else "ebjdat"
        schedule = dataclasses.replace(getattr(training, name), **{subject.variant: schedule})
    profile = dataclasses.replace(params.current, training=dataclasses.replace(training, **{name: schedule}))
    return dataclasses.replace(params, profiles={**params.profiles, params.profile: profile})


def command_for(subject: Subject, train_eps: float) -> str:
    """The command that trains and evaluates a model at a training radius."""
    path = f"profiles.{subject.profile}.training"
    if subject.variant is None:
        choice, place = "", subject.method
    else:
        choice = f"-S variant={subject.variant} -S method={subject.method} "
        place = f"{'base' if subject.method == 'base' else 'ebjdat'}.{subject.variant}"
    return f"dvc exp run -S profile={subject.profile} {choice}-S {path}.{place}.train_eps={as_fraction(train_eps)}"


def judge(
    claim: Published, numbers: Numbers, protocol: str, train_eps: float, cell: Cell, instead: Cell
) -> tuple[Verdict, str]:
    """What one of our numbers says about a published one, and why.

    Args:
        cell: our number under ``protocol`` for a model trained at ``train_eps`` (pixel units).
        instead: our number for ``claim.instead``.
    """
    if claim.metric is None and claim.kind != "cost":
        return "not run", "Inception Score needs the network's final layer, which is not available here"
    if cell.state == "stale":
        return "not run", f"only records of older code or parameters on {numbers.params.profile}"
    if cell.state != "value" and claim.metric is not None:
        return "not run", f"not measured on {numbers.params.profile}"
    reason = not_comparable(claim, numbers, protocol, train_eps)
    if reason:
        return "not comparable", reason
    if _meets(claim, cell):
        return "reproduced", "the published value meets our 95 % interval, widened by the noise between published runs"
    if instead.state == "value" and _meets(claim, instead):
        return "explained by protocol", claim.note
    return "not reproduced", "the published value lies outside our interval"


def not_comparable(claim: Published, numbers: Numbers, protocol: str, train_eps: float) -> str:
    """Why the pair says nothing about the published number; empty when it does."""
    profile = numbers.profile
    if profile.data.dataset != claim.dataset:
        return f"published on {claim.dataset}, ours on {profile.data.dataset}: another data set"
    if claim.kind == "cost":
        return "hours on another device; ours are in the side files of the records, not here"
    if claim.kind == "transfer":
        return claim.note
    if (profile.network.depth, profile.network.width) != REFERENCE_NETWORK:
        return f"another network (WRN-{profile.network.depth}-{profile.network.width})"
    if protocol != "released":
        return "the released code at 327ea16 evaluates as the protocol released does"
    trained_adversarially = claim.model is not None and not claim.model.startswith("base-")
    if trained_adversarially and abs(train_eps - RELEASED_EPS) > 1e-9:
        return f"the released code at 327ea16 trains at {as_fraction(RELEASED_EPS)} in pixel units"
    return ""


def _meets(claim: Published, cell: Cell) -> bool:
    """Whether the published value or range touches ours with its uncertainty."""
    upper = claim.value if claim.upper is None else claim.upper
    if claim.kind == "generation":
        slack = GENERATION_TOLERANCE * claim.value
        return claim.value - slack <= cell.spread.mean <= upper + slack
    interval = cell.interval()
    if interval is None:
        return False
    low, high = (100 * end for end in interval)
    return claim.value - NOISE_FLOOR <= high and low <= upper + NOISE_FLOOR


def entry(claim: Published, everything: Sequence[Numbers]) -> dict[str, Any]:
    """A claim with all our numbers and its verdict, as JSON."""
    ours = [one for numbers in everything for one in measured(claim, numbers)]
    verdict, reason = _overall(claim, ours, everything)
    return {
        "table": claim.table,
        "row": claim.row,
        "column": claim.column,
        "published": {"value": claim.value, "upper": claim.upper, "dataset": claim.dataset},
        "second_hand": claim.second_hand,
        "kind": claim.kind,
        "note": claim.note,
        "verdict": verdict,
        "reason": reason,
        "ours": [_plain(one, claim) for one in ours if one.cell.state != "n/a"],
    }


def _overall(claim: Published, ours: Sequence[Measured], everything: Sequence[Numbers]) -> tuple[Verdict, str]:
    if claim.model is None:
        if all(numbers.profile.data.dataset != claim.dataset for numbers in everything):
            return "not comparable", f"published on {claim.dataset}, no results on it here"
        return "not run", "no run of this row here"
    best = min((one.verdict for one in ours), key=VERDICTS.index)
    reasons: dict[str, str] = {}
    for one in sorted(ours, key=lambda one: one.protocol != "released"):
        if one.verdict == best:
            reasons.setdefault(one.profile, one.reason)
    if len(set(reasons.values())) == 1:
        return best, next(iter(reasons.values()))
    return best, "; ".join(f"{profile}: {reason}" for profile, reason in sorted(reasons.items()))


def _plain(one: Measured, claim: Published) -> dict[str, Any]:
    interval = one.cell.interval()
    scale = 1.0 if claim.kind in ("generation", "cost") else 100.0
    has = one.cell.state == "value"
    return {
        "profile": one.profile,
        "protocol": one.protocol,
        "train_eps": as_fraction(one.train_eps),
        "state": one.cell.state,
        "value": scale * one.cell.spread.mean if has else None,
        "deviation": scale * one.cell.spread.deviation if has else None,
        "low": None if interval is None else scale * interval[0],
        "high": None if interval is None else scale * interval[1],
        "n": one.cell.n,
        "seeds": [reading.seed for reading in one.cell.readings],
        "runs": list(one.runs),
        "command": one.command,
        "verdict": one.verdict,
        "reason": one.reason,
    }


def render(params: Params, everything: Sequence[Numbers]) -> dict[Path, str]:
    """The ledger as JSON and as a page: text by path."""
    entries = [entry(claim, everything) for claim in published.ALL]
    return {JSON_PATH: files.json_text({"claims": entries}), PAGE_PATH: _page(params, entries, everything)}


def _page(params: Params, entries: Sequence[Mapping[str, Any]], everything: Sequence[Numbers]) -> str:
    counts = {verdict: sum(one["verdict"] == verdict for one in entries) for verdict in VERDICTS}
    profiles = ", ".join(numbers.params.profile for numbers in everything)
    lines = [
        f"<!-- {MARK} -->",
        "",
        "# Claim ledger",
        "",
        f"{len(entries)} published numbers; profiles with results: {profiles}. "
        + "; ".join(f"{verdict}: {count}" for verdict, count in counts.items())
        + ".",
        "",
        *_RULES,
        "",
        "| Where | Row | Column | Published | Ours | Verdict | Reason |",
        "| --- | --- | --- | ---: | --- | --- | --- |",
    ]
    for claim, one in zip(published.ALL, entries, strict=True):
        hand = " (second-hand)" if claim.second_hand else ""
        where, verdict = f"{claim.table}{hand}", one["verdict"]
        cells = [where, claim.row, claim.column, claim.text(), _ours(claim, everything), verdict, explained(one)]
        lines.append("| " + " | ".join(cells) + " |")
    commands = sorted({one["command"] for claim in entries for one in claim["ours"] if one["runs"]})
    lines += [
        "",
        "## Commands",
        "",
        "The runs behind these numbers; the studies in `studies/`, run by `python -m stages.campaign`, give several "
        "rows and seeds at once. The last command begins what is missing: for another row give its variant and method.",
        "",
    ]
    lines += [f"- `{command}`" for command in (*commands, _comparable_command(params))]
    return "\n".join(lines) + "\n"


_RULES = (
    "Rules. The released code at 327ea16 attacks images that are already in [-1, 1] with an eps of that scale, which "
    "is half of the printed radius in pixel units, in training and in every evaluation. A published robust number is "
    f"called reproduced or not only by a model trained at {as_fraction(RELEASED_EPS)} under the protocol released, on "
    "WRN-28-10 and CIFAR-10; any other pair is not comparable, nor are hours. Reproduced: the published value meets "
    f"our 95 % Wilson interval, widened by {NOISE_FLOOR:g} points (the noise between published runs, inferred); a "
    f"distance: within {100 * GENERATION_TOLERANCE:g} %. Table 2's surrogate, radius and steps are not stated, so its "
    "cells are never called reproduced. Second-hand: from public reading notes, the paper itself was not at hand.",
)


def _ours(claim: Published, everything: Sequence[Numbers]) -> str:
    """Our numbers in one cell: protocol, profile, training radius, value and interval."""
    show = show_value if claim.kind in ("generation", "cost") else show_percent
    parts = []
    for numbers in everything:
        for one in measured(claim, numbers):
            if one.cell.state == "value":
                text = " ".join(filter(None, show(one.cell)))
                count = f", n = {one.cell.n}" if one.cell.n else ""
                at = attack_radius(claim, numbers, one.protocol)
                where = f"{one.profile}, trained at {as_fraction(one.train_eps)}{count}"
                parts.append(f"{one.protocol}{f' at {at}' if at else ''}: {text} ({where})")
    return "<br>".join(parts) or "not run"


def explained(one: Mapping[str, Any]) -> str:
    """The reason of a verdict, with what a reader must know about the published number besides."""
    return one["reason"] if not one["note"] or one["note"] in one["reason"] else f"{one['reason']}. Note: {one['note']}"


def attack_radius(claim: Published, numbers: Numbers, protocol: str) -> str:
    """The radius of our number for a claim, pixel units; empty where nothing is attacked."""
    if claim.kind not in ("robust", "transfer"):
        return ""
    multiple = re.search(r"radius-([0-9.]+)", claim.metric or "")
    radius = PROTOCOLS[protocol].radius(numbers.profile.evaluation.radius)
    return as_fraction(radius * (float(multiple[1]) if multiple else 1.0))


def _comparable_command(params: Params) -> str:
    subject = Subject(REFERENCE_PROFILE, "ebjdat", "jempp", params.seed)
    return command_for(subject, RELEASED_EPS)


def write_claims(params: Params, current: Numbers) -> list[Path]:
    """Write ``results/claims.json`` and ``results/claims.md``; returns their paths."""
    texts = render(params, collect(params, current))
    for path, text in texts.items():
        files.write_text(path, text)
    return sorted(texts)


def check_claims_match_records(params: Params) -> list[str]:
    """Claim files that differ from what the committed ledgers give (see ``check_tables_match_records``)."""
    everything = collect(params, load_numbers(params))
    texts = render(params, [with_recorded_code(numbers) for numbers in everything])
    wrong = [p for p, text in texts.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    return sorted(path.as_posix() for path in wrong)
