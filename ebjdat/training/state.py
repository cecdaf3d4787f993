"""The whole state of a training run, on disk so that a killed run continues to the byte.

A checkpoint is a folder ``step-<retries>-<epoch>-<step>`` with ``state.pt`` and, written last, ``manifest.json`` with
the sha256 of every file. It is built beside its final name and renamed, so it is there whole or not at all. One inside
an epoch names the state at that epoch's start, to which a divergence returns, so that a rollback is the same whether or
not the run was stopped. Kept are the newest and the two newest epoch starts. The best model so far lives in its own
file ``best-<sha256>.pt``, which manifests name, because it changes rarely. ``key`` is what defines the run: a
checkpoint of other parameters, or of another kind of device, is refused, never adapted.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebjdat import files
from ebjdat.errors import UserError
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import read_payload
from ebjdat.training import parallel
from ebjdat.training.replay_buffer import ReplayBuffer
from ebjdat.training.streams import Streams

KEPT = 2
"""Epoch starts that stay on disk."""
MINUTES = 10.0
"""A longer epoch is saved inside, too."""
SHARE = 0.02
"""Most of a run's time that saving may take; after the first save, whose cost is not known before."""


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
    drift: dict[str, float] = field(default_factory=dict)
    """Running means of the energy gap, see ``ebjdat.training.supervisor``."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Terms summed over this epoch's iterations, on the device."""
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    """Epoch, score, model state and buffer of the best validation result."""

    def snapshot(self) -> dict[str, Any]:
        """A copy of everything but ``best``, tensors on the CPU; later steps do not change it."""
        heavy = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "buffer": None if self.buffer is None else self.buffer.images,
            "streams": self.streams.state(),
        }
        return _copy(heavy | {name: getattr(self, name) for name in _LIGHT})

    def restore(self, saved: dict[str, Any]) -> None:
        """Return to a snapshot."""
        device = next(self.model.parameters()).device
        self.model.load_state_dict(saved["model"])
        self.optimiser.load_state_dict(_copy(saved["optimiser"]))
        if self.buffer is not None:
            self.buffer.images = saved["buffer"].to(device, copy=True)
        self.streams.load(saved["streams"])
        for name in _LIGHT:
            setattr(self, name, _copy(saved[name]))
        self.sums = {name: value.to(device) for name, value in self.sums.items()}

    def remember_best(self, score: list[float]) -> None:
        """Keep a copy of model and buffer as the best so far; scores compare from the first number on."""
        self.best = {
            "epoch": self.epoch,
            "score": score,
            "model": _copy(self.model.state_dict()),
            "buffer": None if self.buffer is None else _copy(self.buffer.images),
        }


_LIGHT = ("epoch", "step", "retries", "rate_cut", "drift", "sums", "history", "events")


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy(item) for item in value]
    return value


Read = tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]
"""State, snapshot at the epoch's start, and best model."""


