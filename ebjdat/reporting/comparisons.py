"""Names, captions and comparisons: what the pages beyond the supplement's own tables show."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from scipy import stats

from ebjdat.config import BASELINES, METHODS, VARIANTS
from ebjdat.evaluation.statistics import paired, spread
from ebjdat.protocols import PROTOCOLS, Protocol, as_fraction
from ebjdat.reporting.layout import EMPTY, Column, Entry, Row, Table
from ebjdat.reporting.lookup import Cell, Numbers, show_percent, show_value
from ebjdat.subject import EXTERNAL, Subject

_VARIANT_NAMES = {"jem": "JEM", "jempp": "JEM++", "sadajem": "SADAJEM"}
_BASELINE_NAMES = {"pgd_at": "PGD-AT", "trades": "TRADES", "undefended": "Undefended"}
Metric = tuple[str, str]
"""Stage and metric key."""


def display_name(subject: Subject) -> str:
    """The name of a model in tables: EB-JDAT-JEM++, JEM++, Control-JEM++, PGD-AT; an external one's own name."""
    if subject.is_external:
        return subject.method.removeprefix(EXTERNAL)
    if subject.variant is None:
        return _BASELINE_NAMES[subject.method]
    variant = _VARIANT_NAMES[subject.variant]
    return {
        "ebjdat": f"EB-JDAT-{variant}",
        "base": variant,
        "control": f"Control-{variant}",
    }[subject.method]


def rival(numbers: Numbers, ours: Subject, method: str) -> Subject:
    """What a model is compared with: a baseline, or another method of the same variant."""
    if method in BASELINES:
        return Subject.baseline(numbers.params, method)
    return Subject(ours.profile, method, ours.variant, ours.seed)


def all_subjects(numbers: Numbers) -> list[Subject]:
    """Every model of the selected profile, in the order of the tables; external ones last."""
    params = numbers.params
    jems = [Subject(params.profile, m, v, params.seed) for m in METHODS for v in VARIANTS]
    return jems + [Subject.baseline(params, name) for name in BASELINES] + numbers.externals()


def caption(
    numbers: Numbers,
    protocol: Protocol | None,
    cells: Iterable[tuple[Subject, Metric]],
    extra: str = "",
    *,
    terms: bool = True,
    found: Sequence[Cell] | None = None,
) -> str:
    """Protocol, images, seeds, profile, what the models were trained with, and how to read a cell.

    Args:
        cells: what the table shows, model and metric.
        extra: the end of the caption.
        terms: say which energy term EB-JDAT has; not where the rows differ in it.
        found: the numbers in those cells, where they were asked with other parameters than ``numbers``.
    """
    asked = list(cells)
    found = [numbers.cell(subject, *metric) for subject, metric in asked] if found is None else found
    counts: dict[str, set[int]] = {}
    for (_, (stage, _)), cell in zip(asked, found, strict=True):
        if cell.n:
            counts.setdefault(stage, set()).update(reading.n for reading in cell.readings if reading.n)
    seeds = sorted({reading.seed for cell in found for reading in cell.readings})
    parts = []
    if protocol is not None:
        parts.append(_describe(protocol, numbers.profile.evaluation.radius))
    if counts:
        parts.append(f"n = {_counts(counts)}; brackets: 95 % Wilson interval.")
    shown = ", ".join(map(str, seeds)) or "none yet"
    parts.append(f"Seed{'s' if len(seeds) > 1 else ''} {shown}; profile {numbers.params.profile}.")
    if len(seeds) > 1:
        interval = "; the interval is that of the mean, as if from n images" if counts else ""
        parts.append(f"Several seeds: mean ± standard deviation (number of seeds){interval}.")
    here = dict.fromkeys(subject for (subject, _), cell in zip(asked, found, strict=True) if cell.readings)
    parts.append(training_radius(numbers, here))
    if terms:
        parts.append(energy_terms(numbers, here))
    if any(subject.method == "control" for subject in here):
        parts.append("Control: EB-JDAT without its energy term.")
    parts = [part for part in parts if part]
    return " ".join([*parts, extra]).strip()


