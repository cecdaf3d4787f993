"""The supplement's tables, rebuilt from recorded numbers; see the builders for each layout.

:func:`render` is a pure function of the numbers: the same ledger gives the same bytes, so a test can
tell a table that was edited by hand. Each table exists once per protocol, never mixed.
Lookup by identity is in :mod:`ebjdat.reporting.lookup`, layout in :mod:`ebjdat.reporting.layout`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ebjdat import files
from ebjdat.config import BASELINES, VARIANTS, Params
from ebjdat.protocols import PROTOCOLS, Protocol, as_fraction
from ebjdat.reporting import figures, published
from ebjdat.reporting.comparisons import (
    PAIRED,
    Metric,
    alignment_table,
    all_subjects,
    calibration_table,
    caption,
    checkpoints_table,
    display_name,
    energy_table,
    masking_table,
    paired_table,
    reproduction_table,
)
from ebjdat.reporting.findings import differences_figure, findings_table
from ebjdat.reporting.layout import EMPTY, Column, Entry, Row, Table, document, latex, markdown
from ebjdat.reporting.lookup import Numbers, load_numbers, show_percent, show_value, with_recorded_code
from ebjdat.reporting.readings import readings_table
from ebjdat.reporting.records import subject_of
from ebjdat.reporting.seeds import seeds_table
from ebjdat.reporting.settings import settings_table
from ebjdat.subject import Subject


def _ours(numbers: Numbers) -> tuple[str, Subject]:
    subject = Subject.current(numbers.params)
    return f"Ours ({display_name(subject)})", subject


def _others(numbers: Numbers, cells: Sequence[Metric]) -> list[tuple[str, Subject]]:
    """Other models that have at least one of these numbers now."""
    current = Subject.current(numbers.params)
    return [
        (display_name(subject), subject)
        for subject in all_subjects(numbers)
        if subject != current and any(numbers.cell(subject, *cell).state == "value" for cell in cells)
    ]


def _accuracy_row(numbers: Numbers, label: str, subject: Subject, cells: Sequence[Metric], rule: bool = False) -> Row:
    return Row(label, tuple(show_percent(numbers.cell(subject, *cell)) for cell in cells), rule)


def _has_published(numbers: Numbers) -> bool:
    """A published CIFAR-10 number stands beside ours only where ours is about CIFAR-10 too."""
    return numbers.profile.data.dataset == "cifar10"


def _published_entry(found: Iterable[published.Published], row: str, column: str) -> Entry:
    for one in found:
        if (one.row, one.column) == (row, column):
            return Entry(one.text())
    return EMPTY


def _accuracy_table(
    numbers: Numbers,
    protocol: Protocol,
    label: str,
    title: str,
    columns: Sequence[tuple[Column, Metric]],
    rows: Sequence[tuple[str, Subject]],
    table: str,
    extra: str = "",
) -> Table:
    """A table of accuracies of models, with the published row below where it belongs."""
    cells = [metric for _, metric in columns]
    body = [_accuracy_row(numbers, name, subject, cells) for name, subject in rows]
    known = published.in_table(table)
    if _has_published(numbers) and known:
        by_metric = {(one.row, one.key(protocol.name)): one for one in known}
        for row in dict.fromkeys(one.row for one in known):
            entries = [by_metric.get((row, key)) for _, key in cells]
            shown = tuple(Entry(one.text()) if one else EMPTY for one in entries)
            body.append(Row(f"{row} (published, as printed)", shown, rule=True))
        extra += (
            " Published: WRN-28-10, and radii as printed, which are most likely half as large in pixel units "
            "(inferred; the claim ledger says why); a row without radii stands at the printed 8/255, a column of "
            "another radius at the same multiple of it."
        )
    asked = [(subject, cell) for _, subject in rows for cell in cells]
    heads = tuple(column for column, _ in columns)
    return Table(
        f"{label}-{protocol.name}",
        f"{title}, protocol {protocol.name}",
        caption(numbers, protocol, asked, extra),
        "Model",
        heads,
        tuple(body),
    )


def table1(numbers: Numbers, protocol: Protocol) -> Table:
    """Robustness under each attack of AutoAttack alone; our further columns stand to the right."""
    p, steps = protocol.name, {cell.attack: cell.steps for cell in protocol.table1.alone}
    attacks = {"apgd-ce": "APGD-CE", "apgd-dlr": "APGD-DLR", "fab-t": "FAB", "square": "SQUARE"}
    columns = [(Column(name), ("autoattack", f"{p}/{key}")) for key, name in attacks.items()]
    more = {"apgd-t": "APGD-T"} if "apgd-t" in steps else {}
    more |= {"union": "union"} | ({"autoattack": "AutoAttack cascade"} if protocol.table1.cascade else {})
    columns += [(Column(name, "extension"), ("autoattack", f"{p}/{key}")) for key, name in more.items()]
    columns.append((Column("clean", "extension"), ("autoattack", f"{p}/clean")))
    rows = [_ours(numbers), *_others(numbers, [columns[0][1]])]
    budget = ", ".join(f"{name.upper()} {count}" for name, count in steps.items())
    extra = f"Robust accuracy (%); iterations: {budget} (queries). FAB is the targeted FAB-T."
    return _accuracy_table(
        numbers, protocol, "table1", "Table 1: robustness under AutoAttack's attacks", columns, rows, "Table 1", extra
    )


def table2(numbers: Numbers, protocol: Protocol) -> Table:
    """Robustness under transfer attacks from a PGD-AT surrogate and others; a model's own column is white-box."""
    p, attacks = protocol.name, ("pgd", "mi-fgsm", "vmi-fgsm", "vni-fgsm")
    columns = []
    for n in protocol.transfer.neighbours:
        for attack in attacks:
            if n != protocol.transfer.neighbours[0] and not attack.startswith("v"):
                continue  # PGD and MI-FGSM sample no neighbours
            key = published.transfer_metric(p, "pgd_at", attack, n)
            columns.append((Column(attack.upper(), f"from PGD-AT, N = {n}"), ("transfer", key)))
    for surrogate in _ours(numbers)[1].surrogates(numbers.params):
        key = f"{p}/transfer/{surrogate.name}/worst"
        columns.append((Column(display_name(surrogate), "worst case per image, from"), ("transfer", key)))
    columns.append((Column("all of them", "worst case per image, from"), ("transfer", f"{p}/transfer/worst")))
    trades = Subject.baseline(numbers.params, "trades")
    white = Subject.baseline(numbers.params, "pgd_at")
    main = [("TRADES", trades), _ours(numbers), ("PGD-AT (the surrogate)", white)]
    rows = main + [row for row in _others(numbers, [columns[0][1]]) if row[1] not in (trades, white)]
    extra = (
        f"Robust accuracy (%); {protocol.transfer.steps} steps of {protocol.transfer.step:g} r; N: neighbours of VMI "
        "and VNI; worst case: over all attacks. A model's own column is white-box and is left out of the last one, so "
        "a model that is a surrogate itself meets one surrogate less there: that column does not rank models. Tables 1 "
        "and 2 cannot be compared as published: surrogate, radius and steps of the second are not stated."
    )
    title = "Table 2: robustness under transfer attacks"
    table = _accuracy_table(numbers, protocol, "table2", title, columns, rows, "Table 2", extra)
    sources = [metric.split("/")[2] for _, (_, metric) in columns]
    marked = tuple(_mark_white_box(row, subject, sources) for row, (_, subject) in zip(table.rows, rows, strict=False))
    return replace(table, rows=marked + table.rows[len(marked) :])


