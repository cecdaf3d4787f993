"""The extended tables: more models, attacks and indicators than the paper's, every accuracy with its 95 % interval.

docs/statistics.md says how cells, intervals and verdicts are to be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import Any

from ebjdat.evaluation.masking import VERDICTS
from ebjdat.protocols import PROTOCOLS, STANDARD, AutoAttackCell, Protocol, as_fraction
from ebjdat.results import cells, names, statistics
from ebjdat.results.cells import Column, Table
from ebjdat.results.frame import Results
from ebjdat.results.statistics import Difference
from ebjdat.run import BASELINES
from ebjdat.statistics import paired, spread

Columns = Mapping[Column, str]
"""Metric ``<stage>/<metric>`` by heading."""

ATTACKS = {"apgd-ce": "APGD-CE", "apgd-dlr": "APGD-DLR", "fab-t": "FAB", "square": "SQUARE"}
TRANSFER = ("pgd", "mi-fgsm", "vmi-fgsm", "vni-fgsm")


def transfer_metric(protocol: str, surrogate: str, attack: str, neighbours: int) -> str:
    """Metric of a transfer attack; only VMI- and VNI-FGSM sample neighbours."""
    suffix = f"/neighbours-{neighbours}" if attack.startswith("v") else ""
    return f"transfer/{protocol}/transfer/{surrogate}/{attack}{suffix}"


def over_radii(protocol: Protocol, nominal: float, group: str, metric: str) -> dict[Column, str]:
    """One column per radius; ``metric`` holds ``{radius}`` for its multiple of the protocol's radius."""
    radius = protocol.radius(nominal)
    return {
        (group, as_fraction(multiple * radius)): metric.format(radius=f"{multiple:g}")
        for multiple in protocol.sweep.radii
    }


def _with_numbers(results: Results, metric: str) -> dict[str, str]:
    """Models that have a metric, by name."""
    models = [model for model in names.all_models(results) if len(results.values(model, metric))]
    return _named(results, models)


def _named(results: Results, models: Iterable[str]) -> dict[str, str]:
    return {names.display_name(results.params, model): model for model in models}


def _ours_and_others(results: Results, metric: str, first: Mapping[str, str] = {}) -> dict[str, str]:
    """The current model, then every other model that has the metric; ``first`` replaces the start."""
    ours = results.params.model
    rows = dict(first) or {f"Ours ({names.display_name(results.params, ours)})": ours}
    others = {name: model for name, model in _with_numbers(results, metric).items() if model not in rows.values()}
    return rows | others


def _under(
    results: Results,
    protocol: Protocol,
    label: str,
    title: str,
    models: Mapping[str, str],
    columns: Columns,
    extra: str,
) -> Table:
    """A table that exists once per protocol."""
    label, title = f"{label}-{protocol.name}", f"{title}, protocol {protocol.name}"
    return cells.pivot(results, label, title, models, columns, protocol=protocol, extra=extra)


def table1(results: Results, protocol: Protocol) -> Table:
    """Robustness under each attack of AutoAttack alone; further attacks to the right."""
    stage, steps = f"autoattack/{protocol.name}", {cell.attack: cell.steps for cell in protocol.table1.alone}
    columns: dict[Column, str] = {("", name): f"{stage}/{key}" for key, name in ATTACKS.items()}
    more = {"apgd-t": "APGD-T"} if "apgd-t" in steps else {}
    more |= {"union": "union"} | ({"autoattack": "AutoAttack cascade"} if protocol.table1.cascade else {})
    more |= {"clean": "clean"}
    columns |= {("extension", name): f"{stage}/{key}" for key, name in more.items()}
    models = _ours_and_others(results, f"{stage}/apgd-ce")
    title = "Table 1: robustness under AutoAttack's attacks"
    extra = "Robust accuracy (%); FAB is FAB-T."
    return _under(results, protocol, "table1", title, models, columns, extra)


