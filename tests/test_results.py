"""What is committed under results/ and in pages is what the committed records give.

The commit is checked, not the working tree: a run on another machine or of another variant changes records and tables
here, and that is no fault.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from ebjdat import files
from ebjdat.config import Params, load_params
from ebjdat.errors import UserError
from ebjdat.results import claims, frame, tables
from stages import compare
from tests import ROOT
from tests.stub_pipeline import commit


@pytest.fixture(autouse=True)
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = subprocess.run(
        ["git", "archive", "--format=zip", "HEAD", "results", "params.yaml", "params", "README.md", "docs"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    with zipfile.ZipFile(io.BytesIO(archive.stdout)) as content:
        content.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)


def edited_tables(params: Params) -> list[str]:
    """Table files that differ from what the record files give: edited by hand, or not made again."""
    texts, folder = tables.render(frame.load(params)), tables.tables_dir(params.profile)
    there = {path for ending in ("md", "tex") for path in folder.rglob(f"*.{ending}")}
    wrong = [path for name, text in texts.items() if (path := folder / name) not in there or path.read_text() != text]
    return sorted(path.as_posix() for path in {*wrong, *(there - {folder / name for name in texts})})


@pytest.mark.parametrize("profile", ["digits", "digits-study", "fashion", "cifar10-cpu"])
def test_the_tables_show_what_the_records_give(profile: str) -> None:
    params = load_params(profile=profile)
    assert edited_tables(params) == []
    assert not frame.load(params).outdated


def test_the_claims_show_what_the_records_give() -> None:
    wanted = claims.page(claims.collect(frame.load(load_params())))
    assert claims.PAGE.read_text(encoding="utf-8") == wanted


def test_every_page_shows_what_the_records_give() -> None:
    pages = {page: page.read_text(encoding="utf-8") for page in (Path("README.md"), *Path("docs").glob("*.md"))}
    shown = {profile for text in pages.values() for profile in re.findall(r"<!-- table: ([a-z0-9-]+)/", text)}
    assert "digits" in shown
    for profile in shown:
        results = frame.load(load_params(profile=profile))
        for page, text in pages.items():
            assert tables.fill(text, results) == text, page


def test_the_metrics_file_shows_what_the_records_give() -> None:
    assert files.read_json(tables.METRICS) == tables.headline(frame.load(load_params()))


def test_the_readme_says_that_nothing_is_reproduced_as_long_as_that_is_so() -> None:
    none = "reproduced: 0;" in Path("results/claims.md").read_text(encoding="utf-8")
    assert ("no published number" in Path("README.md").read_text(encoding="utf-8").lower()) == none


def test_a_table_that_is_edited_missing_or_of_no_record_is_noticed() -> None:
    table = Path("results/digits/tables/table1.md")
    table.write_text(table.read_text(encoding="utf-8").replace("| ", "| 1", 1), encoding="utf-8")
    assert edited_tables(load_params()) == [table.as_posix()]
    table.rename(table.with_name("older.md"))
    assert edited_tables(load_params()) == [table.with_name("older.md").as_posix(), table.as_posix()]


def test_records_are_compared_with_those_of_a_commit(capsys: pytest.CaptureFixture[str]) -> None:
    (here := Path.cwd()).joinpath(".gitignore").write_text("/*\n!/results\n/results/*\n!/results/cifar10-smoke\n")
    commit(here, "records")
    compare.main(["HEAD", "--profile", "cifar10-smoke"])
    assert "2 of 2 records are equal, 0 are only here, 0 only there" in capsys.readouterr().out
    path = Path("results/cifar10-smoke/records/ebjdat-jempp/0/clean.json")
    record = json.loads(path.read_text())
    record["rates"]["standard/clean"] |= {"correct": 0, "flags": "0" * len(record["rates"]["standard/clean"]["flags"])}
    path.write_text(json.dumps(record))
    compare.main(["HEAD", "--profile", "cifar10-smoke"])
    said = capsys.readouterr().out
    assert "cifar10-smoke/ebjdat-jempp/0 clean: standard/clean 0.0 %, there" in said
    total = re.search(r"(\d+) of (\d+) accuracies lie inside", said)
    assert total and int(total[2]) - int(total[1]) == 1 and "1 of 2 records are equal" in said
    path.write_text("<<<<<<< ours")
    commit(here, "a merge gone wrong")
    with pytest.raises(UserError, match=r"HEAD:results/.*/clean.json is not readable JSON"):
        compare.main(["HEAD", "--profile", "cifar10-smoke"])
    with pytest.raises(UserError, match="HEAD has no records of profile digits"):
        compare.main(["HEAD", "--profile", "digits"])
    with pytest.raises(UserError, match="git ls-tree"):
        compare.main(["no-such-commit", "--profile", "digits"])
