"""Outcomes of attacks, on disk as they finish, so that a killed evaluation goes on.

One attack (or one group of cells that walk together) is the unit: what was finished is read, the rest is run, and the
flags per image are those of an evaluation that was never killed. Each file says everything that decided it; the
official package's own resume file names neither model nor data nor radius, so it is not used.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ebjdat import files
from ebjdat.config import Setup
from ebjdat.errors import UserError
from ebjdat.progress import Progress
from ebjdat.record import revisions

Flags = Mapping[str, np.ndarray]
"""(N,) bool by name; the order is kept."""
Found = tuple[dict[str, np.ndarray], Any]
"""Flags, and plain values for JSON: audits, accuracies."""


class Outcomes:
    """Outcomes below ``folder``; without one nothing is kept.

    Args:
        folder: for this evaluation alone.
        decided_by: everything that decides all of them, as text by name.
    """

    def __init__(self, folder: Path | None = None, decided_by: Mapping[str, str] | None = None) -> None:
        self.folder, self.decided_by = folder, dict(decided_by or {})

    def once(
        self,
        name: str,
        attack: Callable[[], tuple[Mapping[str, Tensor | np.ndarray], Any]],
        progress: Progress | None = None,
        units: int = 0,
    ) -> Found:
        """What ``attack`` gave the first time; then ``units`` of the progress are skipped.

        Raises:
            UserError: see :meth:`read`.
        """
        kept = self.read(name)
        if kept is not None:
            if progress is not None:
                progress.skip(units)
            return kept
        made, plain = attack()
        flags = {key: found.cpu().numpy() if isinstance(found, Tensor) else found for key, found in made.items()}
        self.write(name, flags, plain)
        return flags, plain

    def write(self, name: str, flags: Flags, plain: Any, **more: str) -> None:
        """Keep an outcome; ``more``: what else decided it."""
        if self.folder is None:
            return
        # Pairs, because JSON files are written with sorted keys.
        texts = [[key, "".join("01"[int(flag)] for flag in found)] for key, found in flags.items()]
        content = {"decided by": self.decided_by | more, "name": name, "flags": texts, "plain": plain}
        files.write_json(self._path(name), content)

    def read(self, name: str, **more: str) -> Found | None:
        """The outcome of this very attack, or None where there is none yet.

        Raises:
            UserError: the file is damaged, or belongs to another model, data slice, radius, seed or revision.
        """
        path = self._path(name)
        if self.folder is None or not path.is_file():
            return None
        stored = files.read_json(path)
        try:
            found, plain, same = dict(stored["decided by"]), stored["plain"], stored["name"] == name
            flags = {key: np.array([{"0": False, "1": True}[c] for c in text]) for key, text in stored["flags"]}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{path} is not the outcome of an attack: delete it and run again") from None
        wanted = self.decided_by | more
        foreign = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if foreign or not same:
            details = "; ".join(f"{key}: expected {wanted.get(key)}, found {found.get(key)}" for key in foreign)
            raise UserError(f"{path} is the outcome of another evaluation ({details}): delete it and run again")
        return flags, plain

    def _path(self, name: str) -> Path:
        return (self.folder or Path()) / f"{files.digest(name)}.json"


NOTHING = Outcomes()
"""Keeps nothing."""


@contextmanager
def kept(setup: Setup, stage: str, x: Tensor, y: Tensor, *checkpoints: str) -> Iterator[Outcomes]:
    """Outcomes of a stage about a run, held by this process; removed when the block ends without an error.

    Args:
        x, y: images and labels, on the stage's device.
        checkpoints: those that decide them, ``best`` if none is named.

    Raises:
        UserError: another process runs this evaluation.
    """
    run = setup.run
    decided_by = {
        "weights": " ".join(files.file_hash(run.model_dir / f"{name}.pt")[:16] for name in checkpoints or ("best",)),
        "data slice": slice_hash(x, y),
        "params": files.digest(setup.recorded(stage)),
        "revisions": str(revisions(stage)),
        "device": x.device.type,
    }
    name = f"{run.profile}-{run.model}-{run.seed}-{files.digest(decided_by)}"
    folder = files.scratch("outcomes", stage, name)
    with files.hold(folder.with_suffix(".lock"), f"the stage {stage} on {run}"):
        yield Outcomes(folder, decided_by)
        shutil.rmtree(folder, ignore_errors=True)


def slice_hash(*tensors: Tensor) -> str:
    """sha256 over types, shapes and values of images and labels."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
