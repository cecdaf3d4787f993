"""Faults of training: kills, signals, damage, divergence, memory; see docs/faults.md."""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
import yaml
from torch import Tensor

from ebjdat import command, files, provenance
from ebjdat.config import Params, load_params, to_plain
from ebjdat.data.prepared import Prepared
from ebjdat.device import choose_device
from ebjdat.errors import DivergenceError, UserError
from ebjdat.reporting import tracking
from ebjdat.subject import Subject
from ebjdat.training import run
from ebjdat.training.loop import Trainer
from ebjdat.training.state import Checkpoints
from ebjdat.training.supervisor import Diverged, Supervisor
from stages import training
from tests.small_runs import PARAMS, fingerprint, small, stopped_at, tiny_data, trainer
from tests.synthetic import clean_environment, use_empty_store

VARIANTS = ["jem", "jempp", "sadajem"]
EVERY_STEP: dict[str, Any] = {"minutes": 0.0, "share": math.inf}


@pytest.fixture(scope="module")
def data() -> Prepared:
    return tiny_data()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Prepared) -> Path:
    """A checkout with short training on tiny data and an empty MLflow store."""
    clean_environment(monkeypatch, tmp_path)
    monkeypatch.setattr(run, "load_prepared", lambda folder: data)
    monkeypatch.setattr(run, "Checkpoints", lambda folder, key: Checkpoints(folder, key, **EVERY_STEP))
    files.write_json(Path("data/digits/manifest.json"), {"digest": "d"})
    use_empty_store()
    return tmp_path


def everything(run: Trainer) -> str:
    """Hash of the final weights, optimiser, buffer, generators, history and best model."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(run.state.snapshot())
    add(run.state.best)
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
        "in the validation": (Trainer, "_validate"),
    }
    owner, attribute = places[name]
    original, visits = getattr(owner, attribute), [0]

    def counted(*arguments: Any, **named: Any) -> Any:
        visits[0] += 1
        if visits[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(owner, attribute, counted)


def in_child(action: Callable[[], object]) -> int:
    """Run ``action`` in a copy of this process; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            action()
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
        except BaseException:
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_kill_9_in_a_step_in_a_save_and_between_files_ends_as_the_run_that_was_never_killed(
    data: Prepared, tmp_path: Path, variant: str
) -> None:
    whole = trainer(data, ("ebjdat", variant), None)
    whole.run()

    def again() -> Trainer:
        fresh = trainer(data, ("ebjdat", variant), tmp_path)
        fresh.checkpoints = Checkpoints(tmp_path, {"width": 1}, **EVERY_STEP)
        return fresh

    for place, count in KILLS:
        assert in_child(lambda p=place, c=count: (kill_at(p, c), again().run())) == -signal.SIGKILL, place
    resumed = again()
    resumed.run()
    assert everything(resumed) == everything(whole)
    assert [row["epoch"] for row in resumed.state.history] == [1, 2, 3]
    assert not list(tmp_path.glob(".*"))


def shortened() -> Params:
    params = small()
    files.write_text("params.yaml", yaml.safe_dump(json.loads(json.dumps(to_plain(params)))))
    return params


def test_a_kill_between_the_files_of_a_model_is_made_good_by_the_same_command(workspace: Path) -> None:
    params = shortened()
    subject = Subject.current(params)
    expected = run.train_subject(params, subject)
    hashes = {path.name: provenance.file_hash(path) for path in subject.model_dir.iterdir()}
    shutil.rmtree(subject.model_dir)

    def killed() -> None:
        original = run.save_model

        def second(path: Path, *rest: Any) -> None:
            if path.name == "last.pt":
                os.kill(os.getpid(), signal.SIGKILL)
            original(path, *rest)

        run.save_model = second
        run.train_subject(params, subject)

    assert in_child(killed) == -signal.SIGKILL
    left = {path.name for path in subject.model_dir.iterdir()}
    assert "best.pt" in left and not left & {"last.pt", "summary.json"}
    assert run.train_subject(params, subject) == expected
    assert {path.name: provenance.file_hash(path) for path in subject.model_dir.iterdir()} == hashes


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_sigterm_and_ctrl_c_write_a_checkpoint_mark_the_run_killed_and_delete_nothing(
    workspace: Path, number: int, code: int
) -> None:
    params = shortened()
    subject = Subject.current(params)

    def stopped() -> None:
        original = Trainer._iteration

        def signalled(self: Trainer, batch: Any) -> None:
            original(self, batch)
            if (self.state.epoch, self.state.step) == (1, 1):
                os.kill(os.getpid(), number)

        Trainer._iteration = signalled  # type: ignore[method-assign]
        command.run(lambda: training.train_with_curves(load_params(), subject))

    assert in_child(stopped) == code
    identity = subject.identity(params, "train", "d")
    assert [path.name for path in sorted(files.scratch("resume", identity).glob("step-*"))][-1].endswith("1-00000002")
    store = tracking.Store.open("digits")
    assert store.parent(subject, identity, {}).info.status == "KILLED"
    training.train_with_curves(params, subject)
    assert store.parent(subject, identity, {}).info.status == "FINISHED"
    whole = trainer(tiny_data(), ("ebjdat", "jempp"), None, params=params).run()
    assert files.read_json(subject.model_dir / "summary.json")["last_sha256"] == fingerprint(whole)[1]


