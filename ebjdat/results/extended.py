"""The extended tables: more models, attacks and indicators than the paper's, every accuracy with its 95 % interval.

docs/statistics.md says how cells, intervals and verdicts are to be read.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ebjdat.config import MASKING_INPUTS
from ebjdat.evaluation.masking import VERDICTS
from ebjdat.protocols import PROTOCOLS, STANDARD, Protocol, as_fraction
from ebjdat.results import cells, names
from ebjdat.results.cells import Table
from ebjdat.results.frame import Results
from ebjdat.run import BASELINES

ATTACKS = {"apgd-ce": "APGD-CE", "apgd-dlr": "APGD-DLR", "fab-t": "FAB", "square": "SQUARE"}


def transfer_metric(protocol: str, surrogate: str, attack: str, neighbours: int) -> str:
    """Metric of a transfer attack; only VMI- and VNI-FGSM sample neighbours."""
    suffix = f"/neighbours-{neighbours}" if attack.startswith("v") else ""
    return f"transfer/{protocol}/transfer/{surrogate}/{attack}{suffix}"


def over_radii(protocol: Protocol, nominal: float, group: str, metric: str) -> dict[Any, str]:
    """One column per radius; ``metric`` holds ``{radius}`` for its multiple of the protocol's radius."""
    radius = protocol.radius(nominal)
    return {
        (group, as_fraction(multiple * radius)): metric.format(radius=f"{multiple:g}")
        for multiple in protocol.sweep.radii
    }


def _with_numbers(results: Results, metric: str, first: Iterable[str] = ()) -> list[str]:
    """``first``, then every other model that has a metric."""
    models = [model for model in names.all_models(results) if len(results.values(model, metric))]
    return list(dict.fromkeys([*first, *models]))


def _under(results: Results, protocol: Protocol, label: str, title: str, *what: Any, extra: str) -> Table:
    """A table that exists once per protocol; ``what``: its models and columns."""
    label, title = f"{label}-{protocol.name}", f"{title}, protocol {protocol.name}"
    return cells.pivot(results, label, title, *what, protocol=protocol, extra=extra)


def table1(results: Results, protocol: Protocol) -> Table:
    """Robustness under each attack of AutoAttack alone; further attacks to the right."""
    stage, steps = f"autoattack/{protocol.name}", {cell.attack: cell.steps for cell in protocol.table1.alone}
    columns: dict[Any, str] = {name: f"{stage}/{key}" for key, name in ATTACKS.items()}
    more = {"apgd-t": "APGD-T"} if "apgd-t" in steps else {}
    if protocol.table1.cascade:
        more |= {"union": "union", "autoattack": "AutoAttack"}
    else:
        more |= {"union": "union without FAB", "union-with-fab": "union with FAB"}
    more |= {"clean": "clean"}
    columns |= {("extension", name): f"{stage}/{key}" for key, name in more.items()}
    models = _with_numbers(results, f"{stage}/apgd-ce", [results.params.model])
    title, extra = "Table 1: robustness under AutoAttack's attacks", "Robust accuracy (%); FAB is FAB-T."
    return _under(results, protocol, "table1", title, models, columns, extra=extra)


def table2(results: Results, protocol: Protocol) -> Table:
    """Robustness under transfer attacks from every surrogate; a model's own column is white-box."""
    p, columns = protocol.name, dict[Any, str]()
    for n in protocol.transfer.neighbours:
        for attack in protocol.transfer.attacks:
            if n == protocol.transfer.neighbours[0] or attack.startswith("v"):  # the others sample no neighbours
                columns[f"from PGD-AT, N = {n}", attack.upper()] = transfer_metric(p, "pgd_at", attack, n)
    worst = "worst case per image, from"
    for surrogate in results.params.surrogates:
        columns[worst, names.display_name(results.params, surrogate)] = f"transfer/{p}/transfer/{surrogate}/worst"
    columns[worst, "all of them"] = f"transfer/{p}/transfer/worst"
    models = _with_numbers(results, next(iter(columns.values())), ["trades", results.params.model, "pgd_at"])
    title, extra = "Table 2: robustness under transfer attacks", "Robust accuracy (%); N: neighbours of VMI and VNI."
    table = _under(results, protocol, "table2", title, models, columns, extra=extra)
    for row, model in zip(table.body.index, models, strict=True):
        for column, metric in columns.items():
            if f"/transfer/{model}/" in metric and table.body.at[row, column].endswith("]"):
                table.body.at[row, column] += ", white-box"
    return table


