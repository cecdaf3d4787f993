"""Whatever computes on a device, on a CUDA device that is pretended (``tests.pretended_cuda``): a line for each part.

python -m tests.rehearsal            everything
python -m tests.rehearsal train-jem clean      some parts
python -m tests.rehearsal --faults   plant device faults; which of them does their part notice?
python -m tests.rehearsal --costs    operations, casts and waits of the host in one iteration of WRN-10-1
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import pretended_cuda

STEPS = {"epochs": 2, "batch_size": 30, "px_batch_size": 30, "steps": 2, "attack_steps": 1, "validation_steps": 1}
"""Two epochs of two iterations."""
TRAININGS: dict[str, dict[str, Any]] = {
    "jem": {"precision": "bfloat16"},
    "jempp": {"precision": "bfloat16", "pad": 2, "flip": True, "bn_parts": 3, "gradient_clip": 1.0},
    "sadajem": {},
    "base-jempp": {},
    "control-jem": {},
    "pgd_at": {"precision": "bfloat16"},
    "trades": {},
    "dhat": {"precision": "bfloat16"},
    "undefended": {},
}
STAGES = ("clean", "transfer", "sweep", "eot", "autoattack", "generate")
NOTICED = 9
"""Exit code of a process whose fault was noticed."""
FAULTS = (  # file, text, what it becomes, who must notice
    ("training/loop.py", "seed)).to(self.device)", "seed))", "train-jempp"),
    ("training/augmentation.py", "torch.arange(height, device=device)", "torch.arange(height)", "train-jempp"),
    ("training/state.py", "value.detach().cpu().clone()", "value.detach().clone()", "train-jem"),
    ("training/streams.py", "Stream(device).manual", "Stream('cpu').manual", "train-jem"),
    ("training/optimisers.py", "rho / (norm + 1e-12)", "rho / (norm.cpu().reshape(1) + 1e-12)", "train-sadajem"),
    ("training/dhat.py", "(scaled > omega)", "(scaled > omega).cpu()", "train-dhat"),
    ("evaluation/clean.py", "(predicted == y).cpu()", "(predicted == y)", "clean"),
    ("attacks/linf.py", "noise.to(x.device).mul_(2.0)", "noise.mul_(2.0)", "sweep"),
    ("attacks/autoattack.py", "x.to(device_of(model)), y", "x.cpu(), y", "autoattack"),
    ("attacks/batches.py", ".argmax(1) == y", ".median(1)[1] == y", "sweep"),
)


def parts() -> dict[str, Callable[[], Any]]:
    """What can be rehearsed, by name."""
    torch.set_num_threads(1)
    from ebjdat.errors import UserError
    from ebjdat.training.run import _write
    from tests import small_models, small_runs, test_import, tiny
    from tests.synthetic import setup_of

    def trainer(model: str, where: str, folder: Path, **values: Any) -> Any:
        setup, device = small_runs.small(model, **STEPS | values), torch.device(where)
        helper = {"helper": small_runs.helper().to(device)} if setup.helper else {}
        key = {"device": where}
        return small_runs.trainer(small_runs.tiny_data(), setup, folder, device=device, key=key, **helper)

    def train(model: str, **values: Any) -> None:
        """Stopped and continued; everything that leaves the trainer is on the CPU."""
        folder = Path(tempfile.mkdtemp())
        small_runs.stopped_at(trainer(model, "cuda", folder, **values), 1)
        outcome = trainer(model, "cuda", folder, **values).run()
        _write(setup_of(small_runs.PARAMS, model).run, outcome, None)

    def same_as_cpu() -> None:
        """The pretended generators draw the CPU's numbers, so a run goes the same way."""
        runs = [trainer("ebjdat-jem", where, Path(tempfile.mkdtemp())).run().history for where in ("cpu", "cuda")]
        assert abs(runs[0][-1]["loss"] - runs[1][-1]["loss"]) < 1e-4 and runs[0][0].keys() == runs[1][0].keys()

    def other_device() -> None:
        for first, second in (("cpu", "cuda"), ("cuda", "cpu")):
            folder = Path(tempfile.mkdtemp())
            small_runs.stopped_at(trainer("undefended", first, folder), 1)
            try:
                trainer("undefended", second, folder).run()
            except UserError as error:
                assert f"set device: {first} to go on" in str(error)
            else:
                raise AssertionError("a checkpoint of the other device was taken")

    def workspace(*models: str) -> None:
        """Prepared data and trained models, as the pipeline leaves them; once."""
        tiny.IMAGES.update(clean=10, autoattack=4, transfer=4, sweep=4, eot=4)
        params = tiny.write_params(Path(), device="cuda", deterministic=True)
        if not params.runs()[0].data_dir.exists():
            tiny.prepare(params)
        for name in models:
            if not (setup_of(params, name).run.model_dir / "model.json").is_file():
                tiny.train(params, name)

    def stage(name: str, *words: str) -> None:
        sys.argv = [name, *words]
        importlib.import_module(f"stages.{name}").main()

    def of_a_run(name: str) -> None:
        workspace("ebjdat-jempp")
        if name == "generate":
            stage("reference")
        if name == "transfer":
            workspace("pgd_at", "undefended")
            for model in ("pgd_at", "undefended"):
                stage("craft", "--model", model)
        if name == "autoattack":
            small_models.shorten_autoattack(pytest.MonkeyPatch())
        stage(name)

    def imported() -> None:
        workspace()
        theirs = test_import.made("batch", "yopo", channels=1)
        path = test_import.saved(Path("theirs.pt"), test_import.checkpoint(theirs, shape=(1, 8, 8)))
        stage("import_checkpoint", str(path), "--name", "theirs", "--variant", "jempp")
        stage("clean", "--model", "external-theirs")

    found: dict[str, Callable[[], Any]] = {"same-as-cpu": same_as_cpu, "other-device": other_device}
    for model, values in TRAININGS.items():
        full = f"ebjdat-{model}" if model in ("jem", "jempp", "sadajem") else model
        found[f"train-{model}"] = lambda full=full, values=values: train(full, **values)
    return found | {name: lambda name=name: of_a_run(name) for name in STAGES} | {"import": imported}