def keys(**changes: Any) -> dict[str, Any]:
    params = dataclasses.replace(PARAMS, **{name: changes[name] for name in changes if name != "width"})
    if "width" in changes:
        profile = params.current
        network = dataclasses.replace(profile.network, width=changes["width"])
        changed = dataclasses.replace(profile, network=network)
        params = dataclasses.replace(params, profiles={**params.profiles, params.profile: changed})
    resolved = run._flat(Subject.current(params).resolved(params, "train"))
    return {"identity": provenance.digest(resolved), **resolved}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": 2}, "network.width (1, now 2)"),
        ({"variant": "sadajem"}, "sharpness (0.0, now 2.0)"),
        ({"profile": "cifar10-smoke"}, "data.dataset ('digits', now 'cifar10')"),
        ({"seed": 3}, "seed (0, now 3)"),
    ],
    ids=["width", "variant", "data set", "seed"],
)
def test_a_checkpoint_of_other_parameters_is_refused_and_the_differing_keys_are_listed(
    data: Prepared, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    stopped_at(trainer(data, ("base", "jempp"), tmp_path, key=keys()), 2)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="belongs to another run; these differ") as error:
        trainer(data, ("base", "jempp"), tmp_path, key=keys(**change)).run()
    assert named in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


class Payload:
    """A pickle that would leave a file if it were executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_checkpoint_with_a_pickle_payload_is_refused_unexecuted_and_the_one_before_is_used(
    data: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    stopped_at(trainer(data, ("base", "jempp"), tmp_path / "run"), 6)
    newest = sorted((tmp_path / "run").glob("step-*"))[-1]
    payload = {"model": Payload(tmp_path / "executed")}
    if how == "pickle":
        (newest / "state.pt").write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, newest / "state.pt")
    manifest = files.read_json(newest / "manifest.json")
    manifest["files"]["state.pt"] = provenance.file_hash(newest / "state.pt")
    files.write_json(newest / "manifest.json", manifest)
    trainer(data, ("base", "jempp"), tmp_path / "run").run()
    assert "cannot be read as a checkpoint of tensors and plain values" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_the_state_before_a_damaged_epoch_start_is_used_and_both_are_named(
    data: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = fingerprint(trainer(data, ("ebjdat", "jempp"), None).run())
    stopped_at(trainer(data, ("ebjdat", "jempp"), tmp_path), 9)
    middle, start = sorted(tmp_path.glob("step-*"))[::-1][:2]
    assert (middle.name, start.name) == ("step-0000-000002-00000001", "step-0000-000002-00000000")
    (start / "state.pt").write_bytes(b"")
    assert fingerprint(trainer(data, ("ebjdat", "jempp"), tmp_path).run()) == expected
    told = capsys.readouterr().err
    assert f"{middle} is not used: {start.name}/state.pt does not have the hash" in told
    assert f"{start} is not used" in told


NAN, INF = float("nan"), float("inf")


def break_at(run: Trainer, what: str, value: float, when: set[tuple[int, int]], *, retries: int = 0) -> list[int]:
    """Put ``value`` into ``what`` at iterations (epoch, step) of the first ``retries`` + 1 tries; steps taken."""
    original, prepare, steps = run.recipe.objective.loss, run.recipe.objective.prepare, [0]

    def due() -> bool:
        return (run.state.epoch, run.state.step) in when and run.state.retries <= retries

    class Broken:
        def prepare(self, model: Any, batch: Any, buffer: Any, streams: Any) -> Any:
            prepared = prepare(model, batch, buffer, streams)
            if due() and what == "buffer":
                buffer.images[-1, 0, 0, 0] = value
            if due() and what == "chain":
                prepared.x_gen[0, 0, 0, 0] = value
            return prepared

        def loss(self, model: Any, prepared: Any) -> Any:
            total, terms = original(model, prepared)
            if due() and what == "loss":
                total = total * value
                terms = {**terms, "loss": total.detach()}
            if due() and what == "energy":
                terms = {**terms, "energy_clean": terms["energy_clean"] * value}
            if due() and what == "gradient":
                first = next(model.parameters())
                total = total + (first * value).sum() - (first * value).sum().detach()
                terms = {**terms}
            return total, terms

    object.__setattr__(run.recipe, "objective", Broken())
    step = run.state.optimiser.step

    def counted(*arguments: Any, **options: Any) -> Any:
        assert not due()
        steps[0] += 1
        return step(*arguments, **options)

    run.state.optimiser.step = counted  # type: ignore[method-assign]
    return steps


CAUSES = {
    "loss": "loss is",
    "gradient": "gradient norm is",
    "energy": "energy_clean is",
    "chain": "energy_generated is",
    "buffer": "buffer mean is",
}


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("what", CAUSES)
def test_nan_or_inf_in_loss_gradient_energy_chain_or_buffer_takes_no_step_and_rolls_back(
    data: Prepared, what: str, value: float
) -> None:
    run = trainer(data, ("base", "jempp"), None, params=small(epochs=2))
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


def test_the_stream_after_a_rollback_is_new_and_the_same_each_time(data: Prepared) -> None:
    def outcome(breaks: bool) -> tuple[Any, ...]:
        run = trainer(data, ("ebjdat", "jempp"), None)
        if breaks:
            break_at(run, "loss", NAN, {(1, 2)})
        return fingerprint(run.run())

    assert outcome(True) == outcome(True) != outcome(False)


@pytest.mark.parametrize("iterations", [5, 6], ids=["after one step", "right before"])
def test_a_run_stopped_inside_an_epoch_that_diverges_later_rolls_back_as_the_undisturbed_run(
    data: Prepared, tmp_path: Path, iterations: int
) -> None:
    def fresh(folder: Path | None) -> Trainer:
        run = trainer(data, ("ebjdat", "jempp"), folder)
        break_at(run, "loss", NAN, {(1, 2), (2, 1)}, retries=1)
        return run

    undisturbed, again = fresh(None), None
    outcome = undisturbed.run()
    stopped_at(fresh(tmp_path), iterations)
    stopped_at(fresh(tmp_path), 6 if iterations == 5 else 5)
    again = fresh(tmp_path)
    assert again.run().events == outcome.events
    assert len(outcome.events) == 2
    assert everything(again) == everything(undisturbed)


def test_after_the_last_retry_a_divergence_error_names_statistics_and_sample_grid(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = dataclasses.replace(shortened(), method="base")
    subject = Subject.current(params)
    original = Trainer.__init__

    def broken(self: Trainer, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        break_at(self, "buffer", NAN, {(0, 1)}, retries=99)

    monkeypatch.setattr(Trainer, "__init__", broken)
    with pytest.raises(SystemExit) as ended:
        command.run(lambda: training.train_with_curves(params, subject))
    assert ended.value.code == DivergenceError.exit_code == 3
    identity = subject.identity(params, "train", "d")
    folder = files.scratch("diverged", f"base-jempp-0-{identity}")
    told = capsys.readouterr().err
    assert "5 retries did not help: lower the learning rate or raise the input noise" in told
    assert f"statistics and samples are in {folder}" in told
    statistics = files.read_json(folder / "statistics.json")
    assert [event["retry"] for event in statistics["events"]] == [1, 2, 3, 4, 5]
    assert statistics["buffer"]["finite share"] < 1
    assert "nan" in statistics["last iterations"][-1].values()
    from PIL import Image

    with Image.open(folder / "samples.png") as picture:
        assert picture.size == (8 * 9, 5 * 9)
    run_of = tracking.Store.open("digits").parent(subject, identity, {})
    assert run_of.info.status == "FAILED"
    assert {f"rollback.{retry}" for retry in range(1, 6)} <= set(run_of.data.tags)
    assert "5 retries" in run_of.data.tags["diverged"]
    assert not (subject.model_dir / "summary.json").exists()


def watch(gaps: list[float], **options: Any) -> tuple[int, str]:
    """Iterations until the supervisor objects, and what it says."""
    supervisor, seen = Supervisor(**options), trainer(tiny_data(), ("base", "jempp"), None).state
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


def test_out_of_memory_in_training_writes_a_checkpoint_and_says_what_to_lower(data: Prepared, tmp_path: Path) -> None:
    run = trainer(data, ("ebjdat", "jempp"), tmp_path)
    original = run._iteration

    def too_large(batch: Any) -> None:
        if (run.state.epoch, run.state.step) == (1, 2):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        original(batch)

    run._iteration = too_large  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"out of memory at epoch 1 on cpu; a checkpoint .* lower batch_size"):
        run.run()
    assert sorted(tmp_path.glob("step-*"))[-1].name == "step-0000-000001-00000000"
    expected = fingerprint(trainer(data, ("ebjdat", "jempp"), None).run())
    assert fingerprint(trainer(data, ("ebjdat", "jempp"), tmp_path).run()) == expected


def test_a_second_run_on_one_model_folder_exits_and_names_the_holder(workspace: Path) -> None:
    params = shortened()
    first, second = Subject.current(params), Subject.current(dataclasses.replace(params, seed=1))
    assert first.model_dir == second.model_dir

    original = Trainer.run

    def hold_while_another_tries(self: Trainer) -> Any:
        assert in_child(lambda: refused(f"process {os.getppid()} ")) == 0
        return original(self)

    def refused(holder: str) -> None:
        with pytest.raises(UserError) as error:
            run.train_subject(params, second)
        assert "the model folder" in str(error.value) and holder in str(error.value)

    Trainer.run = hold_while_another_tries  # type: ignore[method-assign]
    try:
        run.train_subject(params, first)
    finally:
        Trainer.run = original  # type: ignore[method-assign]

    def die_holding() -> None:
        Trainer.run = lambda self: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
        run.train_subject(params, second)

    assert in_child(die_holding) == -signal.SIGKILL
    run.train_subject(params, first)


def test_cuda_that_is_absent_is_said_at_once_and_the_default_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch sees no CUDA device; write device: cpu or auto"):
        choose_device("cuda")
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_saving_takes_at_most_its_share_of_the_time_and_long_epochs_are_saved_inside(
    data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    checkpoints = Checkpoints(tmp_path, {}, minutes=10, share=0.02, clock=clock)
    run = trainer(data, ("base", "jempp"), None)
    write = checkpoints._write

    def slow(*arguments: Any) -> None:
        clock.now += 3.0
        write(*arguments)

    monkeypatch.setattr(checkpoints, "_write", slow)
    assert checkpoints.due(epoch_ends=True) and not checkpoints.due(epoch_ends=False)
    checkpoints.save(run.state, run.good)
    assert not checkpoints.due(epoch_ends=True)
    clock.now += 149.0
    assert not checkpoints.due(epoch_ends=True)
    clock.now += 1.0
    assert checkpoints.due(epoch_ends=True) and not checkpoints.due(epoch_ends=False)
    clock.now += 450.0
    assert checkpoints.due(epoch_ends=False)
    assert (checkpoints.spent, checkpoints.saves) == (3.0, 1)


@pytest.mark.parametrize(("variant", "copies"), [("jempp", 2), ("sadajem", 2), ("jem", 3)])
def test_a_state_on_disk_is_weights_and_optimiser_and_the_buffer(
    data: Prepared, tmp_path: Path, variant: str, copies: int
) -> None:
    """SGD keeps one number per weight besides the weight, Adam two: nothing else of size is written."""
    run = trainer(data, ("ebjdat", variant), tmp_path)
    stopped_at(run, 6)
    model = sum(tensor.nbytes for tensor in run.state.model.state_dict().values())
    buffer = run.state.buffer.images.nbytes  # type: ignore[union-attr]
    overhead = 100_000  # names, generators, history, alignment of small tensors
    for path in tmp_path.glob("step-*"):
        assert (path / "state.pt").stat().st_size <= copies * model + buffer + overhead
