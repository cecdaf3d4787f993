"""One training from parameters to the files of a model's folder."""

import json
import os
from contextlib import ExitStack
from typing import Any

import torch

from ebjdat import files
from ebjdat.config import Setup
from ebjdat.data.prepared import Prepared, load_prepared
from ebjdat.device import choose_device, processors
from ebjdat.errors import DivergenceError
from ebjdat.model import description
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import model_digest, save_model
from ebjdat.protocols import REVISIONS
from ebjdat.run import Run
from ebjdat.training import parallel
from ebjdat.training.aftermath import write_aftermath
from ebjdat.training.loop import Outcome, Report, Trainer
from ebjdat.training.state import Checkpoints


def train(setup: Setup, report: Report = lambda row: None, note: Report = lambda event: None) -> dict[str, Any]:
    """Train a run and write its model folder; returns a summary of deterministic values.

    Writes ``best.pt``, ``last.pt``, ``model.json``, ``history.jsonl``, ``summary.json``, for models that generate
    ``buffer.npz`` (``images`` float32 (size,C,H,W), replay buffer of the best epoch), for DHAT ``helper.pt``. Of
    several processes (see ``ebjdat.training.parallel``) the first writes; the others return nothing.

    Args:
        report: gets a row of numbers per epoch.
        note: gets each rollback.

    Raises:
        UserError: data missing or damaged, another process holds the run, disk full.
        DivergenceError: training diverged for good; the message names the folder with statistics and samples.
        Interrupted: SIGTERM or Ctrl-C, after a checkpoint.
    """
    assert setup.training is not None
    with ExitStack() as stack:
        device = stack.enter_context(parallel.joined(choose_device(setup.device, setup.deterministic)))
        if setup.training.threads is not None:
            torch.set_num_threads(setup.training.threads)
        elif parallel.world() > 1:
            torch.set_num_threads(max(1, processors() // int(os.environ.get("LOCAL_WORLD_SIZE", parallel.world()))))
        run, data = setup.run, load_prepared(setup.run.data_dir)
        key = key_of(setup, data.digest)
        name = f"{run.seed}-{files.digest(key)}"
        # In the main checkout, outside DVC's outputs: a queued run that was stopped goes on from another copy.
        resume = files.scratch("resume", run.profile, run.model, name)
        # Other devices round differently and draw other numbers.
        checkpoints = Checkpoints(resume, key | {"device": device.type, "processes": parallel.world()})
        if parallel.rank():
            report = note = lambda row: None
        else:
            stack.enter_context(files.hold(resume.with_suffix(".lock"), f"training of {run}"))
            folder = run.model_dir
            stack.enter_context(files.hold(folder.with_name(f".{folder.name}.lock"), f"the model folder {folder}"))
        helper = _trained_helper(setup, data, device, checkpoints)
        trainer = Trainer(setup, data, device=device, checkpoints=checkpoints, report=report, note=note, helper=helper)
        try:
            outcome = trainer.run()
        except DivergenceError as error:
            aftermath = files.scratch("diverged", run.profile, run.model, name)
            write_aftermath(aftermath, trainer.state, trainer.supervisor, str(error))
            if not parallel.rank():
                state = trainer.state
                files.write_json(run.diverged, {"cause": str(error), "epoch": state.epoch, "step": state.step})
            raise DivergenceError(f"{run}: {error}; statistics and samples are in {aftermath}") from error
        if parallel.rank():
            return {}
        files.write_json(run.model_dir / description.NAME, description.describe(setup, data).plain())
        run.diverged.unlink(missing_ok=True)
        summary = _write(run, outcome, helper)
        checkpoints.clear()
    return summary


def _trained_helper(setup: Setup, data: Prepared, device: torch.device, checkpoints: Checkpoints) -> EnergyModel | None:
    """The network that the masks come from, with the weights that its own run of the same seed would have."""
    if setup.helper is None:
        return None
    own = Checkpoints(checkpoints.folder / "helper", checkpoints.key)
    return Trainer(setup.helper, data, device=device, checkpoints=own).run().best.to(device).requires_grad_(False)


def key_of(setup: Setup, data: str) -> dict[str, Any]:
    """What defines a run, as one level with dotted names: its parameters, the data's digest and the revision."""
    run = {"model": setup.run.model, "seed": setup.run.seed}
    return run | files.flat(setup.recorded("train")) | {"data": data, "revision": REVISIONS["train"]}


def _write(run: Run, outcome: Outcome, helper: EnergyModel | None) -> dict[str, Any]:
    folder = run.model_dir
    save_model(folder / "best.pt", outcome.best)
    save_model(folder / "last.pt", outcome.last)
    if outcome.buffer is not None:
        files.write_npz(folder / "buffer.npz", {"images": outcome.buffer.contiguous().numpy()})
    rows = (json.dumps(row, sort_keys=True) + "\n" for row in outcome.history)
    files.write_text(folder / "history.jsonl", "".join(rows))
    summary = {
        "best_epoch": outcome.best_epoch,
        "epochs": len(outcome.history),
        "best_sha256": model_digest(outcome.best),
        "last_sha256": model_digest(outcome.last),
        "events": outcome.events,
        "selected": outcome.history[outcome.best_epoch - 1],
    }
    if helper is not None:
        save_model(folder / "helper.pt", helper)
        summary["helper_sha256"] = model_digest(helper)
    files.write_json(folder / "summary.json", summary)
    return summary
