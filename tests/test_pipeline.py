"""dvc.yaml against the code: dependencies, descriptions, the direction of imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ebjdat.provenance import ROOT, import_closure
from stages import lanes
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


def expanded() -> dict[str, tuple[set[str], set[str]]]:
    """Deps and outs of every stage, files of Python left out; a matrix stage has one entry per item."""
    found = {}
    for name, stage in PIPELINE.items():
        ((key, items),) = (stage.get("matrix") or {"": [""]}).items()
        for item in items:
            texts = [
                {next(iter(path)) if isinstance(path, dict) else str(path) for path in stage.get(part, [])}
                for part in ("deps", "outs")
            ]
            deps, outs = ({path.replace(f"${{item.{key}}}", item) for path in paths} for paths in texts)
            found[f"{name}@{item}" if item else name] = {dep for dep in deps if not dep.endswith(".py")}, outs
    return found


def test_what_a_stage_of_a_lane_needs_was_made_in_an_earlier_wave_or_earlier_in_its_lane() -> None:
    stages = expanded()
    made: set[str] = set()
    for wave in lanes.WAVES:
        by_lane = []
        for lane in wave:
            here = set(made)
            for name in [one for wanted in lane for one in stages if wanted in (one, one.split("@")[0])]:
                deps, outs = stages.pop(name)
                missing = {dep for dep in deps if not any(dep == out or dep.startswith(f"{out}/") for out in here)}
                assert not missing, f"{name} needs {missing}"
                here |= outs
            by_lane.append(here)
        made = made.union(*by_lane)
    assert set(stages) == {"record", "tables", "report"}, "stages that `dvc repro` alone runs"


def test_lanes_stop_at_the_first_wave_that_fails_and_leave_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ran: list[object] = []
    monkeypatch.setattr(lanes, "side_by_side", lambda wave: ran.append(wave) or len(ran) < 2)
    monkeypatch.setattr(lanes.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(lanes.shutil, "which", lambda name: None)
    lanes.main()
    assert ran == list(lanes.WAVES[:2])
    monkeypatch.setattr(lanes.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    lanes.main()
    assert len(ran) == 2


def test_the_library_parses_no_arguments() -> None:
    users = [p for p in (ROOT / "ebjdat").rglob("*.py") if "import argparse" in p.read_text(encoding="utf-8")]
    assert users == []
