"""One training run from parameters to files: what the stages `train` and `baseline` share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ebjdat import files
from ebjdat.config import Params
from ebjdat.data.prepared import load_prepared
from ebjdat.device import choose_device, processors
from ebjdat.errors import DivergenceError, UserError
from ebjdat.model import description
from ebjdat.model.store import load_model, model_digest, save_model
from ebjdat.subject import Subject, data_digest
from ebjdat.training import parallel
from ebjdat.training.aftermath import write_aftermath
from ebjdat.training.loop import Outcome, Report, Trainer
from ebjdat.training.recipes import recipe
from ebjdat.training.state import Checkpoints


def train_subject(
    params: Params,
    subject: Subject,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    folder: Path | None = None,
    note: Callable[[dict[str, Any]], None] = lambda event: None,
) -> dict[str, Any]:
    """Train ``subject`` and write its model folder; returns a summary of deterministic values.

    Args:
        report: gets a row of numbers per epoch.
        folder: where the model goes; ``subject.model_dir`` if None.
        note: gets each rollback.

    Of several processes (see ``ebjdat.training.parallel``) the first writes; the others return nothing.

    Writes ``best.pt``, ``last.pt``, ``model.json``, ``history.jsonl``, ``summary.json`` and, for models that
    generate, ``buffer.npz`` (``images`` float32 (size,C,H,W), replay buffer of the best epoch).

    Raises:
        UserError: data missing or damaged, another process holds the run, disk full.
        DivergenceError: training diverged for good; the message names the folder with statistics and samples.
        Interrupted: SIGTERM or Ctrl-C, after a checkpoint.
    """
    with parallel.joined(choose_device(params.device)) as device:
        if parallel.rank():
            report = note = lambda row: None
        return _train(params, subject, report, folder or subject.model_dir, note, device)


def _train(
    params: Params, subject: Subject, report: Report, output: Path, note: Report, device: torch.device
) -> dict[str, Any]:
    _set_threads(params.current.training.shared.threads)
    data = load_prepared(subject.data_dir)
    identity = subject.identity(params, "train", data_digest(subject.profile))
    # In the main checkout, outside DVC's outputs: a queued run that was stopped goes on from another copy.
    resume = files.scratch("resume", identity)
    key = {"identity": identity, **_flat(subject.resolved(params, "train")), "data": data.digest}
    key["devices"] = parallel.world()  # another number rounds differently
    with ExitStack() as locks:
        if not parallel.rank():
            locks.enter_context(files.hold(resume.with_suffix(".lock"), f"training of {subject.name}"))
            locks.enter_context(files.hold(output.with_name(f".{output.name}.lock"), f"the model folder {output}"))
        checkpoints = Checkpoints(resume, key)
        trainer = Trainer(
            recipe(params, subject),
            params.current.training.shared,
            params.current.network,
            data,
            seed=subject.seed,
            device=device,
            checkpoints=checkpoints,
            report=report,
            note=note,
        )
        outcome = _run(trainer, files.scratch("diverged", f"{subject.run_name}-{identity}"))
        if parallel.rank():
            return {}
        files.write_json(output / description.NAME, description.describe(params, subject, data, identity).plain())
        summary = _write(output, outcome, identity)
        checkpoints.clear()
    return summary


def copy_trained(source: Path, folder: Path, identity: str) -> bool:
    """Copy the finished model in ``source`` to ``folder`` if it has this identity and is whole.

    Returns:
        Whether it was copied; anything else in ``source`` is left alone and means False.
    """
    try:
        summary = files.read_json(source / "summary.json")
        if summary.get("identity") != identity:
            return False
        for checkpoint in ("best", "last"):
            if model_digest(load_model(source / f"{checkpoint}.pt")) != summary[f"{checkpoint}_sha256"]:
                return False
    except (UserError, KeyError, AttributeError):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    # The summary comes last: it says that the model is whole.
    for path in sorted(source.iterdir(), key=lambda path: path.name == "summary.json"):
        shutil.copyfile(path, folder / path.name)
    return True


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    elif parallel.world() > 1:
        torch.set_num_threads(max(1, processors() // parallel.world()))


def _run(trainer: Trainer, aftermath: Path) -> Outcome:
    try:
        return trainer.run()
    except DivergenceError as error:
        write_aftermath(aftermath, trainer.state, trainer.supervisor, str(error))
        raise DivergenceError(f"{error}; statistics and samples are in {aftermath}") from error


def _write(folder: Path, outcome: Outcome, identity: str) -> dict[str, Any]:
    save_model(folder / "best.pt", outcome.best, outcome.architecture)
    save_model(folder / "last.pt", outcome.last, outcome.architecture)
    if outcome.buffer is not None:
        files.write_npz(folder / "buffer.npz", {"images": outcome.buffer.contiguous().numpy()})
    files.write_text(
        folder / "history.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in outcome.history)
    )
    summary = {
        "identity": identity,
        "best_epoch": outcome.best_epoch,
        "epochs": len(outcome.history),
        "best_sha256": model_digest(outcome.best),
        "last_sha256": model_digest(outcome.last),
        "events": outcome.events,
        "selected": outcome.history[outcome.best_epoch - 1],
    }
    files.write_json(folder / "summary.json", summary)
    return summary


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted names, lists as they are."""
    if not isinstance(value, dict):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    parts = [_flat(item, f"{prefix}.{name}" if prefix else str(name)) for name, item in value.items()]
    return {name: item for part in parts for name, item in part.items()}