def table2(results: Results, protocol: Protocol) -> Table:
    """Robustness under transfer attacks from every surrogate; a model's own column is white-box."""
    p, columns = protocol.name, dict[Column, str]()
    for n in protocol.transfer.neighbours:
        for attack in TRANSFER:
            if n == protocol.transfer.neighbours[0] or attack.startswith("v"):  # the others sample no neighbours
                columns[f"from PGD-AT, N = {n}", attack.upper()] = transfer_metric(p, "pgd_at", attack, n)
    worst = "worst case per image, from"
    for surrogate in results.params.surrogates:
        columns[worst, names.display_name(results.params, surrogate)] = f"transfer/{p}/transfer/{surrogate}/worst"
    columns[worst, "all of them"] = f"transfer/{p}/transfer/worst"
    ours = f"Ours ({names.display_name(results.params, results.params.model)})"
    first = {"TRADES": "trades", ours: results.params.model, "PGD-AT (the surrogate)": "pgd_at"}
    models = _ours_and_others(results, next(iter(columns.values())), first)
    title, extra = "Table 2: robustness under transfer attacks", "Robust accuracy (%); N: neighbours of VMI and VNI."
    table = _under(results, protocol, "table2", title, models, columns, extra)
    for row, model in models.items():
        for column, metric in columns.items():
            if f"/transfer/{model}/" in metric and table.body.at[row, column].endswith("]"):
                table.body.at[row, column] += ", white-box"
    return table


def table3_columns(protocol: Protocol, nominal: float) -> dict[Column, str]:
    """APGD-CE over radius and iterations, and EOT-PGD over radius."""
    sweep, eot = f"sweep/{protocol.name}/apgd-ce", f"eot/{protocol.name}/eot-pgd/plain/samples-2"
    columns = over_radii(protocol, nominal, "APGD-CE: distortion bound", f"{sweep}/radius-{{radius}}/steps-20")
    for steps in protocol.sweep.iterations:
        columns["APGD-CE: iterations", str(steps)] = f"{sweep}/radius-1/steps-{steps}"
    return columns | over_radii(protocol, nominal, "EOT-PGD: distortion bound", f"{eot}/radius-{{radius}}")


def table3(results: Results, protocol: Protocol) -> Table:
    """Robustness under APGD-CE over radius and iterations, and under EOT-PGD over radius."""
    columns = table3_columns(protocol, results.params.current.evaluation.radius)
    models = _ours_and_others(results, next(iter(columns.values())))
    title, extra = "Table 3: robustness over distortion, iterations and EOT", "Robust accuracy (%); pixel units."
    return _under(results, protocol, "table3", title, models, columns, extra)


def table3_extension(results: Results, protocol: Protocol) -> Table | None:
    """What this protocol adds to Table 3: more iterations, and noise inside the model; None if nothing."""
    p, nominal, columns = protocol.name, results.params.current.evaluation.radius, dict[Column, str]()
    for steps in protocol.sweep.radii_steps[1:]:
        metric = f"sweep/{p}/apgd-ce/radius-{{radius}}/steps-{steps}"
        columns |= over_radii(protocol, nominal, f"APGD-CE, {steps} iterations", metric)
    for cell in protocol.eot.cells:
        if (cell.noise, cell.samples) != ("plain", 2):
            metric = f"eot/{p}/eot-pgd/{cell.noise}/samples-{cell.samples}/radius-{{radius}}"
            columns |= over_radii(protocol, nominal, f"EOT-PGD, {cell.noise}, {cell.samples} samples", metric)
    if not columns:
        return None
    models = _ours_and_others(results, next(iter(columns.values())))
    title, extra = "Table 3, extension: longer attacks and randomness inside the model", "Robust accuracy (%)."
    return _under(results, protocol, "table3-extension", title, models, columns, extra)


def distances(results: Results) -> tuple[str, str]:
    """Metric names of the distance and of the kernel distance, as the profile's features define them."""
    inception = results.params.current.evaluation.generation.features == "inception"
    return ("fid", "kid") if inception else ("classifier-frechet", "classifier-kernel")


