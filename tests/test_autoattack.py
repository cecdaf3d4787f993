"""The AutoAttack adapter: flags of the official package, resumable, with its warnings as data."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyautoattack
import pytest
import torch
from torch import Tensor, nn

from ebjdat.attacks import autoattack, memory
from ebjdat.attacks.autoattack import Job, run_job
from ebjdat.attacks.linf import NoisyModel
from ebjdat.attacks.memory import Memory, remembered
from ebjdat.attacks.outcomes import Outcomes
from ebjdat.attacks.slices import run_jobs
from ebjdat.errors import UserError
from ebjdat.evaluation.unreliable import kind_of
from ebjdat.model.energy import EnergyModel
from tests import ROOT
from tests.small_models import SmallNet, held_out, saved, trained

EPS = 24 / 255
DECIDED_BY = {"weights": "a" * 64, "device": "cpu"}


def job(attack: str = "apgd-ce", steps: int = 10, targets: int = 0, first: int = 0, last: int = 16) -> Job:
    return Job(
        protocol="standard", attack=attack, steps=steps, targets=targets, eps=EPS, seed=0, first=first, last=last
    )


def part(job: Job) -> tuple[Tensor, Tensor]:
    x, y = held_out(48)
    return x[job.first : job.last], y[job.first : job.last]


def robust_model() -> SmallNet:
    return trained(adversarial=True)


# The official package called directly


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official version ``standard`` with a smaller budget, for the adapter and for direct calls alike."""
    original = pyautoattack.AutoAttack._set_version

    def shortened(self: Any, version: str = "standard") -> None:
        original(self, version)
        self.apgd_targeted.__init__(self.model, n_iter=10, eps=self.epsilon, seed=self.seed, device=self.device)
        self.fab.n_iter, self.square.n_queries = 10, 300

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", shortened)


