"""The whole state of a training run, on disk so that a killed run continues to the byte.

A checkpoint is a folder ``step-<n>`` with ``state.pt`` and, written last, ``manifest.json`` with the
sha256 of every file. It is built beside its final name and renamed, so it is there whole or not at
all. Two are kept. The best model so far lives in its own file ``best-<epoch>.pt``, which manifests
name with its hash, because it changes rarely. ``key`` is what defines the run: a checkpoint of
other parameters is refused, never adapted.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebjdat import files, provenance
from ebjdat.errors import UserError
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import read_payload
from ebjdat.training.replay_buffer import ReplayBuffer
from ebjdat.training.streams import Streams

KEPT = 2


@dataclass
class State:
    """Everything that the next iteration depends on."""

    model: EnergyModel
    optimiser: torch.optim.Optimizer
    buffer: ReplayBuffer | None
    streams: Streams
    epoch: int = 0
    step: int = 0
    """Iterations done in this epoch."""
    retries: int = 0
    rate_cut: float = 1.0
    """Factor on the learning rate after rollbacks."""
    gap: float = 0.0
    """Running mean of the energy gap, see ``ebjdat.training.supervisor``."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Terms summed over this epoch's iterations, on the device."""
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    """Epoch, score, model state and buffer of the best validation result."""

    def snapshot(self) -> dict[str, Any]:
        """A copy of everything but ``best``, tensors on the CPU; later steps do not change it."""
        return {
            "model": _copy(self.model.state_dict()),
            "optimiser": _copy(self.optimiser.state_dict()),
            "buffer": None if self.buffer is None else self.buffer.images.detach().cpu().clone(),
            "streams": _copy(self.streams.state()),
            "epoch": self.epoch,
            "step": self.step,
            "retries": self.retries,
            "rate_cut": self.rate_cut,
            "gap": self.gap,
            "sums": _copy(self.sums),
            "history": [dict(row) for row in self.history],
            "events": [dict(event) for event in self.events],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Return to a snapshot."""
        device = next(self.model.parameters()).device
        self.model.load_state_dict(saved["model"])
        self.optimiser.load_state_dict(_copy(saved["optimiser"]))
        if self.buffer is not None:
            self.buffer.images = saved["buffer"].to(device, copy=True)
        self.streams.load(saved["streams"])
        self.epoch, self.step = saved["epoch"], saved["step"]
        self.retries, self.rate_cut, self.gap = saved["retries"], saved["rate_cut"], saved["gap"]
        self.sums = {name: value.to(device, copy=True) for name, value in saved["sums"].items()}
        self.history = [dict(row) for row in saved["history"]]
        self.events = [dict(event) for event in saved["events"]]

    def remember_best(self, score: list[float]) -> None:
        """Keep a copy of model and buffer as the best so far; scores compare from the first number on."""
        self.best = {
            "epoch": self.epoch,
            "score": score,
            "model": _copy(self.model.state_dict()),
            "buffer": None if self.buffer is None else self.buffer.images.detach().cpu().clone(),
        }


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy(item) for item in value]
    return value


class Checkpoints:
    """Checkpoints of one run in ``folder``; ``key`` is the flat mapping that defines the run."""

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder, self.key = folder, key

    def save(self, state: State) -> None:
        """Write a checkpoint and drop all but the newest two.

        Raises:
            UserError: the disk is full or not writable; earlier checkpoints stay.
        """
        name = f"step-{state.epoch:06d}-{state.step:08d}-{state.retries:04d}"
        scratch = self.folder / f".{name}.{os.getpid()}"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            with files.atomic(scratch / "state.pt") as handle:
                torch.save(state.snapshot(), handle)
            hashes = {"state.pt": provenance.file_hash(scratch / "state.pt"), **self._save_best(state)}
            files.write_json(scratch / "manifest.json", {"schema": 1, "key": self.key, "files": hashes})
            final = self.folder / name
            shutil.rmtree(final, ignore_errors=True)
            scratch.replace(final)
        except OSError as error:
            raise UserError(f"{self.folder}: the checkpoint could not be written ({error.strerror})") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._drop_old()

    def _save_best(self, state: State) -> dict[str, str]:
        if state.best is None:
            return {}
        path = self.folder / f"best-{state.best['epoch']:06d}-{state.retries:04d}.pt"
        if not path.exists():
            with files.atomic(path) as handle:
                torch.save(state.best, handle)
        return {path.name: provenance.file_hash(path)}

    def _names(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if re.fullmatch(r"step-[\d-]+", path.name))

    def _drop_old(self) -> None:
        named: set[str] = set()
        for path in self._names()[-KEPT:]:
            try:
                named |= set(files.read_json(path / "manifest.json")["files"])
            except UserError:  # damaged; load() tells about it when it comes to that
                continue
        for path in self._names()[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob("best-*.pt"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    def load(self, state: State) -> bool:
        """Put ``state`` where the newest whole checkpoint stands; False where there is none yet.

        Raises:
            UserError: checkpoints are there but none is whole, or they are of another run.
        """
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        names = self._names()
        for path in reversed(names):
            try:
                saved, best = self._read(path)
            except _Damaged as reason:
                print(f"warning: {path} is not used: {reason}; trying the one before", file=sys.stderr)
                continue
            state.restore(saved)
            state.best = best
            return True
        if names:
            raise UserError(f"{self.folder}: no whole checkpoint is left; delete the folder to start this run afresh")
        return False

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
        try:
            manifest = files.read_json(path / "manifest.json")
            hashes, key = manifest["files"], manifest["key"]
        except (UserError, KeyError, TypeError) as error:
            raise _Damaged(f"its manifest.json is missing or damaged ({error})") from None
        differing = [name for name in sorted({*key, *self.key}) if key.get(name) != self.key.get(name)]
        if differing:
            told = ", ".join(f"{n} ({key.get(n)!r}, now {self.key.get(n)!r})" for n in differing)
            raise UserError(f"{path} belongs to another run; these differ: {told}")
        payloads = {}
        for name, expected in hashes.items():
            file = path / name if name == "state.pt" else self.folder / name
            if not file.is_file():
                raise _Damaged(f"{name} is missing")
            if provenance.file_hash(file) != expected:
                raise _Damaged(f"{name} does not have the hash of its manifest")
            payloads[name] = read_payload(file)
        best = next((payload for name, payload in payloads.items() if name != "state.pt"), None)
        return payloads["state.pt"], best

    def clear(self) -> None:
        """Remove everything: the run is complete and its outputs are written."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Damaged(Exception):
    """This checkpoint cannot be used; an earlier one may."""