def _compared(results: Results) -> list[str]:
    """EB-JDAT and plain models of every variant that stands for itself; what else was run."""
    run = {model for model, _ in results.frame.index}
    own = {variant for variant, recipe in results.params.variants.items() if not recipe.like}
    expected = {f"{method}-{variant}" for method in ("ebjdat", "base") for variant in own} | {results.params.model}
    return [model for model in names.by_variant(results) if model in run | expected]


def _unequal(results: Results, models: Sequence[str]) -> str:
    """Distances that were measured on another number of images than the samples they stand beside."""
    found = {
        metric.removeprefix("generation/")
        for (model, _, stage), record in results.records.items()
        if model in models and stage == "generate"
        for metric, texts in record["warnings"].items()
        if any(text.endswith("not at equal n") for text in texts)
    }
    return f" UNEQUAL n: {', '.join(sorted(found))}." if found else ""


def initialisation(results: Results) -> Table:
    """Section 2: each variant starts its chains where it was trained to start them."""
    distance, kernel = distances(results)
    columns: dict[Column, str] = {
        (distance, name): f"generate/generation/{kind}{distance}"
        for name, kind in (
            ("start", "start-"),
            ("samples", ""),
            ("test images", "test-"),
            ("buffer", "buffer-"),
            ("released protocol", "released-"),
        )
    }
    columns[kernel, "samples"] = f"generate/generation/{kernel}"
    models = _compared(results)
    samples = results.params.current.evaluation.generation.samples
    extra = f"{samples} samples; lower is better.{_unequal(results, models)}"
    title = "Section 2: initialisation and generation"
    table = cells.pivot(results, "initialisation", title, _named(results, models), columns, extra=extra)
    recipes = [results.params.recipe(model) for model in models]
    table.body.insert(0, ("", "chain start"), [recipe.chain_start if recipe else "" for recipe in recipes])
    return table


def tradeoff(results: Results, protocol: Protocol) -> Table:
    """Section 3: robustness, accuracy and generation over all models of the profile."""
    p, distance = protocol.name, distances(results)[0]
    overall, name = ("autoattack", "AutoAttack") if protocol.table1.cascade else ("union", "union of attacks")
    twin = "released-" if p == "released" else ""
    columns: dict[Column, str] = {
        ("robustness (%)", "PGD-20"): f"clean/{p}/pgd-20",
        ("robustness (%)", name): f"autoattack/{p}/{overall}",
        ("accuracy (%)", "clean"): f"clean/{p}/clean",
        ("generation", distance): f"generate/generation/{twin}{distance}",
    }
    pgd, robust, *_ = columns.values()
    models = [*_compared(results), *names.baselines(results), *names.external_models(results)]
    title, extra = "Section 3: robustness, accuracy and generation", f"{distance}: lower is better."
    table = _under(results, protocol, "tradeoff", title, _named(results, models), columns, extra)
    same = [_on_images_of(results, model, pgd, robust) for model in models]
    table.body.insert(1, ("robustness (%)", f"PGD-20, same images as {name}"), same)
    return table


def _on_images_of(results: Results, model: str, metric: str, other: str) -> str:
    """An accuracy over the images and seeds of another metric alone."""
    there = results.values(model, other)
    if there.empty:
        return results.missing(model, other)
    n = min(results.images(model, other))
    values = results.on_first_images(model, metric, n, list(there.index))
    return "n/a" if values.empty else cells.accuracy_text(values, n)


def energies(results: Results) -> Table:
    """E(x) of clean, attacked and generated images, their gaps and overlaps, for every model."""
    columns: dict[Column, str] = {
        ("mean E(x), nats", name): f"clean/energy/{kind}/mean" for kind, name in names.ENERGIES.items()
    }
    for kind in ("adversarial", "generated", "generated-fresh"):
        columns["gap to clean", names.ENERGIES[kind]] = f"clean/energy/gap-{kind}"
    for kind in ("adversarial", "generated", "generated-fresh", "all", "all-fresh"):
        columns["overlap", names.ENERGIES.get(kind, kind.replace("-", ", "))] = f"clean/energy/overlap-{kind}"
    models = _with_numbers(results, "clean/energy/clean/mean")
    return cells.pivot(results, "energies", "Energies of clean, adversarial and generated images", models, columns)