def table3_columns(protocol: Protocol, nominal: float) -> dict[Any, str]:
    """APGD-CE over radius and iterations, and EOT-PGD over radius."""
    sweep, eot = f"sweep/{protocol.name}/apgd-ce", f"eot/{protocol.name}/eot-pgd/plain/samples-2"
    columns = over_radii(protocol, nominal, "APGD-CE: distortion bound", f"{sweep}/radius-{{radius}}/steps-20")
    for steps in protocol.sweep.iterations:
        columns["APGD-CE: iterations", str(steps)] = f"{sweep}/radius-1/steps-{steps}"
    return columns | over_radii(protocol, nominal, "EOT-PGD: distortion bound", f"{eot}/radius-{{radius}}")


def table3(results: Results, protocol: Protocol) -> Table:
    """Robustness under APGD-CE over radius and iterations, and under EOT-PGD over radius.

    Below what the protocol adds to the paper's cells: more iterations, and noise inside the model.
    """
    p, nominal = protocol.name, results.params.current.evaluation.radius
    columns = table3_columns(protocol, nominal)
    for steps in protocol.sweep.radii_steps[1:]:
        metric = f"sweep/{p}/apgd-ce/radius-{{radius}}/steps-{steps}"
        columns |= over_radii(protocol, nominal, f"APGD-CE, {steps} iterations", metric)
    for cell in protocol.eot.cells:
        if (cell.noise, cell.samples) != ("plain", 2):
            metric = f"eot/{p}/eot-pgd/{cell.noise}/samples-{cell.samples}/radius-{{radius}}"
            columns |= over_radii(protocol, nominal, f"EOT-PGD, {cell.noise}, {cell.samples} samples", metric)
    models = _with_numbers(results, next(iter(columns.values())), [results.params.model])
    title, extra = "Table 3: robustness over distortion, iterations and EOT", "Robust accuracy (%); pixel units."
    table = _under(results, protocol, "table3", title, models, columns, extra=extra)
    # Far more attacks than models: attacks are rows.
    rows = {head: list(table.body[column]) for head, column in zip(table.heads, table.body, strict=True)}
    return replace(table, body=cells.grid("Attack", table.body.index, rows))


def distances(results: Results) -> tuple[str, str]:
    """Metric names of the distance and of the kernel distance, as the profile's features define them."""
    inception = results.params.current.evaluation.generation.features == "inception"
    return ("fid", "kid") if inception else ("classifier-frechet", "classifier-kernel")


def _compared(results: Results) -> list[str]:
    """The JEM models that were run, and the current one."""
    run = {model for model, _ in results.frame.index}
    return [model for model in names.by_variant(results) if model in run or model == names.ours(results)]


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
    kinds = {
        "start": "start-",
        "samples": "",
        "test images": "test-",
        "buffer": "buffer-",
        "released protocol": "released-",
    }
    heads = names.DISTANCES
    columns = {(heads[distance], name): f"generate/generation/{kind}{distance}" for name, kind in kinds.items()}
    columns[heads[kernel], "samples"] = f"generate/generation/{kernel}"
    models, samples = _compared(results), results.params.current.evaluation.generation.samples
    extra = f"{samples} samples; lower is better.{_unequal(results, models)}"
    title = "Section 2: initialisation and generation"
    table = cells.pivot(results, "initialisation", title, models, columns, extra=extra)
    recipes = [results.params.recipe(model) for model in models]
    table.body.insert(0, ("", "chain start"), [recipe.chain_start if recipe else "" for recipe in recipes])
    return table


def tradeoff(results: Results, protocol: Protocol) -> Table:
    """Section 3: robustness, accuracy and generation over all models of the profile."""
    p, distance = protocol.name, distances(results)[0]
    overall, name = ("autoattack", "AutoAttack") if protocol.table1.cascade else ("union", "union without FAB")
    twin = "released-" if p == "released" else ""
    columns: dict[Any, str] = {
        ("robustness (%)", "PGD-20"): f"clean/{p}/pgd-20",
        ("robustness (%)", name): f"autoattack/{p}/{overall}",
        ("accuracy (%)", "clean"): f"clean/{p}/clean",
        ("generation", names.DISTANCES[distance]): f"generate/generation/{twin}{distance}",
    }
    pgd, robust, *_ = columns.values()
    models = [*_compared(results), *names.baselines(results), *names.external_models(results)]
    title, extra = "Section 3: robustness, accuracy and generation", "Generation: lower is better."
    table = _under(results, protocol, "tradeoff", title, models, columns, extra=extra)
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
    return "n/a" if values.empty else cells.remarked(results, model, metric, cells.accuracy_text(values, n))


def energies(results: Results) -> Table:
    """E(x) of clean, attacked and generated images."""
    columns = {name: f"clean/energy/{kind}/mean" for kind, name in names.ENERGIES.items()}
    models = _with_numbers(results, "clean/energy/clean/mean")
    return cells.pivot(results, "energies", "Energies: mean E(x)", models, columns, extra="Mean E(x), nats.")


