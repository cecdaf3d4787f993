"""Tables inside hand-written pages: the README shows results, and no digit in them is typed.

A page marks a place with ``<!-- table: digits/tradeoff-standard -->`` and ``<!-- end -->``: a profile and
the label of one of its tables, as in :func:`ebjdat.reporting.tables.pages`. One page may show several
profiles; each is filled from its own ledger.
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

_BEGIN, _END = "<!-- table: ", "<!-- end -->"
_PLACE = re.compile(rf"({_BEGIN}([a-z0-9_/-]+) -->\n)(?:(?!{_BEGIN}).)*?({_END})", re.DOTALL)


def fill(text: str, tables: Mapping[str, Table], within: str = "") -> str:
    """The page with its marked places filled.

    Args:
        text: Markdown.
        tables: by the name that places use.
        within: how names of the places to fill begin; other places stay as they are.

    Raises:
        UserError: a place has no end, or names an unknown table.
    """
    if len(_PLACE.findall(text)) != text.count(_BEGIN):
        raise UserError(f"a place for a table has no end: expected {_BEGIN}NAME -->, a line break, and later {_END}")

    def body(match: re.Match[str]) -> str:
        if not match[2].startswith(within):
            return match[0]
        if match[2] not in tables:
            raise UserError(f"no table {match[2]!r}; known: {', '.join(sorted(tables))}")
        return f"{match[1]}{markdown_table(tables[match[2]])}{match[3]}"

    return _PLACE.sub(body, text)


def fill_page(path: Path, numbers: Numbers) -> None:
    """Fill the places of a file that are marked for the profile of these numbers.

    Raises:
        UserError: the file cannot be read, there is no such place, one has no end or names an unknown table.
    """
    text, profile = read_page(path, numbers.params.profile), numbers.params.profile
    files.write_text(path, fill(text, _by_name(numbers), f"{profile}/"))


def read_page(path: Path, profile: str) -> str:
    """A page that has places for tables of this profile.

    Raises:
        UserError: the file cannot be read, or has no such place.
    """
    text = _read(path)
    if f"{_BEGIN}{profile}/" not in text:
        raise UserError(f"{path} has no place for a table of profile {profile}: {_BEGIN}{profile}/LABEL -->")
    return text


def check_page_matches_records(path: Path, params: Params) -> bool:
    """Whether a page has tables of the profile, as the committed ledger gives them (``check_tables_match_records``)."""
    text = _read(path)
    return (
        f"<!-- table: {params.profile}/" in text
        and fill(text, _by_name(with_recorded_code(load_numbers(params))), f"{params.profile}/") == text
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a page ({error})") from None


def _by_name(numbers: Numbers) -> dict[str, Table]:
    return {f"{numbers.params.profile}/{table.label}": table for found in pages(numbers).values() for table in found}
