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


def write_aftermath(folder: Path, state: State, supervisor: Supervisor, cause: str) -> None:
    """Write ``statistics.json`` and, with a replay buffer, ``samples.png`` into ``folder``.

    ``statistics.json``: cause, every rollback, history, the values of the last iterations and of the buffer.
    ``samples.png``: the first 64 chain states as they are in the buffer, those that are not finite in black.

    Raises:
        UserError: the folder cannot be written.
    """
    if parallel.rank():  # the first process writes
        return
    statistics = {
        "cause": cause,
        "epoch": state.epoch,
        "step": state.step,
        "events": state.events,
        "history": state.history,
        "last iterations": list(supervisor.trace),
    }
    if state.buffer is not None:
        images = state.buffer.images.float().cpu()
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
    """The first 64 images (N,C,H,W), 8 a row, as uint8 (height, width, 3) with white lines between."""
    from torchvision.utils import make_grid

    shown = torch.nan_to_num(images[:64], 0.0, 0.0, 0.0).clamp(0, 1)
    return (255 * make_grid(shown, padding=1, pad_value=1.0)).round().byte().permute(1, 2, 0).numpy()


def _writable(value: Any) -> Any:
    """Numbers that JSON does not have as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    return [_writable(item) for item in value] if isinstance(value, list) else value
