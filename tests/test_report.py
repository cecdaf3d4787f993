"""Report pages: one file each, well-formed, self-contained, readable by everyone, every number from the ledger."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ebjdat import files, provenance
from ebjdat.config import Params
from ebjdat.errors import UserError
from ebjdat.reporting import figures, html, report
from ebjdat.reporting.figures import Curve, Point
from ebjdat.reporting.html import Figure, Section
from ebjdat.reporting.layout import Column, Entry, Row, Table
from ebjdat.reporting.lookup import Numbers
from ebjdat.reporting.records import build_record
from ebjdat.subject import Subject, data_digest
from tests.synthetic import (
    clean_environment,
    code,
    numbers_of,
    params_of_repository,
    prepare_workspace,
    records_of,
    results,
)

VOID = {"meta", "img", "br", "hr", "input", "link"}
PARAMS = params_of_repository()
OURS = Subject.current(PARAMS)


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

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write_files(subject: Subject) -> None:
    """What training and the stage ``clean`` leave beside the records."""
    random = np.random.default_rng(0)
    labels = np.arange(80) % 10
    arrays = {f"{kind}/energy": random.normal(-6, 1, 80) for kind in report.KINDS}
    images = random.integers(0, 255, (20, 1, 8, 8)).astype(np.uint8)
    arrays |= {"label": labels, "pictures/clean": images, "pictures/adversarial": 255 - images}
    arrays |= {
        f"pictures/{name}": np.arange(20) % 10 for name in ("label", "clean-prediction", "adversarial-prediction")
    }
    files.write_npz(subject.results_dir / "clean.npz", arrays)
    for name in ("samples.png", "chains.png"):
        address = figures.mosaic(images.reshape(4, 5, 1, 8, 8), list("abcd"), list("12345"))
        assert address.startswith("data:image/png;base64,")
        (subject.results_dir / name).write_bytes(b"\x89PNG")
    prepare_workspace([subject])
    trained = subject.identity(PARAMS, "train", data_digest(subject.profile), code)
    files.write_json(subject.model_dir / "summary.json", {"identity": trained})
    rows = [{"epoch": n, "val_clean": 0.9, "val_robust": 0.5, "loss": 1.0 / n, "energy_clean": -n} for n in (1, 2, 3)]
    files.write_text(
        subject.model_dir / "history.jsonl", "".join(files.json_text(r).replace("\n", "") + "\n" for r in rows)
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Numbers]:
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch, folder)
        models = [OURS, dataclasses.replace(OURS, seed=1), Subject("digits", "pgd_at", None, 0)]
        models.append(Subject("digits", "external-cnn", None, 0, "abc"))
        write_files(OURS)
        found = results(OURS, 0.6)
        arrays = provenance.file_hash(OURS.results_dir / "clean.npz")
        own = [build_record(OURS, PARAMS, s, found[s], arrays if s == "clean" else None, code) for s in found]
        files.write_json(OURS.results_dir / "generate.json", next(r for r in own if r["stage"] == "generate"))
        records = own + [record for subject in models[1:] for record in records_of(PARAMS, subject)]
        return folder, numbers_of(PARAMS, [r for r in records if r["variant"] or r["stage"] != "generate"])


@pytest.fixture
def numbers(workspace: tuple[Path, Numbers], monkeypatch: pytest.MonkeyPatch) -> Numbers:
    clean_environment(monkeypatch, workspace[0])
    return workspace[1]


@pytest.fixture(scope="module", params=["experiment", "comparison", "baseline", "nothing"])
def text(request: pytest.FixtureRequest, workspace: tuple[Path, Numbers]) -> str:
    folder, numbers = workspace
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch, folder)
        if request.param == "experiment":
            return report.experiment(numbers, OURS)
        if request.param == "baseline":
            return report.experiment(numbers, Subject("digits", "pgd_at", None, 0))
        if request.param == "comparison":
            return report.comparison(PARAMS, numbers)
        return report.experiment(numbers_of(PARAMS, []), Subject("digits", "base", "jem", 0))


def test_a_page_is_well_formed_and_its_identifiers_are_unique(text: str) -> None:
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and page.all("html")[0]["lang"] == "en"
    identifiers = Counter(a["id"] for _, a in page.tags if "id" in a)
    assert [name for name, count in identifiers.items() if count > 1] == []
    targets = {a["href"] for _, a in page.tags if (a.get("href") or "").startswith("#")}
    used = {f"#{a['aria-labelledby']}" for _, a in page.tags if "aria-labelledby" in a}
    drawn = set(re.findall(r"url\((#[^)]+)\)", text))
    assert {target.removeprefix("#") for target in targets | used | drawn} <= set(identifiers)


def test_a_page_needs_nothing_from_anywhere(text: str) -> None:
    page = Page(text)
    assert "http" not in text and "@import" not in text
    assert {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags} == set()
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all((a["src"] or "").startswith("data:image/png;base64,") for a in page.all("img"))
    assert len(text.encode()) < html.LARGEST


def test_a_page_can_be_read_with_keyboard_and_screen_reader(text: str) -> None:
    page = Page(text)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(a.get("scope") in ("row", "col", "colgroup") for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(len(a.get("alt") or "") > 20 for a in page.all("img"))
    pictures = [a for tag, a in page.tags if tag == "div" and a.get("role") == "img"]
    assert len(pictures) == len(page.all("svg")) and all(len(a["aria-label"] or "") > 20 for a in pictures)
    assert all(a.get("tabindex") == "0" for _, a in page.tags if a.get("role") == "region")
    assert len(page.all("summary")) == len(page.all("details"))
    assert page.all("main") and page.all("nav") and page.all("a")[0]["href"] == "#main"


def test_equal_results_give_equal_pages(numbers: Numbers) -> None:
    again = numbers_of(PARAMS, numbers.records)
    assert report.experiment(numbers, OURS) == report.experiment(again, OURS)


def test_an_experiment_shows_everything_that_it_has(numbers: Numbers) -> None:
    text = report.experiment(numbers, OURS)
    assert "Not here" not in text
    words = " ".join(Page(text).words)
    record = numbers.record(OURS, "clean")
    assert record is not None
    for value in (record["identity"], record["content"], record["model"], record["data"]):
        assert value in words
    assert "64.46" in words, "the published value of Table 1 stands in the claim ledger"
    assert "dvc exp run -S profile=digits -S variant=jempp -S method=ebjdat" in words
    cell = numbers.cell(OURS, "clean", "standard/pgd-20").readings[0]
    assert f"{100 * cell.value:.1f}" in words


@pytest.mark.parametrize("changed", ["clean.npz", "generate.json", "summary.json"])
def test_files_of_another_run_are_not_shown_beside_the_records(
    changed: str, workspace: tuple[Path, Numbers], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, numbers = workspace
    clean_environment(monkeypatch, Path(shutil.copytree(folder, tmp_path / "copy")))
    if changed == "clean.npz":
        files.write_npz(OURS.results_dir / changed, {"label": np.zeros(3)})
    elif changed == "generate.json":
        [other] = [r for r in records_of(PARAMS, dataclasses.replace(OURS, seed=7)) if r["stage"] == "generate"]
        files.write_json(OURS.results_dir / changed, other)
    else:
        files.write_json(OURS.model_dir / changed, {"identity": "another"})
    lost = len(Page(report.experiment(numbers, OURS)).all("figure"))
    monkeypatch.chdir(folder)
    assert lost < len(Page(report.experiment(numbers, OURS)).all("figure"))


def test_what_an_experiment_lacks_is_said(numbers: Numbers) -> None:
    text = report.experiment(numbers_of(PARAMS, []), Subject("digits", "base", "sadajem", 0))
    assert text.count("Not here: the stage") >= 5 and "No record answers for this model" in text


def test_a_comparison_holds_every_table_of_the_records(
    numbers: Numbers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    files.write_text(report.comparison_path("digits"), report.comparison(PARAMS, numbers))
    assert report.check_comparison_matches_records(PARAMS, numbers) == []
    fewer = numbers_of(PARAMS, [r for r in numbers.records if r["method"] != "pgd_at"])
    wrong = report.check_comparison_matches_records(PARAMS, fewer)
    assert any("Table 1" in title for title in wrong)
    assert "cnn" in " ".join(Page(report.comparison(PARAMS, numbers)).words), (
        "a model from elsewhere stands beside ours"
    )


HOSTILE = '<script>alert("1")</script>&amp;\' --> ]]> </style></svg>'


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
def test_hostile_text_stays_text() -> None:
    table = Table(
        "t", HOSTILE, HOSTILE, HOSTILE, (Column(HOSTILE, HOSTILE),), (Row(HOSTILE, (Entry(*[HOSTILE] * 3),)),)
    )
    drawn = [
        Figure(HOSTILE, HOSTILE, figures.curves("a", [Curve(HOSTILE, [0, 1], [0, 1])] * 2, HOSTILE, HOSTILE)),
        Figure(HOSTILE, HOSTILE, figures.histograms("b", {HOSTILE: np.arange(5.0), "x": np.ones(3)}, HOSTILE)),
        Figure(HOSTILE, HOSTILE, figures.intervals("c", {HOSTILE: [Point(HOSTILE, 0.5)], "x": []}, HOSTILE)),
        Figure(HOSTILE, HOSTILE, address=figures.mosaic(np.zeros((1, 1, 3, 4, 4), np.uint8), [HOSTILE], [HOSTILE])),
    ]
    section = Section("s", HOSTILE, [HOSTILE], drawn, [table], [table], [(HOSTILE, HOSTILE)], [HOSTILE])
    page = Page(html.page(HOSTILE, [HOSTILE], [section]))
    assert not page.all("script")
    assert sum(HOSTILE in word for word in page.words) > 15


def test_a_page_that_is_too_large_is_refused(numbers: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "LARGEST", 1000)
    with pytest.raises(UserError, match="bytes, more than 1,000"):
        report.experiment(numbers, OURS)


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    path = tmp_path / "clean.npz"
    path.write_bytes(b"PK\x03\x04 and nothing")
    with pytest.raises(UserError, match=r"clean\.npz is damaged"):
        report.read_arrays(path, {"arrays": provenance.file_hash(path)})
    assert report.read_arrays(tmp_path / "none.npz", {"arrays": "0"}) == {}


def test_arrays_of_another_run_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "clean.npz"
    files.write_npz(path, {"label": np.zeros(3)})
    assert set(report.read_arrays(path, {"arrays": provenance.file_hash(path)})) == {"label"}
    assert report.read_arrays(path, {"arrays": "of another run"}) == {}
    assert report.read_arrays(path, None) == {}


def test_the_stage_writes_both_pages(numbers: Numbers) -> None:
    params: Params = PARAMS
    written = report.write_reports(params, numbers, OURS)
    assert [path.as_posix() for path in written] == [
        "results/digits/ebjdat-jempp/report.html",
        "results/digits/report.html",
    ]
