"""The report page of a profile: one HTML file that needs nothing beside it, made of tables, figures and pictures.

What is not on this machine is said in a sentence. Numbers are those of the tables and of the records behind them.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from ebjdat import files
from ebjdat.drawing import Picture, read_pictures
from ebjdat.protocols import as_fraction
from ebjdat.record import older_protocols
from ebjdat.results import figures
from ebjdat.results.cells import Table, grid
from ebjdat.results.findings import RIVALS, Question, findings
from ebjdat.results.frame import Results
from ebjdat.results.names import COMPARED, all_models, display_name, generates
from ebjdat.results.paper import paper_tables
from ebjdat.results.tables import extended_tables
from ebjdat.run import Run

PAPER = 'EB-JDAT ("Your Classifier Can Do More", CVPR 2026, arXiv:2505.19459)'
PACKAGES = ("torch", "torchvision", "numpy", "pyautoattack", "torch-fidelity")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: a short paragraph, pictures by heading, tables, and tables that a click opens, by title."""

    title: str
    text: str = ""
    pictures: Sequence[tuple[str, Picture]] = ()
    tables: Sequence[Table] = ()
    folded: Mapping[str, Sequence[Table]] = field(default_factory=dict)


def write_page(results: Results) -> Path:
    """Write ``results/<profile>/report.html``."""
    path = Path("results") / results.profile / "report.html"
    files.write_text(path, page(results))
    return path


def page(results: Results) -> str:
    """The whole page. UserError: a file that it shows is damaged."""
    files_of_paper = sorted(paper_tables(results).items(), key=lambda item: ("table" not in item[0], item[0]))
    paper = [table for _, tables in files_of_paper for table in tables]
    extended = {tables[0].title: tables for _, tables in sorted(extended_tables(results).items()) if tables}
    masking = extended.pop("Gradient masking report")
    runs = {display_name(results.params, run.model): run for run in _runs(results)}
    pictures = {name: read_pictures(run) for name, run in runs.items()}
    generating = {name: found for name, found in pictures.items() if generates(runs[name].model) or "samples" in found}
    sections = [
        _drawn("Robustness and accuracy", figures.tradeoff_picture(results)),
        Section("Tables of the paper", tables=paper),
        _drawn("EB-JDAT and its rivals", figures.differences_picture(results)),
        _pictures("Energies", pictures, "energies", "training"),
        _pictures("Samples and chains", generating, "samples", "chains"),
        _pictures("Attacked images", pictures, "attacked"),
        _pictures("Calibration", pictures, "reliability"),
        Section("Gradient masking", masking_line(results), tables=masking),
        Section("All tables", folded=extended),
        provenance(results),
    ]
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    template = Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("page.html.jinja")
    return template.render(title=f"EB-JDAT on {results.profile}", lead=lead(results), sections=sections)


def lead(results: Results) -> str:
    """What the page is, and what was found about the current model."""
    params, data, network = results.params, results.params.current.data, results.params.current.network
    what = (
        f"Reproduction of {PAPER} on {data.dataset}: WRN-{network.depth}-{network.width}, {data.train:,} training "
        f"images, radius {as_fraction(params.current.evaluation.radius)}."
    )
    clean, robust = (results.values(params.model, COMPARED[name]) for name in ("clean accuracy", "AutoAttack"))
    name = display_name(params, params.model)
    if clean.empty or robust.empty:
        return f"{what} {name} has no numbers yet: dvc repro makes them."
    found = f"{name}: {100 * clean.mean():.1f} % of clean images right, {100 * robust.mean():.1f} % under AutoAttack"
    found = ", ".join(filter(None, (found, results.remark(params.model, COMPARED["AutoAttack"]))))
    asked = {rival: findings(results).get(Question(params.model, "AutoAttack", rival)) for rival in RIVALS}
    told = [f"minus {RIVALS[rival]} {one.numbers} points ({one.verdict})" for rival, one in asked.items() if one]
    return f"{what} {'; '.join([found, *told])}."


def masking_line(results: Results) -> str:
    """Which indicators failed, and how many models have none that did."""
    failed, passed = [], 0
    for (model, seed, stage), record in results.records.items():
        if stage == "masking":
            names = [name for name, audit in record["audits"].items() if not audit["passed"]]
            failed += [f"{display_name(results.params, model)}, seed {seed}: {', '.join(names)}"] if names else []
            passed += not names
    if not failed and not passed:
        return "No model has a masking report yet: the stage masking makes it."
    return f"Failed: {'; '.join(failed) or 'none'}. No indicator failed in {passed} of {passed + len(failed)} models."


def provenance(results: Results) -> Section:
    """Versions, and per run weights and data; what differs between two equal runs (time, host, commit) is in MLflow."""
    rows = {}
    for model, seed in results.frame.index:
        found = [record for (*run, _), record in results.records.items() if run == [model, seed]]
        weights, data = ({record[name] for record in found} for name in ("weights", "data"))
        rows[f"{model}, {seed}"] = [", ".join(sorted(weights)), ", ".join(sorted(one[:12] for one in data))]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    text = f"Built with Python {platform.python_version()}, {versions}. MLflow has time, host and commit of each run."
    if results.outdated:
        text += f" {len(results.outdated)} records are outdated and left out."
    older = sum(bool(older_protocols(record)) for record in results.records.values())
    text += f" {older} records are older than a protocol, whose numbers are left out." if older else ""
    runs = Table("runs", f"{len(rows)} runs", "", grid("run", ["weights (SHA-256)", "data"], rows))
    return Section("Provenance", text, folded={runs.title: [runs]})


def _runs(results: Results) -> list[Run]:
    """Models with numbers, the current one first, each with its first seed."""
    seeds = {str(model): int(seed) for model, seed in reversed(results.frame.index)}
    models = sorted(all_models(results), key=lambda model: model != results.params.model)
    return [Run(results.profile, model, seeds[model]) for model in models if model in seeds]


def _drawn(heading: str, picture: Picture | None) -> Section:
    text = "" if picture else "No model has these numbers yet."
    return Section(heading, text, [("", picture)] if picture else [])


def _pictures(heading: str, pictures: Mapping[str, Mapping[str, Picture]], *kinds: str) -> Section:
    drawn = [(name, found[kind]) for name, found in pictures.items() for kind in kinds if kind in found]
    lacking = [name for name, found in pictures.items() if not any(kind in found for kind in kinds)]
    text = f"Not on this machine: {', '.join(lacking) or 'any of it'}." if lacking or not pictures else ""
    return Section(heading, text, drawn)
