"""Distances between sets of images in the feature space of a fixed network, through torch-fidelity.

Fréchet distance (Heusel et al., NeurIPS 2017) and squared kernel MMD (Binkowski et al., ICLR 2018;
"KID" where the features are Inception's). With Inception features they are called ``fid`` and ``kid``;
with those of the small classifier ``classifier-frechet`` and ``classifier-kernel``, never FID.

Both need whole images at the door: uint8, three channels, the full range 0..255. A float image cast
to uint8 and a [-1, 1] image taken for [0, 1] are the commonest errors of this field, and both are
refused here rather than shown as a number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ebjdat import device as devices
from ebjdat.errors import AuditError, UserError
from ebjdat.evaluation.classifier import load_classifier
from ebjdat.evaluation.inception import find_weights
from ebjdat.model.store import model_digest

KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
KERNEL_SEED = 2020
SCORE_LAYER = "logits_unbiased"


def to_uint8(images: Tensor, *, floor: bool = False) -> Tensor:
    """Images (N, 1 or 3, H, W) floating point in [0, 1] -> (N, 3, H, W) uint8 in 0..255, rounded or floored.

    Grey images are repeated over the three channels.

    Raises:
        AuditError: not floating point, NaN, or outside [0, 1]; the message counts the pixels.
    """
    if not images.is_floating_point() or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise AuditError(f"expected float images (N, 1 or 3, H, W) in [0, 1], got {images.dtype} {tuple(images.shape)}")
    bad = ~((images >= 0.0) & (images <= 1.0))
    if bad.any():
        raise AuditError(f"{int(bad.sum())} of {bad.numel()} pixels are NaN or outside [0, 1], nothing is measured")
    levels = images * 255.0
    return (levels.floor() if floor else levels.round()).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


class ImageSet(Dataset[Tensor]):
    """Images (N, 3, H, W) uint8 in 0..255 that passed the door, as torch-fidelity takes them.

    Raises:
        AuditError: wrong type, channels, range or count (``expected``, or at least 2).
    """

    def __init__(self, images: Tensor, expected: int | None = None) -> None:
        if images.dtype != torch.uint8:
            raise AuditError(
                f"images for a distance must be uint8 in 0..255, got {images.dtype}: scale and round first"
            )
        if images.dim() != 4 or images.shape[1] != 3:
            raise AuditError(f"images for a distance must be (N, 3, H, W), got {tuple(images.shape)}")
        if len(images) < 2 or (expected is not None and len(images) != expected):
            raise AuditError(f"expected {expected or 'at least 2'} images for a distance, got {len(images)}")
        if int(images.max()) <= 1:
            raise AuditError("no pixel is above 1 of 255: images in [0, 1] were cast to uint8 instead of scaled")
        self.images = images.cpu()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@dataclass(frozen=True)
class Extractor:
    """A network whose features are compared.

    Attributes:
        kind: parameter value that selects it.
        distance, kernel: metric names.
        dimensions: features per image.
        sha256: of the weights that the features depend on.
        score_refused: why there is no Inception Score; None where there is one.
        all_features: features of images by layer name, each (N, D) float32 on the CPU; the pooled ones come first.
    """

    kind: Literal["classifier", "inception"]
    distance: str
    kernel: str
    dimensions: int
    sha256: str
    score_refused: str | None
    all_features: Callable[[ImageSet], dict[str, Tensor]]

    def features(self, images: ImageSet) -> Tensor:
        """Pooled features (N, dimensions) float32 on the CPU."""
        return next(iter(self.all_features(images).values()))


def classifier_extractor(weights: Path, device: torch.device) -> Extractor:
    """The small classifier of ``weights`` (see :mod:`ebjdat.evaluation.classifier`)."""
    network: Any = load_classifier(weights).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def pooled(images: ImageSet) -> dict[str, Tensor]:
        with torch.no_grad():
            parts = [network.features(part.to(device)).cpu() for part in images.images.split(500)]
        return {"pooled": torch.cat(parts)}

    return Extractor(
        kind="classifier",
        distance="classifier-frechet",
        kernel="classifier-kernel",
        dimensions=2 * network.width,
        sha256=model_digest(network),
        score_refused="it is defined by Inception's class probabilities, this profile uses a small classifier",
        all_features=pooled,
    )


def inception_extractor(device: torch.device) -> Extractor:
    """Inception of 2015-12-05 (see :mod:`ebjdat.evaluation.inception`)."""
    weights, cuda = find_weights(), device.type == "cuda"
    refused = None if weights.final_layer else "these Inception weights lack the final layer, so no class probabilities"
    layers = ["2048"] if refused else ["2048", SCORE_LAYER]

    @cache
    def network() -> Any:
        from torch_fidelity.utils import create_feature_extractor

        made = create_feature_extractor(
            "inception-v3-compat", layers, cuda=cuda, feature_extractor_weights_path=str(weights.path), verbose=False
        )
        return made.to(memory_format=torch.channels_last)

    def by_layer(images: ImageSet) -> dict[str, Tensor]:
        from torch_fidelity.utils import get_featuresdict_from_dataset

        batch_size = 64 if cuda else 16
        found = get_featuresdict_from_dataset(images, network(), batch_size, cuda, save_cpu_ram=True, verbose=False)
        return {layer: found[layer] for layer in layers}

    return Extractor(
        kind="inception",
        distance="fid",
        kernel="kid",
        dimensions=2048,
        sha256=weights.sha256,
        score_refused=refused,
        all_features=by_layer,
    )


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) float64 of ``n`` feature vectors."""

    mean: np.ndarray
    covariance: np.ndarray
    n: int

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """From features (N, D), through torch-fidelity in float64."""
        from torch_fidelity.metric_fid import fid_features_to_statistics

        found = fid_features_to_statistics(features.double())
        return cls(found["mu"], found["sigma"], len(features))


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), through torch-fidelity.

    NumPy's root takes as many threads as evaluations on a CPU: all cores would be no faster, and round otherwise.
    """
    from threadpoolctl import threadpool_limits
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    sides = [{"mu": side.mean, "sigma": side.covariance} for side in (first, second)]
    with threadpool_limits(devices.THREADS):
        return float(fid_statistics_to_metric(*sides, verbose=False)[KEY_METRIC_FID])


def kernel_subset_size(*counts: int) -> int:
    """Images per subset of the kernel distance: 1,000, or all of the smaller set."""
    return min(KERNEL_SUBSET_SIZE, *counts)


def kernel_distance(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Mean and deviation over random subsets of the cubic-kernel MMD^2 of features (N, D), through torch-fidelity.

    On one thread: NumPy's products round by their number of threads, which depends on how a stage is started.
    """
    from threadpoolctl import threadpool_limits
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    size = kernel_subset_size(len(first), len(second))
    settings: Any = {"kid_subsets": KERNEL_SUBSETS, "kid_subset_size": size, "rng_seed": KERNEL_SEED}
    with threadpool_limits(1):
        found = kid_features_to_metric(first, second, **settings, verbose=False)
    return float(found[KEY_METRIC_KID_MEAN]), float(found[KEY_METRIC_KID_STD])


def inception_score(extractor: Extractor, features: Mapping[str, Tensor]) -> float:
    """Inception Score (Salimans et al., NeurIPS 2016) of ``extractor.all_features``, mean over 10 parts.

    UserError: the extractor has no class probabilities; the message says why.
    """
    if extractor.score_refused:
        raise UserError(f"no Inception Score: {extractor.score_refused}")
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_featuresdict_to_metric

    return float(isc_featuresdict_to_metric(features, SCORE_LAYER, verbose=False)[KEY_METRIC_ISC_MEAN])