def _mark_white_box(row: Row, subject: Subject, sources: Sequence[str]) -> Row:
    """A row of Table 2 with a word where the surrogate of a column is the model itself."""
    entries = (
        entry._replace(interval=f"{entry.interval}, white-box") if source == subject.name and entry.interval else entry
        for entry, source in zip(row.entries, sources, strict=True)
    )
    return replace(row, entries=tuple(entries))


def _radius_columns(
    protocol: Protocol, nominal: float, group: str, stage: str, key: str
) -> list[tuple[Column, Metric]]:
    """One column per radius; ``key`` holds ``{radius}`` for its multiple of the protocol's radius."""
    radius = protocol.radius(nominal)
    return [
        (Column(as_fraction(multiple * radius), group), (stage, key.format(radius=f"{multiple:g}")))
        for multiple in protocol.sweep.radii
    ]


def table3(numbers: Numbers, protocol: Protocol) -> Table:
    """Robustness under APGD-CE over radius and iterations, and under EOT-PGD over radius."""
    p, nominal = protocol.name, numbers.profile.evaluation.radius
    columns = _radius_columns(
        protocol, nominal, "APGD-CE: distortion bound", "sweep", f"{p}/apgd-ce/radius-{{radius}}/steps-20"
    )
    columns += [
        (Column(str(steps), "APGD-CE: iterations"), ("sweep", f"{p}/apgd-ce/radius-1/steps-{steps}"))
        for steps in protocol.sweep.iterations
    ]
    columns += _radius_columns(
        protocol, nominal, "EOT-PGD: distortion bound", "eot", f"{p}/eot-pgd/plain/samples-2/radius-{{radius}}"
    )
    rows = [_ours(numbers), *_others(numbers, [columns[0][1]])]
    reach = protocol.eot.steps * protocol.eot.step
    extra = (
        "Robust accuracy (%). Radii in pixel units; APGD-CE 20 iterations over radii; the first step of APGD is "
        "2 eps long. EOT-PGD: 2 samples, model without randomness; its steps keep their length at every radius, so "
        f"{protocol.eot.steps} of them go {reach:g} protocol radii at most and do not fill a larger ball."
    )
    title = "Table 3: robustness over distortion, iterations and EOT"
    return _accuracy_table(numbers, protocol, "table3", title, columns, rows, "Table 3", extra)