def training_radius(numbers: Numbers, subjects: Iterable[Subject]) -> str:
    """At which radius those of the models that meet adversarial images were trained, in a sentence."""
    methods = ("ebjdat", "control", "pgd_at", "trades")
    radii = {one.schedule(numbers.params).train_eps for one in subjects if one.method in methods}
    shown = " and ".join(as_fraction(radius) for radius in sorted(radii))
    return f"Adversarial training at {shown}." if radii else ""


def energy_terms(numbers: Numbers, subjects: Iterable[Subject]) -> str:
    """Reading and weight of the energy term of those models that have one, in a sentence."""
    variants: dict[str, list[str]] = {}
    for one in sorted(subjects, key=lambda one: VARIANTS.index(one.variant) if one.variant in VARIANTS else -1):
        recipe = one.recipe(numbers.params) if one.method == "ebjdat" else None
        if recipe is not None and one.variant is not None:
            term = f"reading {recipe.reading}, w2 = {recipe.w_energy:g}"
            variants.setdefault(term, []).append(_VARIANT_NAMES[one.variant])
    if len(variants) == 1:
        return f"Energy term of EB-JDAT: {next(iter(variants))}."
    terms = "; ".join(f"{term} ({', '.join(names)})" for term, names in variants.items())
    return f"Energy term of EB-JDAT: {terms}." if terms else ""


_STAGE_NAMES = {
    "clean": "clean and PGD-20",
    "autoattack": "AutoAttack and its attacks",
    "sweep": "APGD-CE",
    "eot": "EOT-PGD",
}


def _counts(by_stage: Mapping[str, set[int]]) -> str:
    """Test images behind the cells; where they differ, per stage and with a warning (each stage takes the first n)."""
    if len(set.union(*by_stage.values())) == 1:
        return f"{next(iter(by_stage.values())).copy().pop()} test images"
    parts = []
    for stage, counts in by_stage.items():
        span = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}, UNEQUAL"
        parts.append(f"{span} ({_STAGE_NAMES.get(stage, stage)})")
    return (
        f"{', '.join(parts)} test images, each the first n of the split: cells of unequal n are not about the same "
        "images, and the first may be easier or harder than all"
    )


def _describe(protocol: Protocol, nominal: float) -> str:
    """Name, radius and input noise of a protocol in a sentence."""
    noisy = " and ".join(_VARIANT_NAMES[name] for name in protocol.noisy_variants)
    noise = (
        f"input noise of sigma {protocol.noise:g} (fixed draw) for {noisy}, none for others"
        if noisy
        else "no input noise"
    )
    return f"Protocol {protocol.name}: L-inf radius {as_fraction(protocol.radius(nominal))} in pixel units, {noise}."


PAIRED = {
    "clean accuracy": ("clean", "standard/clean"),
    "PGD-20": ("clean", "standard/pgd-20"),
    "AutoAttack": ("autoattack", "standard/autoattack"),
}
"""What models are compared by, image by image, under the protocol ``standard``."""


def paired_table(numbers: Numbers, name: str, stage: str, metric: str) -> Table:
    """All pairs of models on the same images: difference, its interval, McNemar's exact p-value."""
    known = [(s, numbers.rate(s, stage, metric)) for s in all_subjects(numbers)]
    rates = [(display_name(subject), rate) for subject, rate in known if rate is not None]
    rows = []
    for place, (first, a) in enumerate(rates):
        for second, b in rates[place + 1 :]:
            pair = paired(a, b)
            low, high = pair.interval()
            entries = (
                Entry(str(pair.n)),
                Entry(f"{100 * pair.difference:+.1f}", interval=f"[{100 * low:+.1f}, {100 * high:+.1f}]"),
                Entry(str(pair.only_first)),
                Entry(str(pair.only_second)),
                Entry(f"{pair.p_value():.2g}"),
            )
            rows.append(Row(f"{first} vs. {second}", entries))
    columns = [Column(head) for head in ("n", "difference (points)", "only first", "only second", "p")]
    text = (
        f"Protocol standard, profile {numbers.params.profile}, seed {numbers.params.seed}. Difference of the first to "
        "the second model on the same images with its 95 % interval (Bonett and Price); images that only one of them "
        f"answers correctly; McNemar's exact two-sided p-value, not adjusted for {len(rows)} comparisons."
    )
    slug = f"paired-{metric.split('/')[-1]}"
    return Table(slug, f"Paired comparison: {name}", text, "Models", tuple(columns), tuple(rows))


