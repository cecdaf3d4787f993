"""docs/faults.md as data: which tests inject which fault."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faults.md"
_ROW = re.compile(r"^\| (\d+) \|.*\|([^|]*)\|$", re.MULTILINE)
_TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")


def tests_by_line() -> dict[int, list[tuple[str, str]]]:
    """Tests as (file below tests/, function) by the number of their line."""
    return {int(number): _TEST.findall(cell) for number, cell in _ROW.findall(PAGE.read_text(encoding="utf-8"))}