def gaps(results: Results) -> Table:
    """How far the energies of attacked and generated images lie from those of clean ones."""
    columns: dict[Any, str] = {"d' of adversarial": "clean/energy/standardised-gap"}
    for kind in ("adversarial", "generated", "generated-fresh"):
        columns["gap to clean", names.ENERGIES[kind]] = f"clean/energy/gap-{kind}"
    for kind in ("adversarial", "generated", "generated-fresh", "all", "all-fresh"):
        columns["overlap", names.ENERGIES.get(kind, kind.replace("-", ", "))] = f"clean/energy/overlap-{kind}"
    models = _with_numbers(results, "clean/energy/clean/mean")
    return cells.pivot(results, "gaps", "Energies: gaps and overlaps", models, columns, extra="Gaps in nats.")


def calibration(results: Results) -> Table:
    """Calibration, and how well energy tells outliers, which the JEM papers report."""
    found = {name for name in results.frame if name.startswith("clean/ood/")}
    columns: dict[Any, str] = {"ECE": "clean/calibration/ece"}
    columns |= {("outliers: AUROC by E(x)", name.split("/")[2]): name for name in sorted(found)}
    extra = "ECE: expected calibration error, lower is better; AUROC: higher is better, 0.5 is chance."
    models = _with_numbers(results, "clean/calibration/ece")
    return cells.pivot(results, "calibration", "Calibration and outliers", models, columns, extra=extra)


def checkpoints(results: Results) -> Table:
    """The best and the last checkpoint of every model: robust overfitting is the difference."""
    both = {"best": "", "last": "-last"}
    metrics = names.COMPARED | {"APGD-CE + APGD-T": "autoattack/standard/apgd-ce-t"}
    del metrics["AutoAttack"]  # the last checkpoint meets its first two attacks alone
    models = _with_numbers(results, "clean/standard/clean-last")
    known = {name: metric for name, metric in metrics.items() if f"{metric}-last" in results.frame or not models}
    columns = {(name, which): f"{metric}{both[which]}" for name, metric in known.items() for which in both}
    title, extra = "Best and last checkpoint", "Accuracy (%)."
    return cells.pivot(results, "checkpoints", title, models, columns, protocol=STANDARD, extra=extra)


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


def studies(results: Results) -> list[Table]:
    """The tables of studies.yaml: models side by side that differ in one thing."""
    distance, run = distances(results)[0], names.with_records(results)
    found = []
    columns = names.COMPARED | {
        "APGD-CE": "autoattack/standard/apgd-ce",
        "APGD-T": "autoattack/standard/apgd-t",
        "E(x_adv) - E(x), nats": "clean/energy/gap-adversarial",
        "d'": "clean/energy/standardised-gap",
        names.DISTANCES[distance]: f"generate/generation/{distance}",
    }
    for label, one in names.studies()["tables"].items():
        models = [model for model in one["models"] if model in run]
        if 2 * len(models) <= len(one["models"]):
            continue
        shown = {
            head: metric for head, metric in columns.items() if any(len(results.values(m, metric)) for m in models)
        }
        extra = "Accuracies in %; mean ± deviation (seeds)."
        table = cells.pivot(results, label, one["title"], models, shown, protocol=STANDARD, extra=extra)
        table.body[:] = table.body.map(lambda text: text.split(" [")[0])
        recipes = [results.params.recipe(model) for model in models]
        code_form = names.FORMS["cross_entropy"]  # whose adversary the control has
        met = [names.FORMS.get(r.reading, code_form) if r and (r.w_adversarial or r.w_energy) else "" for r in recipes]
        table.body.insert(0, ("", "adversary"), met)
        weights = [f"{r.w_px:g}, {r.w_clean:g}, {r.w_energy:g}, {r.w_adversarial:g}" if r else "" for r in recipes]
        table.body.insert(1, ("", "w1, w_clean, w2, w3"), weights)
        epochs = [str(results.params.training(model).epochs) for model in models]
        if len(set(epochs)) > 1:
            table.body.insert(2, ("", "epochs"), epochs)
        found.append(table)
    return found


def readme(results: Results) -> Table:
    """The current variant and the baselines in four numbers, for the README."""
    variant, distance = results.params.variant, distances(results)[0]
    columns = names.COMPARED | {names.DISTANCES[distance]: f"generate/generation/{distance}"}
    ours = [f"ebjdat-{variant}", f"ebjdat-{variant}_energy", f"base-{variant}", f"control-{variant}"]
    models = [m for m in [*ours, *results.params.baselines] if m in names.with_records(results)] or ours[:1]
    real = [value for model in models for value in results.values(model, f"generate/generation/test-{distance}")]
    floor = f" (real test images: {real[0]:.2f})" if real else ""
    how: dict[str, Any] = {
        "extra": f"± over seeds; accuracies in %; distance: lower is better{floor}.",
        "show": cells.short,
    }
    return cells.pivot(results, "readme", "In four numbers", models, columns, protocol=STANDARD, **how)