def table3_extension(numbers: Numbers, protocol: Protocol) -> Table | None:
    """What our protocol adds to Table 3: more iterations, and noise inside the model; None if nothing."""
    p, nominal = protocol.name, numbers.profile.evaluation.radius
    columns = []
    for steps in protocol.sweep.radii_steps[1:]:
        key = f"{p}/apgd-ce/radius-{{radius}}/steps-{steps}"
        columns += _radius_columns(protocol, nominal, f"APGD-CE, {steps} iterations", "sweep", key)
    for cell in protocol.eot.cells:
        if (cell.noise, cell.samples) != ("plain", 2):
            key = f"{p}/eot-pgd/{cell.noise}/samples-{cell.samples}/radius-{{radius}}"
            columns += _radius_columns(protocol, nominal, f"EOT-PGD, {cell.noise}, {cell.samples} samples", "eot", key)
    if not columns:
        return None
    rows = [_ours(numbers), *_others(numbers, [columns[0][1]])]
    extra = f"Robust accuracy (%). Noise: Gaussian inside the model, sigma {protocol.eot.sigma:g} in pixel units."
    title = "Table 3, extension: longer attacks and randomness inside the model"
    return _accuracy_table(numbers, protocol, "table3-extension", title, columns, rows, "", extra)


def generation_names(numbers: Numbers) -> tuple[str, str]:
    """Metric names of the distance and of the kernel distance, as the profile's features define them."""
    for record in numbers.records:
        if record["stage"] == "generate" and numbers.record(subject_of(record), "generate") is record:
            settings = record["settings"]
            return settings["features"]["metric"], settings["kernel"]["metric"]
    inception = numbers.profile.evaluation.generation.features == "inception"
    return ("fid", "kid") if inception else ("classifier-frechet", "classifier-kernel")


def _comparison(numbers: Numbers, methods: Sequence[str]) -> list[Subject]:
    """The models of the text's comparisons; the control only where it was run."""
    subjects = [s for s in all_subjects(numbers) if s.variant is not None]
    distance = f"generation/{generation_names(numbers)[0]}"
    return [
        subject
        for subject in sorted(subjects, key=lambda s: VARIANTS.index(s.variant or ""))
        if subject.method in methods
        or numbers.cell(subject, "generate", distance).state == "value"
        or numbers.cell(subject, "clean", "standard/clean").state == "value"
    ]


def _unequal(numbers: Numbers, subjects: Sequence[Subject]) -> str:
    """A warning where a distance has another number of images than the samples it stands beside."""
    found = {
        f"{metric.removeprefix('generation/')}: {text}"
        for subject in subjects
        for metric, texts in (numbers.record(subject, "generate") or {"warnings": {}})["warnings"].items()
        for text in texts
        if text.endswith("not at equal n")
    }
    return f" UNEQUAL n, which changes distances: {'; '.join(sorted(found))}." if found else ""