@pytest.mark.parametrize("attack", ["cascade", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"])
def test_every_attack_ends_where_the_model_is_right_on_no_image(short: None, attack: str) -> None:
    """github.com/fra31/auto-attack/issues/81."""
    task = job(attack, targets=9)
    x, _ = part(task)
    outcome = run_job(robust_model(), x, (robust_model()(x).argmax(1) + 1) % 10, task)
    assert not outcome.right.any() and not outcome.final.any() and tuple(outcome.robust) == tuple(task.attacks)


@pytest.mark.parametrize(
    ("attack", "steps", "targets"),
    [("apgd-ce", 100, 0), ("apgd-dlr", 100, 0), ("apgd-t", 10, 9), ("fab-t", 10, 9), ("square", 300, 0)],
)
def test_each_attack_alone_gives_the_flags_of_the_official_individual_evaluation(
    short: None, attack: str, steps: int, targets: int
) -> None:
    task = job(attack, steps, targets)
    x, y = part(task)
    outcome = run_job(robust_model(), x, y, task)
    direct = pyautoattack.AutoAttack(robust_model(), norm="Linf", eps=EPS, seed=0, version="standard")
    direct.attacks_to_run = [attack]
    _, y_adv = direct.run_standard_evaluation_individual(x, y, batch_size=16)[attack]
    np.testing.assert_array_equal(outcome.final, (y_adv == y).numpy())
    assert outcome.audit["distance"] <= EPS + 1e-6 and outcome.audit["changed"] > 0


def test_the_cascade_runs_the_official_budget() -> None:
    adversary = autoattack.official(robust_model(), job("cascade"))
    assert adversary.attacks_to_run == list(autoattack.CASCADE)
    assert (adversary.apgd.n_iter, adversary.apgd.n_restarts) == (100, 1)
    assert (adversary.apgd_targeted.n_iter, adversary.apgd_targeted.n_target_classes) == (100, 9)
    assert (adversary.fab.n_iter, adversary.fab.n_target_classes, adversary.fab.n_restarts) == (100, 9, 1)
    assert (adversary.square.n_queries, adversary.epsilon, adversary.seed) == (5000, EPS, 0)


def test_the_start_of_the_cascade_is_its_first_two_attacks(short: None) -> None:
    whole, start = (run_job(robust_model(), *part(job()), job(name)) for name in ("cascade", "cascade-start"))
    assert list(start.robust) == ["apgd-ce", "apgd-t"]
    np.testing.assert_array_equal(start.final, whole.robust["apgd-t"])
    assert (start.final <= whole.robust["apgd-ce"]).all() and start.final.any()


def test_jobs_of_two_checkpoints_each_meet_their_own_model() -> None:
    jobs = [job(), replace(job(), checkpoint="last")]
    load = {"best": robust_model, "last": trained}
    found = run_jobs(jobs, load, {task: part(task) for task in jobs})
    for task in jobs:
        np.testing.assert_array_equal(found[task].final, run_job(load[task.checkpoint](), *part(task), task).final)
    assert found[jobs[0]].final.sum() > found[jobs[1]].final.sum()
    assert jobs[0].label != jobs[1].label


def test_twenty_steps_of_apgd_are_those_of_an_attack_built_for_twenty() -> None:
    from pyautoattack.autopgd_base import APGDAttack

    task = job("apgd-dlr", 20)
    x, y = part(task)
    model = robust_model()
    right = model(x).argmax(1) == y
    direct = APGDAttack(model, n_iter=20, norm="Linf", n_restarts=1, eps=EPS, seed=0, loss="dlr", device="cpu")
    x_adv = direct.perturb(x[right], y[right])
    expected = right.clone()
    expected[right] = model(x_adv).argmax(1) == y[right]
    np.testing.assert_array_equal(run_job(model, x, y, task).final, expected.numpy())
    adversary = autoattack.official(model, task)
    for name in ("n_iter", "n_iter_orig", "n_iter_2", "n_iter_min", "size_decr", "n_restarts"):
        assert getattr(adversary.apgd, name) == getattr(direct, name)


def test_the_first_step_of_the_cascade_is_what_apgd_ce_finds_alone(short: None) -> None:
    cascade, alone = job("cascade", last=40), job("apgd-ce", 100, last=40)
    x, y = part(alone)
    in_cascade = run_job(robust_model(), x, y, cascade).robust["apgd-ce"]
    np.testing.assert_array_equal(in_cascade, run_job(robust_model(), x, y, alone).final)


# An upstream install


UPSTREAM = '''
"""The upstream package's signatures over the same attacks."""
import pyautoattack

class Logger:
    def log(self, text):
        print(text)

class AutoAttack(pyautoattack.AutoAttack):
    def __init__(self, model, norm="Linf", eps=.3, seed=None, verbose=True, attacks_to_run=[],
                 version="standard", is_tf_model=False, device="cuda", log_path=None):
        super().__init__(model, norm=norm, eps=eps, seed=seed, device=device, version=version,
                         attacks=attacks_to_run or None)
        self.logger.debug = lambda text: None
        self.log = Logger()

    def run_standard_evaluation(self, x_orig, y_orig, bs=250, return_labels=False, state_path=None):
        x_adv, y_adv = super().run_standard_evaluation(x_orig, y_orig, batch_size=bs, state_path=state_path)
        return (x_adv, y_adv) if return_labels else x_adv
'''


def test_an_upstream_install_gives_the_same_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "autoattack"
    folder.mkdir()
    (folder / "__init__.py").write_text(UPSTREAM)
    (folder / "checks.py").write_text("from pyautoattack.checks import *\nfrom pyautoattack.checks import funcs\n")
    task = job("apgd-ce", 20)
    expected = run_job(robust_model(), *part(task), task)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(autoattack, "PACKAGES", ("autoattack",))
    assert autoattack.package_version() == "autoattack without a version"
    np.testing.assert_array_equal(run_job(robust_model(), *part(task), task).final, expected.final)
    for name in ("autoattack", "autoattack.checks"):
        sys.modules.pop(name)


def test_upstream_warnings_are_counted_and_progress_is_dropped() -> None:
    from collections import Counter
    from types import SimpleNamespace

    counted: Counter[str] = Counter()
    holders = [SimpleNamespace(logger=None) for _ in range(2)]
    adversary = SimpleNamespace(logger=object(), apgd=holders[0], apgd_targeted=holders[1])
    autoattack._redirect_upstream(adversary, counted)
    adversary.logger.log("robust accuracy after APGD-CE: 50.00%")
    holders[1].logger.log("Warning: there are 3 points with zero gradient!")
    assert counted == {"there are 3 points with zero gradient!": 1}


def test_no_package_at_all_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "PACKAGES", ("no_such_autoattack",))
    with pytest.raises(UserError, match="install the package pyautoattack"):
        autoattack.package()


# Warnings


def kinds(model: nn.Module, attack: str = "apgd-dlr") -> set[str]:
    task = job(attack, 2)
    return {kind_of(text) for text in run_job(model, *part(task), task).warnings}


class _Saturated(nn.Module):
    """Probabilities that saturate: no gradient gets through."""

    def __init__(self) -> None:
        super().__init__()
        self.model = trained()

    def forward(self, x: Tensor) -> Tensor:
        return (1e4 * self.model(x)).softmax(1)


class _Optimising(nn.Module):
    """Takes a gradient at inference."""

    def __init__(self) -> None:
        super().__init__()
        self.model = trained()

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            probe = x.detach().clone().requires_grad_()
            torch.autograd.grad(probe.sum(), probe)
        return self.model(x)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: NoisyModel(trained(), 0.2, torch.Generator().manual_seed(0)), {"randomised"}),
        (_Saturated, {"zero-gradient", "probabilities"}),
        (_Optimising, {"optimisation-at-inference"}),
    ],
    ids=["random", "saturated-probabilities", "optimises-at-inference"],
)
def test_a_suspicious_model_is_warned_about_and_no_other(model: Callable[[], nn.Module], expected: set[str]) -> None:
    assert expected <= kinds(model())
    assert kinds(trained()) == set()