def settings(results: Results) -> Table:
    """Attacks, steps, step sizes, radii and noise as rows, the protocols as columns."""
    evaluation = results.params.current.evaluation
    by_protocol = [_cells(results, protocol) for protocol in PROTOCOLS.values()]
    rows = {name: [found[name] for found in by_protocol] for name in by_protocol[0]}
    attacks = ("PGD-20", "AutoAttack", "transfer", "APGD-CE", "EOT-PGD")
    images = [getattr(evaluation, stage).images for stage in MASKING_INPUTS]
    counts = ", ".join(f"{n} ({name})" for n, name in zip(images, attacks, strict=True))
    text = f"{cells.about(results)}. The first {counts} test images."
    return Table("settings", "What each cell runs", text, cells.grid("Cell", PROTOCOLS, rows))


def _cells(results: Results, protocol: Protocol) -> dict[str, str]:
    """What a protocol runs, by row of :func:`settings`."""
    pgd, transfer, sweep, eot = protocol.pgd, protocol.transfer, protocol.sweep, protocol.eot
    alone = [
        f"{cell.attack.upper()}: {cell.steps} {'queries' if cell.attack == 'square' else 'steps'}"
        + (f", {cell.targets} targets" if cell.targets else "")
        for cell in protocol.table1.alone
    ]
    samples = [
        f"{cell.samples} samples" + (f" with noise of sigma {eot.sigma:g} inside" if cell.noise == "noise" else "")
        for cell in eot.cells
    ]
    run_whole = results.params.current.evaluation.autoattack.cascade
    joined = f"AutoAttack, version standard: {'the cascade' if run_whole else 'worst case of its four attacks'}"
    by_sigma: dict[float, list[str]] = {}  # noise that labelled images had in training, pixel units
    for variant in names.variants(results):
        recipe = results.params.variants[variant]
        by_sigma.setdefault(protocol.input_noise(recipe.labelled_noise), []).append(recipe.label or variant)
    noise = [f"sigma {sigma:g}, one fixed draw, for {' and '.join(who)}" for sigma, who in by_sigma.items() if sigma]
    return {
        "radius r": as_fraction(protocol.radius(results.params.current.evaluation.radius)),
        "input noise": "; ".join([*noise, "else none"]) if noise else "none",
        "PGD-20": f"{pgd.steps} steps of {pgd.step:g} r, one random start",
        "Table 1, each attack alone": "; ".join(alone),
        "Table 1, all attacks": joined if protocol.table1.cascade else "their union without FAB, and with it",
        "Table 2": f"{_list(map(str.upper, transfer.attacks))}: {transfer.steps} steps of {transfer.step:g} r; decay "
        f"{transfer.decay:g}; VMI and VNI: {' or '.join(map(str, transfer.neighbours))} neighbours within "
        f"{transfer.beta:g} r",
        "Table 3, APGD-CE": f"{_list(sweep.radii)} r, {' and '.join(map(str, sweep.radii_steps))} steps; "
        f"{_list(sweep.iterations)} steps at r; one restart",
        "Table 3, EOT-PGD": f"{_list(eot.radii)} r; {eot.steps} steps of {eot.step:g} r at every radius; "
        f"{_list(samples)}",
    }


def _list(items: Iterable[object]) -> str:
    return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in items)


def trained(results: Results) -> Table:
    """How each model of the tables was trained."""
    rows, run = {}, {model for model, _ in results.frame.index}
    for model in (model for model in names.all_models(results) if model in run):
        setup = results.setup(model)
        if setup.training is None:
            continue
        recipe, training = setup.recipe, setup.training
        adversarial = model in set(BASELINES) - {"undefended"} or (recipe is not None and recipe.w_adversarial > 0)
        term = (
            "none"
            if recipe is None or not recipe.w_energy
            else f"{names.FORMS.get(recipe.reading, recipe.reading)}, w2 = {recipe.w_energy:g}"
        )
        chains = "" if recipe is None else f"{recipe.chain_start}, {recipe.steps} steps"
        radius = as_fraction(training.train_eps) if adversarial else "none"
        rows[names.display_name(results.params, model)] = [str(training.epochs), radius, term, chains]
    heads = ["epochs", "training radius", "energy term", "chains: start and steps"]
    return Table("trained", "How each model was trained", f"{cells.about(results)}.", cells.grid("Model", heads, rows))
