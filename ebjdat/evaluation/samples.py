"""Samples of a model: the replay buffer that training left, and the ends of fresh chains."""

from pathlib import Path

import torch
from torch import Tensor

from ebjdat import files
from ebjdat.config import Variant
from ebjdat.data.prepared import Prepared
from ebjdat.errors import UserError
from ebjdat.model.energy import EnergyModel
from ebjdat.progress import Progress
from ebjdat.seeds import derive
from ebjdat.training.samplers import Start, chain_start, generate


def read_buffer(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """The replay buffer (size, C, H, W) float32 that training left beside the model.

    Raises:
        UserError: missing, damaged, not finite, or of another image shape.
    """
    stored = files.read_npz(path, "train the model (dvc repro), or import one with its buffer")
    images = torch.from_numpy(stored["images"]) if "images" in stored else torch.empty(0)
    if images.dtype != torch.float32 or images.dim() != 4 or tuple(images.shape[1:]) != shape:
        raise UserError(f"{path}: expected float32 images (N, {shape}), got {images.dtype} {tuple(images.shape)}")
    if not bool(images.isfinite().all()):
        raise UserError(f"{path}: the replay buffer holds NaN or infinite pixels: train the model again")
    return images


def start_of(variant: Variant, prepared: Prepared, device: torch.device) -> Start:
    """Where the variant's chains begin, on the device."""
    mixture = prepared.mixture.to(device) if variant.chain_start == "informative" else prepared.mixture
    return chain_start(variant, mixture, prepared.shape)


def stream(seed: int, purpose: str, device: torch.device) -> torch.Generator:
    """The generator of one purpose of sampling; ``seed``: of the model's run."""
    return torch.Generator(device).manual_seed(derive(seed, "generation", purpose))


def fresh(
    model: EnergyModel,
    variant: Variant,
    prepared: Prepared,
    n: int,
    steps: int,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """n ends (n, C, H, W) in [0, 1] of unconditional fresh chains, on the model's device.

    Equal n and steps give the same images in every stage.
    """
    device = next(model.parameters()).device
    start = start_of(variant, prepared, device)
    return generate(model, variant, start, n, steps, stream(seed, "fresh", device), progress=progress)
