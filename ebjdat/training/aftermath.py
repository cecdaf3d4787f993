"""What a run that was given up leaves behind: its last numbers and a picture of its chains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebjdat import files
from ebjdat.training import parallel
from ebjdat.training.state import State
from ebjdat.training.supervisor import Supervisor

GRID = 8


def write_aftermath(folder: Path, state: State, supervisor: Supervisor, cause: str) -> None:
    """Write ``statistics.json`` and, with a replay buffer, ``samples.png`` into ``folder``.

    ``statistics.json``: cause, every rollback, history, the values of the last iterations and of the buffer.
    ``samples.png``: the first 64 chain states as they are in the buffer, those that are not finite in black.

    Raises:
        UserError: the folder cannot be written.
    """
    images = None if state.buffer is None else state.buffer.images.detach().float().cpu()
    if parallel.rank():  # it has given its share of the buffer; the first process writes
        return
    statistics = {
        "cause": cause,
        "epoch": state.epoch,
        "step": state.step,
        "events": state.events,
        "history": state.history,
        "last iterations": list(supervisor.trace),
    }
    if images is not None:
        statistics["buffer"] = _range(images)
        files.write_png(folder / "samples.png", _grid(images))
    files.write_json(folder / "statistics.json", _writable(statistics))


def _range(images: Tensor) -> dict[str, float]:
    finite = images[images.isfinite()]
    share = {"finite share": finite.numel() / images.numel()}
    if not finite.numel():
        return share
    return share | {"min": float(finite.min()), "mean": float(finite.mean()), "max": float(finite.max())}


def _grid(images: Tensor) -> Any:
    """The first images (N,C,H,W), 8 a row, as uint8 (height, width[, 3]) with white lines between."""
    shown = torch.nan_to_num(images[: GRID**2], 0.0, 0.0, 0.0).clamp(0, 1)
    shown = torch.nn.functional.pad(shown, (0, 1, 0, 1, 0, 0, 0, -len(shown) % GRID), value=1.0)
    rows = shown.unflatten(0, (-1, GRID)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels = (255 * rows).round().to(torch.uint8)
    return (pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).numpy()


def _writable(value: Any) -> Any:
    """Numbers that JSON does not have as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    return [_writable(item) for item in value] if isinstance(value, list) else value
