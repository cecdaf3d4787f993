"""How good the samples of a model are, under two labelled protocols and beside two controls.

``standard``: fresh chains from the variant's own initialisation, every sample counted, against the
train split. ``released``: the replay buffer, of which the most confident 90 % per predicted class are
kept, against train and test images together, as the released code of EB-JDAT at 327ea16 does.
A distance falls with the number of images, so everything under ``standard`` has the same number: the
fresh samples, the buffer, the chains' initial distribution (an informative start is close to the
data before a single step) and real test images (the floor).

Samples are rounded to 8 bits before anything is measured; under ``released`` they are floored, as its code does.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebjdat.config import Generation, Variant
from ebjdat.data.prepared import Prepared
from ebjdat.errors import UserError
from ebjdat.evaluation.classifier import predict
from ebjdat.evaluation.features import (
    ImageSet,
    Statistics,
    frechet_distance,
    inception_score,
    kernel_subset_size,
    to_uint8,
)
from ebjdat.evaluation.reference import Reference
from ebjdat.evaluation.samples import fresh, start_of, stream
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import model_digest
from ebjdat.progress import Progress
from ebjdat.seeds import derive
from ebjdat.statistics import Rate, Result
from ebjdat.training.samplers import chain, generate

CONDITIONAL = 1000
"""Most class-conditional samples; they are judged by a classifier, not by a distance."""
KEPT_SHARE = 0.9
NEAREST = 2000
"""Most images whose nearest training image is looked for."""
SNAPSHOT_CHAINS = 64
SNAPSHOT_COLUMNS = 6


@dataclass(frozen=True)
class Samples:
    """Images of one model, (n, C, H, W) float32 in [0, 1] on the CPU.

    Attributes:
        fresh: ends of fresh chains.
        start: draws of the chains' initial distribution, as many.
        conditional: ends of class-conditional chains for ``labels``.
        conditional_start: where such chains begin.
        labels: (m,) int64, all classes equally often.
        buffer: the replay buffer.
        snapshots: (columns, SNAPSHOT_CHAINS, C, H, W), the same chains at ``snapshot_steps``.
    """

    fresh: Tensor
    start: Tensor
    conditional: Tensor
    conditional_start: Tensor
    labels: Tensor
    buffer: Tensor
    snapshots: Tensor
    snapshot_steps: tuple[int, ...]

    def arrays(self) -> dict[str, np.ndarray]:
        """The samples as uint8 in 0..255 (n, C, H, W), for a file beside the record."""
        images = {"fresh": self.fresh, "conditional": self.conditional}
        rounded = {name: (found * 255.0).round().to(torch.uint8).numpy() for name, found in images.items()}
        return rounded | {"conditional_labels": self.labels.numpy()}


def draw_samples(
    model: EnergyModel,
    variant: Variant,
    prepared: Prepared,
    buffer: Tensor,
    settings: Generation,
    seed: int,
    label: str = "generate",
) -> Samples:
    """Generate everything that :func:`measure` needs, on the model's device.

    Args:
        buffer: (size, C, H, W) float32, the replay buffer of the model.
        seed: of the model's run; every purpose has its own stream derived from it.
    """
    device = next(model.parameters()).device
    start = start_of(variant, prepared, device)
    steps = settings.chain_steps

    def draws(purpose: str) -> torch.Generator:
        return stream(seed, purpose, device)

    labels = torch.arange(min(settings.samples, CONDITIONAL), device=device) % 10
    snapshots, snapshot_steps = _snapshots(model, variant, start.sample(SNAPSHOT_CHAINS, draws("snapshots"))[0], steps)
    with Progress(settings.samples + len(labels), label, unit="chain") as progress:
        free = fresh(model, variant, prepared, settings.samples, steps, seed, progress)
        conditional = generate(
            model, variant, start, len(labels), steps, draws("conditional"), labels, progress=progress
        )
    return Samples(
        fresh=free.cpu(),
        start=start.sample(settings.samples, draws("start"))[0].cpu(),
        conditional=conditional.cpu(),
        conditional_start=start.sample(len(labels), draws("conditional-start"), labels)[0].cpu(),
        labels=labels.cpu(),
        buffer=buffer.clamp(0.0, 1.0).cpu(),  # JEM's chains are not clamped while they run
        snapshots=snapshots,
        snapshot_steps=snapshot_steps,
    )


def _snapshots(model: EnergyModel, variant: Variant, x: Tensor, steps: int) -> tuple[Tensor, tuple[int, ...]]:
    """States of the chains from x at evenly spread steps; batch statistics see all chains."""
    generator = torch.Generator(x.device).manual_seed(0)
    marks = sorted({round(steps * column / (SNAPSHOT_COLUMNS - 1)) for column in range(SNAPSHOT_COLUMNS)})
    states = [x.clamp(0.0, 1.0).cpu()]
    for before, after in itertools.pairwise(marks):
        x = chain(model, x, variant, after - before, generator)
        states.append(x.clamp(0.0, 1.0).cpu())
    return torch.stack(states), tuple(marks)


def most_confident(model: EnergyModel, images: Tensor, share: float = KEPT_SHARE, batch_size: int = 500) -> Tensor:
    """Indices (sorted) of images (N, C, H, W) of which the model is most confident: of each class that it predicts the
    ``share``, rounded up.
    """
    device = next(model.parameters()).device
    with torch.no_grad():
        parts = [model(part.to(device)).softmax(1).max(1) for part in images.split(batch_size)]
    confidence = torch.cat([part.values for part in parts]).cpu()
    predicted = torch.cat([part.indices for part in parts]).cpu()
    kept = []
    for label in predicted.unique():
        members = (predicted == label).nonzero().squeeze(1)
        order = confidence[members].argsort(descending=True, stable=True)
        wanted = math.ceil(share * len(members) - 1e-9)  # 0.9 * 30 is not exactly 27
        kept.append(members[order[:wanted]])
    return torch.cat(kept).sort().values


def nearest_distances(images: Tensor, train: Tensor, device: torch.device, batch_size: int = 250) -> np.ndarray:
    """Euclidean distance (n,) float64, pixel units, of images (n, C, H, W) to the nearest of train (N, C, H, W)."""
    flat = train.flatten(1).to(device)
    parts = [torch.cdist(part.flatten(1).to(device), flat).min(1).values for part in images.split(batch_size)]
    return torch.cat(parts).double().cpu().numpy()


def measure(model: EnergyModel, samples: Samples, prepared: Prepared, reference: Reference, seed: int) -> Result:
    """All numbers of the stage; see the module for what is compared with what."""
    values, warnings = _distances(model, samples, reference, seed)
    device = next(model.parameters()).device
    nearest = {
        name: nearest_distances(_rounded(images[:NEAREST]), _rounded(prepared.x_train), device)
        for name, images in (("samples", samples.fresh), ("start", samples.start), ("test", prepared.x_test))
    }
    values |= {f"generation/nearest-train/{name}": float(np.median(found)) for name, found in nearest.items()}
    conditional = predict(reference.classifier, to_uint8(samples.conditional), device)
    started = predict(reference.classifier, to_uint8(samples.conditional_start), device)
    return Result(
        n=len(samples.fresh),
        rates={
            "generation/agreement": Rate.of((conditional == samples.labels).numpy()),
            "generation/start-agreement": Rate.of((started == samples.labels).numpy()),
            "generation/classifier-clean": reference.clean,
        },
        values=values,
        warnings=warnings,
        settings=_settings(samples, reference, int(values["generation/released-n"])),
        arrays={f"nearest_{name}": found for name, found in nearest.items()}
        | {"conditional_labels": samples.labels.numpy(), "conditional_predictions": conditional.numpy()},
    )


def _rounded(images: Tensor) -> Tensor:
    """Images in [0, 1] as all metrics see them, rounded to 8 bits."""
    return to_uint8(images).float() / 255.0


def _distances(
    model: EnergyModel, samples: Samples, reference: Reference, seed: int
) -> tuple[dict[str, float], dict[str, list[str]]]:
    extractor, n = reference.extractor, len(samples.fresh)
    order = torch.randperm(len(samples.buffer), generator=torch.Generator().manual_seed(derive(seed, "buffer-subset")))
    kept = most_confident(model, samples.buffer)
    buffer = extractor.features(ImageSet(to_uint8(samples.buffer)))
    filtered = extractor.features(ImageSet(to_uint8(samples.buffer[kept], floor=True)))
    sampled = extractor.all_features(ImageSet(to_uint8(samples.fresh), n))
    start = extractor.features(ImageSet(to_uint8(samples.start), n))
    sets = {"": next(iter(sampled.values())), "start-": start, "buffer-": buffer[order[:n]]}
    values = {f"generation/test-{name}": value for name, value in reference.floor.items()}
    warnings: dict[str, list[str]] = {}
    for label, features in sets.items():
        found = reference.distances(features)
        values |= {f"generation/{label}{name}": value for name, value in found.items()}
        _warn(warnings, f"generation/{label}{extractor.distance}", len(features), n, extractor.dimensions)
    released = f"generation/released-{extractor.distance}"
    values |= {
        released: frechet_distance(Statistics.of(filtered), reference.everything),
        "generation/released-n": float(len(kept)),
    }
    _warn(warnings, released, len(kept), len(kept), extractor.dimensions)
    _warn(warnings, f"generation/test-{extractor.distance}", reference.floor_images, n, extractor.dimensions)
    try:
        values["generation/inception-score"] = inception_score(extractor, sampled)
    except UserError as error:
        warnings["generation/inception-score"] = [str(error)]
    return values, warnings


def _warn(warnings: dict[str, list[str]], name: str, images: int, wanted: int, dimensions: int) -> None:
    found = []
    if images <= dimensions:
        found.append(f"{images} images for {dimensions} features: the covariance is singular, compare at equal n only")
    if images != wanted:
        found.append(f"{images} images instead of {wanted}: not at equal n")
    if found:
        warnings[name] = found


def _settings(samples: Samples, reference: Reference, kept: int) -> dict[str, object]:
    extractor, n = reference.extractor, len(samples.fresh)
    return {
        "standard": {
            "state": "fresh chains",
            "samples": n,
            "filter": "none",
            "chain_steps": samples.snapshot_steps[-1],
            "reference": "train split",
            "reference_images": reference.train.n,
            "test_images": reference.floor_images,
        },
        "released": {
            "state": "replay buffer",
            "samples": kept,
            "filter": f"top {KEPT_SHARE:.0%} by confidence per predicted class, of {len(samples.buffer)}",
            "levels": "floored",
            "reference": "train, validation and test images",
            "reference_images": reference.everything.n,
        },
        "features": {
            "name": extractor.kind,
            "metric": extractor.distance,
            "sha256": extractor.sha256,
            "dimensions": extractor.dimensions,
        },
        "kernel": {"subset_size": kernel_subset_size(n, len(reference.kernel_features)), "metric": extractor.kernel},
        "classifier": {"sha256": model_digest(reference.classifier)},
        "conditional_samples": len(samples.labels),
    }