def section2(numbers: Numbers) -> Table:
    """Initialisation and generation: each variant starts its chains where it was trained to start them."""
    distance, kernel = generation_names(numbers)
    columns = [Column("chain start"), Column("start", distance), Column("samples", distance)]
    keys = [f"generation/start-{distance}", f"generation/{distance}"]
    for name, key in (
        ("test images", f"generation/test-{distance}"),
        ("buffer", f"generation/buffer-{distance}"),
        ("released protocol", f"generation/released-{distance}"),
    ):
        columns.append(Column(name, distance))
        keys.append(key)
    columns.append(Column("samples", kernel))
    keys.append(f"generation/{kernel}")
    known = published.in_table("Section 2") if _has_published(numbers) else ()
    rows = []
    for subject in _comparison(numbers, ("ebjdat", "base")):
        recipe = subject.recipe(numbers.params)
        assert recipe is not None
        name = display_name(subject)
        entries = [Entry(recipe.chain_start)]
        entries += [show_value(numbers.cell(subject, "generate", key)) for key in keys]
        if known:
            entries.append(_published_entry(known, name, "FID"))
        rows.append(Row(name, tuple(entries)))
    if known:
        columns.append(Column("FID", "published"))
    compared = _comparison(numbers, ())
    asked = [(subject, ("generate", keys[1])) for subject in compared]
    extra = (
        f"Distances ({distance}, {kernel}): lower is better, compared at equal n = "
        f"{numbers.profile.evaluation.generation.samples} samples only; samples: fresh chains of "
        f"{numbers.profile.evaluation.generation.chain_steps} steps; start: the chains' initial distribution; "
        "test images: real ones, the floor; released protocol: its own filter and"
        " reference set, not comparable with the others." + _unequal(numbers, compared)
    )
    title = "Section 2: initialisation and generation"
    return Table("initialisation", title, caption(numbers, None, asked, extra), "Model", tuple(columns), tuple(rows))


def section3(numbers: Numbers, protocol: Protocol) -> Table:
    """The trade-off of robustness, accuracy and generation over all models of the profile."""
    p, distance = protocol.name, generation_names(numbers)[0]
    overall = ("autoattack", "AutoAttack") if protocol.table1.cascade else ("union", "union of attacks")
    robust = [("clean", f"{p}/pgd-20"), ("autoattack", f"{p}/{overall[0]}")]
    as_released = "released-" if p == "released" else ""
    columns = [
        Column("PGD-20", "robustness (%)"),
        Column(f"PGD-20, images of {overall[1]}", "robustness (%)"),
        Column(overall[1], "robustness (%)"),
        Column("clean", "accuracy (%)"),
        Column(distance, "generation"),
    ]
    subjects = _comparison(numbers, ("ebjdat", "base")) + [Subject.baseline(numbers.params, n) for n in BASELINES]
    first = (subjects[-len(BASELINES)], *numbers.externals()[:1])
    subjects += numbers.externals()
    known = published.in_table("Section 3") if _has_published(numbers) else ()
    if known:
        columns += [Column(name, "published") for name in ("Robustness", "Accuracy", "FID")]
    rows = []
    for subject in subjects:
        name = display_name(subject)
        entries = [show_percent(numbers.cell(subject, *cell)) for cell in (*robust, ("clean", f"{p}/clean"))]
        same = numbers.cell_beside(subject, *robust[0], numbers.cell(subject, *robust[1]))
        entries.insert(1, show_percent(same))
        generated = numbers.cell(subject, "generate", f"generation/{as_released}{distance}")
        entries.append(EMPTY if subject.is_baseline else show_value(generated))
        if known:
            entries += [_published_entry(known, name, column) for column in ("Robustness", "Accuracy", "FID")]
        rows.append(Row(name, tuple(entries), rule=subject in first))
    asked = [(subject, cell) for subject in subjects for cell in (*robust, ("clean", f"{p}/clean"))]
    extra = (
        f"Compare {overall[1]} with PGD-20 on its images, not with PGD-20 on all. "
        f"PGD-20: steps of {protocol.pgd.step:g} r, one random start. Generation: {distance}, lower is better, "
        f"fresh chains of {numbers.profile.evaluation.generation.chain_steps} steps"
        + (", with this protocol's filter and reference set" if as_released else "")
        + "; baselines do not generate."
    )
    if known:
        extra += " Published: WRN-28-10, robustness most likely PGD-20 at 4/255 in pixel units (inferred)" + (
            "." if distance == "fid" else f", FID from Inception features, which {distance} cannot be compared with."
        )
    title = f"Section 3: robustness, accuracy and generation, protocol {p}"
    return Table(f"tradeoff-{p}", title, caption(numbers, protocol, asked, extra), "Model", tuple(columns), tuple(rows))


