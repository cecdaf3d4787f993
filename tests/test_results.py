"""What is committed under results/ and in the README is what the committed ledger gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from ebjdat.config import load_params
from ebjdat.provenance import ROOT
from ebjdat.reporting import claims, readme, tables


@pytest.fixture(autouse=True)
def committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_tables_show_what_the_ledger_gives() -> None:
    assert tables.check_tables_match_records(load_params()) == []


def test_the_claims_show_what_the_ledger_gives() -> None:
    assert claims.check_claims_match_records(load_params()) == []


def test_the_readme_shows_what_the_ledger_gives() -> None:
    assert readme.check_page_matches_records(Path("README.md"), load_params())
