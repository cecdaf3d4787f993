"""Report pages: one per experiment, and one that compares all runs of a profile.

Every number comes from the ledger by identity, as in the tables; pictures and distributions come from
the files that the stages left beside their records. Where such a file is not here, its section says
so. Pages carry no date and no commit, so equal results give equal pages: the commit that holds a page
holds the code whose hashes it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ebjdat import files, provenance
from ebjdat.config import Params
from ebjdat.errors import UserError
from ebjdat.protocols import PROTOCOLS, as_fraction
from ebjdat.reporting import claims, figures, html, ledger, published
from ebjdat.reporting.comparisons import ENERGY_KINDS, all_subjects, display_name, energy_table, masking_rows
from ebjdat.reporting.figures import Curve, Point
from ebjdat.reporting.findings import differences_figure
from ebjdat.reporting.html import Figure, Section
from ebjdat.reporting.layout import EMPTY, Column, Entry, Row, Table
from ebjdat.reporting.lookup import Cell, Numbers, show_percent, show_value, with_recorded_code
from ebjdat.reporting.plots import radius_curve, read_npz
from ebjdat.reporting.records import Record, arrays_path, rates_of, read_record, record_path
from ebjdat.reporting.tables import generation_names, pages
from ebjdat.subject import EVALUATIONS, Subject

KINDS = ("clean", "adversarial", "generated", "generated-fresh")
"""Images whose energies are drawn; names in :data:`ebjdat.reporting.comparisons.ENERGY_KINDS`."""
_PAPER = 'EB-JDAT, "Your Classifier Can Do More", CVPR 2026, arXiv:2505.19459'

Arrays = Mapping[str, np.ndarray]


def experiment_path(subject: Subject) -> Path:
    """Where the page of an experiment lies."""
    return subject.results_dir / "report.html"


def comparison_path(profile: str) -> Path:
    """Where the page over all runs of a profile lies."""
    return Path("results") / profile / "report.html"


def scope(numbers: Numbers) -> str:
    """What the numbers of a profile are about, in a sentence."""
    data = numbers.profile.data
    paper = data.dataset == "cifar10" and (numbers.profile.network.depth, numbers.profile.network.width) == (28, 10)
    network = f"WRN-{numbers.profile.network.depth}-{numbers.profile.network.width}"
    about = f"Profile {numbers.params.profile}: {data.dataset}, {network}, {data.train:,} training images."
    return about if paper else f"{about} These numbers are not the paper's experiment (CIFAR-10, WRN-28-10)."


def experiment(numbers: Numbers, subject: Subject) -> str:
    """The page of one model: its seed's records, its files, and what was published."""
    found = {stage: record for stage in EVALUATIONS if (record := numbers.record(subject, stage)) is not None}
    arrays = read_arrays(arrays_path(record_path(subject, "clean")), found.get("clean"))
    sections = [
        _headline(numbers, subject),
        _radii(numbers, subject),
        _energies(numbers, subject, arrays),
        *([] if subject.is_baseline else [_samples(numbers, subject, found.get("generate"))]),
        _adversarial(numbers, subject, arrays),
        _training(subject, found),
        _classes(found, arrays),
        _masking(numbers, subject),
        _claims(numbers, subject),
        _provenance(numbers, subject, found),
    ]
    lead = [f"One experiment of a reproduction of {_PAPER}; seed {subject.seed}.", scope(numbers), _READING]
    return _checked(html.page(f"{display_name(subject)} on {subject.profile}", lead, sections))


_READING = (
    "Accuracies are shares of test images in percent with their 95 % Wilson interval in brackets. Protocol standard "
    "attacks at the nominal radius in pixel units of images in [0, 1]; protocol released follows the released code "
    "at 327ea16, whose radius is half of that. Numbers of the two are never mixed."
)


