"""Faults of training: kills, signals, damage, divergence, memory; see docs/faults.md."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from ebjdat import command, files, tracking
from ebjdat import device as devices
from ebjdat.config import Setup
from ebjdat.device import choose_device
from ebjdat.errors import DivergenceError, UserError
from ebjdat.training import run
from ebjdat.training.loop import Trainer
from ebjdat.training.state import Checkpoints
from ebjdat.training.supervisor import Diverged, Supervisor
from stages.train import train_with_curves
from tests.small_models import Payload
from tests.small_runs import break_at, fingerprint, in_child, short_run, small, stopped_at, tiny_data, undisturbed
from tests.synthetic import params_of_repository, setup_of, use_empty_store

MODELS = ["ebjdat-jem", "ebjdat-jempp", "ebjdat-sadajem", "base-jempp", "trades", "dhat"]
EVERY_STEP: dict[str, Any] = {"minutes": 0.0, "share": math.inf}


@pytest.fixture
def short_training(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout with short training on tiny data and an empty MLflow store."""
    monkeypatch.setattr(run, "load_prepared", lambda folder: tiny_data())
    monkeypatch.setattr(run, "Checkpoints", lambda folder, key: Checkpoints(folder, key, **EVERY_STEP))
    use_empty_store()


def everything(run: Trainer) -> str:
    """Hash of the final weights, optimiser, buffer, generators, history and best model."""
    digest = hashlib.sha256()
    for path, value in tree_flatten_with_path([run.state.snapshot(), run.state.best])[0]:
        digest.update(str(path).encode())
        digest.update(value.contiguous().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


def kill_at(name: str, count: int) -> None:
    """SIGKILL this process at the ``count``-th visit of a place in training or saving."""
    places: dict[str, tuple[Any, str]] = {
        "in a step": (torch.nn.utils, "clip_grad_norm_"),
        "after a step": (Trainer, "_save_if_due"),
        "before the state is written": (torch, "save"),
        "before a file is flushed": (os, "fsync"),
        "before a rename": (Path, "replace"),
        "before old checkpoints go": (Checkpoints, "_drop_old"),
        "in the validation": (Trainer, "_finish_epoch"),
    }
    owner, attribute = places[name]
    original, visits = getattr(owner, attribute), [0]

    def counted(*arguments: Any, **named: Any) -> Any:
        visits[0] += 1
        if visits[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(owner, attribute, counted)


KILLS = [
    ("in a step", 2),
    ("before a file is flushed", 2),
    ("before the state is written", 3),
    ("before a rename", 7),
    ("after a step", 2),
    ("before old checkpoints go", 3),
    ("in the validation", 1),
    ("before a rename", 4),
]


@pytest.mark.parametrize("model", MODELS)
def test_kill_9_in_a_step_in_a_save_and_between_files_ends_as_the_run_that_was_never_killed(
    tmp_path: Path, model: str
) -> None:
    whole = short_run(model)
    whole.run()

    def again() -> Trainer:
        fresh = short_run(model, tmp_path)
        fresh.checkpoints = Checkpoints(tmp_path, {"width": 1}, **EVERY_STEP)
        return fresh

    for place, count in KILLS:
        assert in_child(lambda p=place, c=count: (kill_at(p, c), again().run())) == -signal.SIGKILL, place
    resumed = again()
    resumed.run()
    assert everything(resumed) == everything(whole)
    assert [row["epoch"] for row in resumed.state.history] == [1, 2, 3]
    assert not list(tmp_path.glob(".*"))
    assert len(list(tmp_path.glob("step-*"))) == 2 and 1 <= len(list(tmp_path.glob("best-*.pt"))) <= 2


def resume_folder(setup: Setup) -> Path:
    """Where a run on :func:`tiny_data` keeps its checkpoints."""
    name = f"{setup.run.seed}-{files.digest(run.key_of(setup, 'digest'))}"
    return files.scratch("resume", "digits", setup.run.model, name)


def test_a_kill_between_the_files_of_a_model_is_made_good_by_the_same_command(short_training: None) -> None:
    setup = small(epochs=1)
    folder = setup.run.model_dir
    files.write_text(setup.run.diverged, "of an earlier training")
    expected = run.train(setup)
    assert not setup.run.diverged.exists()
    hashes = {path.name: files.file_hash(path) for path in folder.iterdir()}
    shutil.rmtree(folder)

    def killed() -> None:
        original = run.save_model

        def second(path: Path, *rest: Any) -> None:
            if path.name == "last.pt":
                os.kill(os.getpid(), signal.SIGKILL)
            original(path, *rest)

        run.save_model = second
        run.train(setup)

    assert in_child(killed) == -signal.SIGKILL
    left = {path.name for path in folder.iterdir()}
    assert "best.pt" in left and not left & {"last.pt", "summary.json"}
    assert run.train(setup) == expected
    assert {path.name: files.file_hash(path) for path in folder.iterdir()} == hashes


def run_of(setup: Setup) -> Any:
    """The MLflow run of a training, with its status and tags."""
    store = tracking.Store.open("digits")
    trained = tracking.trained_with(setup)
    return store.client.get_run(tracking.find_or_create(store, setup.run, trained))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_sigterm_and_ctrl_c_write_a_checkpoint_mark_the_run_killed_and_delete_nothing(
    short_training: None, number: int, code: int
) -> None:
    setup = small()

    def stopped() -> None:
        original = Trainer._iteration

        def signalled(self: Trainer, batch: Any) -> None:
            original(self, batch)
            if (self.state.epoch, self.state.step) == (1, 1):
                os.kill(os.getpid(), number)

        Trainer._iteration = signalled  # type: ignore[method-assign]
        command.run(lambda: train_with_curves(setup))

    assert in_child(stopped) == code
    assert sorted(resume_folder(setup).glob("step-*"))[-1].name.endswith("1-00000002")
    assert run_of(setup).info.status == "KILLED"
    summary = train_with_curves(setup)
    assert run_of(setup).info.status == "FINISHED"
    assert summary["last_sha256"] == undisturbed()[1]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (small("base-jempp", width=2), "network.width (1, now 2)"),
        (small("base-sadajem"), "recipe.sharpness (0.0, now 2.0)"),
        (setup_of(params_of_repository("cifar10-smoke"), "base-jempp"), "data.dataset ('digits', now 'cifar10')"),
        (small("base-jempp", seed=3), "seed (0, now 3)"),
    ],
    ids=["width", "variant", "data set", "seed"],
)
def test_a_checkpoint_of_other_parameters_is_refused_and_the_differing_keys_are_listed(
    tmp_path: Path, other: Setup, named: str
) -> None:
    own = small("base-jempp")
    stopped_at(short_run(own, tmp_path, key=run.key_of(own, "d")), 2)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="belongs to another run; these differ") as error:
        short_run(own, tmp_path, key=run.key_of(other, "d")).run()
    assert named in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_kind_of_device_is_refused_with_what_to_do(
    short_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = small("base-jempp")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", lambda self: stopped_at_first_save(self))
        with pytest.raises(KeyboardInterrupt):
            run.train(setup)
    (manifest,) = resume_folder(setup).glob("step-*/manifest.json")
    saved = files.read_json(manifest)
    files.write_json(manifest, saved | {"key": saved["key"] | {"device": "cuda"}})
    told = r"was made on cuda, whose random streams cpu cannot continue: set device: cuda to go on, or delete .* afresh"
    with pytest.raises(UserError, match=told):
        run.train(setup)


def stopped_at_first_save(run: Trainer) -> None:
    run._save()
    raise KeyboardInterrupt


def test_the_state_before_a_damaged_epoch_start_is_used_and_both_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = undisturbed()
    stopped_at(short_run("ebjdat-jempp", tmp_path), 9)
    middle, start = sorted(tmp_path.glob("step-*"))[::-1][:2]
    assert (middle.name, start.name) == ("step-0000-000002-00000001", "step-0000-000002-00000000")
    (start / "state.pt").write_bytes(b"")
    assert fingerprint(short_run("ebjdat-jempp", tmp_path).run()) == expected
    told = capsys.readouterr().err
    assert f"{middle} is not used: {start.name}/state.pt does not have the hash" in told
    assert f"{start} is not used" in told


NAN, INF = float("nan"), float("inf")


CAUSES = {
    "loss": "loss is",
    "gradient": "gradient norm is",
    "energy": "energy_clean is",
    "chain": "energy_generated is",
    "buffer": "buffer mean is",
}


@pytest.mark.parametrize("value", [NAN, INF], ids=str)
@pytest.mark.parametrize("what", CAUSES)
def test_nan_or_inf_in_loss_gradient_energy_chain_or_buffer_takes_no_step_and_rolls_back(
    what: str, value: float
) -> None:
    run = short_run(small("base-jempp", epochs=2))
    steps = break_at(run, what, value, {(1, 1)})
    told: list[dict[str, Any]] = []
    run.note = told.append
    outcome = run.run()
    assert steps == [8 + 1]
    (event,) = outcome.events
    assert (event["retry"], event["epoch"], event["step"]) == (1, 1, 1)
    assert CAUSES[what] in event["cause"] or event["cause"].startswith("loss is")
    assert told == outcome.events
    assert all(bool(tensor.isfinite().all()) for tensor in outcome.last.state_dict().values())
    assert bool(run.state.buffer.images.isfinite().all())  # type: ignore[union-attr]
    assert [row["rollbacks"] for row in outcome.history] == [0, 1]


def test_the_stream_after_a_rollback_is_new_and_the_same_each_time() -> None:
    def outcome() -> tuple[Any, ...]:
        run = short_run("ebjdat-jempp")
        break_at(run, "loss", NAN, {(1, 2)})
        return fingerprint(run.run())

    assert outcome() == outcome() != undisturbed()


def diverging(folder: Path | None = None) -> Trainer:
    """A run whose loss is NaN twice."""
    run = short_run("ebjdat-jempp", folder)
    break_at(run, "loss", NAN, {(1, 2), (2, 1)}, retries=1)
    return run


@functools.cache
def never_stopped() -> tuple[list[dict[str, Any]], str]:
    """Events, and the hash of everything, of that run."""
    run = diverging()
    return run.run().events, everything(run)


@pytest.mark.parametrize("iterations", [5, 6], ids=["after one step", "right before"])
def test_a_run_stopped_inside_an_epoch_that_diverges_later_rolls_back_as_the_undisturbed_run(
    tmp_path: Path, iterations: int
) -> None:
    stopped_at(diverging(tmp_path), iterations)
    stopped_at(diverging(tmp_path), 6 if iterations == 5 else 5)
    again = diverging(tmp_path)
    events = again.run().events
    assert len(events) == 2 and (events, everything(again)) == never_stopped()


def test_after_the_last_retry_a_divergence_error_names_statistics_and_sample_grid(
    short_training: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = small("base-jempp")
    original = Trainer.__init__

    def broken(self: Trainer, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        break_at(self, "buffer", NAN, {(0, 1)}, retries=99)

    monkeypatch.setattr(Trainer, "__init__", broken)
    with pytest.raises(SystemExit) as ended:
        command.run(lambda: train_with_curves(setup))
    assert ended.value.code == DivergenceError.exit_code == 3
    folder = files.scratch("diverged", "digits", "base-jempp", resume_folder(setup).name)
    told = capsys.readouterr().err
    assert "5 retries did not help: lower the learning rate or raise the input noise" in told
    assert f"statistics and samples are in {folder}" in told and f"{setup.run}: training diverged" in told
    assert "5 retries" in files.read_json(setup.run.diverged)["cause"], "git has it, and pages say it"
    statistics = files.read_json(folder / "statistics.json")
    assert [event["retry"] for event in statistics["events"]] == [1, 2, 3, 4, 5]
    assert statistics["buffer"]["finite share"] < 1
    assert "nan" in statistics["last iterations"][-1].values()
    from PIL import Image

    with Image.open(folder / "samples.png") as picture:
        assert picture.size == (8 * 9 + 1, 5 * 9 + 1)
    assert run_of(setup).info.status == "FAILED"
    tags = run_of(setup).data.tags
    assert {f"rollback.{retry}" for retry in range(1, 6)} <= set(tags) and "5 retries" in tags["diverged"]
    assert not (setup.run.model_dir / "summary.json").exists()


def watch(gaps: list[float], **options: Any) -> tuple[int, str]:
    """Iterations until the supervisor objects, and what it says."""
    supervisor, seen = Supervisor(**options), short_run("base-jempp").state
    for number, gap in enumerate(gaps):
        try:
            supervisor.check(seen, {"loss": 0.0, "energy_gap_px": gap})
        except Diverged as cause:
            return number, str(cause)
    return len(gaps), ""


def test_an_energy_gap_that_drifts_is_caught_by_its_trend_long_before_an_overflow() -> None:
    growing = [0.5 * 1.02**n for n in range(3000)]
    number, cause = watch(growing)
    assert "rose from" in cause and growing[number] < 100
    number, cause = watch([5 + 0.08 * n for n in range(3000)])
    assert "rose from" in cause and 5 + 0.08 * number < 50
    assert "reached" in watch([60.0] * 200)[1]


def test_a_healthy_gap_noisy_large_or_settling_is_no_trend() -> None:
    noise = torch.rand(3000, generator=torch.Generator().manual_seed(0)).tolist()
    assert watch([3 * value for value in noise])[1] == ""
    assert watch([20 + 5 * value for value in noise])[1] == ""
    assert watch([8 * (1 - 0.98**n) + value for n, value in enumerate(noise)])[1] == ""


def test_out_of_memory_in_training_writes_a_checkpoint_and_says_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = short_run("ebjdat-jempp", tmp_path)
    original = run._iteration

    def too_large(batch: Any) -> None:
        if (run.state.epoch, run.state.step) == (1, 2):
            for name in ("restore", "snapshot"):  # they need memory on the device
                monkeypatch.setattr(run.state, name, None)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        original(batch)

    run._iteration = too_large  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"out of memory at epoch 1 .* a checkpoint .* lower batch_size") as error:
        run.run()
    assert error.value.__context__ is None, "it would keep the iteration's graph in the device's memory"
    assert sorted(tmp_path.glob("step-*"))[-1].name == "step-0000-000001-00000000"
    expected = undisturbed()
    assert fingerprint(short_run("ebjdat-jempp", tmp_path).run()) == expected


def test_a_second_run_on_one_model_folder_exits_and_names_the_holder(short_training: None) -> None:
    setup = small(epochs=1)
    folder = setup.run.model_dir

    def refused() -> None:
        with pytest.raises(UserError, match=rf"the model folder .* is in use by process {os.getppid()} "):
            run.train(setup)

    with files.hold(folder.with_name(f".{folder.name}.lock"), "the model folder"):
        assert in_child(refused) == 0

    def die_holding() -> None:
        Trainer.run = lambda self: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
        run.train(setup)

    assert in_child(die_holding) == -signal.SIGKILL
    run.train(setup)


def test_cuda_that_is_absent_is_said_at_once_and_the_default_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"PyTorch sees no CUDA device.*; write device: cpu or auto"):
        choose_device("cuda")
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


def test_a_gpu_that_cannot_be_used_costs_one_warning_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old.\nUpdate it.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices._warn.cache_clear()
    assert choose_device("auto") == choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    assert capsys.readouterr().err == (
        "warning: the CPU computes, though this machine has a GPU: PyTorch sees no CUDA device (The NVIDIA driver on "
        "your system is too old)\n"
    )
    with pytest.raises(UserError, match=r"too old\); write device: cpu or auto") as error:
        choose_device("cuda")
    assert error.value.exit_code == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "sm_120"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    with pytest.raises(UserError, match=r"capability 7\.0, and this PyTorch is built for 7\.5 and newer"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    assert choose_device("auto") == torch.device("cuda")


def test_saving_takes_at_most_its_share_of_the_time_and_long_epochs_are_saved_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    checkpoints = Checkpoints(tmp_path, {}, minutes=10, share=0.02, clock=lambda: now)
    run = short_run("base-jempp")
    write = checkpoints._write

    def slow(*arguments: Any) -> None:
        nonlocal now
        now += 3.0
        write(*arguments)

    monkeypatch.setattr(checkpoints, "_write", slow)
    assert checkpoints.due(epoch_ends=True) and not checkpoints.due(epoch_ends=False)
    checkpoints.save(run.good, run.good, None)
    assert not checkpoints.due(epoch_ends=True)
    now += 149.0
    assert not checkpoints.due(epoch_ends=True)
    now += 1.0
    assert checkpoints.due(epoch_ends=True) and not checkpoints.due(epoch_ends=False)
    now += 450.0
    assert checkpoints.due(epoch_ends=False)


@pytest.mark.parametrize(("model", "copies"), [("ebjdat-jempp", 2), ("ebjdat-sadajem", 2), ("ebjdat-jem", 3)])
def test_a_state_on_disk_is_weights_and_optimiser_and_the_buffer(tmp_path: Path, model: str, copies: int) -> None:
    """SGD keeps one number per weight besides the weight, Adam two: nothing else of size is written."""
    run = short_run(model, tmp_path)
    stopped_at(run, 6)
    weights = sum(tensor.nbytes for tensor in run.state.model.state_dict().values())
    buffer = run.state.buffer.images.nbytes  # type: ignore[union-attr]
    overhead = 100_000  # names, generators, history, alignment of small tensors
    for path in tmp_path.glob("step-*"):
        assert (path / "state.pt").stat().st_size <= copies * weights + buffer + overhead


# A stopped run continues to the byte; damaged and foreign checkpoints


MODEL = "ebjdat-jempp"


@pytest.mark.parametrize("model", ["ebjdat-sadajem", "ebjdat-jem"])
def test_the_same_holds_in_bfloat16(tmp_path: Path, model: str) -> None:
    values = {"epochs": 1, "steps": 1, "attack_steps": 1, "bn_images": 10}  # most processors are slow at it
    setup = small(model, precision="bfloat16", **values)
    expected = fingerprint(short_run(setup).run())
    stopped_at(short_run(setup, tmp_path / "run"), 2)
    assert fingerprint(short_run(setup, tmp_path / "run").run()) == expected
    assert expected != fingerprint(short_run(small(model, **values)).run())


def test_training_does_not_depend_on_the_global_random_state() -> None:
    expected = undisturbed()
    torch.manual_seed(2)
    assert fingerprint(short_run(MODEL).run()) == expected


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a run that was stopped in its last epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    stopped_at(short_run(MODEL, folder), 9)
    return folder


def with_payload(state: Path, save: Callable[[object, Path], object]) -> None:
    """A pickle that its manifest vouches for."""
    save({"model": Payload()}, state)
    manifest = files.read_json(state.with_name("manifest.json"))
    manifest["files"]["state.pt"] = files.file_hash(state)
    files.write_json(state.with_name("manifest.json"), manifest)


DAMAGES: dict[str, Callable[[Path, bytes], object]] = {
    "flip": lambda state, content: state.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:]),
    "truncate": lambda state, content: state.write_bytes(content[:1000]),
    "empty": lambda state, content: state.write_bytes(b""),
    "no manifest": lambda state, content: state.with_name("manifest.json").unlink(),
    "no best": lambda state, content: state.with_name("manifest.json").write_text(
        '{"schema": 2, "key": {"width": 1}, "files": {"best-x.pt": "0"}}'
    ),
    "torch.save of a payload": lambda state, content: with_payload(state, torch.save),
    "pickle of a payload": lambda state, content: with_payload(
        state, lambda x, path: path.write_bytes(pickle.dumps(x))
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    newest = max(tmp_path.glob("step-*"))
    DAMAGES[damage](newest / "state.pt", (newest / "state.pt").read_bytes())
    assert fingerprint(short_run(MODEL, tmp_path).run()) == undisturbed()
    told = capsys.readouterr().err
    assert f"warning: {newest} is not used" in told
    assert ("cannot be read as a checkpoint of tensors and plain values" in told) == ("payload" in damage)


def test_no_whole_checkpoint_is_an_error_and_never_a_silent_fresh_start(stopped: Path, tmp_path: Path) -> None:
    for path in Path(shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)).glob("step-*"):
        (path / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        short_run(MODEL, tmp_path).run()


def test_a_drifting_energy_gap_is_caught_before_an_overflow() -> None:
    run = short_run(MODEL, supervisor=Supervisor(max_retries=0, gap_limit=0.01))
    with pytest.raises(DivergenceError, match="mean energy gap"):
        run.run()