def overlap_metric(other: str, fresh: bool = False) -> str:
    """The overlap of energies by which EB-JDAT is compared with another model; a baseline generates nothing.

    Args:
        fresh: generated images are those of fresh chains, not of the replay buffer.
    """
    kind = "adversarial" if other in BASELINES else "all-fresh" if fresh else "all"
    return f"clean/energy/overlap-{kind}"


def _direction(results: Results, ours: str, other: str, metric: str) -> str:
    """Whose number is larger, in words."""
    if results.values(ours, metric).empty or results.values(other, metric).empty:
        return "not known"
    found = cells.per_seed(results, ours, other, metric)
    if not found:
        return "no common seed"
    if len(found) == 1:
        return f"{'more' if found[0] > 0 else 'less' if found[0] < 0 else 'equal'} (one seed)"
    return {"yes": "more", "no": "less", "open": "not told apart"}[statistics.seed_verdict(found)]


def alignment(results: Results) -> Table:
    """The central claim as a verdict: does EB-JDAT align the energies more than each other model does?"""
    rows = {}
    for variant in names.variants(results):
        ours = f"ebjdat-{variant}"
        twice = [(method, fresh) for method in ("base", "control") for fresh in (False, True)]
        for method, fresh in (*twice, ("pgd_at", False), ("trades", False)):
            other = names.rival(ours, method)
            metric = overlap_metric(other, fresh)
            texts = _side_by_side(results, ours, other, metric)
            name = metric.removeprefix("clean/energy/")
            rows[f"{_versus(results, ours, other)} ({name})"] = [*texts, _direction(results, ours, other, metric)]
    metrics = [overlap_metric("base"), overlap_metric("base", True), overlap_metric("pgd_at")]
    text = cells.caption(results, [f"ebjdat-{variant}" for variant in names.variants(results)], metrics)
    body = cells.grid("Models (overlap of)", ["first", "second", "first aligns"], rows)
    return Table("alignment", "Alignment of the energies: EB-JDAT against the others", text, body)


def _versus(results: Results, first: str, second: str) -> str:
    return f"{names.display_name(results.params, first)} vs. {names.display_name(results.params, second)}"


def _side_by_side(results: Results, first: str, second: str, metric: str) -> list[str]:
    """A plain number of two models, over the seeds that both have where there are any."""
    both = [results.values(model, metric) for model in (first, second)]
    common = both[0].index.intersection(both[1].index)
    if len(common):
        return [cells.value_text(values[common]) for values in both]
    return [cells.value(results, model, metric) for model in (first, second)]


def calibration(results: Results) -> Table:
    """Calibration, and how well energy tells outliers, which the JEM papers report."""
    found = {name for name in results.frame if name.startswith("clean/ood/")}
    columns: dict[Column, str] = {("", "ECE"): "clean/calibration/ece"}
    columns |= {("outliers: AUROC by E(x)", name.split("/")[2]): name for name in sorted(found)}
    extra = "ECE: expected calibration error, lower is better; AUROC: higher is better, 0.5 is chance."
    models = _with_numbers(results, "clean/calibration/ece")
    return cells.pivot(results, "calibration", "Calibration and outliers", models, columns, extra=extra)


def checkpoints(results: Results) -> Table:
    """The best and the last checkpoint of every model: robust overfitting is the difference."""
    compared = {
        "clean": "clean/standard/clean",
        "PGD-20": "clean/standard/pgd-20",
        "APGD-CE + APGD-T": "autoattack/standard/apgd-ce-t",
    }
    columns = {
        (name, which): f"{metric}{end}"
        for name, metric in compared.items()
        for which, end in (("best", ""), ("last", "-last"))
    }
    models = _with_numbers(results, "clean/standard/clean-last")
    title, extra = "Best and last checkpoint", "Accuracy (%)."
    return cells.pivot(results, "checkpoints", title, models, columns, protocol=STANDARD, extra=extra)