def comparison(params: Params, numbers: Numbers) -> str:
    """The page over all runs of the profile: figures, every table, the claim ledger, the runs."""
    found = pages(numbers)
    tables = {table.label: table for group in found.values() for table in group}
    main = [tables.pop("findings"), *(tables.pop(f"tradeoff-{protocol}") for protocol in PROTOCOLS)]
    attacks = [tables.pop(label) for label in list(tables) if label.startswith("table")]
    drawn = [*_differences(numbers), *_overview(numbers)]
    energies = [tables.pop(label) for label in ("energies", "alignment", "calibration")]
    sections = [
        Section("overview", "Robustness, accuracy and generation", figures=drawn, tables=main),
        Section("attacks", "Tables 1 to 3 of the supplement", figures=_all_radii(numbers), folded=attacks),
        Section("energies", "Energies", figures=_energy_means(numbers), tables=energies[:2], folded=energies[2:]),
        Section("seeds", "Seeds, readings, initialisation", tables=[tables.pop("seeds")], folded=_rest(tables)),
        Section("masking", "Gradient masking", _masking_texts(numbers), folded=[tables["masking"]]),
        _all_claims(params, numbers),
        _runs(numbers),
    ]
    lead = [f"All runs of a profile, from a reproduction of {_PAPER}.", scope(numbers), _READING]
    return _checked(html.page(f"Comparison of all models on {numbers.params.profile}", lead, sections))


def write_reports(params: Params, numbers: Numbers, subject: Subject) -> list[Path]:
    """Write both pages; returns their paths."""
    texts = {
        experiment_path(subject): experiment(numbers, subject),
        comparison_path(numbers.params.profile): comparison(params, numbers),
    }
    for path, text in texts.items():
        files.write_text(path, text)
    return sorted(texts)


def check_comparison_matches_records(params: Params, numbers: Numbers) -> list[str]:
    """Titles of tables of the committed comparison page that differ from what the ledger gives."""
    text = comparison_path(params.profile).read_text(encoding="utf-8")
    tables = [table for group in pages(with_recorded_code(numbers)).values() for table in group]
    return [table.title for table in tables if _body(table) not in text]


def _body(table: Table) -> str:
    text = str(html.table_html(table, "key"))
    return text[text.index("<tbody>") : text.index("</tbody>")]


def _checked(text: str) -> str:
    """The page, unless it is too large to be opened with ease.

    Raises:
        UserError: it is.
    """
    size = len(text.encode("utf-8"))
    if size > html.LARGEST:
        raise UserError(f"a report page would have {size:,} bytes, more than {html.LARGEST:,}")
    return text


def read_arrays(path: Path, record: Record | None) -> Arrays:
    """The arrays of a record; none where the file is not here, or is that of another run.

    Raises:
        UserError: the file is damaged.
    """
    if record is None or not path.is_file() or provenance.file_hash(path) != record["arrays"]:
        return {}
    return read_npz(path)


def _own(numbers: Numbers, subject: Subject, stage: str, metric: str) -> Cell:
    """A number of this seed alone."""
    cell = numbers.cell(subject, stage, metric)
    mine = tuple(reading for reading in cell.readings if reading.seed == subject.seed)
    return Cell("value", mine) if mine else Cell("not run") if cell.state == "value" else cell


_HEADLINE = {
    "clean accuracy": ("clean", "{p}/clean"),
    "PGD-20": ("clean", "{p}/pgd-20"),
    "PGD-20, last checkpoint": ("clean", "{p}/pgd-20-last"),
    "APGD-CE alone": ("autoattack", "{p}/apgd-ce"),
    "Square alone": ("autoattack", "{p}/square"),
    "union of AutoAttack's attacks": ("autoattack", "{p}/union"),
    "AutoAttack cascade": ("autoattack", "{p}/autoattack"),
    "transfer, worst case": ("transfer", "{p}/transfer/worst"),
    "EOT-PGD, 2 samples": ("eot", "{p}/eot-pgd/plain/samples-2/radius-1"),
}


def _headline(numbers: Numbers, subject: Subject) -> Section:
    """Accuracies under both protocols, and the measures of generation."""
    rows, radius = [], numbers.profile.evaluation.radius
    for name, (stage, metric) in _HEADLINE.items():
        cells = [_own(numbers, subject, stage, metric.format(p=p)) for p in PROTOCOLS]
        over = [numbers.cell(subject, stage, metric.format(p=p)) for p in PROTOCOLS]
        if any(cell.state == "value" for cell in cells):
            counts = sorted({cell.n for cell in cells if cell.n})
            entries = [show_percent(cell) for cell in (*cells, *over)]
            rows.append(Row(name, (*entries, Entry(", ".join(map(str, counts))))))
    radii = {name: as_fraction(protocol.radius(radius)) for name, protocol in PROTOCOLS.items()}
    columns = [Column(f"{name}, {eps}", f"seed {subject.seed} (%)") for name, eps in radii.items()]
    columns += [Column(f"{name}, {eps}", "all seeds (%)") for name, eps in radii.items()]
    text = "L-inf radii in pixel units; all seeds: mean ± standard deviation (number of seeds)."
    table = Table("headline", "Accuracies", text, "Attack", (*columns, Column("n")), tuple(rows))
    missing = (
        () if rows else ("No record answers for this model with today's parameters and code; dvc repro makes them.",)
    )
    tables = [table] if rows else []
    return Section("results", "Results", missing, tables=tables + _generation(numbers, subject))


