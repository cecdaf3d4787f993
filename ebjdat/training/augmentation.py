"""Augmentation on the device, whole batches at once."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(x: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Reflect-pad by ``pad``, random crop, random horizontal flip; one draw per image.

    Images (N,C,H,W) float32 in [0, 1]; same shape and range out.
    """
    count, _, height, width = x.shape
    device = x.device
    if pad:
        padded = F.pad(x, (pad,) * 4, mode="reflect")
        shifts = torch.randint(0, 2 * pad + 1, (2, count), generator=generator, device=device)
        rows = shifts[0][:, None] + torch.arange(height, device=device)
        columns = shifts[1][:, None] + torch.arange(width, device=device)
        images = torch.arange(count, device=device)[:, None, None]
        x = padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        mirrored = torch.rand(count, generator=generator, device=device) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x.contiguous(memory_format=torch.channels_last)


def add_noise(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of ``sigma`` given in the network's [-1, 1] scale (half as much in pixels).

    Not clamped, as the JEM family does it: the noise smooths the data distribution.
    """
    if sigma == 0.0:
        return x
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x + 0.5 * sigma * noise