def paired_table(results: Results, name: str, metric: str) -> Table:
    """All pairs of models on the same images: difference, its interval, McNemar's exact p-value; first seed."""
    stage, _, key = metric.partition("/")
    seed = results.params.seeds[0]
    known = [(model, results.rate(model, seed, stage, key)) for model in names.all_models(results)]
    rates = [(model, rate) for model, rate in known if rate is not None]
    rows = {}
    for place, (first, a) in enumerate(rates):
        for second, b in rates[place + 1 :]:
            pair = paired(a, b)
            difference = f"{100 * pair.difference:+.1f} {statistics.points(*pair.interval())}"
            texts = [str(pair.n), difference, str(pair.only_first), str(pair.only_second), f"{pair.p_value():.2g}"]
            rows[_versus(results, first, second)] = texts
    text = f"{cells.about(results, STANDARD)}; seed {seed}. p: McNemar's, not adjusted for {len(rows)} comparisons."
    body = cells.grid("Models", ["n", "difference (points)", "only first", "only second", "p"], rows)
    return Table(f"paired-{key.split('/')[-1]}", f"Paired comparison: {name}", text, body)


def seeds_table(results: Results) -> Table:
    """Differences under AutoAttack, protocol ``standard``: per seed, and their mean."""
    rows, used = {}, set[int]()
    for variant in names.variants(results):
        ours = f"ebjdat-{variant}"
        for method in ("base", "control", "pgd_at", "trades"):
            other = names.rival(ours, method)
            by_seed = results.pairs(ours, other, names.COMPARED["AutoAttack"])
            if not by_seed:
                continue
            found = list(by_seed.values())
            each, total = [100 * paired(*pair).difference for pair in found], Difference.of(found)
            over = spread(each)
            rows[_versus(results, ours, other)] = [
                ", ".join(map(str, by_seed)),
                ", ".join(f"{one:+.1f}" for one in each),
                f"{over.mean:+.1f}" + (f" ±{over.deviation:.1f}" if over.seeds > 1 else ""),
                statistics.points(*statistics.mean_interval(found)),
                statistics.points(*statistics.joint_interval(found)),
                f"{statistics.sign_flip_p(found):.2g}",
                str(total.n),
            ]
            used |= set(by_seed)
    heads = ["seeds", "difference per seed (points)", "mean", "95 %: images", "95 %: images and seeds", "p", "n"]
    text = f"{cells.about(results, STANDARD)}; AutoAttack; {cells.seeds_text(used)}. p: exact, by sign flips of images."
    return Table("seeds", "AutoAttack over seeds, paired", text, cells.grid("Models", heads, rows))


_MASKING_WORDS = {"shown": "pass", "not rejected": "not rejected", "failed": "FAIL"}


def masking(results: Results) -> Table:
    """The masking report of every model that has one: a verdict, with the numbers behind it; first seed."""
    rows: dict[str, list[str]] = {}
    seed = results.params.seeds[0]
    for model in names.all_models(results):
        name, record = names.display_name(results.params, model), results.record(model, seed, "masking")
        for indicator, audit in sorted(record["audits"].items()) if record else ():
            texts = [_MASKING_WORDS[audit["verdict"]], _numbers(audit["numbers"]), audit["rule"]]
            once = f"{name}: self-test"  # the harness's, the same under every protocol
            same = indicator.endswith("/self-test") and rows.get(once, texts) == texts
            rows[once if same else f"{name}: {indicator}"] = texts
        state = results.missing(model, "masking/masking/passed")
        if record is None and (state == "outdated" or model == results.params.model):
            rows[name] = [state, "", ""]
    words = ", ".join(_MASKING_WORDS[verdict] for verdict in VERDICTS)
    text = f"{cells.about(results)}; seed {seed}. Verdicts, worst first: {words}."
    body = cells.grid("Model: indicator", ["verdict", "numbers", "rule"], rows)
    return Table("masking", "Gradient masking report", text, body)


