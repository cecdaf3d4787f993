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

from ebjdat.config import load_params
from ebjdat.errors import UserError
from ebjdat.results import claims, frame, tables
from stages import compare
from tests.synthetic import ROOT


@pytest.fixture(autouse=True)
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = subprocess.run(
        ["git", "archive", "--format=zip", "HEAD", "results", "params.yaml", "params", "README.md", "docs"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    with zipfile.ZipFile(io.BytesIO(archive.stdout)) as files:
        files.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("profile", ["digits", "cifar10-cpu"])
def test_the_tables_show_what_the_records_give(profile: str) -> None:
    params = load_params(profile=profile)
    assert tables.edited_tables(params) == []
    assert not frame.load(params, store=False).outdated


def test_the_claims_show_what_the_records_give() -> None:
    assert not claims.claims_are_edited(load_params())


def test_every_page_shows_what_the_records_give() -> None:
    pages = {page: page.read_text(encoding="utf-8") for page in (Path("README.md"), *Path("docs").glob("*.md"))}
    shown = {profile for text in pages.values() for profile in re.findall(r"<!-- table: ([a-z0-9-]+)/", text)}
    assert "digits" in shown
    for profile in shown:
        results = frame.load(load_params(profile=profile), store=False)
        for page, text in pages.items():
            assert tables.fill(text, results) == text, page


def test_the_readme_says_that_nothing_is_reproduced_as_long_as_that_is_so() -> None:
    none = "reproduced: 0;" in Path("results/claims.md").read_text(encoding="utf-8")
    assert ("no published number" in Path("README.md").read_text(encoding="utf-8").lower()) == none


def test_an_edit_by_hand_is_noticed() -> None:
    table = Path("results/digits/tables/table1.md")
    table.write_text(table.read_text(encoding="utf-8").replace("| ", "| 1", 1), encoding="utf-8")
    assert tables.edited_tables(load_params()) == [table.as_posix()]


def test_records_are_compared_with_those_of_a_commit(capsys: pytest.CaptureFixture[str]) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True, capture_output=True
        )

    git("init", "--quiet")
    git("add", "results/cifar10-smoke")
    git("commit", "--quiet", "--message", "records")
    compare.main(["HEAD", "--profile", "cifar10-smoke"])
    assert "4 of 4 records are equal, 0 are only here, 0 only there" in capsys.readouterr().out
    path = Path("results/cifar10-smoke/records/ebjdat-jempp/0/clean.json")
    record = json.loads(path.read_text())
    record["rates"]["standard/clean"] |= {"correct": 0, "flags": "0" * len(record["rates"]["standard/clean"]["flags"])}
    path.write_text(json.dumps(record))
    compare.main(["HEAD", "--profile", "cifar10-smoke"])
    said = capsys.readouterr().out
    assert "cifar10-smoke/ebjdat-jempp/0 clean: standard/clean 0.0 %, there" in said
    total = re.search(r"(\d+) of (\d+) accuracies lie inside", said)
    assert total and int(total[2]) - int(total[1]) == 1 and "3 of 4 records are equal" in said
    path.write_text("<<<<<<< ours")
    git("commit", "--all", "--quiet", "--message", "a merge gone wrong")
    with pytest.raises(UserError, match=r"HEAD:results/.*/clean.json is not readable JSON"):
        compare.main(["HEAD", "--profile", "cifar10-smoke"])
    with pytest.raises(UserError, match="HEAD has no records of profile digits"):
        compare.main(["HEAD", "--profile", "digits"])
    with pytest.raises(UserError, match="git ls-tree"):
        compare.main(["no-such-commit", "--profile", "digits"])