ENERGY_KINDS = {
    "clean": "clean",
    "adversarial": "adversarial",
    "targeted": "targeted",
    "training-adversary": "training-adversary",
    "generated": "buffer",
    "generated-fresh": "fresh chains",
}
"""Kinds of images in the record, and their headings."""


def energy_table(numbers: Numbers) -> Table:
    """E(x) of clean, attacked and generated images, their gaps and overlaps, for every model."""
    columns, keys = [], []
    for kind, name in ENERGY_KINDS.items():
        columns.append(Column(name, "mean E(x), nats"))
        keys.append(f"energy/{kind}/mean")
    for kind in ("adversarial", "generated", "generated-fresh"):
        columns.append(Column(ENERGY_KINDS[kind], "gap to clean"))
        keys.append(f"energy/gap-{kind}")
    for kind in ("adversarial", "generated", "generated-fresh", "all", "all-fresh"):
        columns.append(Column(ENERGY_KINDS.get(kind, kind.replace("-", ", ")), "overlap"))
        keys.append(f"energy/overlap-{kind}")
    rows = _value_rows(numbers, keys)
    extra = (
        "Gap: mean E minus that of clean images; overlap: shared area of the distributions in [0, 1], with clean "
        "images, or of clean, adversarial and generated ones together (all). Generated: the replay buffer, or fresh "
        "chains. Adversarial: PGD-20; images without noise."
    )
    asked = [(subject, ("clean", keys[0])) for subject in all_subjects(numbers)]
    text = caption(numbers, None, asked, extra)
    return Table("energies", "Energies of clean, adversarial and generated images", text, "Model", tuple(columns), rows)


def alignment(numbers: Numbers, ours: Subject, other: Subject, fresh: bool = False) -> tuple[str, Cell, Cell, str]:
    """Which overlap of energies is compared, that of both models, and whose is larger, in words.

    Models that have seeds in common are compared over these alone.

    Args:
        fresh: generated images are those of fresh chains, not of the replay buffer.
    """
    name = "overlap-adversarial" if other.is_baseline else "overlap-all-fresh" if fresh else "overlap-all"
    first, second = (numbers.cell(subject, "clean", f"energy/{name}") for subject in (ours, other))
    common = {reading.seed for reading in first.readings} & {reading.seed for reading in second.readings}
    if common:
        first, second = first.of_seeds(common), second.of_seeds(common)
    return name, first, second, _more(first, second)


def alignment_table(numbers: Numbers) -> Table:
    """The central claim as a verdict: does EB-JDAT align the energies more than each other model does?"""
    rows = []
    for variant in VARIANTS:
        ours = Subject(numbers.params.profile, "ebjdat", variant, numbers.params.seed)
        twice = [(method, fresh) for method in ("base", "control") for fresh in (False, True)]
        for method, fresh in (*twice, ("pgd_at", False), ("trades", False)):
            other = rival(numbers, ours, method)
            name, first, second, direction = alignment(numbers, ours, other, fresh)
            entries = Entry(name), show_value(first), show_value(second), Entry(direction)
            rows.append(Row(f"{display_name(ours)} vs. {display_name(other)}", entries))
    columns = tuple(Column(name) for name in ("overlap of", "first", "second", "first aligns"))
    text = (
        f"Profile {numbers.params.profile}. overlap-all: of clean, adversarial and generated images together, these "
        "from the replay buffer, or from fresh chains (overlap-all-fresh); baselines generate nothing, so clean and "
        "adversarial images are compared there. More or less: the 95 % t interval of the differences per seed excludes "
        "0, which few seeds rarely reach; a single seed gives a direction without a noise estimate. Models with seeds "
        "in common are compared over these. "
    ) + energy_terms(numbers, (Subject(numbers.params.profile, "ebjdat", v, 0) for v in VARIANTS))
    return Table(
        "alignment", "Alignment of the energies: EB-JDAT against the others", text, "Models", columns, tuple(rows)
    )