def _numbers(found: Mapping[str, Any]) -> str:
    def natural(item: tuple[str, Any]) -> list[tuple[int, float, str]]:  # "steps 20" before "steps 100"
        parts = re.split(r"(\d+(?:\.\d+)?)", item[0])
        return [(0, float(part), "") if place % 2 else (1, 0.0, part) for place, part in enumerate(parts)]

    shown = (
        (name, f"{100 * n:.1f} %" if isinstance(n, float) else n) for name, n in sorted(found.items(), key=natural)
    )
    return "; ".join(f"{name}: {text}" for name, text in shown)


def readings(results: Results) -> Table:
    """Robustness, accuracy, energy gap and generation of each reading of the current variant."""
    params, distance = results.params, distances(results)[0]
    base = names.reading_of(params, params.variant) or params.variant
    same = [name for name in params.variants if base in (name, names.reading_of(params, name))]
    control, plain = f"control-{base}", f"base-{base}"
    columns: dict[Column, str] = {
        ("", "clean"): "clean/standard/clean",
        ("", "PGD-20"): "clean/standard/pgd-20",
        ("", "E(x_adv) - E(x)"): "clean/energy/gap-adversarial",
        ("overlap", "clean and adversarial"): "clean/energy/overlap-adversarial",
        ("overlap", "all"): "clean/energy/overlap-all",
        ("overlap", "all, fresh chains"): "clean/energy/overlap-all-fresh",
        (distance, "start"): f"generate/generation/start-{distance}",
        (distance, "samples"): f"generate/generation/{distance}",
        (distance, "buffer"): f"generate/generation/buffer-{distance}",
    }
    models = {_reading(results, name): f"ebjdat-{name}" for name in same}
    models = {name: model for name, model in sorted(models.items()) if len(results.values(model, columns["", "clean"]))}
    models["control: no energy term"] = control
    models[f"{names.display_name(params, plain)}: no adversarial images"] = plain
    title = f"Readings of the adversarial term, {names.display_name(params, f'ebjdat-{base}')}"
    extra = "E(x_adv) - E(x): nats; minus the control's: mean and 95 % interval over seeds."
    table = cells.pivot(results, "readings", title, models, columns, protocol=STANDARD, extra=extra)
    changes = [cells.per_seed(results, model, control, columns["", "E(x_adv) - E(x)"]) for model in models.values()]
    shown = [
        "" if model == control or not change else f"{mean(change):+.2f} {cells.interval_text(change)}".strip()
        for model, change in zip(models.values(), changes, strict=True)
    ]
    table.body.insert(3, ("", "minus the control's"), shown)
    return table


def _reading(results: Results, variant: str) -> str:
    recipe = results.params.variants[variant]
    if not recipe.w_adversarial and not recipe.w_energy:
        return "no reading, w2 = 0"
    gap = f", {recipe.gap.replace('_', ' ')}" if recipe.reading == "energy" else ""
    return f"{recipe.reading.replace('_', ' ')}, w2 = {recipe.w_energy:g}{gap}"


