"""Report pages as HTML: sections of text, figures and tables, filled into one template.

A page needs nothing beside itself: no script, no style sheet, no font, no address is fetched. All text
is escaped by the template engine; figures are the only markup that is passed through, and matplotlib
escapes what they are labelled with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ebjdat.reporting.layout import Table

TEMPLATES = Path(__file__).parent / "templates"
LARGEST = 5_000_000
"""Bytes that a page may have."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture: an ``<svg>`` element, or a ``data:`` address of a bitmap.

    Attributes:
        alt: what it shows, for those who do not see it.
        caption: what to look for.
    """

    alt: str
    caption: str
    svg: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page; what it lacks is not shown.

    Attributes:
        key: anchor; a-z, 0-9 and hyphens.
        folded: tables that are opened by a click.
        facts: names and values.
    """

    key: str
    title: str
    texts: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    facts: Sequence[tuple[str, str]] = ()
    commands: Sequence[str] = ()


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """A whole page; equal content gives equal text.

    Args:
        title: heading and window title.
        lead: paragraphs below it.
        sections: in order.
    """
    shown = []
    for section in sections:
        tables = [(table, False) for table in section.tables] + [(table, True) for table in section.folded]
        keyed = [(table, f"{section.key}-table-{n}", folded) for n, (table, folded) in enumerate(tables)]
        shown.append((section, keyed))
    template = _environment().get_template("page.html.jinja")
    return template.render(title=title, lead=lead, sections=shown, draw=table_html)


def table_html(table: Table, key: str) -> Any:
    """A table as markup, with caption, column groups and scopes; ``key`` is the caption's identifier."""
    from markupsafe import Markup

    groups = []
    if any(column.group for column in table.columns):
        groups = [(name, len(list(members))) for name, members in groupby(table.columns, lambda c: c.group)]
    text = _environment().get_template("table.html.jinja").render(table=table, key=key, groups=groups)
    return Markup(text)


def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