def pages(numbers: Numbers) -> dict[str, list[Table]]:
    """The tables of each file, by its name without ending."""
    protocols = list(PROTOCOLS.values())
    third = [table for p in protocols for table in (table3(numbers, p), table3_extension(numbers, p)) if table]
    return {
        "table1": [table1(numbers, p) for p in protocols],
        "table2": [table2(numbers, p) for p in protocols],
        "table3": third,
        "initialisation": [section2(numbers)],
        "tradeoff": [section3(numbers, p) for p in protocols],
        "energies": [energy_table(numbers), alignment_table(numbers), calibration_table(numbers)],
        "checkpoints": [checkpoints_table(numbers)],
        "paired": [paired_table(numbers, name, *metric) for name, metric in PAIRED.items()],
        "masking": [masking_table(numbers)],
        "readings": [readings_table(numbers, generation_names(numbers)[0])],
        "seeds": [seeds_table(numbers)],
        "findings": [findings_table(numbers, generation_names(numbers)[0])],
        "settings": [settings_table(numbers)],
    }


TEX_PAGES = ("table1", "table2", "table3", "initialisation", "tradeoff", "energies")
"""Pages that exist as LaTeX too; the others are long lists for reading on a screen."""


PICTURE = "findings.svg"
"""The findings table's differences as a picture."""
REPRODUCTION = "reproduction.md"
"""Made from the MLflow store too, so the ledger alone cannot check it."""


def render(numbers: Numbers) -> dict[str, str]:
    """Every table file of the profile: text by file name."""
    found = pages(numbers)
    texts = {f"{name}.md": markdown(tables) for name, tables in found.items()}
    texts |= {f"{name}.tex": latex(found[name]) for name in TEX_PAGES}
    drawn = differences_figure(numbers)
    if drawn is not None:
        title = f"EB-JDAT minus other models on {numbers.params.profile}, with 95 % intervals over images and seeds"
        texts[PICTURE] = figures.standalone(drawn[0], title, drawn[1])
    return texts | {"all.tex": document([f"{name}.tex" for name in TEX_PAGES])}


def tables_dir(profile: str) -> Path:
    """Where the tables of a profile lie."""
    return Path("results") / profile / "tables"


def write_tables(numbers: Numbers, checks: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write every table, the picture and the reproduction check, remove older files; returns the paths."""
    folder = tables_dir(numbers.params.profile)
    texts = render(numbers) | {REPRODUCTION: markdown([reproduction_table(checks, numbers.params.profile)])}
    for name, text in texts.items():
        files.write_text(folder / name, text)
    for path in _not_among(texts, folder):
        path.unlink()
    return [folder / name for name in sorted(texts)]


def _not_among(names: Collection[str], folder: Path) -> list[Path]:
    """Files in the folder that today's records do not give."""
    return [path for path in folder.iterdir() if path.is_file() and path.name not in names]


def _words(text: str) -> str:
    """What of a file must match: all of a table; of a picture its title and description, not every stroke."""
    return text.partition("</desc>")[0]


def check_tables_match_records(params: Params) -> list[str]:
    """Table files that differ from what the committed ledger gives: edited by hand, or not remade.

    Needs neither MLflow nor data nor models, and asks for the code of the records, not today's.
    """
    numbers = with_recorded_code(load_numbers(params))
    folder = tables_dir(params.profile)
    texts = render(numbers)
    wrong = [path.as_posix() for path in _not_among({*texts, REPRODUCTION}, folder)] if folder.is_dir() else []
    for name, text in texts.items():
        path = folder / name
        if not path.is_file() or _words(path.read_text(encoding="utf-8")) != _words(text):
            wrong.append(path.as_posix())
    return sorted(wrong)
