"""What generated images are compared with: statistics of real images, made once per data set.

A reference is a folder that DVC versions: ``classifier.pt`` (the independent classifier),
``statistics.npz`` (feature statistics of the train split and of all images) and ``manifest.json``,
which names the data and the features that they belong to. It also holds the floor of every distance:
real test images against the train split, at the same number of images as the samples.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebjdat import files
from ebjdat.config import Generation
from ebjdat.data.prepared import Prepared
from ebjdat.errors import UserError
from ebjdat.evaluation.classifier import Classifier, load_classifier, predict, save_classifier, train_classifier
from ebjdat.evaluation.features import (
    Extractor,
    ImageSet,
    Statistics,
    classifier_extractor,
    frechet_distance,
    inception_extractor,
    kernel_distance,
    to_uint8,
)
from ebjdat.model.store import model_digest
from ebjdat.statistics import Rate

SCHEMA = 1
KERNEL_REFERENCE = 10_000
"""Train images whose features are kept for the kernel distance, which works on random subsets."""


@dataclass(frozen=True)
class Reference:
    """Statistics of real images in one feature space.

    Attributes:
        extractor: the network that made them.
        classifier: the independent classifier.
        train: statistics of the train split.
        everything: statistics of train, validation and test images together.
        kernel_features: (n, D) float32, features of the first train images.
        floor: distance name -> value of real test images against the train split.
        floor_images: how many test images that is.
        clean: accuracy of the classifier on the test images.
    """

    extractor: Extractor
    classifier: Classifier
    train: Statistics
    everything: Statistics
    kernel_features: Tensor
    floor: dict[str, float]
    floor_images: int
    clean: Rate

    def distances(self, features: Tensor) -> dict[str, float]:
        """Both distances of features (N, D) to the train split, by metric name."""
        mean, spread = kernel_distance(features, self.kernel_features)
        return {
            self.extractor.distance: frechet_distance(Statistics.of(features), self.train),
            self.extractor.kernel: mean,
            f"{self.extractor.kernel}-std": spread,
        }


def build_reference(folder: Path, prepared: Prepared, settings: Generation, device: torch.device) -> dict[str, Any]:
    """Train the classifier, measure the real images and write the folder; returns its manifest.

    Raises:
        UserError: Inception weights are needed and not to be had, or a file cannot be written.
    """
    train, validation, test = (to_uint8(x) for x in (prepared.x_train, prepared.x_val, prepared.x_test))
    classifier = train_classifier(train, prepared.y_train, device)
    save_classifier(folder / "classifier.pt", classifier)
    extractor = _extractor(settings.features, folder, device)
    parts = [extractor.features(ImageSet(part)) for part in (train, validation, test)]
    statistics, everything = Statistics.of(parts[0]), Statistics.of(torch.cat(parts))
    n, kernel = min(settings.samples, len(test)), parts[0][:KERNEL_REFERENCE]
    clean = Rate.of((predict(classifier, test, device) == prepared.y_test).numpy())
    reference = Reference(extractor, classifier, statistics, everything, kernel, {}, n, clean)
    manifest = {
        "schema": SCHEMA,
        "data": prepared.digest,
        "features": {"kind": extractor.kind, "sha256": extractor.sha256, "dimensions": extractor.dimensions},
        "classifier": {"sha256": model_digest(classifier), **asdict(clean)},
        "counts": {"train": statistics.n, "all": everything.n, "floor": n},
        "floor": reference.distances(parts[2][:n]),
    }
    arrays = {
        "train_mean": statistics.mean,
        "train_covariance": statistics.covariance,
        "all_mean": everything.mean,
        "all_covariance": everything.covariance,
        "kernel_features": kernel.numpy(),
    }
    files.write_npz(folder / "statistics.npz", arrays, compress=False)
    files.write_json(folder / "manifest.json", manifest)
    return manifest


def load_reference(folder: Path, prepared: Prepared, settings: Generation, device: torch.device) -> Reference:
    """Read a folder written by :func:`build_reference`.

    Raises:
        UserError: a file is missing or damaged, or belongs to other data or other features.
    """
    manifest, again = files.read_json(folder / "manifest.json"), "run `dvc repro` to make it again"
    arrays = files.read_npz(folder / "statistics.npz", "run `dvc repro` to make it")
    try:
        known = (manifest["schema"], manifest["data"], manifest["features"]["kind"])
        counts, clean = manifest["counts"], {name: manifest["classifier"][name] for name in ("correct", "n", "flags")}
        train = Statistics(arrays["train_mean"], arrays["train_covariance"], counts["train"])
        everything = Statistics(arrays["all_mean"], arrays["all_covariance"], counts["all"])
        kernel_features = torch.from_numpy(arrays["kernel_features"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: damaged reference ({error}); {again}") from None
    wanted = (SCHEMA, prepared.digest, settings.features)
    if known != wanted:
        raise UserError(f"{folder}: belongs to schema, data, features {known}, expected {wanted}; {again}")
    extractor = _extractor(settings.features, folder, device)
    made_with = manifest["features"]["sha256"]
    if extractor.sha256 != made_with:
        raise UserError(f"{folder}: made with features of sha256 {made_with}, found {extractor.sha256}; {again}")
    classifier, floor = load_classifier(folder / "classifier.pt"), (manifest["floor"], counts["floor"])
    return Reference(extractor, classifier, train, everything, kernel_features, *floor, Rate(**clean))


def _extractor(kind: str, folder: Path, device: torch.device) -> Extractor:
    if kind == "inception":
        return inception_extractor(device)
    return classifier_extractor(folder / "classifier.pt", device)
