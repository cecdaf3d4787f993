"""Outcomes of an evaluation's attacks, on disk as they finish, so that a killed evaluation goes on.

One attack (or one group of cells that walk together) is the unit: what was finished is read, the rest is
run, and the flags per image are those of an evaluation that was never killed. Each file carries the
identity of everything that decided it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebjdat import files, provenance
from ebjdat.config import Params
from ebjdat.errors import UserError
from ebjdat.subject import Subject, data_digest

Outcome = tuple[dict[str, Tensor], Any]
"""Flags (N,) bool on the CPU by name, and plain values for JSON: audits, accuracies."""


class Outcomes:
    """Outcomes below ``folder``; without one nothing is kept.

    Args:
        folder: for this evaluation alone.
        identity: everything that decides the outcomes, as text.
    """

    def __init__(self, folder: Path | None = None, identity: dict[str, str] | None = None) -> None:
        self.folder, self.identity = folder, identity or {}

    def once(self, name: str, attack: Callable[[], Outcome]) -> Outcome:
        """What ``attack`` gave the first time.

        Raises:
            UserError: the file is damaged or belongs to another model, data slice, radius or code.
        """
        path = None if self.folder is None else self.folder / f"{provenance.digest(name)}.json"
        if path is not None and path.is_file():
            return self._read(path, name)
        made, plain = attack()
        flags = {key: found.cpu() for key, found in made.items()}
        if path is not None:
            # Pairs, because JSON files are written with sorted keys.
            texts = [[key, "".join("01"[int(flag)] for flag in found)] for key, found in flags.items()]
            files.write_json(path, {"identity": self.identity, "name": name, "flags": texts, "plain": plain})
        return flags, plain

    def _read(self, path: Path, name: str) -> Outcome:
        stored = files.read_json(path)
        try:
            found, plain = dict(stored["identity"]), stored["plain"]
            flags = {key: torch.tensor([{"0": False, "1": True}[c] for c in text]) for key, text in stored["flags"]}
            same = stored["name"] == name
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{path} is not the outcome of an attack: delete it and run again") from None
        foreign = sorted(key for key in {*found, *self.identity} if found.get(key) != self.identity.get(key))
        if foreign or not same:
            details = "; ".join(f"{key}: expected {self.identity.get(key)}, found {found.get(key)}" for key in foreign)
            raise UserError(f"{path} is the outcome of another evaluation ({details}): delete it and run again")
        return flags, plain


NOTHING = Outcomes()
"""Keeps nothing."""


@contextmanager
def kept(
    stage: str, params: Params, subject: Subject, weights: Sequence[Path], x: Tensor, y: Tensor
) -> Iterator[Outcomes]:
    """Outcomes of a stage, held by this process; removed when the block ends without an error.

    Args:
        weights: files of all models that decide them.
        x, y: images and labels, on the stage's device.

    Raises:
        UserError: another process runs this evaluation.
    """
    evaluation = subject.identity(params, stage, data_digest(subject.profile))
    identity = {
        "models": " ".join(provenance.file_hash(path)[:16] for path in weights),
        "code": provenance.closure_hash(f"stages.{stage}"),
        "data slice": slice_hash(x, y),
        "radius": str(params.current.evaluation.radius),
        "device": x.device.type,
        "evaluation": evaluation,
    }
    folder = files.scratch(stage, evaluation)
    with files.hold(folder.with_suffix(".lock"), f"the stage {stage} on {subject.name}"):
        yield Outcomes(folder, identity)
        shutil.rmtree(folder, ignore_errors=True)


def slice_hash(*tensors: Tensor) -> str:
    """sha256 over types, shapes and values of images and labels."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
