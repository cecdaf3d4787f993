"""CUDA: rehearsed on a pretended device where there is none (``tests.rehearsal``), and shown on a real one.

``pytest -m rehearsal`` rehearses everything; ``pytest -m gpu`` needs a GPU and prints a table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tabulate import tabulate

from ebjdat import device
from ebjdat.errors import UserError
from ebjdat.model.compute import compile_blocks
from ebjdat.model.store import Architecture, model_digest, new_model
from ebjdat.training import launch
from tests import ROOT, small_runs
from tests.rehearsal import FAULTS, STAGES, TRAININGS

CUDA = torch.device("cuda")
QUICK = ("same-as-cpu", "other-device", "train-jem", "train-jempp", "train-sadajem", "train-dhat", "clean", "import")
"""Of the rehearsal; the stages and baselines that are left out take most of its time."""


def rehearse(*words: str) -> str:
    """What the rehearsal prints, in a process of its own, for it changes PyTorch."""
    command = [sys.executable, "-m", "tests.rehearsal", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


def test_trainings_stages_and_imports_never_mix_devices() -> None:
    assert rehearse(*QUICK).count(": ok (") == len(QUICK)


def test_the_rehearsal_notices_planted_faults() -> None:
    assert rehearse("--faults", "train-jem", "train-jempp", "train-sadajem", "train-dhat").count("noticed: ") == 6


def test_an_iteration_takes_no_more_operations_than_today_and_waits_once() -> None:
    """WRN-10-1 in bfloat16 with ten chain steps and five of the attack; 2 % of room for other versions of PyTorch."""
    most = {
        "ebjdat-jempp": 1974,
        "ebjdat-sadajem": 2573,
        "ebjdat-jem": 1314,
        "pgd_at": 907,
        "trades": 1149,
        "dhat": 2237,
    }
    found = json.loads(rehearse("--costs").splitlines()[-1])
    assert found.keys() == most.keys()
    for model, (operations, casts, waits, statistics) in found.items():
        assert 20 < casts < operations <= 1.02 * most[model] and (waits, statistics) == (1, 0), model


@pytest.mark.rehearsal
@pytest.mark.parametrize("names", [[f"train-{model}" for model in TRAININGS], STAGES[:3], STAGES[3:]])
def test_every_training_and_every_stage_is_rehearsed(names: Sequence[str]) -> None:
    assert rehearse(*names).count(": ok (") == len(names)


@pytest.mark.rehearsal
def test_every_planted_fault_is_noticed() -> None:
    assert rehearse("--faults").count("noticed: ") == len(FAULTS)


def test_the_switch_reaches_pytorch_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", found.append)
    device.choose_device("cpu", True)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setattr(device, "_unusable", lambda: "")
    device.choose_device("auto", False)
    device.choose_device("cuda", True)
    assert found == [True] and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    for exact in (True, False):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda exact=exact: exact)
        small_runs.trainer(small_runs.tiny_data(), "pgd_at")
        assert torch.backends.cudnn.benchmark is not exact


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, str]]]:
    """Rows (what, found), printed after the last test."""
    rows: list[tuple[str, str]] = []
    yield rows
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\n" + tabulate(rows, headers=(torch.cuda.get_device_name(), f"torch {torch.__version__}")))


Table = list[tuple[str, str]]


@pytest.mark.gpu(1)
@pytest.mark.parametrize("model", ["ebjdat-jem", "ebjdat-jempp", "ebjdat-sadajem", "dhat"])
def test_two_deterministic_runs_on_a_gpu_are_byte_equal(model: str, table: Table) -> None:
    """Where an operation has no deterministic form PyTorch says so here."""
    device.choose_device("cuda", True)
    try:
        found = [small_runs.fingerprint(_on_gpu(model, precision="bfloat16").run()) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert found[0] == found[1]
    table.append((f"{model}: two deterministic runs", "equal to the byte"))


def _on_gpu(model: str, folder: Path | None = None, **values: Any) -> Any:
    helper = {"helper": small_runs.helper().to(CUDA)} if model == "dhat" else {}
    return small_runs.trainer(small_runs.tiny_data(), small_runs.small(model, **values), folder, device=CUDA, **helper)


@pytest.mark.gpu(1)
def test_a_gpu_that_is_full_ends_training_with_a_checkpoint_and_a_sentence(tmp_path: Path, table: Table) -> None:
    run, limit = _on_gpu("ebjdat-jempp", tmp_path, width=4), 0
    original, total = run._iteration, torch.cuda.get_device_properties(0).total_memory

    def crowded(batch: Any) -> None:
        nonlocal limit
        if run.state.epoch == 1 and not limit:
            torch.cuda.empty_cache()
            limit = torch.cuda.memory_reserved()
            torch.cuda.set_per_process_memory_fraction(limit / total)
        original(batch)

    run._iteration = crowded
    try:
        with pytest.raises(UserError, match=r"out of memory at epoch 1 on cuda .* a checkpoint of the epoch's start"):
            run.run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(_on_gpu("ebjdat-jempp", tmp_path, width=4).run().history) == small_runs.SHORT["epochs"]
    table.append(("out of memory, then continued", f"at a limit of {limit / 2**20:.0f} MiB"))


def _passes(model: Any, x: torch.Tensor, repeats: int = 10) -> tuple[torch.Tensor, float]:
    """Gradient of the energy by all weights (flat), and ms of one such pass."""
    parameters = list(model.parameters())
    for turn in range(repeats + 3):
        if turn == 3:
            torch.cuda.synchronize()
            started = time.perf_counter()
        gradients = torch.autograd.grad(model.energy(x).sum(), parameters)
    torch.cuda.synchronize()
    return torch.cat([part.flatten() for part in gradients]), 1000 * (time.perf_counter() - started) / repeats


@pytest.mark.gpu(1)
def test_bfloat16_and_a_compiled_network_are_near_float32(table: Table) -> None:
    device.choose_device("cuda")
    architecture = Architecture(depth=16, width=4, channels=3, classes=10, norm="batch")
    x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(CUDA)
    results: dict[str, tuple[torch.Tensor, float]] = {}
    for name, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16, "compiled": torch.bfloat16}.items():
        model = new_model(architecture, 0).to(CUDA).train()
        model.dtype, before = dtype, model_digest(model)
        assert name != "compiled" or compile_blocks(model, x)
        assert model_digest(model) == before
        results[name] = _passes(model, x)
        away = float((results[name][0] - results["float32"][0]).norm() / results["float32"][0].norm())
        assert away < 0.1, f"{name}: gradients differ by {away:.3f}"
        table.append((f"WRN-16-4, batch 64, {name}", f"{results[name][1]:.1f} ms a pass, gradients {away:.1e} away"))


@pytest.mark.gpu(2)
def test_two_gpus_take_the_step_of_one(tmp_path: Path, table: Table) -> None:
    """In float64, over NCCL; each case of ``tests.parallel_worker``."""
    from tests import parallel_worker

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        launch.start(2, ["steps", str(tmp_path), "cuda"], "tests.parallel_worker")
    found = torch.load(tmp_path / "steps-0.pt", weights_only=True)
    for case in parallel_worker.CASES:
        expected = parallel_worker.one_iteration(case, CUDA)["model"]
        away = max(float((found[case]["model"][name] - value).abs().max()) for name, value in expected.items())
        assert away < 1e-6, case
        table.append((f"two GPUs, one step, {case}", f"{away:.1e} from one"))
