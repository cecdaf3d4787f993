"""The report page of a profile: one HTML file that needs nothing beside it, made of tables, figures and pictures.

What is not on this machine is said in a sentence. Numbers are those of the tables and of the records behind them.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markdown_it import MarkdownIt
from markupsafe import Markup

from ebjdat import files
from ebjdat.protocols import as_fraction
from ebjdat.record import older_protocols
from ebjdat.results import figures
from ebjdat.results.figures import Picture
from ebjdat.results.findings import RIVALS, Question, findings
from ebjdat.results.frame import Results
from ebjdat.results.names import COMPARED, all_models, display_name, generates
from ebjdat.run import Run

PAPER = 'EB-JDAT ("Your Classifier Can Do More", CVPR 2026, arXiv:2505.19459)'
PACKAGES = ("torch", "torchvision", "numpy", "pyautoattack", "torch-fidelity")
LONG = 28
"""Characters from which on a cell may break its line."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: a short paragraph, pictures by heading, tables, and tables that a click opens, by title."""

    title: str
    text: str = ""
    pictures: Sequence[tuple[str, Picture]] = ()
    tables: Sequence[Markup] = ()
    folded: Mapping[str, Markup] = field(default_factory=dict)


def write_page(results: Results) -> Path:
    """Write ``results/<profile>/report.html``."""
    path = Path("results") / results.profile / "report.html"
    files.write_text(path, page(results))
    return path


def page(results: Results) -> str:
    """The whole page.

    Raises:
        UserError: a file that it shows is damaged.
    """
    tables = Path("results") / results.profile / "tables"
    paper = sorted((tables / "paper").glob("*.md"), key=lambda path: ("table" not in path.stem, path.stem))
    masking = [path for path in (tables / "masking.md",) if path.is_file()]
    extended = [path for path in sorted(tables.glob("*.md")) if path not in masking]
    missing = "Not here: python -m stages.tables writes them."
    runs = {display_name(results.params, run.model): run for run in _runs(results)}
    pictures = {name: figures.model_pictures(run) for name, run in runs.items()}
    generating = {name: found for name, found in pictures.items() if generates(runs[name].model) or "samples" in found}
    sections = [
        _drawn("Robustness and accuracy", figures.tradeoff_picture(results)),
        Section("Tables of the paper", "" if paper else missing, tables=[table(path) for path in paper]),
        _drawn("EB-JDAT and its rivals", figures.differences_picture(results)),
        _pictures("Energies", pictures, "energies", "training"),
        _pictures("Samples and chains", generating, "samples", "chains"),
        _pictures("Attacked images", pictures, "attacked"),
        _pictures("Calibration", pictures, "reliability"),
        Section("Gradient masking", masking_line(results), tables=[table(path) for path in masking]),
        Section("All tables", "" if extended else missing, folded={title(path): table(path) for path in extended}),
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


def table(path: Path) -> Markup:
    """A Markdown file as HTML; its headings become the page's third level, and its tables scroll on their own."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL))
    for token, after in pairwise(tokens):
        if token.type.startswith("heading"):
            token.tag = "h3"
        elif token.type == "th_open":  # the style sheet aligns the columns
            token.attrs = {"scope": "col"}
        elif token.type == "td_open":
            token.attrs = {"class": "text"} if len(after.content) > LONG else {}
    return scrolling(reader.renderer.render(tokens, reader.options, {}))


def scrolling(text: str) -> Markup:
    """HTML whose tables can be wider than the page."""
    text = text.replace("<table", '<div class="scroll" role="region" aria-label="table" tabindex="0"><table')
    return Markup(text.replace("</table>", "</table></div>"))


def title(path: Path) -> str:
    """The first heading of a Markdown file, else its name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.strip("# ") for line in lines if line.startswith("#")), path.stem)


def provenance(results: Results) -> Section:
    """Versions, and per run weights and data; what differs between two equal runs (time, host, commit) is in MLflow."""
    rows = []
    for model, seed in results.frame.index:
        found = [record for (*run, _), record in results.records.items() if run == [model, seed]]
        row = {"run": f"{model}, {seed}"}
        row["weights (SHA-256)"] = ", ".join(sorted({record["weights"] for record in found}))
        row["data"] = ", ".join(sorted({record["data"][:12] for record in found}))
        rows.append(row)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    text = f"Built with Python {platform.python_version()}, {versions}. MLflow has time, host and commit of each run."
    if results.outdated:
        text += f" {len(results.outdated)} records are outdated and left out."
    older = sum(bool(older_protocols(record)) for record in results.records.values())
    text += f" {older} records are older than a protocol, whose numbers are left out." if older else ""
    drawn = pd.DataFrame(rows).to_html(index=False, border=0)
    return Section("Provenance", text, folded={f"{len(rows)} runs": scrolling(drawn)})


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