def _generation(numbers: Numbers, subject: Subject) -> list[Table]:
    if subject.is_baseline or numbers.record(subject, "generate") is None:
        return []
    rows = []
    what = {"": "samples", "start-": "start of the chains", "buffer-": "replay buffer", "test-": "test images (floor)"}
    names = generation_names(numbers)
    for prefix, label in what.items():
        cells = [numbers.cell(subject, "generate", f"generation/{prefix}{name}") for name in names]
        rows.append(Row(label, tuple(show_value(cell) for cell in cells)))
    text = (
        f"Lower is better, compared at equal n = {numbers.profile.evaluation.generation.samples}; mean ± standard "
        "deviation over seeds where several were run."
    )
    columns = tuple(Column(name) for name in names)
    return [Table("generation", "Distances to the training images", text, "Images", columns, tuple(rows))]


def _radii(numbers: Numbers, subject: Subject) -> Section:
    """Robust accuracy over the radius, one figure per protocol, and the numbers."""
    drawn, tables = [], []
    for name in PROTOCOLS:
        rows = radius_curve(numbers, name, subject)
        if rows:
            x, y, low, high = (list(column) for column in zip(*rows, strict=True))
            picture = figures.curves(
                f"radius-{name}", [Curve("APGD-CE, 20 iterations", x, y, low, high)], _RADIUS, "robust accuracy (%)"
            )
            ends = f"from {100 * y[0]:.0f} % at {x[0]:g}/255 to {100 * y[-1]:.0f} % at {x[-1]:g}/255"
            alt = f"Robust accuracy over the radius under protocol {name}: {ends}."
            drawn.append(Figure(alt, f"Protocol {name}; band: 95 % Wilson interval.", svg=picture))
            entries = [
                Row(f"{r:g}/255", (Entry(f"{100 * v:.1f}", interval=f"[{100 * a:.0f}, {100 * b:.0f}]"),))
                for r, v, a, b in rows
            ]
            head = "Numbers of the curve, protocol " + name
            columns = (Column("robust accuracy (%)"),)
            tables.append(Table(f"radius-{name}", head, "", "Radius", columns, tuple(entries)))
    text = "A defence that works loses accuracy steadily as the radius grows, and all of it in the end."
    return Section("radius", "Robustness over the radius", _or_missing(drawn, text, "sweep"), drawn, folded=tables)


_RADIUS = "L-inf radius (1/255, pixel units)"


def _or_missing(present: Sequence[Any], text: str, stage: str) -> tuple[str, ...]:
    """The text, or what to run to get the section."""
    return (text,) if present else (f"Not here: the stage {stage} makes it (dvc repro).",)


def _energies(numbers: Numbers, subject: Subject, arrays: Arrays) -> Section:
    """Distributions of E(x), and the row of the energy table."""
    kinds = {ENERGY_KINDS[kind]: arrays[f"{kind}/energy"] for kind in KINDS if f"{kind}/energy" in arrays}
    drawn = []
    if kinds:
        means = ", ".join(f"{kind} {values.mean():.2f}" for kind, values in kinds.items())
        picture = figures.histograms("energies", kinds, "E(x) (nats)")
        alt = f"Distributions of the energy; means in nats: {means}."
        drawn.append(Figure(alt, "Best checkpoint; adversarial: PGD-20, protocol standard; no input noise.", picture))
    table = energy_table(numbers)
    name = display_name(subject)
    rows = tuple(row for row in table.rows if row.label == name)
    text = (
        "The paper's claim is that clean, adversarial and generated images get the same energy, E(x) = -logsumexp f(x)."
    )
    own = Table(table.label, "Energies over all seeds", table.caption, table.head, table.columns, rows)
    return Section("energies", "Energies", _or_missing([*kinds, *rows], text, "clean"), drawn, [own] if rows else [])


