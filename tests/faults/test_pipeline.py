"""Faults around the pipeline: repetition, interruption, experiments, odd places, fresh clones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ebjdat import files
from ebjdat.model.store import model_digest
from tests import stub_pipeline
from tests.small_runs import tiny_data, trainer
from tests.stage_deps import ROOT
from tests.stub_pipeline import dvc, environment_of, python, ran, stale

KEPT = ("prepare", "recipes", "train", "clean", "sweep")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few real stages of dvc.yaml, interrupted in the last and reproduced."""
    folder = tmp_path_factory.mktemp("checkout")
    stub_pipeline.make(folder, KEPT)
    assert dvc(folder, "repro", STUB_STOPS_AT="sweep@ebjdat-jempp-0").returncode != 0
    return folder


def test_an_interrupted_repro_continues_and_a_second_one_runs_nothing(checkout: Path) -> None:
    assert set(ran(checkout)) == {"prepare", *(f"{name}@ebjdat-jempp-0" for name in KEPT[2:])}
    assert dvc(checkout, "repro").returncode == 0
    assert ran(checkout) == ["sweep@ebjdat-jempp-0"], "what had finished is not run again"
    assert stale(checkout) == set()


def test_one_changed_parameter_runs_only_the_stages_that_list_it(checkout: Path) -> None:
    dvc(checkout, "repro")
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
    for old, new, expected in (
        ("", "", ["train@ebjdat-jempp_energy-0"]),
        ("label: 'JEM++ (equations)'", "label: energy", []),
        ("    base_steps: 20 ", "    base_steps: 21 ", []),  # another variant's recipe
        ("inner_steps: 5,", "inner_steps: 4,", ["train@ebjdat-jempp_energy-0"]),  # of jempp, by `like`
    ):
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

    def git(*words: str) -> None:
        line = ["git", "-c", "user.name=n", "-c", "user.email=e@localhost", *words]
        subprocess.run(line, cwd=folder, check=True, env=environment_of())

    git("init", "--quiet")
    dvc(folder, "init", "--quiet")
    # DVC writes this path into its copy's configuration as ASCII, so that one below `folder` would not do.
    dvc(folder, "cache", "dir", "--local", str(tmp_path / "cache"))
    git("add", ".")
    git("commit", "--quiet", "-m", "c")
    assert (done := dvc(folder, "exp", "run", "--temp", "-S", "seed=1")).returncode == 0, done.stderr
    dvc(folder, "exp", "run", "--queue", "-S", "seed=2")
    assert (done := dvc(folder, "exp", "run", "--run-all", "--jobs", "1")).returncode == 0, done.stderr
    assert not (folder / "out").exists(), "the workspace keeps its own outputs"
    places, stores = zip(*[line.split("\t") for line in (folder / "stores.txt").read_text().splitlines()], strict=True)
    assert len(set(places)) == 2 and str(folder) not in places
    assert set(stores) == {f"sqlite:///{folder}/mlflow.db"}


def test_a_space_an_accent_another_folder_and_another_locale_change_nothing(tmp_path: Path) -> None:
    def prepared(folder: Path, **environment: str) -> str:
        folder.mkdir()
        for name in ("ebjdat", "stages", "params.yaml", "params"):
            (folder / name).symlink_to(ROOT / name)
        done = python(folder, "stages.prepare", **environment)
        assert done.returncode == 0, done.stderr
        return files.read_json(folder / "data" / "digits" / "manifest.json")["files"]

    plain = prepared(tmp_path / "plain")
    odd = prepared(tmp_path / "un été là", LC_ALL="C", LANG="C", PYTHONUTF8="0", TZ="Asia/Tokyo")
    assert odd == plain


def test_the_stages_of_a_fresh_clone_need_nothing_that_git_does_not_have(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    text = (clone / "README.md").read_text(encoding="utf-8")
    for target in ("repro", "test"):
        assert f"make {target}" in text
        done = subprocess.run(["make", "-n", target], cwd=clone, capture_output=True, text=True, check=True)
        assert "venv" in done.stdout
    done = python(clone, "stages.prepare")
    assert done.returncode == 0, done.stderr
    assert dvc(clone, "status", "--json", "prepare").returncode == 0
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    assert changed.stdout == "", "no output of a stage, and no .gitignore of DVC's own, shows in git"


def ignored(path: str) -> bool:
    return subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT, check=False).returncode == 0


def test_git_has_the_records_and_tables_and_dvc_the_rest() -> None:
    for stage in stub_pipeline.pipeline().values():
        for entry in (entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])):
            path, options = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
            path = re.sub(r"\$\{[^}]*\}", "x", path)
            in_git = options.get("cache") is False and not path.endswith("logged.json")
            assert ignored(path) != in_git, path


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", ["jem", "jempp", "sadajem"])
def test_two_deterministic_runs_on_a_gpu_are_byte_equal(variant: str) -> None:
    """Where an operation has no deterministic form PyTorch says so here; docs/faults.md would list it."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        digests = set()
        for _ in range(2):
            run = trainer(tiny_data(), f"ebjdat-{variant}", device=torch.device("cuda"))
            torch.backends.cudnn.benchmark = False  # a new trainer lets kernels be chosen by trial
            outcome = run.run()
            assert outcome.buffer is not None
            digests.add((model_digest(outcome.last), outcome.buffer.cpu().numpy().tobytes()))
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(digests) == 1
