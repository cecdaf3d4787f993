"""The report page, its figures and the files for dvc plots: self-contained, readable by everyone, from the records."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ebjdat import drawing, files
from ebjdat.errors import UserError
from ebjdat.results import figures, findings, frame, page, plots, tables
from ebjdat.results.frame import Results
from ebjdat.run import Run
from tests import ROOT
from tests.synthetic import PARAMS, setup_of, write_records

VOID = {"meta", "img", "br", "hr"}
OURS = Run("digits", PARAMS.model, 0)
IMPORTED = Run("digits", "external-cnn", 0)
HOSTILE = '<script>alert("1")</script>&amp; --> ]]> </style></svg> | $x^2$'


class Page(HTMLParser):
    """What a page consists of; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write_files(run: Run) -> None:
    """What training and the stages ``clean`` and ``generate`` leave beside the records."""
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (20, 1, 8, 8)).astype(np.uint8)
    arrays = {f"{kind}/energy": random.normal(-6, 1, 80) for kind in drawing.KINDS}
    arrays |= {"pictures/clean": images, "pictures/adversarial": 255 - images}
    arrays |= {f"pictures/{name}": np.arange(20) % 10 for name in ("label", "clean-prediction")}
    arrays |= {"pictures/adversarial-prediction": np.zeros(20, int)}
    arrays |= {f"reliability/{name}": np.array([0.0, 0.5, 1.0]) for name in ("count", "confidence", "accuracy")}
    files.write_npz(run.arrays("clean") / "arrays.npz", arrays)
    for name in drawing.SAMPLES:
        files.write_png(run.arrays("generate") / f"{name}.png", images[0, 0])
    rows = [{"epoch": n, "val_clean": 0.9, "loss": 1 / n} | dict.fromkeys(drawing.CURVES, -n) for n in (1, 2)]
    files.write_text(run.model_dir / "history.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with four models, two of them with two seeds."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for model, seed in ((PARAMS.model, 0), (PARAMS.model, 1), ("base-jempp", 0), ("base-jempp", 1), ("pgd_at", 0)):
            write_records(setup_of(PARAMS, model, seed), 0.4 if model == "base-jempp" else 0.6)
        write_records(setup_of(PARAMS, "external-cnn"), 0.5, ["clean", "autoattack"])
        files.write_png(IMPORTED.arrays("generate") / "samples.png", np.full((8, 8), 7, np.uint8))
        write_files(OURS)
        drawing.write_pictures(OURS)
        tables.write_tables(frame.load(PARAMS))
    return folder


@pytest.fixture
def results(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    monkeypatch.chdir(folder)
    return frame.load(PARAMS)


@pytest.fixture(scope="module")
def full(folder: Path) -> str:
    """The page of that workspace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return page.page(frame.load(PARAMS))


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of an empty workspace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        return page.page(frame.load(PARAMS))


@pytest.fixture(params=["full", "nothing"])
def text(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_a_page_is_well_formed_and_its_identifiers_are_unique(text: str) -> None:
    shown = Page(text)
    assert text.startswith("<!DOCTYPE html>") and shown.all("html")[0]["lang"] == "en"
    identifiers = Counter(a["id"] for _, a in shown.tags if "id" in a)
    assert set(identifiers.values()) == {1}
    targets = {(a["href"] or "").removeprefix("#") for a in shown.all("a")}
    assert targets | {a["aria-labelledby"] for a in shown.all("section")} <= set(identifiers)


def test_a_page_needs_nothing_from_anywhere(text: str) -> None:
    shown = Page(text)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in shown.tags}
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]
    assert all((a["src"] or "").startswith("data:image/") for a in shown.all("img"))


def test_a_page_can_be_read_with_keyboard_and_screen_reader(text: str) -> None:
    shown = Page(text)
    levels = [int(tag[1]) for tag, _ in shown.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(len(a.get("alt") or "") > 20 for a in shown.all("img"))
    assert all(a.get("tabindex") == "0" for _, a in shown.tags if a.get("role") == "region")
    assert len(shown.all("summary")) == len(shown.all("details")) and shown.all("main") and shown.all("nav")


def test_equal_results_give_equal_pages(results: Results, full: str) -> None:
    assert page.page(results) == full


def test_a_page_shows_everything_that_there_is(results: Results, full: str) -> None:
    words, pictures = " ".join(Page(full).words), drawing.read_pictures(OURS)
    assert set(pictures) == {"energies", "training", "attacked", "reliability", *drawing.SAMPLES}
    assert all(picture.address in full and picture.caption in words for picture in pictures.values())
    for record in results.records.values():
        assert record["weights"] in words
    assert "minus the plain variant +" in words, "what was found stands in the first lines"
    assert "1.5" in words, "minutes of training"
    imported = drawing.read_pictures(IMPORTED)["samples"]
    assert imported.address in full, "a model from elsewhere stands beside ours"


def test_a_page_holds_every_table_file_and_the_papers_come_first(folder: Path, full: str) -> None:
    written = sorted((folder / "results/digits/tables").rglob("*.md"))
    cells = [cell.strip() for path in written for cell in re.findall(r"[^|\n]+", path.read_text())]
    words = " ".join(" ".join(Page(full).words).split())
    assert len(written) > 10
    lost = [cell for cell in cells if cell.strip("-: #") and "<!--" not in cell and cell.strip("# ") not in words]
    assert lost == []
    assert words.index("Table 1: AutoAttack") < words.index("Gradient masking report") < words.index("Provenance Built")


def test_what_a_page_lacks_is_said(nothing: str) -> None:
    words = " ".join(Page(nothing).words)
    assert "has no numbers yet: dvc repro makes them" in words
    assert words.count("Not on this machine") == 4 and words.count("not run") > 10


def test_failed_masking_indicators_come_first(results: Results) -> None:
    assert page.masking_line(results).startswith("Failed: ")
    record = results.records[PARAMS.model, 0, "masking"]
    failed = {name: audit | {"passed": False} for name, audit in record["audits"].items()}
    broken = {**results.records, (PARAMS.model, 0, "masking"): record | {"audits": failed}}
    line = page.masking_line(Results(PARAMS, results.frame, broken, {}))
    assert f"EB-JDAT-JEM++ (code form), seed 0: {next(iter(failed))}" in line


def test_hostile_text_stays_text(results: Results) -> None:
    label = {"jempp": PARAMS.variants["jempp"].model_copy(update={"label": HOSTILE})}
    hostile = Results(
        PARAMS.model_copy(update={"variants": PARAMS.variants | label}), results.frame, results.records, {}
    )
    shown = Page(page.page(hostile))
    assert not shown.all("script") and sum("<script>" in word for word in shown.words) > 10


def test_the_committed_records_give_a_page_of_at_most_300_kb_without_its_pictures(workspace: Path) -> None:
    (workspace / "results").symlink_to(ROOT / "results")
    text = page.page(frame.load(PARAMS))
    assert len(re.sub(r"data:image[^\"]*", "", text).encode()) < 300_000


def test_damaged_files_are_named(workspace: Path) -> None:
    drawing.write_pictures(OURS)
    assert drawing.read_pictures(OURS) == {}
    files.write_text(OURS.model_dir / "history.jsonl", '{"epoch": 1}\n{"ep')
    with pytest.raises(UserError, match=r"history\.jsonl is damaged"):
        drawing.write_pictures(OURS)
    files.write_text(OURS.arrays("clean") / "arrays.npz", "PK\x03\x04 and nothing")
    with pytest.raises(UserError, match=r"arrays\.npz is damaged"):
        drawing.write_pictures(OURS)


def test_pictures_of_a_model_are_png_files_with_their_words_and_equal_bytes_each_time(results: Results) -> None:
    written = {path: path.read_bytes() for path in OURS.pictures.iterdir()}
    assert {path.name for path in written} == {"energies.png", "training.png", "attacked.png", "reliability.png"}
    drawing.write_pictures(OURS)
    assert {path: path.read_bytes() for path in written} == written
    assert drawing.read_pictures(OURS)["energies"].alt.startswith("Distributions of the energy; means in nats: clean")


def test_figures_of_all_models_have_equal_bytes_in_another_process(results: Results) -> None:
    written = {path: path.read_bytes() for path in figures.write_figures(results)}
    assert [path.name for path in written] == ["findings.svg", "tradeoff.svg"]
    program = (
        "from ebjdat.config import load_params; from ebjdat.results import figures, frame;"
        f"figures.write_figures(frame.load(load_params({str(ROOT)!r}, 'digits')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"})
    assert {path: path.read_bytes() for path in written} == written
    words = b"".join(written.values()).decode()
    assert all(name in words for name in ("EB-JDAT-JEM++ (code form)", "PGD-AT", "cnn")) and "mathdefault" not in words


def test_the_difference_figure_says_the_numbers_of_the_findings(results: Results) -> None:
    found = findings.findings(results)[findings.Question(PARAMS.model, "AutoAttack", "base")]
    picture = figures.differences_picture(results)
    assert picture is not None and f"AutoAttack, minus the plain variant: {found}" in picture.alt
    assert "its control" not in picture.alt, "no numbers, no point"


def test_plots_have_the_numbers_of_the_current_model(results: Results) -> None:
    read = {path.stem: path.read_text().splitlines() for path in plots.write_plots(results)}
    assert read["training"][0].startswith("epoch,loss,val_clean") and len(read["training"]) == 3
    shares = np.array([line.split(",") for line in read["energies"][1:]], float)
    assert np.allclose(shares[:, 1:].sum(axis=0), 1.0, atol=1e-4)
    rate = results.rate(PARAMS.model, 0, "sweep", "standard/apgd-ce/radius-1/steps-20")
    assert rate is not None
    low, high = rate.interval()
    assert f"32.0,{rate.accuracy},{low},{high}" in read["radius-standard"]
    assert [line.split(",")[0] for line in read["radius-released"][1:]] == ["8.0", "16.0", "32.0", "64.0"]


def test_plots_without_data_have_their_header_only(workspace: Path) -> None:
    for path in plots.write_plots(frame.load(PARAMS)):
        assert len(path.read_text().splitlines()) == 1


def test_dvc_finds_the_columns_that_its_plots_name() -> None:
    import yaml

    entries = [plot for one in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"] for plot in one.values()]
    named = [(name, columns) for plot in entries for axis in "xy" for name, columns in plot[axis].items()]
    for name, columns in named:
        header = (ROOT / name).read_text().splitlines()[0].split(",")
        assert set([columns] if isinstance(columns, str) else columns) <= set(header), name