def test_every_official_warning_has_a_kind() -> None:
    square = "Square Attack has decreased the robust accuracy of 2.00%. This might indicate that"
    assert kind_of(square) == "square-stronger"
    assert kind_of("with only 3 classes it is not possible to use the targeted DLR loss!") == "other"


def test_warnings_are_not_printed(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    kinds(_Saturated())
    assert not caplog.records and not capsys.readouterr().err
    assert logging.getLogger("auto-attack").propagate


# Side effects


def test_global_random_state_trace_function_and_model_come_back() -> None:
    model = robust_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, trace = torch.random.get_rng_state(), sys.gettrace()
    task = job("fab-t", 3, 9)
    run_job(model, *part(task), task)
    assert torch.equal(torch.random.get_rng_state(), state) and sys.gettrace() is trace
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# On disk


JOBS = [
    job("square", 1500),
    job("apgd-dlr", 5),
    job("square", 1500, first=16, last=32),
    job("apgd-ce", 5),
]


def run(folder: Path, workers: int = 1, jobs: list[Job] = JOBS, **changed: str) -> dict[Job, autoattack.Outcome]:
    images = {task: part(task) for task in jobs}
    weights = folder.with_suffix(".pt")
    torch.save(robust_model().state_dict(), weights)
    load = partial(saved, weights)
    done = Outcomes(folder, DECIDED_BY | changed)
    return run_jobs(jobs, {"best": load, "last": load}, images, done=done, workers=workers)


def equal(left: dict[Job, autoattack.Outcome], right: dict[Job, autoattack.Outcome]) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(left[task].right, right[task].right)
        and list(left[task].robust) == list(right[task].robust)
        and all(np.array_equal(left[task].robust[name], right[task].robust[name]) for name in left[task].robust)
        and (left[task].audit, left[task].warnings) == (right[task].audit, right[task].warnings)
        for task in left
    )


KILLED = """
import sys
from pathlib import Path

if __name__ == "__main__":
    from tests.test_autoattack import LONG, run

    run(Path(sys.argv[1]), workers=2, jobs=LONG)
"""
LONG = [*JOBS, job("square", 3000, first=32, last=48)]
"""The last takes seconds longer than workers need to see that their parent is gone."""


