"""Several processes train as one; their number is checked, and one that fails ends all."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from ebjdat import device
from ebjdat.attacks import slices
from ebjdat.errors import UserError
from ebjdat.training import launch, parallel
from tests import parallel_worker
from tests.small_runs import PARAMS
from tests.synthetic import ROOT, changed, setup_of


@pytest.fixture(scope="module")
def signals() -> Iterator[None]:
    """torchrun's handlers go with the tests that started it in this process."""
    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def two(folder: Path, signals: None) -> list[dict[str, Any]]:
    """What each of two processes found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        launch.start(2, ["train", str(folder)], "tests.parallel_worker")
    return [torch.load(folder / f"train-{rank}.pt", weights_only=True) for rank in range(2)]


def flat(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, dict):
        return {key: item for part in value for key, item in flat(value[part], f"{name}/{part}").items()}
    return {name: torch.as_tensor(value)}


@pytest.mark.parametrize("case", parallel_worker.CASES)
def test_two_processes_take_the_step_of_one(two: list[dict[str, Any]], case: str) -> None:
    expected, found = flat(parallel_worker.one_iteration(case)), flat(two[0][case])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-6, name


def test_all_processes_hold_the_same_model_buffer_and_history(two: list[dict[str, Any]]) -> None:
    assert_same(*(run["never stopped"] for run in two))


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_to_the_byte(two: list[dict[str, Any]]) -> None:
    assert [run["stopped"] for run in two] == [{"code": 128 + signal.SIGTERM}] * 2
    assert_same(two[0]["never stopped"], two[0]["continued"])


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    for part in ("best", "last", "buffer"):
        for name, value in flat(first[part]).items():
            assert torch.equal(value, flat(second[part])[name]), name
    assert json.dumps(first["history"]) == json.dumps(second["history"])


def test_two_nodes_train_as_two_processes_of_one_and_only_the_first_has_the_checkpoints(
    two: list[dict[str, Any]], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = ["--master-addr", "127.0.0.1", "--master-port", str(free.getsockname()[1])]
    nodes = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        options = ["--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1", *place]
        worker = ["--module", "tests.parallel_worker", "resume", str(folder)]
        command = [sys.executable, "-m", "torch.distributed.run", *options, *worker]
        nodes.append(subprocess.Popen(command, cwd=ROOT))
    try:
        assert [node.wait(500) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    for number in range(2):
        found = torch.load(tmp_path / f"{number}/resume-{number}.pt", weights_only=True)
        assert found["stopped"] == {"code": 128 + signal.SIGTERM}
        assert_same(two[0]["never stopped"], found["continued"])
        assert (tmp_path / f"{number}/run").exists() is (number == 0)


def test_a_nan_in_one_process_takes_all_back(two: list[dict[str, Any]]) -> None:
    events = [run["diverged"]["events"] for run in two]
    assert events[0] == events[1] and [event["cause"] for event in events[0]] == ["loss is nan"]
    for name, value in flat(two[0]["diverged"]["last"]).items():
        assert value.isfinite().all() and torch.equal(value, flat(two[1]["diverged"]["last"])[name])


def test_a_checkpoint_of_another_number_of_devices_is_refused(two: list[dict[str, Any]], folder: Path) -> None:
    assert list((folder / "run").glob("step-*"))
    with pytest.raises(UserError, match=r"these differ: processes \(2, now 1\)"):
        parallel_worker.new_trainer("jempp", folder / "run", {"processes": 1}).run()


def test_a_process_that_fails_ends_the_run_with_its_code(folder: Path, signals: None) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.chdir(ROOT)
        launch.start(2, ["fail", str(folder)], "tests.parallel_worker")
    assert end.value.code == 7


def _processes(devices: int | str, gpus: int = 0, **values: object) -> int:
    setup = changed(setup_of(PARAMS.model_copy(update={"devices": devices})), **values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        patch.setattr(torch.cuda, "device_count", lambda: gpus)
        patch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        patch.setattr(launch, "processors", lambda: 4)
        return launch.processes(setup)


def test_auto_is_one_process_and_several_are_there_for_the_asking() -> None:
    assert [_processes("auto", gpus) for gpus in (0, 1, 8)] == [1, 1, 1]
    assert _processes(2) == 2 and _processes(8, 8) == 8
    with pytest.raises(UserError, match="8 do not divide bn_parts 4"):
        _processes(8, 8, bn_parts=4)


@pytest.mark.parametrize(
    ("devices", "gpus", "message"),
    [
        (8, 0, "8 were asked for, but this machine shows 4 processors"),
        (4, 2, "4 were asked for, but this machine shows 2 CUDA devices"),
        (3, 8, "3 do not divide batch_size 64"),
    ],
)
def test_more_devices_than_exist_or_uneven_shares_are_refused(devices: int, gpus: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _processes(devices, gpus)


def test_torchrun_started_by_hand_has_to_agree_with_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert _processes("auto", 4) == 2
    with pytest.raises(UserError, match="4 were asked for, but torchrun started 2 processes"):
        _processes(4, 4)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert _processes("auto", 4) == 8, "two nodes"


def test_parts_of_a_batch_are_normalised_apart() -> None:
    from ebjdat.model.wideresnet import BatchNorm

    x = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    cut, plain = BatchNorm(3), BatchNorm(3)
    cut.parts = 3
    expected = torch.cat([plain(part) for part in x.chunk(3)])
    assert torch.allclose(cut(x), expected, atol=1e-5)
    centres = torch.stack([part.mean((0, 2, 3)) for part in x.chunk(3)])
    assert torch.allclose(cut.running_mean, 0.1 * centres.mean(0), atol=1e-6)  # type: ignore[arg-type]


def test_alone_a_process_has_all_of_the_batch_and_nothing_to_gather() -> None:
    x = torch.arange(5.0)
    assert (parallel.world(), parallel.rank()) == (1, 0)
    assert parallel.share(x).equal(x) and parallel.whole(x, 5).equal(x) and parallel.total(x).equal(x)
    assert parallel.agreed(None) is None and parallel.agreed(15) == 15


def test_an_evaluation_has_a_process_per_core_or_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "processors", lambda: 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert device.evaluators(torch.device("cpu"), "auto") == device.evaluators(torch.device("cpu"), 2) == 3
    assert [device.evaluators(torch.device("cuda"), wanted) for wanted in ("auto", 2, 16)] == [8, 2, 8]


def test_workers_of_an_attack_take_one_gpu_each_and_none_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    places: SimpleQueue[int | None] = SimpleQueue()
    for place in (0, 1, None):
        places.put(place)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for _ in range(3):
        slices._begin({}, places)
    assert taken == [0, 1] and not torch.backends.cudnn.allow_tf32, "a new process has PyTorch's defaults"
