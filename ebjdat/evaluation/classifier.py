"""A small classifier of real images, independent of every model under test.

It judges generated images: where Inception features make no sense (8x8 digits) its pooled features
give the Fréchet distance, and everywhere its labels say whether a class-conditional sample shows
the class that was asked for. It is trained on the train split with a fixed seed, whatever the seed of
the models, so that all of them are measured with one ruler.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebjdat import files
from ebjdat.errors import UserError
from ebjdat.model.store import read_payload
from ebjdat.progress import Progress

EPOCHS = 20
BATCH = 64
RATE_TIMES_WIDTH = 0.3
"""Peak learning rate times the network's width; wider networks want smaller steps of Adam."""
SEED = 0
MANY_IMAGES = 20_000
"""From here on a wider network pays; it costs 16 times as much."""


class Classifier(nn.Module):
    """Three convolutions and a linear head; uint8 images (N, 3, H, W) -> logits (N, 10) float32."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.third = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * width, classes)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def features(self, x: Tensor) -> Tensor:
        """Pooled features (N, 2 * width) float32 of uint8 images (N, 3, H, W).

        After training their mean square over the train split is 1, so that distances of two
        classifiers have one scale.
        """
        return self._pooled(x) / self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self._pooled(x))

    def _pooled(self, x: Tensor) -> Tensor:
        out = F.relu(self.first(x.float() / 127.5 - 1.0))
        out = F.relu(self.second(out))
        return F.relu(self.third(out)).mean((2, 3))


def train_classifier(images: Tensor, labels: Tensor, device: torch.device, epochs: int = EPOCHS) -> Classifier:
    """Train on uint8 images (N, 3, H, W) with labels (N,) int64; Adam, one-cycle, fixed seed.

    Returns the network in eval mode, without parameter gradients, on the CPU.
    """
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = Classifier(128 if len(images) >= MANY_IMAGES else 32).to(device)
    rate = RATE_TIMES_WIDTH / network.width
    optimiser = torch.optim.Adam(network.parameters(), rate)
    batches = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * batches)
    with Progress(epochs * batches, "reference classifier") as progress:
        for _ in range(epochs):
            for picked in torch.randperm(len(images), generator=generator).split(BATCH):
                loss = F.cross_entropy(network(images[picked].to(device)), labels[picked].to(device))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                progress.advance(1)
    network = network.eval().requires_grad_(False)
    squares = [network.features(part.to(device)).square().mean(1) for part in images.split(500)]
    network.scale.copy_(torch.cat(squares).mean().sqrt())
    return network.cpu()


def predict(network: Classifier, images: Tensor, device: torch.device, batch_size: int = 500) -> Tensor:
    """Predicted classes (N,) int64 on the CPU of uint8 images (N, 3, H, W)."""
    network = network.to(device)
    with torch.no_grad():
        return torch.cat([network(part.to(device)).argmax(1).cpu() for part in images.split(batch_size)])


def save_classifier(path: Path, network: Classifier) -> None:
    """Write width and weights; read them with :func:`load_classifier`."""
    with files.atomic(path) as handle:
        torch.save({"width": network.width, "state": network.state_dict()}, handle)


def load_classifier(path: Path) -> Classifier:
    """Read a classifier. UserError: the file is missing, damaged or of another network."""
    payload = read_payload(path)
    try:
        network = Classifier(payload["width"])
        network.load_state_dict(payload["state"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is not a classifier of this project: {str(error).splitlines()[0]}") from None
    return network.eval().requires_grad_(False)