def findings(results: Results) -> Table:
    """The paper's questions as rows, the EB-JDAT variants that have numbers as columns."""
    models, distance = names.ours_with_numbers(results), distances(results)[0]
    answers: dict[str, Callable[[str], str]] = {}
    for what in ("AutoAttack", "PGD-20", "clean accuracy"):
        for method, name in names.RIVALS.items():
            answers[f"{what}: above {name}"] = partial(_above, results, method, names.COMPARED[what])
    for images, fresh in (("buffer", False), ("fresh chains", True)):
        for method in ("base", "control"):
            question = f"energies: aligned more than in {names.RIVALS[method]} ({images})"
            answers[question] = partial(_larger, results, method, overlap_metric(method, fresh))
    question = "energies: aligned more than in PGD-AT (clean and adversarial)"
    answers[question] = partial(_larger, results, "pgd_at", overlap_metric("pgd_at"))
    for method, name in names.RIVALS.items():
        question = f"energies: E(x_adv) - E(x) larger than in {name}"
        answers[question] = partial(_larger, results, method, "clean/energy/gap-adversarial")
    answers["samples: nearer to the data than the chains' start"] = partial(_nearer, results, distance)
    rows = {question: [answer(model) for model in models] for question, answer in answers.items()} if models else {}
    text = (
        f"{cells.about(results, STANDARD)}. Verdict; difference, or ours and theirs; 95 % interval: docs/statistics.md."
    )
    if not models:
        text = f"No EB-JDAT model has numbers in profile {results.profile}."
    heads = [names.display_name(results.params, model) for model in models] or ["none"]
    return Table("findings", f"What was found on {results.profile}", text, cells.grid("Is it so?", heads, rows))


def _above(results: Results, method: str, metric: str, ours: str) -> str:
    other = names.rival(ours, method)
    found = list(results.pairs(ours, other, metric).values())
    if not found:
        return _no_pair(results, ours, other, metric)
    difference = Difference.of(found)
    return f"{difference.verdict} {difference}"


def _larger(results: Results, method: str, metric: str, ours: str) -> str:
    other = names.rival(ours, method)
    found = cells.per_seed(results, ours, other, metric)
    if not found:
        return _no_pair(results, ours, other, metric)
    means = ", ".join(text.split(" ±")[0] for text in _side_by_side(results, ours, other, metric))
    return " ".join(
        filter(
            None,
            [
                statistics.seed_verdict(found),
                means,
                cells.interval_text(found),
                f"({statistics.count_seeds(len(found))})",
            ],
        )
    )


def _no_pair(results: Results, ours: str, other: str, metric: str) -> str:
    """Why two models cannot be compared."""
    empty = [model for model in (ours, other) if results.values(model, metric).empty]
    return results.missing(empty[0], metric) if empty else "no common seed"


def _nearer(results: Results, distance: str, ours: str) -> str:
    samples, start = (results.values(ours, f"generate/generation/{kind}{distance}") for kind in ("", "start-"))
    if samples.empty or start.empty:
        return results.missing(ours, f"generate/generation/{distance if samples.empty else f'start-{distance}'}")
    common = samples.index.intersection(start.index)
    if not len(common):
        return "no common seed"
    lower = int((samples[common] < start[common]).sum())
    return f"in {lower} of {len(common)} {samples[common].mean():.2f}, {start[common].mean():.2f}"


def readme(results: Results) -> Table:
    """The current variant and the baselines in four numbers, for the README."""
    variant, distance = results.params.variant, distances(results)[0]
    columns: dict[Column, str] = {
        ("", "clean"): "clean/standard/clean",
        ("", "PGD-20"): "clean/standard/pgd-20",
        ("", "AutoAttack"): "autoattack/standard/autoattack",
        ("", "FID" if distance == "fid" else "Fréchet distance"): f"generate/generation/{distance}",
    }
    models = [*(f"{method}-{variant}" for method in ("ebjdat", "base", "control")), *names.baselines(results)]
    extra = "± over seeds; accuracies in %; distance: lower is better."
    named = _named(results, models)
    title = "In four numbers"
    return cells.pivot(results, "readme", title, named, columns, protocol=STANDARD, extra=extra, show=cells.short)


