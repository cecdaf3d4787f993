"""docs/faults.md against the tests and the measured numbers."""

from __future__ import annotations

import ast

from tests import fault_list
from tests.stage_deps import ROOT


def test_every_line_of_the_list_names_tests_that_exist() -> None:
    lines = fault_list.tests_by_line()
    assert sorted(lines) == list(range(1, 42))
    for number, tests in lines.items():
        assert tests, f"line {number} names no test"
        for file, name in tests:
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