def _more(first: Cell, second: Cell) -> str:
    if first.state != "value" or second.state != "value":
        return "not known"
    differences = per_seed(first, second)
    if not differences:
        return "no common seed"
    if len(differences) == 1:
        return f"{'more' if differences[0] > 0 else 'less' if differences[0] < 0 else 'equal'} (one seed)"
    low, high = seed_interval(differences)
    return "more" if low > 0 else "less" if high < 0 else "not told apart"


def per_seed(first: Cell, second: Cell) -> list[float]:
    """First minus second for every seed that both have."""
    values = {reading.seed: reading.value for reading in second.readings}
    return [reading.value - values[reading.seed] for reading in first.readings if reading.seed in values]


def seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % Student t interval of the mean of one number per training run; at least two of them."""
    over = spread(values)
    half = float(stats.t.ppf(0.975, over.seeds - 1)) * over.deviation / math.sqrt(over.seeds)
    return over.mean - half, over.mean + half


def calibration_table(numbers: Numbers) -> Table:
    """Calibration, and how well energy tells outliers, which the JEM papers report."""
    found = {
        key
        for record in numbers.records
        if record["stage"] == "clean"
        for key in record["values"]
        if key.startswith("ood/")
    }
    outliers = sorted(found)
    columns = [Column("ECE"), *(Column(key.split("/")[1], "outliers: AUROC by E(x)") for key in outliers)]
    rows = _value_rows(numbers, ["calibration/ece", *outliers])
    asked = [(subject, ("clean", "calibration/ece")) for subject in all_subjects(numbers)]
    text = caption(numbers, None, asked, "ECE: expected calibration error on clean images, lower is better.")
    return Table("calibration", "Calibration and outliers", text, "Model", tuple(columns), rows)


CHECKPOINTS = {
    "clean": ("clean", "standard/clean"),
    "PGD-20": ("clean", "standard/pgd-20"),
    "APGD-CE + APGD-T": ("autoattack", "standard/apgd-ce-t"),
}
"""What both checkpoints of a model are judged by."""


def checkpoints_table(numbers: Numbers) -> Table:
    """The best and the last checkpoint of every model: robust overfitting is the difference."""
    metrics = [(name, stage, key + end) for name, (stage, key) in CHECKPOINTS.items() for end in ("", "-last")]
    columns = tuple(Column("last" if key.endswith("-last") else "best", name) for name, _, key in metrics)
    subjects = [s for s in all_subjects(numbers) if numbers.cell(s, *metrics[1][1:]).state == "value"]
    rows = [
        Row(display_name(s), tuple(show_percent(numbers.cell(s, stage, key)) for _, stage, key in metrics))
        for s in subjects
    ]
    extra = (
        "Best: selected by robust accuracy on the validation split. APGD-CE + APGD-T: the first two attacks of "
        "AutoAttack's cascade, an upper bound on the accuracy that the whole cascade leaves."
    )
    asked = [(subject, metric[1:]) for subject in subjects for metric in metrics]
    text = caption(numbers, PROTOCOLS["standard"], asked, extra)
    return Table("checkpoints", "Best and last checkpoint", text, "Model", columns, tuple(rows))


def _value_rows(numbers: Numbers, keys: Sequence[str]) -> tuple[Row, ...]:
    subjects = [s for s in all_subjects(numbers) if numbers.cell(s, "clean", keys[0]).state == "value"]
    return tuple(
        Row(display_name(s), tuple(show_value(numbers.cell(s, "clean", key)) for key in keys)) for s in subjects
    )


_MASKING_WORDS = {"shown": "pass", "not rejected": "not rejected", "failed": "FAIL"}


def masking_rows(numbers: Numbers, subject: Subject, prefix: str) -> list[Row]:
    """Verdict, numbers and rule of every indicator of a model; none without its record."""
    record, rows = numbers.record(subject, "masking"), []
    for name, audit in sorted(record["audits"].items() if record else ()):
        numbers_by_name = sorted(audit["numbers"].items(), key=lambda item: _natural(item[0]))
        values = "; ".join(f"{key}: {_short(value)}" for key, value in numbers_by_name)
        verdict = _MASKING_WORDS[audit["verdict"]]
        label = name.split("/", 1)[1] if name.endswith("/self-test") else name
        row = Row(prefix + label, (Entry(verdict), Entry(values), Entry(audit["rule"])))
        if row not in rows:  # the self-test belongs to the harness, not to a protocol
            rows.append(row)
    return rows


def masking_table(numbers: Numbers) -> Table:
    """The masking report of every model that has one: a verdict, with the numbers behind it."""
    rows = []
    for subject in all_subjects(numbers):
        found = masking_rows(numbers, subject, f"{display_name(subject)}: ")
        state = numbers.cell(subject, "masking", "masking/passed").state
        if not found and (state == "stale" or subject == Subject.current(numbers.params)):
            rows.append(Row(display_name(subject), (Entry(state), EMPTY, EMPTY)))
        rows += found
    text = (
        f"Profile {numbers.params.profile}, seed {numbers.params.seed}. Indicators after Athalye et al. (2018) and "
        "the supplement's section 1. By the 95 % intervals of the paired differences that an indicator compares: pass, "
        "all lie within its tolerance; FAIL, one lies wholly beyond it; not rejected, otherwise. Not rejected is no "
        "sign of masking: attacks that have converged agree on every image, their difference is 0 with an interval on "
        "both sides, and no number of images makes that a pass; a tolerance of 2 points needs more than about 140. "
        "Self-test: of the harness, under no protocol; APGD-CE with 100 steps, on the undefended network at twice the "
        "nominal radius."
    )
    columns = (Column("verdict"), Column("numbers"), Column("rule"))
    return Table("masking", "Gradient masking report", text, "Model: indicator", columns, tuple(rows))


def _natural(text: str) -> tuple[tuple[int, float, str], ...]:
    """Sort key that puts "steps 20" before "steps 100"."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return tuple((0, float(part), "") if place % 2 else (1, 0.0, part) for place, part in enumerate(parts))


