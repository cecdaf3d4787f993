"""dvc.yaml against the code: dependencies, descriptions, the direction of imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ebjdat.provenance import ROOT, import_closure
from tests import stage_deps

PIPELINE = stage_deps.read()["stages"]
FLOW = ("errors", "config", "protocols", "data", "model", "training", "attacks", "evaluation", "reporting")
"""Imports run against this order only: a later idea may use an earlier one."""


@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_lists_every_module_that_it_imports(name: str) -> None:
    stage = PIPELINE[name]
    assert stage_deps.listed(stage) == stage_deps.expected(stage["cmd"]), "run `python -m tests.stage_deps`"


@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_says_what_it_does(name: str) -> None:
    assert len(PIPELINE[name]["desc"]) > 20


def test_a_new_import_changes_the_expected_dependencies(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "lib.py").write_text("x = 1\n")
    stage = tmp_path / "stages" / "one.py"
    stage.write_text("def main():\n    pass\n")
    assert import_closure("stages.one", tmp_path) == ("stages/one.py",)
    stage.write_text("def main():\n    import lib\n")
    assert import_closure("stages.one", tmp_path) == ("lib.py", "stages/one.py")


def _place(module: str) -> int | None:
    parts = module.split(".")
    return FLOW.index(parts[1]) if len(parts) > 1 and parts[1] in FLOW else None


@pytest.mark.parametrize("path", sorted((ROOT / "ebjdat").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_in_one_direction_along_the_flow(path: Path) -> None:
    here = _place(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert not name.startswith(("stages", "tests")), f"the library imports {name}"
            there = _place(name) if name.startswith("ebjdat") else None
            if here is not None and there is not None:
                assert there <= here, f"{path.name} imports {name}, which comes later in the flow"


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_a_stage_script_is_thin(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80


def test_the_library_parses_no_arguments() -> None:
    users = [p for p in (ROOT / "ebjdat").rglob("*.py") if "import argparse" in p.read_text(encoding="utf-8")]
    assert users == []