def costs() -> dict[str, list[int]]:
    """Operations, casts among them, waits of the host in an iteration, and those of new statistics, by model."""
    from ebjdat.training import parallel
    from ebjdat.training.selection import estimate_statistics
    from tests import small_runs

    found = {}
    for model in ("ebjdat-jempp", "ebjdat-sadajem", "ebjdat-jem", "pgd_at", "trades", "dhat"):
        setup = small_runs.small(model, precision="bfloat16", steps=10, attack_steps=5)
        cuda = torch.device("cuda")
        helper = {"helper": small_runs.helper().to(cuda)} if setup.helper else {}
        run = small_runs.trainer(small_runs.tiny_data(), setup, device=cuda, **helper)
        run._loss = parallel.with_averaged_gradients(run.state.model, run.objective.loss)
        orders = run._order("labelled"), run._order("px")
        run._iteration(run._batch(*orders))
        with pretended_cuda.counting() as counted:
            run._iteration(run._batch(*orders))
        with pretended_cuda.counting() as renewed:
            estimate_statistics(run.state.model, run.x, 15)
        found[model] = [counted["operation"], counted["_to_copy"], counted["wait"], renewed["wait"]]
    return found


def rehearse(names: list[str]) -> bool:
    """Run parts, with deterministic algorithms; a line for each. Returns whether all went well."""
    well, available = True, parts()
    torch.use_deterministic_algorithms(True)
    for name in names or available:
        started = time.process_time()
        try:
            available[name]()
            told = "ok"
        except Exception as error:
            well, told = False, f"FAILED {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        print(f"{name}: {told} ({time.process_time() - started:.1f} s)", flush=True)
    return well


def plant(file: str, old: str, new: str) -> None:
    """From now on the module of ebjdat is imported with that fault."""
    path = Path(__file__).parents[1] / "ebjdat" / file
    text, get_code = path.read_text(encoding="utf-8"), SourceFileLoader.get_code
    assert text.count(old) == 1, f"{file} no longer has {old!r} once"

    def changed(self: Any, name: str) -> Any:
        return compile(text.replace(old, new), path, "exec") if Path(self.path) == path else get_code(self, name)

    SourceFileLoader.get_code = changed  # type: ignore[method-assign,assignment]


def main(words: list[str]) -> bool:
    """See the module. Each fault is planted in a process of its own, forked before anything of ebjdat is imported."""
    pretended_cuda.activate()
    os.chdir(tempfile.mkdtemp())
    os.environ["EBJDAT_SCRATCH"] = str(Path("scratch").absolute())
    if words[:1] == ["--costs"]:
        print(json.dumps(costs()))
        return True
    if words[:1] != ["--faults"]:
        return rehearse(words)
    noticed = True
    for *fault, part in FAULTS:
        if words[1:] and part not in words:
            continue
        child = os.fork()
        if not child:
            plant(*fault)
            os._exit(0 if rehearse([part]) else NOTICED)
        failed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"{'noticed' if failed == NOTICED else 'MISSED'}: {fault[0]}: {fault[2]}", flush=True)
        noticed = noticed and failed == NOTICED
    return noticed


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