def _short(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, float) else str(value)


def reproduction_table(rows: Sequence[Mapping[str, Any]], profile: str) -> Table:
    """Own results against the other machine's: what a fresh clone reproduced."""
    body = []
    for row in rows:
        rate = row["inside"] is not None
        show: Callable[[float], str] = (lambda v: f"{100 * v:.1f}") if rate else (lambda v: f"{v:.4g}")
        interval = f"[{show(row['low'])}, {show(row['high'])}]" if rate else ""
        verdict = {True: "inside", False: "outside", None: "differs"}[row["inside"]]
        entries = Entry(show(row["ours"])), Entry(show(row["theirs"]), interval=interval), Entry(verdict)
        body.append(Row(f"{row['model']} {row['stage']}: {row['metric']}", entries))
    columns = (Column("ours"), Column("the other's"), Column("interval"))
    inside = sum(row["inside"] is True for row in rows)
    rates = sum(row["inside"] is not None for row in rows)
    text = (
        f"Profile {profile}. Answers of another machine to the same questions, as the MLflow store knows them; ours "
        "count in all tables. Another processor or thread count adds in another order, which training amplifies to "
        f"other weights: {inside} of {rates} accuracies lie inside the other's 95 % interval."
        if rows
        else f"Profile {profile}. The store and the ledger hold no answers of another machine that differ from these."
    )
    return Table("reproduction", "Reproduction check", text, "Model, stage, metric", columns, tuple(body))
