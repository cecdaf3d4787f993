"""dvc.yaml against the code: dependencies, descriptions, the direction of imports, starts that are quick."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stages.repro
from ebjdat.config import read_yaml
from tests import ROOT
from tests.stage_deps import PLUMBING, closure, expected, imported

PIPELINE = read_yaml(ROOT / "dvc.yaml")["stages"]
SCRIPTS = sorted(path.stem for path in (ROOT / "stages").glob("[a-z]*.py"))
LAYERS = (
    {"errors", "files", "command", "progress", "device", "run", "protocols", "seeds", "config", "statistics", "record"}
    | {"tracking", "drawing"},
    {"data", "model"},
    {"attacks"},
    {"training"},
    {"evaluation"},
    {"results"},
    {"api", "exporting", "registry"},
)
"""Packages and modules of ebjdat/: a layer may import itself and those before it."""


@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_lists_every_package_that_it_imports(name: str) -> None:
    code = {dep for dep in PIPELINE[name]["deps"] if dep.startswith(("stages/", "ebjdat/"))}
    script = re.fullmatch(
        r"python -m stages\.(\w+)( --model \$\{item\.\w+\} --seed \$\{item\.\w+\})?", PIPELINE[name]["cmd"]
    )
    assert script, "DVC runs commands by a shell, so only matrix items may stand in them"
    assert code == expected(script[1]), "run `python -m tests.stage_deps`"


def test_a_new_import_changes_the_expected_dependencies(tmp_path: Path) -> None:
    sources = {
        "stages/one.py": "def main():\n    pass\n",
        "ebjdat/files.py": "from ebjdat import beneath\n",
        "ebjdat/beneath.py": "",
        "ebjdat/late/__init__.py": "from .inside import value\n",
        "ebjdat/late/inside.py": "from ebjdat.protocols import REVISIONS\nimport ebjdat.config\n",
        "ebjdat/config.py": "",
        "ebjdat/protocols.py": "",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert expected("one", tmp_path) == {"stages/one.py"}
    (tmp_path / "stages/one.py").write_text("from ebjdat import files\ndef main():\n    import ebjdat.late\n")
    assert expected("one", tmp_path) == {"stages/one.py", "ebjdat/config.py", "ebjdat/late"}


def test_every_module_of_the_plumbing_exists_and_is_no_dependency() -> None:
    listed = {dep for stage in PIPELINE.values() for dep in stage["deps"]}
    assert all((ROOT / name).is_file() for name in PLUMBING) and not PLUMBING & listed


def test_crafting_depends_on_the_input_noise_of_every_recipe() -> None:
    variants = read_yaml(ROOT / "params.yaml")["variants"]
    wanted = {f"variants.{name}.labelled_noise" for name, recipe in variants.items() if "labelled_noise" in recipe}
    assert wanted <= {entry for entry in PIPELINE["craft"]["params"] if isinstance(entry, str)}


def test_every_stage_says_what_it_does_in_a_pipeline_of_at_most_200_lines() -> None:
    assert all(len(stage["desc"]) > 20 for stage in PIPELINE.values())
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 200


def layer_of(path: Path) -> int:
    name = path.relative_to(ROOT / "ebjdat").parts[0].removesuffix(".py")
    return next(place for place, names in enumerate(LAYERS) if name in names)


LIBRARY = [path for path in sorted((ROOT / "ebjdat").rglob("*.py")) if path != ROOT / "ebjdat/__init__.py"]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_the_layers_only(path: Path) -> None:
    for other in imported(path) - {ROOT / "ebjdat/__init__.py"}:
        assert other.is_relative_to(ROOT / "ebjdat"), f"the library imports {other.relative_to(ROOT)}"
        assert layer_of(other) <= layer_of(path), f"{path.name} imports {other.relative_to(ROOT)}, which is above it"


def test_no_two_modules_import_each_other() -> None:
    needs = {path: imported(path) - {ROOT / "ebjdat/__init__.py"} for path in LIBRARY}
    while free := [path for path, others in needs.items() if not others & set(needs) - {path}]:
        for path in free:
            del needs[path]
    assert [path.relative_to(ROOT).as_posix() for path in needs] == []


@pytest.mark.parametrize("stage", ["autoattack", "craft", "transfer", "sweep", "eot"])
def test_an_edit_of_training_costs_no_attack(stage: str) -> None:
    assert not any(path.is_relative_to(ROOT / "ebjdat/training") for path in closure(ROOT / f"stages/{stage}.py"))


def test_stages_are_thin_and_the_library_parses_no_arguments() -> None:
    long = [p.name for p in (ROOT / "stages").glob("*.py") if len(p.read_text(encoding="utf-8").splitlines()) > 100]
    assert set(long) <= {"repro.py", "evaluating.py"}
    assert [p for p in LIBRARY if "ArgumentParser(" in p.read_text(encoding="utf-8")] == [ROOT / "ebjdat/command.py"]


HEAVY = ("torch", "mlflow", "pandas", "matplotlib", "scipy", "sklearn", "dvc", "torch_fidelity", "torchvision", "PIL")
HELP = """
import runpy, sys
heavy, name = sys.argv[1:]
for flag in ("--help", "--no"):
    sys.argv = ["stage", flag]
    try:
        runpy.run_module(f"stages.{name}", run_name="__main__")
    except SystemExit as ended:
        print(ended.code, [module for module in heavy.split(",") if module in sys.modules])
"""


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ("arguments", "evaluating")])
def test_a_command_explains_itself_before_it_loads_anything_heavy_and_refuses_what_it_does_not_know(name: str) -> None:
    line = [sys.executable, "-c", HELP, ",".join(HEAVY), name]
    told = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    text = (ROOT / "stages" / f"{name}.py").read_text(encoding="utf-8")
    assert text.split('"""')[1][:30] in told.stdout and "error: " in told.stderr, told.stderr
    assert told.stdout.splitlines()[-2:] == ["0 []", "2 []"], "nothing is imported before an answer"


def test_a_stage_runs_where_dvc_and_mlflow_are_absent_and_the_runner_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find, absent = importlib.util.find_spec, {"dvc", "mlflow"}
    with monkeypatch.context() as bare:
        bare.setattr(importlib.util, "find_spec", lambda name, *more: None if name in absent else find(name, *more))
        importlib.reload(stages)
        with pytest.raises(SystemExit) as ended:
            importlib.reload(stages.repro)
        assert (
            ended.value.code == 2 and "has not the packages of this project (dvc): activate" in capsys.readouterr().err
        )
    importlib.reload(stages)
