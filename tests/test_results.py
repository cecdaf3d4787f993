"""What is committed under results/ and in the README is what the committed ledger gives.

The commit is checked, not the working tree: a run on another machine, another variant or another
profile changes ledger and tables here, and that is no fault.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from ebjdat.config import load_params
from ebjdat.provenance import ROOT
from ebjdat.reporting import claims, lookup, readme, report, tables


@pytest.fixture(autouse=True)
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = subprocess.run(
        ["git", "archive", "--format=zip", "HEAD", "results", "params.yaml", "README.md", "docs"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    with zipfile.ZipFile(io.BytesIO(archive.stdout)) as files:
        files.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)


def test_the_tables_show_what_the_ledger_gives() -> None:
    assert tables.check_tables_match_records(load_params()) == []


def test_tables_and_page_of_the_small_cifar_show_what_their_ledger_gives() -> None:
    params = dataclasses.replace(load_params(), profile="cifar10-cpu")
    assert tables.check_tables_match_records(params) == []
    assert readme.check_page_matches_records(Path("docs/cifar10-cpu.md"), params)
    assert report.check_comparison_matches_records(params, lookup.load_numbers(params)) == []


def test_the_claims_show_what_the_ledger_gives() -> None:
    assert claims.check_claims_match_records(load_params()) == []


@pytest.mark.parametrize("page", ["README.md", "docs/digits.md"])
def test_a_page_shows_what_the_ledger_gives(page: str) -> None:
    assert readme.check_page_matches_records(Path(page), load_params())


def test_the_readme_says_that_nothing_is_reproduced_as_long_as_that_is_so() -> None:
    verdicts = {one["verdict"] for one in json.loads(Path("results/claims.json").read_text(encoding="utf-8"))["claims"]}
    says = "so far no published number" in Path("README.md").read_text(encoding="utf-8")
    assert says == ("reproduced" not in verdicts)


def test_the_comparison_page_shows_what_the_ledger_gives() -> None:
    params = load_params()
    assert report.check_comparison_matches_records(params, lookup.load_numbers(params)) == []


def test_every_place_of_a_page_names_a_profile_and_one_of_its_tables() -> None:
    params = load_params()
    places = {
        tuple(place.split("/"))
        for page in (Path("README.md"), *Path("docs").glob("*.md"))
        for place in re.findall(r"<!-- table: (\S+) -->", page.read_text(encoding="utf-8"))
        if page.name != "precision.md"
    }
    for profile, label in places:
        numbers = lookup.load_numbers(dataclasses.replace(params, profile=profile))
        assert label in {table.label for group in tables.pages(numbers).values() for table in group}


def test_an_edit_by_hand_is_noticed() -> None:
    table = Path("results/digits/tables/table1.md")
    table.write_text(table.read_text(encoding="utf-8").replace("| ", "| 1", 1), encoding="utf-8")
    assert tables.check_tables_match_records(load_params()) == [table.as_posix()]
