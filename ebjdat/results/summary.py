"""The results in a minute: plain sentences, their numbers, and one line to check a reproduction against.

All is made from the verdicts of :mod:`ebjdat.results.findings`; docs/statistics.md explains them.
"""

import itertools
import math
import textwrap
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from ebjdat import files
from ebjdat.protocols import STANDARD
from ebjdat.results.cells import Table, caption, grid
from ebjdat.results.findings import RIVALS, Question, findings
from ebjdat.results.frame import Results
from ebjdat.results.names import COMPARED, FORMS, display_name, studies
from ebjdat.results.statistics import VERDICTS, count_seeds
from ebjdat.statistics import wilson

AUTOATTACK = COMPARED["AutoAttack"]
GAP = "E(x_adv) - E(x)"
FIRST = (
    (GAP, "control"),
    ("AutoAttack", "control"),
    ("AutoAttack", "unweighted"),
    ("PGD-20", "unweighted"),
    ("AutoAttack", "pgd_at"),
    ("PGD-20", "pgd_at"),
    ("Fréchet distance", "start"),
    ("FID", "start"),
)
"""What a reader wants to know first: quantities, and what they are compared with."""
CONTROLS = ("control", "unweighted")
"""Trainings without the energy term."""
EFFECTS = {
    GAP: (("widens", "narrows", "keeps"), f"the gap {GAP}"),
    "d'": (("widens", "narrows", "keeps"), "d'"),
    "AutoAttack": (("raises", "lowers", "keeps"), "accuracy under AutoAttack"),
    "PGD-20": (("raises", "lowers", "keeps"), "accuracy under PGD-20"),
}
"""What the energy term does where a quantity is higher, lower or equal, and to what."""


def texts(results: Results) -> dict[str, str]:
    """Markdown by the label that pages use: the answer in words, its numbers, and the line to check."""
    table, variant = short(results), results.params.variant
    others = [
        name for name in results.params.variants if name != variant and f"{name}_energy" in results.params.variants
    ]
    said = {
        "answer": answer(results, variant),
        "variants": [
            one for name in others for one in answer(results, name, f"{display_name(results.params, f'base-{name}')}, ")
        ],
        "diverged": diverged(results),
    }
    return {name: "".join(f"{wrapped(f'- {one}')}\n" for one in sentences) for name, sentences in said.items()} | {
        "short": table.markdown() if len(table.body) else "",
        "check": f"{wrapped(check(results))}\n",
    }


def wrapped(text: str) -> str:
    """Lines of at most 120 characters, those after the first of a list's item indented."""
    kept = text.replace(" - ", "\xa0-\xa0")  # a line that begins with a minus would be an item of a list
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(kept, 120, subsequent_indent=indent, break_on_hyphens=False).replace("\xa0", " ")


def _forms(variant: str) -> dict[str, str]:
    """Both forms of a variant, the code's and the equations': model by name of the form."""
    return {FORMS["cross_entropy"]: f"ebjdat-{variant}", FORMS["energy"]: f"ebjdat-{variant}_energy"}


def diverged(results: Results) -> list[str]:
    """Trainings that were given up, which no table has, by model."""
    said = []
    for folder in sorted(Path("results", results.profile, "diverged").glob("*")):
        ends = {int(path.stem): files.read_json(path) for path in sorted(folder.glob("*.json"))}
        told = ", ".join(f"seed {seed} at epoch {end['epoch']}" for seed, end in ends.items())
        said += [f"{display_name(results.params, folder.name)}: {told}"] if told else []
    return said


def answer(results: Results, variant: str, lead: str = "") -> list[str]:
    """What the energy term does, in words after ``lead``: to the gap that it is about, and to robust accuracy."""
    found, said = findings(results), []
    for (form, model), rival in itertools.product(_forms(variant).items(), CONTROLS):
        known, unknown = [], []
        for quantity, (verbs, what) in EFFECTS.items():
            one = found.get(Question(model, quantity, rival))
            if one and one.verdict == "undecided":
                unknown.append(quantity)
            elif one:
                word, _, alone = one.verdict.partition(",")
                known.append(f"{verbs[VERDICTS.index(word)]} {what}" + (f" ({alone.strip()})" if alone else ""))
        parts = [f"the energy term {' and '.join(known)}"] if known else []
        parts += [f"undecided: {', '.join(unknown)}"] if unknown else []
        if parts:
            form = f"{lead}{form}"
            said.append(f"{form[0].upper()}{form[1:]}, against {RIVALS[rival]}: {'; '.join(parts)}.")
    return said


def short(results: Results) -> Table:
    """The numbers of :data:`FIRST` that the records answer: a column for each form."""
    found, forms, rows, metrics = findings(results), _forms(results.params.variant), {}, []
    for quantity, rival in FIRST:
        asked = [found.get(Question(model, quantity, rival)) for model in forms.values()]
        unit = next((f", {one.shown_unit}" for one in asked if one and one.shown_unit), "")
        if any(asked):
            rows[f"{quantity}{unit}: minus {RIVALS[rival]}"] = [str(one or "") for one in asked]
            metrics.append(studies()["quantities"][quantity]["metric"])
    text = caption(results, forms.values(), metrics, STANDARD, "Difference, 95 % interval, verdict (seeds).")
    head = f"EB-JDAT-{display_name(results.params, f'base-{results.params.variant}')}"
    return Table("short", "Differences", text, grid(head, forms, rows))


def check(results: Results) -> str:
    """What another machine should find for the first seed, whose trained weights differ there."""
    model, seed = f"ebjdat-{results.params.variant}", results.params.seeds[0]
    values = 100 * results.values(model, AUTOATTACK)
    if seed not in values:
        return f"No record of {display_name(results.params, model)} under AutoAttack."
    n = min(results.images(model, AUTOATTACK))
    low, high = _next(list(values), n)
    kind = "range for one new training" if len(values) > 1 else "interval for other images"
    name = display_name(results.params, model)
    return (
        f"You should see AutoAttack {low:.0f} to {high:.0f} % for {name}, seed {seed}, on {n} images "
        f"(here {values[seed]:.1f} %; 95 % {kind}, from {count_seeds(len(values))})."
    )


def _next(values: list[float], n: int) -> tuple[float, float]:
    """95 % range of one more training run on the same images, in per cent; of one run, its Wilson interval."""
    mean, seeds = float(np.mean(values)), len(values)
    if seeds == 1:
        low, high = wilson(mean * n / 100, n)
        return 100 * low, 100 * high
    half = float(stdtrit(seeds - 1, 0.975) * np.std(values, ddof=1)) * math.sqrt(1 + 1 / seeds)
    return max(0.0, mean - half), min(100.0, mean + half)
