"""Tables inside hand-written pages: the README shows results, and no digit in them is typed.

A page marks a place with ``<!-- table: tradeoff-standard -->`` and ``<!-- end -->``; the table of
that label, as in :func:`ebjdat.reporting.tables.pages`, fills it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ebjdat import files
from ebjdat.config import Params
from ebjdat.errors import UserError
from ebjdat.reporting.layout import Table, markdown_table
from ebjdat.reporting.lookup import Numbers, load_numbers, with_recorded_code
from ebjdat.reporting.tables import pages

_PLACE = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, tables: Mapping[str, Table]) -> str:
    """The page with every marked place filled.

    Args:
        text: Markdown.
        tables: by label.

    Raises:
        UserError: a place names an unknown table.
    """

    def body(match: re.Match[str]) -> str:
        if match[2] not in tables:
            raise UserError(f"no table {match[2]!r}; known: {', '.join(sorted(tables))}")
        return f"{match[1]}{markdown_table(tables[match[2]])}{match[3]}"

    return _PLACE.sub(body, text)


def fill_page(path: Path, numbers: Numbers) -> None:
    """Fill the marked places of a file."""
    files.write_text(path, fill(path.read_text(encoding="utf-8"), _by_label(numbers)))


def check_page_matches_records(path: Path, params: Params) -> bool:
    """Whether a page shows what the committed ledger gives (see ``check_tables_match_records``)."""
    text = path.read_text(encoding="utf-8")
    return fill(text, _by_label(with_recorded_code(load_numbers(params)))) == text


def _by_label(numbers: Numbers) -> dict[str, Table]:
    return {table.label: table for found in pages(numbers).values() for table in found}