class Checkpoints:
    """Checkpoints of one run in ``folder``; ``key`` is the flat mapping that defines the run.

    Args:
        minutes: after that long a checkpoint is due inside an epoch, too.
        share: most of the time that saving may take. What is saved when decides only how much is lost to a kill, never
            the outcome.
        clock: seconds; replaced in tests.
    """

    def __init__(
        self,
        folder: Path,
        key: dict[str, Any],
        *,
        minutes: float = MINUTES,
        share: float = SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.key, self.minutes, self.share = folder, key, minutes, share
        self._clock, self._done, self._cost = clock, clock(), 0.0
        self._hashes: dict[str, str] = {}  # of checkpoints that this process wrote or verified
        self._best: tuple[Any, str] = (None, "")
        self._damaged: list[Path] = []  # removed at the next save: another process may still look at them

    def due(self, *, epoch_ends: bool) -> bool:
        """Whether it is time for a checkpoint."""
        least = 0.0 if epoch_ends else 60 * self.minutes
        return self._clock() - self._done >= max(least, self._cost / self.share)

    def save(self, saved: dict[str, Any], good: dict[str, Any], best: dict[str, Any] | None) -> None:
        """Write a checkpoint, then drop what is not kept.

        Args:
            saved: snapshot inside an epoch, or ``good`` itself.
            good: snapshot at the start of the epoch; written first where it is not on disk yet.
            best: the best model so far.

        Raises:
            UserError: the disk is full or not writable; earlier checkpoints stay.
        """
        if parallel.rank():  # it has given its part of the snapshot; the first process writes
            return
        started = self._clock()
        self._remove(*self._damaged)
        self._damaged = []
        try:
            hashes = self._save_best(best)
            name = _name(good)
            if name not in self._hashes or saved is good:
                self._write(good, hashes, {})
            if saved is not good:
                self._write(saved, hashes, {"good": name, "good_sha256": self._hashes[name]})
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
            raise UserError(f"{self.folder}: the checkpoint could not be written ({reason})") from error
        self._drop_old()
        self._done = self._clock()
        self._cost = self._done - started

    def load(self, state: State) -> dict[str, Any] | None:
        """Put ``state`` where the newest whole checkpoint stands; None where there is none yet.

        The first process reads it for all.

        Returns:
            The snapshot to which a divergence returns.

        Raises:
            UserError: checkpoints are there but none is whole, or they are of another run.
        """
        found = parallel.told(self._newest)
        if found is None:
            return None
        saved, good, state.best = found
        state.restore(saved)
        return good

    def clear(self) -> None:
        """Remove everything: the run is complete and its outputs are written."""
        self._remove(self.folder)

    def _newest(self) -> Read | None:
        self._remove(*self.folder.glob(".step-*"), *self.folder.glob(".best*"))
        for path in reversed(self._names()):
            try:
                return self._read(path)
            except _Damaged as reason:
                print(f"warning: {path} is not used: {reason}; trying the one before", file=sys.stderr)
                self._damaged.append(path)
        if self._damaged:
            raise UserError(f"{self.folder}: no whole checkpoint is left; delete the folder to start this run afresh")
        return None

    def _remove(self, *paths: Path) -> None:
        """Files and folders; the first process's work."""
        for path in paths if not parallel.rank() else ():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _write(self, saved: dict[str, Any], best: dict[str, str], more: dict[str, str]) -> None:
        final = self.folder / _name(saved)
        scratch = self.folder / f".{final.name}.{os.getpid()}"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            digest = _save(scratch / "state.pt", saved)
            manifest = {"schema": 2, "key": self.key, "files": {"state.pt": digest, **best}, **more}
            files.write_json(scratch / "manifest.json", manifest)
            shutil.rmtree(final, ignore_errors=True)
            scratch.replace(final)
            files.flush_folder(self.folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._hashes[final.name] = digest

    def _save_best(self, best: dict[str, Any] | None) -> dict[str, str]:
        """Name and hash of the best model's file, which is named by its content."""
        if best is None:
            return {}
        known, digest = self._best
        if known is not best:
            digest = _save(self.folder / ".best.pt", best)
            (self.folder / ".best.pt").replace(self.folder / f"best-{digest}.pt")
            self._best = (best, digest)
        return {f"best-{digest}.pt": digest}

    def _names(self) -> list[Path]:
        """Checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-[\d-]+", path.name))

    def _drop_old(self) -> None:
        names = self._names()
        kept = {*names[-1:], *[path for path in names if path.name.endswith(_AT_START)][-KEPT:]}
        needed: set[str] = set()
        for path in kept:
            with contextlib.suppress(UserError):  # damaged; load() tells about it when it comes to that
                needed |= set(files.read_json(path / "manifest.json")["files"])
        self._remove(*(path for path in names if path not in kept))
        self._remove(*(path for path in self.folder.glob("best-*.pt") if path.name not in needed))

    def _read(self, path: Path) -> Read:
        try:
            manifest = files.read_json(path / "manifest.json")
            hashes, key, good = dict(manifest["files"]), dict(manifest["key"]), manifest.get("good")
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise _Damaged(f"its manifest.json is missing or damaged ({error})") from None
        differing = [name for name in sorted({*key, *self.key}) if key.get(name) != self.key.get(name)]
        if differing == ["device"]:
            before, now = key["device"], self.key["device"]
            raise UserError(
                f"{path} was made on {before}, whose random streams {now} cannot continue: set device: {before} to go "
                f"on, or delete {self.folder} to start afresh; the weights of a finished training work on both"
            )
        if differing:
            told = ", ".join(f"{n} ({key.get(n)!r}, now {self.key.get(n)!r})" for n in differing)
            raise UserError(
                f"{path} belongs to another run; these differ: {told}. Set them as they were to go on, or delete "
                f"{self.folder} to start afresh"
            )
        best = None
        for name in sorted(set(hashes) - {"state.pt"}):
            best = _verified(self.folder / name, hashes[name])
            self._best = (best, hashes[name])
        saved = start = _verified(path / "state.pt", hashes.get("state.pt", ""))
        self._hashes[path.name] = hashes["state.pt"]
        if good is not None:
            start = _verified(self.folder / good / "state.pt", manifest.get("good_sha256", ""))
            self._hashes[good] = manifest["good_sha256"]
        return saved, start, best


class _Damaged(Exception):
    """This checkpoint cannot be used; an earlier one may."""


_AT_START = "-00000000"


def _name(saved: dict[str, Any]) -> str:
    """Names sort by age: a rollback goes back in epochs and forward in retries."""
    return f"step-{saved['retries']:04d}-{saved['epoch']:06d}-{saved['step']:08d}"


def _save(path: Path, payload: dict[str, Any]) -> str:
    """Write a file of tensors and plain values; returns its sha256."""
    with files.atomic(path) as handle:
        torch.save(payload, handle)
    return files.file_hash(path)


def _verified(path: Path, expected: str) -> dict[str, Any]:
    """Content of a file of the expected sha256.

    Raises:
        _Damaged: it is missing, changed, or no file of tensors and plain values.
    """
    name = path.name if path.name != "state.pt" else f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise _Damaged(f"{name} is missing")
    if files.file_hash(path) != expected:
        raise _Damaged(f"{name} does not have the hash of its manifest")
    try:
        return read_payload(path)
    except UserError as error:
        raise _Damaged(str(error)) from None
