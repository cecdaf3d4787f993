"""A small convolutional network trained on real digits, for tests that need something worth attacking."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallNet(nn.Module):
    """Images (N,1,8,8) in [0, 1] -> logits (N,10); maps to [-1, 1] itself."""

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out = F.leaky_relu(self.norm(self.first(2.0 * x - 1.0)), 0.2)
        return self.head(F.leaky_relu(self.second(out), 0.2).mean((2, 3)))


@lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 real digits of scikit-learn: images (N,1,8,8) float32 in [0, 1], labels (N,)."""
    from sklearn.datasets import load_digits

    stored = load_digits()
    images = torch.from_numpy(stored.images.astype(np.float32) / 16.0)[:, None]
    return images, torch.from_numpy(stored.target.astype(np.int64))


@lru_cache(maxsize=4)
def _weights(adversarial: bool) -> dict[str, Tensor]:
    images, labels = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SmallNet()
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(12):
            for picked in torch.randperm(1400)[: 1400 // 100 * 100].split(100):
                x, y = images[picked], labels[picked]
                if adversarial:
                    x = _step(model, x, y)
                optimiser.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimiser.step()
    return model.state_dict()


def _step(model: nn.Module, x: Tensor, y: Tensor, eps: float = 0.12) -> Tensor:
    start = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), y), start)
    return (start.detach() + eps * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)


def trained(*, adversarial: bool = False) -> SmallNet:
    """A fresh copy of the trained network in eval mode: plain, or adversarially trained and partly robust."""
    model = SmallNet()
    model.load_state_dict(_weights(adversarial))
    return model.eval()


def saved(path: Path) -> SmallNet:
    """The network whose weights lie in ``path``; a worker process needs neither data nor training."""
    model = SmallNet()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def held_out(n: int = 50) -> tuple[Tensor, Tensor]:
    """The last n digits, which :func:`trained` has not seen."""
    images, labels = digits()
    return images[-n:], labels[-n:]
