"""Forward and backward passes in batches that fit into memory.

An attack draws its random numbers for all images before they are split, so its result does not
depend on the batch size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ebjdat.device import out_of_memory
from ebjdat.errors import UserError

Function = Callable[..., tuple[Tensor, ...]]


class Batches:
    """Maps functions over at most ``size`` images at a time.

    Out of memory halves ``size`` for good, says so on stderr and starts the call again; UserError where one image
    does not fit.
    """

    def __init__(self, size: int = 2000) -> None:
        if size < 1:
            raise ValueError(f"batch size: expected at least 1, got {size}")
        self.size = size

    def map(self, function: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
        """``function(*tensors)`` batch by batch along the first axis; its outputs are joined there.

        ``function`` must treat every image on its own and may be called twice on the same images.
        """
        while True:
            try:
                parts = [
                    function(*batch) for batch in zip(*(tensor.split(self.size) for tensor in tensors), strict=True)
                ]
                return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            self._halve()

    def _halve(self) -> None:
        if self.size == 1:
            raise UserError("out of memory with a single image: use a device with more memory, or a smaller network")
        self.size //= 2
        print(f"out of memory: going on with batches of {self.size} images", file=sys.stderr)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def logits_of(model: nn.Module, x: Tensor, batches: Batches | None = None) -> Tensor:
    """Logits (N,classes) of images (N,C,H,W) in [0, 1], without gradients."""

    def forward(images: Tensor) -> tuple[Tensor]:
        return (model(images),)

    with torch.no_grad():
        return (batches or Batches()).map(forward, x)[0]


def correct(model: nn.Module, x: Tensor, y: Tensor, batches: Batches | None = None) -> Tensor:
    """Per image (N,C,H,W) in [0, 1] whether the predicted class is y; (N,) bool."""
    return logits_of(model, x, batches).argmax(1) == y
