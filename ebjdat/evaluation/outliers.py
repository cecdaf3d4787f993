"""Images that are not of the data set, all available without a download, for detection by energy.

``photographs`` are real; ``interpolated`` and ``uniform-noise`` are sets that the JEM paper and its
predecessors use (Grathwohl et al., ICLR 2020, arXiv:1912.03263).
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ebjdat.evaluation.cases import stream

PICTURES = ("china.jpg", "flower.jpg")
PATCH = 64
"""Side of a patch of a photograph before it is scaled down, pixels."""


def outliers(x: Tensor, seed: int) -> dict[str, Tensor]:
    """As many images of every set as x (N,C,H,W) in [0, 1] has, on its device."""
    order = torch.randperm(len(x), generator=stream(seed, "interpolated")).to(x.device)
    return {
        "photographs": photographs(len(x), tuple(x.shape[1:]), seed).to(x.device),
        "interpolated": 0.5 * (x + x[order].roll(1, 0)),  # the mean of each image and another one
        "uniform-noise": torch.rand(x.shape, generator=stream(seed, "uniform-noise")).to(x.device),
    }


def photographs(n: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Patches of scikit-learn's two sample photographs (china, flower), scaled to (C,H,W)."""
    channels, height, width = shape
    generator = stream(seed, "photographs")
    pictures = _sample_pictures()
    patches = []
    for index in range(n):
        picture = pictures[index % len(pictures)]
        top = int(torch.randint(picture.shape[1] - PATCH + 1, (), generator=generator))
        left = int(torch.randint(picture.shape[2] - PATCH + 1, (), generator=generator))
        patches.append(picture[:, top : top + PATCH, left : left + PATCH])
    images = torch.stack(patches).float() / 255.0
    images = images.mean(1, keepdim=True) if channels == 1 else images
    return F.adaptive_avg_pool2d(images, (height, width)).contiguous()


def _sample_pictures() -> list[Tensor]:
    """The photographs (3, H, W) uint8, read as files: importing scikit-learn takes seconds."""
    from PIL import Image

    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None
    paths = [Path(package.origin).parent / "datasets" / "images" / name for name in PICTURES]
    return [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in paths]
