"""Faults around the pipeline: repetition, interruption, experiments, odd places, fresh clones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from ebjdat import files
from ebjdat.model.store import model_digest
from ebjdat.provenance import ROOT
from tests import stub_pipeline
from tests.small_runs import tiny_data, trainer
from tests.stub_pipeline import dvc, ran, stale

KEPT = ("prepare", "train", "clean", "sweep", "record")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few real stages of dvc.yaml, reproduced once."""
    folder = tmp_path_factory.mktemp("checkout")
    stub_pipeline.make(folder, KEPT)
    first = dvc(folder, "repro", STUB_STOPS_AT="sweep")
    assert first.returncode != 0, "the first repro is interrupted in the stage sweep"
    assert ran(folder) == ["prepare", "train", "clean", "sweep"]
    return folder


def test_an_interrupted_repro_continues_and_a_second_one_runs_nothing(checkout: Path) -> None:
    assert dvc(checkout, "repro").returncode == 0
    assert ran(checkout) == ["sweep", "record"], "what had finished is not run again"
    assert stale(checkout) <= {"record"}, "one stage is declared as always changed, and nothing else is stale"


def test_one_changed_parameter_runs_only_the_stages_that_list_it(checkout: Path) -> None:
    dvc(checkout, "repro")
    ran(checkout)
    params = checkout / "params.yaml"
    before = params.read_text(encoding="utf-8")
    try:
        raw = yaml.safe_load(before)
        raw["profiles"]["digits"]["evaluation"]["sweep"]["images"] -= 1
        params.write_text(yaml.safe_dump(raw))
        assert stale(checkout) - {"record"} == {"sweep"}
        raw = yaml.safe_load(before)
        raw["variants"]["jem"]["steps"] += 1  # another variant's recipe than the selected one's
        params.write_text(yaml.safe_dump(raw))
        assert stale(checkout) - {"record"} == set()
    finally:
        params.write_text(before)


STAGE = """
import pathlib, sys
sys.path.insert(0, {root!r})
from ebjdat import files
from ebjdat.reporting.tracking import store_uri
pathlib.Path("out").mkdir(exist_ok=True)
pathlib.Path("out/seen").write_text(pathlib.Path("params.yaml").read_text())
with open(files.main_checkout() / "stores.txt", "a") as log:
    log.write(f"{{pathlib.Path.cwd()}} {{store_uri()}}\\n")
"""


def test_temporary_and_queued_experiments_share_the_main_store_and_do_not_collide(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    (tmp_path / "stage.py").write_text(STAGE.format(root=str(ROOT)))
    stage = {"cmd": f'"{sys.executable}" stage.py', "deps": ["stage.py"], "params": ["seed"], "outs": ["out"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"only": stage}}))
    (tmp_path / ".gitignore").write_text("/out\n/stores.txt\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e@localhost"]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    git = ["git", *identity]
    subprocess.run([*git, "init", "--quiet"], cwd=tmp_path, check=True, env=environment)
    dvc(tmp_path, "init", "--quiet")
    subprocess.run([*git, "add", "."], cwd=tmp_path, check=True, env=environment)
    subprocess.run([*git, "commit", "--quiet", "-m", "c"], cwd=tmp_path, check=True, env=environment)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    assert (done := dvc(tmp_path, "exp", "run", "--temp", "-S", "seed=1")).returncode == 0, done.stderr
    dvc(tmp_path, "exp", "run", "--queue", "-S", "seed=2")
    assert (done := dvc(tmp_path, "exp", "run", "--run-all", "--jobs", "1")).returncode == 0, done.stderr
    assert not (tmp_path / "out").exists(), "the workspace keeps its own outputs"
    places, stores = zip(*[line.split(" ") for line in (tmp_path / "stores.txt").read_text().splitlines()], strict=True)
    assert len(set(places)) == 2 and str(tmp_path) not in places
    assert set(stores) == {f"sqlite:///{tmp_path}/mlflow.db"}


def test_a_space_an_accent_another_folder_and_another_locale_change_nothing(tmp_path: Path) -> None:
    def prepared(folder: Path, **environment: str) -> str:
        folder.mkdir()
        for name in ("ebjdat", "stages", "params.yaml"):
            (folder / name).symlink_to(ROOT / name)
        command = [sys.executable, "-m", "stages.prepare"]
        subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=True, capture_output=True)
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
    done = subprocess.run(
        [sys.executable, "-m", "stages.prepare"], cwd=clone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert dvc(clone, "status", "--json", "prepare").returncode == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", ["jem", "jempp", "sadajem"])
def test_two_deterministic_runs_on_a_gpu_are_byte_equal(variant: str) -> None:
    """Where an operation has no deterministic form PyTorch says so here; docs/faults.md would list it."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        digests = set()
        for _ in range(2):
            run = trainer(tiny_data(), ("ebjdat", variant), None, device=torch.device("cuda"))
            torch.backends.cudnn.benchmark = False  # a new trainer lets kernels be chosen by trial
            outcome = run.run()
            digests.add((model_digest(outcome.last), outcome.buffer.cpu().numpy().tobytes()))  # type: ignore[union-attr]
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(digests) == 1
