"""The new variant and the new baseline of docs/changing.md, added step by step in a copy of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests import ROOT

PAGE = (ROOT / "docs" / "changing.md").read_text(encoding="utf-8")
EDIT = re.compile(r"<!-- edit: (\S+) -->\n```diff\n(.*?)```", re.DOTALL)
CHECK = """
import os
import sys
from pathlib import Path

sys.path.insert(0, os.getcwd())
os.mkdir("work")
os.chdir("work")
from tests import tiny

params = tiny.write_params(Path("."), variant="coldpp", baselines=["mixed"])
assert params.runs()[0].model == "ebjdat-coldpp", "tables ask for it"
assert params.variants["coldpp"].label == "Cold JEM++"
assert params.variants["coldpp"].chain_start == "uniform"
assert params.training("ebjdat-coldpp") == params.training("ebjdat-jempp")
tiny.prepare(params)
tiny.train(params, "ebjdat-coldpp", "mixed")
import ebjdat
from ebjdat.record import read_history
from ebjdat.results.names import display_name
mixed = params.runs()[1]
assert mixed.model == display_name(params, "mixed") == "mixed"
assert read_history(mixed)[0]["loss_clean"] > 0
assert ebjdat.load("models/digits/ebjdat-coldpp/0").sample(2).shape == (2, 1, 8, 8)
print("trained")
"""


def apply(folder: Path, path: str, diff: str) -> None:
    """One edit of the page: lines of the old text must stand in the file."""
    lines = [line for line in diff.splitlines() if line]
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    target = folder / path
    text = target.read_text(encoding="utf-8")
    assert old in text, f"{path} has no longer:\n{old}"
    target.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_variant_and_the_baseline_of_the_page_are_added_and_trained(tmp_path: Path) -> None:
    for folder in ("ebjdat", "stages", "tests", "params", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / ".dvc").mkdir()
    edits = EDIT.findall(PAGE)
    variant, *baseline = [path for path, _ in edits]
    assert variant == "params.yaml", "a variant is data alone"
    assert set(baseline) == {"ebjdat/training/objective.py", "ebjdat/training/recipes.py", "ebjdat/run.py"}
    for path, diff in edits:
        apply(tmp_path, path, diff)
    run = subprocess.run([sys.executable, "-c", CHECK], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "trained" in run.stdout, run.stderr[-2000:]
