"""Class-conditional Gaussians: the informative start of Langevin chains.

JEM++ (Yang and Ji, ICCV 2021) starts its chains from one full-covariance Gaussian per class, N(mean_y, cov_y + 1e-4 I)
over the flattened image, clamped to the image range. The Gaussians are fitted here on the raw images of the train
split, so that no validation or test image leaks into a chain.

Images are in [0, 1]; the jitter 1e-4 is printed for images in [-1, 1], where it is four times larger, hence 0.25e-4
here. The fit is float64, the stored factors float32 lower triangles packed row by row: 10 x 3072 x 3073 / 2 x 4 bytes =
189 MB for CIFAR-10, half of the full matrices.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ebjdat import files
from ebjdat.errors import UserError

JITTER = 0.25e-4
"""Added to the covariance's diagonal, image scale [0, 1]."""
CLASSES = 10


@dataclass(frozen=True)
class Mixture:
    """One Gaussian per class over flattened images in [0, 1].

    Attributes:
        mean: (10, D) float32.
        chol: (10, D, D) float32, lower-triangular Cholesky factors of the covariances.
        shape: (C, H, W) with C * H * W = D.
    """

    mean: Tensor
    chol: Tensor
    shape: tuple[int, int, int]

    def to(self, device: torch.device | str) -> Self:
        """The same mixture on ``device``."""
        return replace(self, mean=self.mean.to(device), chol=self.chol.to(device))

    def sample(self, n: int, generator: torch.Generator, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw images (n, C, H, W) float32 clamped to [0, 1] and labels (n,) int64, on the mixture's device.

        Args:
            generator: source of randomness; its device is where the noise is drawn.
            labels: (n,) int64 classes; uniform over the classes when None.
        """
        if labels is None:
            labels = torch.randint(len(self.mean), (n,), generator=generator, device=generator.device)
        labels = labels.to(self.mean.device)
        noise = torch.randn(n, self.mean.shape[1], generator=generator, device=generator.device).to(self.mean.device)
        flat = self.mean[labels]
        for label in range(len(self.mean)):
            if flat.is_cuda:  # counting a class's rows would wait for the device; zero rows cost less
                flat.addmm_(noise * (labels == label)[:, None], self.chol[label].T)
                continue
            chosen = (labels == label).nonzero().squeeze(1)
            if len(chosen):
                flat[chosen] += noise[chosen] @ self.chol[label].T
        return flat.clamp_(0.0, 1.0).view(n, *self.shape), labels


def fit_mixture(images: Tensor, labels: Tensor, classes: int = CLASSES) -> Mixture:
    """Maximum-likelihood Gaussian per class plus the jitter, of images (N, C, H, W) in [0, 1] and labels (N,) int64.

    Raises:
        UserError: a class has fewer than two images.
    """
    flat = images.reshape(len(images), -1)
    means, factors = [], []
    for label in range(classes):
        chosen = flat[labels == label].double()
        if len(chosen) < 2:
            raise UserError(
                f"class {label} has {len(chosen)} training images, its Gaussian needs at least 2: raise data.train"
            )
        means.append(chosen.mean(dim=0))
        centred = chosen - means[-1]
        covariance = centred.T @ centred / len(chosen)
        covariance.diagonal().add_(JITTER)
        factors.append(torch.linalg.cholesky(covariance).float())
    channels, height, width = images.shape[1:]
    return Mixture(torch.stack(means).float(), torch.stack(factors), (channels, height, width))


def save_mixture(path: str | Path, mixture: Mixture) -> None:
    """Write the mixture with its triangles packed (see the module's note on size)."""
    rows, columns = np.tril_indices(mixture.mean.shape[1])
    packed = np.stack([factor.numpy()[rows, columns] for factor in mixture.chol.cpu()])
    arrays = {"mean": mixture.mean.cpu().numpy(), "factors": packed, "shape": np.array(mixture.shape, np.int64)}
    files.write_npz(Path(path), arrays, compress=False)


def load_mixture(path: str | Path) -> Mixture:
    """Read a mixture written by :func:`save_mixture`. UserError: the file is missing or is not such a file."""
    stored = files.read_npz(path, "run the stage prepare")
    try:
        mean, packed = stored["mean"], stored["factors"]
        channels, height, width = (int(side) for side in stored["shape"])
        chol = np.zeros((len(mean), mean.shape[1], mean.shape[1]), np.float32)
        rows, columns = np.tril_indices(mean.shape[1])
        for factor, triangle in zip(chol, packed, strict=True):
            factor[rows, columns] = triangle
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} is not a file of class Gaussians ({error}): run the stage prepare again") from None
    return Mixture(torch.from_numpy(mean), torch.from_numpy(chol), (channels, height, width))
