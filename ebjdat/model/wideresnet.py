"""Pre-activation wide residual network of the JEM family.

Zagoruyko & Komodakis 2016 (arXiv:1605.07146) as the JEM family configures it (Grathwohl et al., ICLR 2020,
arXiv:1912.03263): LeakyReLU 0.2, convolutions with bias, the stride on the second convolution of a block, a 1x1
convolution as shortcut where the shape changes, global average pooling and a linear head. WRN-28-10 has 36.5 million
parameters and 5.95 GMAC per 32x32 image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["none", "batch"]
SLOPE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What builds a network: WideResNet-depth-width over images of ``channels``."""

    depth: int
    width: int
    channels: int
    classes: int
    norm: Norm
    momentum: float = 0.1


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that can use batch statistics without touching its running statistics.

    In training mode with ``track`` off it normalises with the statistics of the batch only; chains and the second pass
    of SAM run like that. In eval mode it is plain BatchNorm. With ``parts`` above 1 a training batch is cut into equal
    parts, each with statistics of its own.
    """

    track: bool = True
    parts: int = 1

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N,C,H,W); see the class for which statistics."""
        if self.training and self.parts > 1:
            return self.by_parts(input, self.parts)
        if self.training and not self.track:
            return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(input)

    def by_parts(self, input: Tensor, parts: int) -> Tensor:
        """Normalise ``parts`` equal parts of a training batch apart."""
        normalised = []
        seen = self.weight.new_zeros(parts, 2, self.num_features)
        for part, (centre, variance) in zip(input.chunk(parts), seen, strict=True):
            normalised.append(F.batch_norm(part, centre, variance, self.weight, self.bias, True, 1.0, self.eps))
        if self.track:
            self.update_running(*seen.mean(0))
        return torch.cat(normalised)

    @torch.no_grad()
    def update_running(self, centre: Tensor, variance: Tensor) -> None:
        """Take the mean and the unbiased variance (C,) of a batch into the running statistics."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(centre, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


@contextmanager
def statistics(model: nn.Module, which: Literal["batch", "running"]) -> Iterator[None]:
    """Forwards inside see batch statistics (running ones untouched) or running statistics.

    The mode of every module is restored on leaving, also after an exception.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    norms = [(module, module.track) for module in modules if isinstance(module, BatchNorm)]
    try:
        for module in modules:
            module.training = which == "batch"
        for norm, _ in norms:
            norm.track = False
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
        for norm, track in norms:
            norm.track = track


def cut_batches(model: nn.Module, parts: int) -> None:
    """Let every BatchNorm normalise training batches in ``parts`` equal parts."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.parts = parts


def _normalisation(norm: Norm, channels: int, momentum: float) -> nn.Module:
    return BatchNorm(channels, momentum=momentum) if norm == "batch" else nn.Identity()


class Block(nn.Module):
    """Two 3x3 convolutions with pre-activation and a shortcut; (N,C,H,W) -> (N,C',H/stride,W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, momentum: float) -> None:
        super().__init__()
        self.norm1 = _normalisation(norm, inputs, momentum)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _normalisation(norm, outputs, momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1)
        changes = stride != 1 or inputs != outputs
        self.shortcut: nn.Module = nn.Conv2d(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Residual block."""
        out = self.conv1(F.leaky_relu(self.norm1(x), SLOPE))
        out = self.conv2(F.leaky_relu(self.norm2(out), SLOPE))
        return out + self.shortcut(x)


class WideResNet(nn.Module):
    """WideResNet-depth-width; inputs (N,C,H,W) in [-1, 1] -> logits (N,classes). ValueError: depth is not 6 n + 4."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        norm, momentum = architecture.norm, architecture.momentum
        blocks, rest = divmod(architecture.depth - 4, 6)
        if rest:
            raise ValueError(f"depth: expected 6 n + 4, got {architecture.depth}")
        self.stem = nn.Conv2d(architecture.channels, 16, 3, padding=1)
        layers: list[nn.Module] = []
        features = 16
        for group, stride in enumerate((1, 2, 2)):
            outputs = 16 * architecture.width * 2**group
            for block in range(blocks):
                layers.append(Block(features, outputs, stride if block == 0 else 1, norm, momentum))
                features = outputs
        self.blocks = nn.Sequential(*layers)
        self.norm = _normalisation(norm, features, momentum)
        self.head = nn.Linear(features, architecture.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,classes), float32 where layers before compute in less, float64 after ``.double()``."""
        out = F.leaky_relu(self.norm(self.blocks(self.stem(x))), SLOPE)
        if out.dtype != torch.bfloat16:
            logits = self.head(out.mean((2, 3)))
            return logits if logits.dtype == torch.float64 else logits.float()
        with torch.autocast(x.device.type, enabled=False):
            return self.head(out.mean((2, 3), dtype=torch.float32))