def alive(word: str) -> int:
    """Processes whose environment holds ``word``."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found += word.encode() in path.read_bytes()
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_workers_end_with_their_killed_parent_and_their_finished_attacks_are_kept(tmp_path: Path) -> None:
    script, folder, mark = tmp_path / "killed.py", tmp_path / "states", f"EBJDAT_TEST={tmp_path}"
    script.write_text(KILLED)
    environment = os.environ | {"EBJDAT_TEST": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, str(script), str(folder)], env=environment, cwd=ROOT) as process:
        assert wait_until(lambda: len(list(folder.glob("*.json"))) >= 1), "no attack finished"
        process.kill()
    assert wait_until(lambda: alive(mark) == 0, 30.0), "a worker outlives its parent"
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert 1 <= len(kept) < len(LONG)
    assert equal(run(folder, jobs=LONG), run(tmp_path / "whole", jobs=LONG))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "no finished attack ran again"


@pytest.mark.parametrize("name", ["weights", "device", "data slice", "eps", "seed", "attack"])
def test_the_state_of_another_evaluation_is_refused_by_name(tmp_path: Path, name: str) -> None:
    run(tmp_path, jobs=JOBS[1:2])
    (path,) = tmp_path.glob("*.json")
    stored = json.loads(path.read_text())
    stored["decided by"][name] = "another"
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=rf"another evaluation \({name}: expected .*, found another\): delete it"):
        run(tmp_path, jobs=JOBS[1:2])


def test_the_outcome_survives_the_disk(tmp_path: Path) -> None:
    done = Outcomes(tmp_path)
    flags = {"square": np.array([True, False, False]), "apgd-ce": np.array([False, False, False])}
    done.write("attack", flags, {"audit": {"distance": 0.1}, "warnings": {"a warning": 3}}, seed="0")
    read = done.read("attack", seed="0")
    assert read is not None and list(read[0]) == ["square", "apgd-ce"], "the order of a cascade"
    assert all(np.array_equal(read[0][name], found) for name, found in flags.items())
    assert read[1]["warnings"] == {"a warning": 3}
    assert done.read("another attack") is None


def test_the_progress_shows_the_accuracy_after_the_cascade_and_takes_no_old_work_for_new(
    tmp_path: Path, short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [job("cascade"), job("apgd-ce", 5)]
    found = run(tmp_path, jobs=jobs)
    shown = capsys.readouterr().err.splitlines()
    assert f"robust {found[jobs[0]].final.mean():.4g}" in shown[-1], "not that of the attack that ran last"
    assert shown[-1].startswith("autoattack: 100 %")
    run(tmp_path, jobs=jobs)
    assert capsys.readouterr().err == ""


# Square's memory: the logits and flags of the model itself, with fewer passes


class _Inner(nn.Module):
    """The small network over images in [-1, 1]; the shift, if any, is the mean of the batch."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.model, self.shift = trained(adversarial=True), shift

    def forward(self, u: Tensor) -> Tensor:
        logits = self.model((u + 1.0) / 2.0)
        return logits + self.shift * logits.mean() if self.shift else logits


def ours(shift: float = 0.0) -> EnergyModel:
    return EnergyModel(_Inner(shift)).eval().requires_grad_(False)


def test_answers_are_those_of_the_model_to_the_bit_and_no_image_is_computed_twice() -> None:
    model, (x, _) = ours(), held_out(40)
    predict = Memory(model, room=60)
    moved = (x + 0.1).clamp(0.0, 1.0)
    mixed = torch.cat([x[:20], moved[:20]])
    for images, computed in ((x, 40), (mixed, 60), (x[3:9], 60), (x[:1], 61), (x[:1], 61), (moved, 101), (moved, 101)):
        logits = predict(images)
        assert torch.equal(logits, model(images)) and predict.computed == computed
        logits.fill_(torch.nan)  # the attack writes into them
    assert torch.equal(predict(moved[[5, 5]]), model(moved[[5, 5]]))


def test_one_new_image_among_old_ones_is_rounded_as_in_a_batch() -> None:
    model, (x, _) = ours(), held_out(40)
    predict = Memory(model)
    predict(x[:39])
    assert torch.equal(predict(x), model(x))


def test_square_finds_what_the_official_package_finds_with_few_of_the_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = Job(protocol="standard", attack="square", steps=2500, targets=0, eps=24 / 255, seed=0, first=0, last=16)
    made: list[Memory] = []

    class Kept(Memory):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model)
            made.append(self)

    monkeypatch.setattr(memory, "Memory", Kept)
    x, y = held_out(16)
    outcome = run_job(ours(), x, y, job)
    direct = pyautoattack.AutoAttack(ours(), norm="Linf", eps=job.eps, seed=0, version="standard")
    direct.attacks_to_run, direct.square.n_queries = ["square"], job.steps
    x_adv, y_adv = direct.run_standard_evaluation(x, y, batch_size=16)
    np.testing.assert_array_equal(outcome.final, (y_adv == y).numpy())
    assert 0 < outcome.final.sum() < outcome.right.sum()
    assert outcome.audit["distance"] == float((x_adv - x).abs().max())
    assert outcome.audit["changed"] == int((x_adv != x).flatten(1).any(1).sum())
    (used,) = made
    assert used.asked > 20_000 and used.computed < 0.3 * used.asked


def test_a_model_whose_answers_a_memory_could_change_is_asked_every_time() -> None:
    x, _ = held_out(16)
    assert isinstance(remembered(ours(), x), Memory)
    foreign, mixing = trained(adversarial=True), ours(shift=0.5)
    assert remembered(foreign, x) is foreign, "it may be random, or count its calls"
    assert remembered(mixing, x) is mixing, "its answers depend on the batch"
    alone = ours()
    assert remembered(alone, x[:1]) is alone