def _is_here(subject: Subject, record: Record | None) -> bool:
    """Whether the workspace's files of a stage are those of the ledger's record."""
    path = None if record is None else record_path(subject, record["stage"])
    return path is not None and path.is_file() and read_record(path)["content"] == record["content"]  # type: ignore[index]


def _samples(numbers: Numbers, subject: Subject, record: Record | None) -> Section:
    """The pictures that the stage generate drew."""
    shown = {
        "samples.png": (
            "Class-conditional samples, one row per class, 0 at the top.",
            "Look for samples that are all alike, and for rows that show another class.",
        ),
        "chains.png": (
            "Chains from their initial state on the left to the sample on the right, one row per chain.",
            "Look for what the chain adds to where it starts.",
        ),
    }
    drawn = [
        Figure(alt, caption, address=figures.data_address((subject.results_dir / name).read_bytes()))
        for name, (alt, caption) in shown.items()
        if _is_here(subject, record) and (subject.results_dir / name).is_file()
    ]
    recipe = subject.recipe(numbers.params)
    start = "" if recipe is None else f"Chains start from the variant's own initialisation ({recipe.chain_start})."
    return Section("samples", "Samples and chains", _or_missing(drawn, start, "generate"), drawn)


def _adversarial(numbers: Numbers, subject: Subject, arrays: Arrays) -> Section:
    """Attacked images beside the originals with magnified differences."""
    title, names = "Adversarial examples", ("clean", "adversarial")
    if not all(f"pictures/{name}" in arrays for name in names):
        return Section("adversarial", title, _or_missing((), "", "clean"))
    clean, attacked = (arrays[f"pictures/{name}"] for name in names)
    moved = attacked.astype(int) - clean.astype(int)
    factor = max(1, 127 // max(int(np.abs(moved).max()), 1))
    difference = (128 + factor * moved).clip(0, 255).astype(np.uint8)
    labels = arrays["pictures/label"]
    before, after = (arrays[f"pictures/{name}-prediction"] for name in names)
    rows = [f"{label}: {a} → {b}" for label, a, b in zip(labels, before, after, strict=True)]
    half = -(-len(rows) // 2)
    drawn = []
    changed = int((before != after).sum())
    for part in (slice(0, half), slice(half, None)):
        images = np.stack([clean[part], attacked[part], difference[part]], axis=1)
        told = "; ".join(rows[part])
        drawn.append(
            Figure(
                f"Clean image, attacked image and difference. Label, prediction before and after: {told}.",
                "Label: prediction before → after.",
                address=figures.mosaic(images, rows[part], ["clean", "attacked", "change"]),
            )
        )
    eps = as_fraction(PROTOCOLS["standard"].radius(numbers.profile.evaluation.radius))
    text = (
        f"PGD-20 at {eps}, protocol standard, on the first two test images of each class, not chosen by outcome: "
        f"{changed} of {len(rows)} predictions change. Differences are magnified {factor} times around grey."
    )
    return Section("adversarial", title, (text,), drawn)


def _training(subject: Subject, found: Mapping[str, Record]) -> Section:
    """Curves of the history that the training of these records left."""
    summary = subject.model_dir / "summary.json"
    trained = files.read_json(summary)["identity"] if summary.is_file() else None
    own = any(record["training"] == trained for record in found.values())
    rows = ledger.read_history(subject.model_dir) if own else []
    drawn = []

    def add(name: str, wanted: Mapping[str, str], y_label: str, caption: str, percent: bool) -> None:
        lines = []
        for key, label in wanted.items():
            points = [(row["epoch"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
            if points:
                lines.append(Curve(label, *(list(column) for column in zip(*points, strict=True))))
        if lines:
            scale = 100.0 if percent else 1.0
            ends = ", ".join(f"{line.label} {scale * line.y[-1]:.3g}" for line in lines)
            picture = figures.curves(name, lines, "epoch", y_label, percent=percent)
            drawn.append(Figure(f"{y_label} over {len(rows)} epochs; at the end: {ends}.", caption, picture))

    accuracies = {"val_clean": "clean", "val_robust": "PGD"}
    add("validation", accuracies, "validation accuracy (%)", "Selects the checkpoint.", True)
    losses = {key: key.removeprefix("loss_") for key in sorted({key for row in rows for key in row}) if "loss" in key}
    add("loss", losses, "loss", "The whole loss and its terms.", False)
    energies = {f"energy_{kind}": kind for kind in ("data", "clean", "adversarial", "generated")}
    add("energy", energies, "mean E(x) (nats)", "Training energies that stay together are healthy.", False)
    rollbacks = rows[-1].get("rollbacks", 0) if rows else 0
    text = f"{len(rows)} epochs" + (f", {rollbacks} rollbacks." if rollbacks else ".")
    return Section("training", "Training", _or_missing(rows, text, subject.training_module.split(".")[1]), drawn)


def _classes(found: Mapping[str, Record], arrays: Arrays) -> Section:
    """Accuracy per class, clean and attacked, protocol standard."""
    title, labels = "Robustness per class", arrays.get("label")
    wanted = {
        "clean": ("clean", "standard/clean"),
        "PGD-20": ("clean", "standard/pgd-20"),
        "AutoAttack": ("autoattack", "standard/autoattack"),
    }
    groups: dict[str, list[Point]] = {}
    for name, (stage, metric) in wanted.items():
        rate = rates_of(found[stage]).get(metric) if stage in found else None
        if rate is None or labels is None or len(labels) < rate.n:
            continue
        flags = rate.per_image()
        groups[name] = [
            _class_point(str(label), flags[labels[: rate.n] == label])
            for label in np.unique(labels)
            if (labels[: rate.n] == label).any()
        ]
    if not groups:
        return Section("classes", title, _or_missing((), "", "clean"))
    names = list(dict.fromkeys(point.label for points in groups.values() for point in points))
    by_name = {group: {point.label: point for point in points} for group, points in groups.items()}
    rows = tuple(
        Row(name, tuple(_shown_point(points[name]) if name in points else EMPTY for points in by_name.values()))
        for name in names
    )
    worst = {group: min(points, key=lambda point: point.value) for group, points in groups.items()}
    told = "; ".join(f"{group}: lowest in class {one.label}, {100 * one.value:.0f} %" for group, one in worst.items())
    table = Table("classes", "Accuracy per class (%)", "Protocol standard.", "Class", tuple(map(Column, groups)), rows)
    picture = figures.intervals("classes", groups, "accuracy (%)")
    drawn = [Figure(f"Accuracy per class. {told}.", "Bars: 95 % Wilson interval of the class.", picture)]
    text = "The weakest class says more about a defence than the mean does; with few images per class it is uncertain."
    return Section("classes", title, (text,), drawn, folded=[table])


def _class_point(label: str, flags: np.ndarray) -> Point:
    from ebjdat.evaluation.statistics import Rate

    rate = Rate.of(flags)
    return Point(label, rate.accuracy, *rate.interval())


def _shown_point(point: Point) -> Entry:
    low, high = 100 * (point.low or 0.0), 100 * (point.high or 0.0)
    return Entry(f"{100 * point.value:.1f}", interval=f"[{low:.0f}, {high:.0f}]")


def _masking(numbers: Numbers, subject: Subject) -> Section:
    rows = masking_rows(numbers, subject, "")
    failed = [row.label for row in rows if row.entries[0].text == "FAIL"]
    open_ = sum(row.entries[0].text not in ("FAIL", "pass") for row in rows)
    text = f"{len(rows)} indicators, " + (f"failed: {', '.join(failed)}" if failed else "none failed")
    text += f"; {open_} not rejected, which is less than shown." if open_ else "."
    columns = (Column("verdict"), Column("numbers"), Column("rule"))
    how = "Indicators after Athalye et al. (2018) and the supplement's section 1."
    table = Table("masking", "Masking report", how, "Protocol/indicator", columns, tuple(rows))
    return Section("masking", "Gradient masking", _or_missing(rows, text, "masking"), tables=[table] if rows else [])


def _claims(numbers: Numbers, subject: Subject) -> Section:
    """Published numbers that answer to this model."""
    known = [claim for claim in published.ALL if claim.model == subject.name]
    text = (
        "What was published about this model, beside what was measured here, with what may be concluded."
        if known
        else "The paper prints no number for this model."
    )
    tables = [_claim_table(known, [numbers])] if known else []
    return Section("claims", "Published numbers", (text,), tables=tables)


def _claim_table(known: Sequence[published.Published], everything: Sequence[Numbers]) -> Table:
    rows = []
    for claim in known:
        one = claims.entry(claim, everything)
        hand = " (second-hand)" if claim.second_hand else ""
        ours = "; ".join(_ours(found) for found in one["ours"] if found["value"] is not None) or "not run"
        entries = (claim.text(), ours, one["verdict"], claims.explained(one))
        rows.append(Row(f"{claim.table}{hand}: {claim.row}, {claim.column}", tuple(Entry(text) for text in entries)))
    columns = tuple(Column(name) for name in ("published", "ours", "verdict", "reason"))
    text = "Published on CIFAR-10. Ours: protocol, value, 95 % interval, profile and training radius."
    return Table("claims", "Claim ledger", text, "Published number", columns, tuple(rows))


def _ours(one: Mapping[str, Any]) -> str:
    interval = "" if one["low"] is None else f" [{one['low']:.1f}, {one['high']:.1f}]"
    return f"{one['protocol']}: {one['value']:.2f}{interval} ({one['profile']}, trained at {one['train_eps']})"


def _provenance(numbers: Numbers, subject: Subject, found: Mapping[str, Record]) -> Section:
    """Everything that makes the numbers findable and repeatable."""
    rows = tuple(
        Row(stage, tuple(Entry(str(record[name])) for name in ("n", "identity", "content")))
        for stage, record in found.items()
    )
    columns = tuple(Column(name) for name in ("n", "identity", "content"))
    text = "Identity: hash of the question, known before the run; content: hash of the answer."
    table = Table("records", "Records", text, "Stage", columns, rows)
    facts = [("profile, model, seed", f"{subject.profile}, {subject.name}, {subject.seed}")]
    for record in list(found.values())[:1]:
        facts += [
            ("data (SHA-256)", record["data"]),
            ("model file (SHA-256)", record["model"]),
            ("training identity", record["training"]),
        ]
    modules = {name: code for record in found.values() for name, code in record["modules"].items()}
    facts += [("code of " + name, code) for name, code in sorted(modules.items())]
    facts.append(("commit", "the one that holds this page; code hashes name what made each number"))
    if subject.is_external:
        command = f"python -m stages.evaluate_model --factory <module:function> --name {display_name(subject)}"
    else:
        command = claims.command_for(subject, subject.schedule(numbers.params).train_eps)
    return Section("provenance", "Provenance", tables=[table] if rows else [], facts=facts, commands=[command])


def _points(numbers: Numbers, stage: str, metric: str) -> list[Point]:
    """A number over seeds for every model that has it."""
    points = []
    for subject in all_subjects(numbers):
        cell = numbers.cell(subject, stage, metric)
        if cell.state == "value":
            points.append(Point(display_name(subject), cell.spread.mean, *(cell.interval() or (None, None))))
    return points


def _differences(numbers: Numbers) -> list[Figure]:
    """EB-JDAT against each rival, where there are pairs."""
    drawn = differences_figure(numbers)
    if drawn is None:
        return []
    text = "EB-JDAT minus another model, protocol standard; bars: 95 % interval over images and seeds."
    return [Figure(f"Differences between models; the table of findings has the numbers. {text}", text, drawn[0])]


def _overview(numbers: Numbers) -> list[Figure]:
    """Clean and robust accuracy of every model, one figure per protocol."""
    drawn = []
    for name, protocol in PROTOCOLS.items():
        robust = "autoattack" if protocol.table1.cascade else "union"
        groups = {
            "clean": _points(numbers, "clean", f"{name}/clean"),
            "PGD-20": _points(numbers, "clean", f"{name}/pgd-20"),
            "AutoAttack" if protocol.table1.cascade else "union of attacks": _points(
                numbers, "autoattack", f"{name}/{robust}"
            ),
        }
        groups = {group: points for group, points in groups.items() if points}
        if groups:
            models = len({point.label for points in groups.values() for point in points})
            picture = figures.intervals(f"overview-{name}", groups, "accuracy (%)")
            alt = f"Clean and robust accuracy of {models} models under protocol {name}; the table has the numbers."
            text = f"Protocol {name}; bars: 95 % Wilson interval. The n of each attack is with the table below."
            drawn.append(Figure(alt, text, picture))
    return drawn


def _all_radii(numbers: Numbers) -> list[Figure]:
    drawn = []
    for name in PROTOCOLS:
        lines = []
        for subject in all_subjects(numbers):
            rows = radius_curve(numbers, name, subject)
            if rows:
                x, y, *_ = (list(column) for column in zip(*rows, strict=True))
                lines.append(Curve(display_name(subject), x, y))
        if lines:
            picture = figures.curves(f"radii-{name}", lines, _RADIUS, "robust accuracy (%)", size=(4.8, 4.4))
            alt = f"Robust accuracy of {len(lines)} models over the radius, protocol {name}; Table 3 has the numbers."
            drawn.append(Figure(alt, f"APGD-CE, 20 iterations, protocol {name}, seed {numbers.params.seed}.", picture))
    return drawn


def _energy_means(numbers: Numbers) -> list[Figure]:
    groups = {}
    for kind in KINDS:
        points = []
        for subject in all_subjects(numbers):
            mean, deviation = (numbers.cell(subject, "clean", f"energy/{kind}/{what}") for what in ("mean", "std"))
            if mean.state == "value":
                m = mean.spread.mean
                s = deviation.spread.mean if deviation.state == "value" else 0.0
                points.append(Point(display_name(subject), m, m - s, m + s))
        if points:
            groups[ENERGY_KINDS[kind]] = points
    if not groups:
        return []
    picture = figures.intervals("energy-means", groups, "E(x) (nats)", percent=False)
    alt = "Mean energy of clean, adversarial and generated images for every model; the table has the numbers."
    return [Figure(alt, "Mean over images; bars: standard deviation over images, not an uncertainty.", picture)]


def _rest(tables: dict[str, Table]) -> list[Table]:
    return [table for label, table in tables.items() if label != "masking"]


def _masking_texts(numbers: Numbers) -> tuple[str, ...]:
    counts = []
    for subject in all_subjects(numbers):
        rows = masking_rows(numbers, subject, "")
        failed = sum(row.entries[0].text == "FAIL" for row in rows)
        if rows:
            counts.append(f"{display_name(subject)}: {failed} of {len(rows)} indicators failed")
    return ("; ".join(counts) + ".",) if counts else ("No model has a masking report yet.",)


def _all_claims(params: Params, numbers: Numbers) -> Section:
    everything = claims.collect(params, numbers)
    table = _claim_table(published.ALL, everything)
    verdicts = [row.entries[2].text for row in table.rows]
    counts = "; ".join(f"{verdict}: {verdicts.count(verdict)}" for verdict in claims.VERDICTS)
    text = f"{len(verdicts)} published numbers. {counts}."
    return Section("claims", "Claim ledger", (text,), folded=[table])


def _runs(numbers: Numbers) -> Section:
    """Every run behind the page, with what made it."""
    rows: dict[str, list[Record]] = {}
    for record in numbers.records:
        subject = Subject(*(record[name] for name in ("profile", "method", "variant", "seed")))
        rows.setdefault(f"{subject.run_name}|{record['training']}", []).append(record)
    body = []
    for name, found in rows.items():
        first = found[0]
        stages = ", ".join(dict.fromkeys(record["stage"] for record in found))
        eps = first["params"].get("schedule", {}).get("train_eps")
        entries = (
            Entry(as_fraction(eps) if eps else ""),
            Entry(first["training"]),
            Entry(first["model"][:16]),
            Entry(stages),
        )
        body.append(Row(name.split("|")[0], entries))
    columns = tuple(Column(name) for name in ("trained at", "training identity", "model file", "stages"))
    table = Table("runs", "Runs in the ledger", f"{len(body)} trained models.", "Run", columns, tuple(body))
    commands = sorted(
        {
            claims.command_for(subject, subject.schedule(numbers.params).train_eps)
            for subject in all_subjects(numbers)
            if not subject.is_baseline and numbers.cell(subject, "clean", "standard/clean").state == "value"
        }
    )
    facts = [("data (SHA-256)", numbers.digest), ("ledger", ledger.ledger_path(numbers.params.profile).as_posix())]
    return Section("runs", "Runs and commands", folded=[table], facts=facts, commands=commands)
