"""Faults around the pipeline: repetition, interruption, experiments, odd places, fresh clones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ebjdat import files
from ebjdat.config import load_params
from ebjdat.data.digits import load_digits
from ebjdat.data.prepared import save_prepared
from tests import ROOT, stub_pipeline
from tests.stub_pipeline import commit, dvc, git, python, ran, stale

KEPT = ("prepare", "recipes", "train", "clean", "sweep")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """A few real stages of dvc.yaml, interrupted in the last and reproduced, and what ran both times."""
    folder = tmp_path_factory.mktemp("checkout")
    stub_pipeline.make(folder, KEPT)
    assert dvc(folder, "repro", STUB_STOPS_AT="sweep@ebjdat-jempp-0").returncode != 0
    first = ran(folder)
    assert dvc(folder, "repro").returncode == 0
    return folder, first, ran(folder)


@pytest.fixture
def checkout(interrupted: tuple[Path, list[str], list[str]]) -> Path:
    return interrupted[0]


def test_an_interrupted_repro_continues_and_a_second_one_runs_nothing(
    interrupted: tuple[Path, list[str], list[str]],
) -> None:
    folder, first, second = interrupted
    assert set(first) == {"prepare", *(f"{name}@ebjdat-jempp-0" for name in KEPT[2:])}
    assert second == ["sweep@ebjdat-jempp-0"], "what had finished is not run again"
    assert stale(folder) == set()


def test_one_changed_parameter_runs_only_the_stages_that_list_it(checkout: Path) -> None:
    for name, old, new, expected in (
        ("params/digits.yaml", "sweep: {images: 100}", "sweep: {images: 99}", {"sweep@ebjdat-jempp-0"}),
        ("params.yaml", "\ndevice: auto", "\ndevice: cpu", set()),
        ("params.yaml", "seeds: [0]", "seeds: [0, 1]", {f"{kind}@ebjdat-jempp-1" for kind in KEPT[2:]}),
    ):
        path = checkout / name
        before = path.read_text(encoding="utf-8")
        assert before.count(old) == 1
        path.write_text(before.replace(old, new), encoding="utf-8")
        assert stale(checkout) == expected
        path.write_text(before, encoding="utf-8")


def test_a_model_is_trained_again_where_its_whole_recipe_changes_and_not_where_a_label_does(checkout: Path) -> None:
    path = checkout / "params.yaml"
    before = path.read_text(encoding="utf-8")
    text = before.replace("\nvariant: jempp ", "\nvariant: jempp_energy ")
    label, others = ("label: 'JEM++ (equations)'", "label: energy"), ("    base_steps: 20 ", "    base_steps: 21 ")
    of_jempp = ("inner_steps: 5,", "inner_steps: 4,")  # its own, by `like`
    for edits, expected in (
        ([], ["train@ebjdat-jempp_energy-0"]),
        ([label, others], []),
        ([of_jempp], ["train@ebjdat-jempp_energy-0"]),
    ):
        for old, new in edits:
            assert old in text
            text = text.replace(old, new, 1)
        path.write_text(text, encoding="utf-8")
        done = dvc(checkout, "repro", "train")
        assert done.returncode == 0, done.stderr
        assert ran(checkout) == expected
    path.write_text(before, encoding="utf-8")


STAGE = """
import pathlib, sys
sys.path.insert(0, {root!r})
from ebjdat import files, tracking
pathlib.Path("out").mkdir(exist_ok=True)
pathlib.Path("out/seen").write_text(pathlib.Path("params.yaml").read_text())
with open(files.main_checkout() / "stores.txt", "a") as log:
    log.write(f"{{pathlib.Path.cwd()}}\\t{{tracking.address()}}\\n")
"""


def test_temporary_and_queued_experiments_share_the_main_store_and_do_not_collide(tmp_path: Path) -> None:
    folder = tmp_path / "un été"
    folder.mkdir()
    (folder / "params.yaml").write_text("seed: 0\n")
    (folder / "stage.py").write_text(STAGE.format(root=str(ROOT)))
    stage = {"cmd": f'"{sys.executable}" stage.py', "deps": ["stage.py"], "params": ["seed"], "outs": ["out"]}
    files.write_json(folder / "dvc.yaml", {"stages": {"only": stage}})
    (folder / ".gitignore").write_text("/out\n/stores.txt\n")

    git(folder, "init", "--quiet")
    dvc(folder, "init", "--quiet")
    # DVC writes this path into its copy's configuration as ASCII, so that one below `folder` would not do.
    dvc(folder, "cache", "dir", "--local", str(tmp_path / "cache"))
    commit(folder, "start")
    assert (done := dvc(folder, "exp", "run", "--temp", "-S", "seed=1")).returncode == 0, done.stderr
    dvc(folder, "exp", "run", "--queue", "-S", "seed=2")
    assert (done := dvc(folder, "exp", "run", "--run-all", "--jobs", "1")).returncode == 0, done.stderr
    assert not (folder / "out").exists(), "the workspace keeps its own outputs"
    places, stores = zip(*[line.split("\t") for line in (folder / "stores.txt").read_text().splitlines()], strict=True)
    assert len(set(places)) == 2 and str(folder) not in places
    assert set(stores) == {f"sqlite:///{folder}/mlflow.db"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone at an odd place, in which ``stages.prepare`` ran under another locale."""
    folder = tmp_path_factory.mktemp("clone") / "un été là"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)
    done = python(folder, "stages.prepare", LC_ALL="C", LANG="C", PYTHONUTF8="0", TZ="Asia/Tokyo")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_space_an_accent_another_folder_and_another_locale_change_nothing(clone: Path, tmp_path: Path) -> None:
    params = load_params(clone)
    plain = save_prepared(tmp_path, load_digits(), params.current.data)
    assert files.read_json(clone / params.runs()[0].data_dir / "manifest.json") == plain


def test_the_stages_of_a_fresh_clone_need_nothing_that_git_does_not_have(clone: Path) -> None:
    text = (clone / "README.md").read_text(encoding="utf-8")
    for target in ("repro", "test"):
        assert f"make {target}" in text
        done = subprocess.run(["make", "-n", target], cwd=clone, capture_output=True, text=True, check=True)
        assert "venv" in done.stdout
    assert dvc(clone, "status", "--json", "prepare").returncode == 0
    assert git(clone, "status", "--porcelain").stdout == "", "no output of a stage, and no .gitignore of DVC's own"


def ignored(path: str) -> bool:
    return subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT, check=False).returncode == 0


def test_git_has_the_records_and_tables_and_dvc_the_rest() -> None:
    for stage in stub_pipeline.pipeline().values():
        for entry in (entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])):
            path, options = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
            path = re.sub(r"\$\{[^}]*\}", "x", path)
            in_git = options.get("cache") is False and not path.endswith("frame.csv")
            assert ignored(path) != in_git, path