def settings(results: Results) -> Table:
    """Attacks, steps, step sizes, radii and noise as rows, the protocols as columns."""
    evaluation = results.params.current.evaluation
    rows: dict[str, Callable[[Protocol], str]] = {
        "radius r": lambda p: as_fraction(p.radius(evaluation.radius)),
        "input noise": lambda p: _input_noise(results, p),
        "PGD-20": lambda p: f"{p.pgd.steps} steps of {p.pgd.step:g} r, one random start",
        "Table 1, each attack alone": lambda p: "; ".join(map(_alone, p.table1.alone)),
        "Table 1, cascade": lambda p: "AutoAttack, version standard" if p.table1.cascade else "none, but their union",
        "Table 2": _transfer,
        "Table 3, APGD-CE": _sweep,
        "Table 3, EOT-PGD": _eot,
    }
    stages = {
        "PGD-20": "clean",
        "AutoAttack": "autoattack",
        "transfer": "transfer",
        "APGD-CE": "sweep",
        "EOT-PGD": "eot",
    }
    counts = ", ".join(f"{getattr(evaluation, stage).images} ({name})" for name, stage in stages.items())
    text = f"{cells.about(results)}. The first {counts} test images."
    body = cells.grid("Cell", PROTOCOLS, {name: [show(p) for p in PROTOCOLS.values()] for name, show in rows.items()})
    return Table("settings", "What each cell runs", text, body)


def _input_noise(results: Results, protocol: Protocol) -> str:
    """Noise that labelled images had in training, pixel units, and which variants had it."""
    by_sigma: dict[float, list[str]] = {}
    for variant in names.variants(results):
        recipe = results.params.variants[variant]
        by_sigma.setdefault(protocol.input_noise(recipe.labelled_noise), []).append(recipe.label or variant)
    shown = [
        f"sigma {sigma:g}, one fixed draw, for {' and '.join(names)}" for sigma, names in by_sigma.items() if sigma
    ]
    return "; ".join([*shown, "else none"]) if shown else "none"


def _alone(cell: AutoAttackCell) -> str:
    unit = "queries" if cell.attack == "square" else "steps"
    targets = f", {cell.targets} targets" if cell.targets else ""
    return f"{cell.attack.upper()}: {cell.steps} {unit}{targets}"


def _transfer(protocol: Protocol) -> str:
    recipe = protocol.transfer
    return (
        f"{', '.join(name.upper() for name in recipe.attacks)}: {recipe.steps} steps of {recipe.step:g} r; decay "
        f"{recipe.decay:g}; VMI and VNI: {' or '.join(map(str, recipe.neighbours))} neighbours within {recipe.beta:g} r"
    )


def _sweep(protocol: Protocol) -> str:
    sweep = protocol.sweep
    return (
        f"{_radii(sweep.radii)}, {' and '.join(map(str, sweep.radii_steps))} steps; "
        f"{', '.join(map(str, sweep.iterations))} steps at r; one restart"
    )


def _eot(protocol: Protocol) -> str:
    eot = protocol.eot
    cells = ", ".join(
        f"{cell.samples} samples" + (f" with noise of sigma {eot.sigma:g} inside" if cell.noise == "noise" else "")
        for cell in eot.cells
    )
    return f"{_radii(eot.radii)}; {eot.steps} steps of {eot.step:g} r at every radius; {cells}"


def _radii(multiples: Iterable[float]) -> str:
    return f"{', '.join(f'{multiple:g}' for multiple in multiples)} r"


def trained(results: Results) -> Table:
    """How each model of the tables was trained."""
    rows = {}
    for model in names.all_models(results):
        setup = results.setup(model)
        if setup.training is None or not any(model == known for known, _ in results.frame.index):
            continue
        recipe, training = setup.recipe, setup.training
        adversarial = model in set(BASELINES) - {"undefended"} or (recipe is not None and recipe.w_adversarial > 0)
        term = "none" if recipe is None or not recipe.w_energy else f"{recipe.reading}, w2 = {recipe.w_energy:g}"
        chains = "" if recipe is None else f"{recipe.chain_start}, {recipe.steps} steps"
        radius = as_fraction(training.train_eps) if adversarial else "none"
        rows[names.display_name(results.params, model)] = [str(training.epochs), radius, term, chains]
    heads = ["epochs", "training radius", "energy term", "chains: start and steps"]
    return Table("trained", "How each model was trained", f"{cells.about(results)}.", cells.grid("Model", heads, rows))
