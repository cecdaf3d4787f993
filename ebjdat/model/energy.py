"""A classifier read as an energy-based model (JEM, Grathwohl et al., ICLR 2020, arXiv:1912.03263).

E(x, y) = -f(x)[y]      E(x) = -logsumexp_y f(x)[y]      p(y | x) = softmax f(x)
"""

import torch
from torch import Tensor, nn


class EnergyModel(nn.Module):
    """Images in [0, 1] -> logits, with their energies.

    The model owns its input mapping: nothing outside knows that the network sees [-1, 1].

    Attributes:
        dtype: what the body of the network computes in; float32 unless training sets bfloat16,
            so a model that is loaded for evaluation computes in float32.
    """

    dtype: torch.dtype = torch.float32

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,classes) float32 of images (N,C,H,W) float32 in [0, 1]."""
        # Autocast makes no difference where it is off, but costs as much as a small layer.
        if self.dtype == torch.float32:
            return self.network(2.0 * x - 1.0)
        with torch.autocast(x.device.type, self.dtype):
            return self.network(2.0 * x - 1.0)

    def energy(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """E(x), or E(x, y) for labels (N,) int64; shape (N,), in nats."""
        return energy(self(x), y)


def energy(logits: Tensor, y: Tensor | None = None) -> Tensor:
    """Energies (N,) from logits (N,classes): E(x) = -logsumexp f, or E(x, y) = -f[y]."""
    if y is None:
        return -torch.logsumexp(logits, dim=1)
    return -logits.gather(1, y[:, None]).squeeze(1)
