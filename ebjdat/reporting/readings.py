"""The readings of the adversarial term compared: one row per reading, weight and gap that was run.

Every row differs from today's parameters in these three values only, and is asked by identity like
any other number; the control is EB-JDAT without the energy term.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ebjdat.config import Params
from ebjdat.protocols import STANDARD
from ebjdat.reporting.comparisons import Metric, caption, display_name
from ebjdat.reporting.layout import Column, Row, Table
from ebjdat.reporting.lookup import Numbers, show_percent, show_value
from ebjdat.subject import Subject

_KEYS = ("reading", "w_energy", "gap")


def _with_reading(params: Params, variant: str, values: Mapping[str, Any]) -> Params:
    recipe = replace(params.variants[variant], **values)
    return replace(params, variants={**params.variants, variant: recipe})


def _recipes(numbers: Numbers, subject: Subject) -> list[dict[str, Any]]:
    """Readings in the ledger for this model, whatever else their recipes say."""
    found = {
        tuple(recipe.get(key) for key in _KEYS)
        for record in numbers.records
        if (record["method"], record["variant"]) == ("ebjdat", subject.variant)
        for recipe in [record["params"]["recipe"]]
    }
    ordered = sorted(found, key=lambda values: tuple(map(str, values)))
    return [{key: value for key, value in zip(_KEYS, values, strict=True) if value is not None} for values in ordered]


def _label(values: Mapping[str, Any]) -> str:
    gap = f", {values['gap'].replace('_', ' ')}" if "gap" in values else ""
    return f"{values.get('reading', 'no reading').replace('_', ' ')}, w2 = {values.get('w_energy', 0):g}{gap}"


def readings_table(numbers: Numbers, distance: str) -> Table:
    """Robustness, accuracy, energy gap and generation of each reading, protocol ``standard``."""
    variant = numbers.params.variant
    ours = Subject(numbers.params.profile, "ebjdat", variant, numbers.params.seed)
    control = Subject(ours.profile, "control", variant, ours.seed)
    accuracies: list[tuple[Column, Metric]] = [
        (Column("clean"), ("clean", "standard/clean")),
        (Column("PGD-20"), ("clean", "standard/pgd-20")),
    ]
    values: list[tuple[Column, Metric]] = [
        (Column("E(x_adv) - E(x)"), ("clean", "energy/gap-adversarial")),
        (Column("clean and adversarial", "overlap"), ("clean", "energy/overlap-adversarial")),
        (Column("all", "overlap"), ("clean", "energy/overlap-all")),
        (Column("all, fresh chains", "overlap"), ("clean", "energy/overlap-all-fresh")),
        (Column("start", distance), ("generate", f"generation/start-{distance}")),
        (Column("samples", distance), ("generate", f"generation/{distance}")),
        (Column("buffer", distance), ("generate", f"generation/buffer-{distance}")),
    ]
    rows, asked, found = [], [], []
    for recipe in _recipes(numbers, ours):
        at = numbers.at(_with_reading(numbers.params, variant, recipe))
        if at.cell(ours, *accuracies[0][1]).state == "value":
            rows.append((_label(recipe), ours, at))
    rows.append(("control: no energy term", control, numbers))
    plain = Subject(ours.profile, "base", variant, ours.seed)
    rows.append((f"{display_name(plain)}: no adversarial images", plain, numbers))
    body = []
    for label, subject, at in rows:
        shown = [at.cell(subject, *metric) for _, metric in accuracies]
        entries = [show_percent(cell) for cell in shown]
        entries += [show_value(at.cell(subject, *metric)) for _, metric in values]
        body.append(Row(label, tuple(entries)))
        asked += [(subject, metric) for _, metric in accuracies]
        found += shown
    title = f"Readings of the adversarial term, {display_name(ours)}"
    extra = (
        "Mean and standard deviation over seeds where several were run; the gap is in nats, its sign is measured. "
        "Overlap: of the energies of clean, adversarial and generated (all; buffer or fresh chains) images, in [0, 1]. "
        "Samples or a buffer farther from the data than the start: generation got worse than its initialisation."
    )
    columns = tuple(column for column, _ in (*accuracies, *values))
    text = caption(numbers, STANDARD, asked, extra, terms=False, found=found)
    return Table("readings", title, text, "Reading", columns, tuple(body))
