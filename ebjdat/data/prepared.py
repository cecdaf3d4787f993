"""Prepared data: fixed splits as plain arrays, read by every later stage.

A folder holds ``arrays.npz`` (images as whole grey or colour levels, labels), ``gaussians.npz`` (the chains'
informative start, see ``ebjdat.data.gaussians``) and ``manifest.json`` (digest, counts, hashes). ``digest`` names the
data: images, labels and splits, not the fitted Gaussians, whose last bits depend on the machine's linear algebra.
Splits and order depend on the split seed alone, so that "the first n test images" are the same images in every
evaluation.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ebjdat import files
from ebjdat.config import Data
from ebjdat.data.gaussians import CLASSES, Mixture, fit_mixture, load_mixture, save_mixture
from ebjdat.data.source import Source
from ebjdat.errors import UserError

ARRAYS = "arrays.npz"
GAUSSIANS = "gaussians.npz"
MANIFEST = "manifest.json"
SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Prepared:
    """Images and labels of the three splits.

    Attributes:
        x_train, x_val, x_test: (N, C, H, W) float32 in [0, 1].
        y_train, y_val, y_test: (N,) int64 in 0..9.
        digest: sha256 over images, labels and splits.
        gaussians: the class Gaussians, or the file that holds them.
        levels: value of white in the stored whole numbers (16 for digits, 255 for CIFAR-10).
    """

    x_train: torch.Tensor
    y_train: torch.Tensor
    x_val: torch.Tensor
    y_val: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    digest: str
    gaussians: Mixture | Path
    levels: int

    @cached_property
    def mixture(self) -> Mixture:
        """The class Gaussians; read at first use, because most evaluations need none."""
        return load_mixture(self.gaussians) if isinstance(self.gaussians, Path) else self.gaussians

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width


def load_source(settings: Data) -> Source:
    """A data set as its owner publishes it. UserError: it is missing or another one; see the module of each."""
    if settings.dataset == "digits":
        from ebjdat.data.digits import load_digits

        return load_digits()
    if settings.dataset == "fashion":
        from ebjdat.data.fashion import load_fashion

        return load_fashion(settings.folder)
    from ebjdat.data.cifar10 import load_cifar10

    return load_cifar10(settings.folder)


def split(source: Source, settings: Data) -> dict[str, np.ndarray]:
    """The splits as arrays ``x_train`` uint8 (N, C, H, W), ``y_train`` uint8 (N,), and so on.

    One seeded permutation of the training set gives train (first) and validation (next). With an official test set, a
    second permutation orders it; without, the test split is the head of the first, followed by validation and train.

    Raises:
        UserError: the images or labels are not what the data set promises, or too few.
    """
    _check_arrays(source.name, source.images, source.labels, source.levels)
    # RandomState's streams are frozen by numpy's policy, those of newer generators are not.
    random = np.random.RandomState(settings.split_seed)
    order = random.permutation(len(source.images))
    train, validation, test = settings.train, settings.validation, settings.test
    if source.test_images is None:
        _check_count(source.name, "train + validation + test", train + validation + test, len(order))
        places = {"test": order[:test], "val": order[test:][:validation], "train": order[test + validation :][:train]}
    else:
        _check_count(source.name, "train + validation", train + validation, len(order))
        places = {"train": order[:train], "val": order[train:][:validation]}
    parts: dict[str, np.ndarray] = {}
    for name, index in places.items():
        parts |= {f"x_{name}": source.images[index], f"y_{name}": source.labels[index]}
    if source.test_images is not None and source.test_labels is not None:
        _check_arrays(f"{source.name} test set", source.test_images, source.test_labels, source.levels)
        _check_count(source.name, "test", test, len(source.test_images))
        index = random.permutation(len(source.test_images))[:test]
        parts |= {"x_test": source.test_images[index], "y_test": source.test_labels[index]}
    if settings.stratified:
        index = _stratified(parts["y_test"])
        parts |= {"x_test": parts["x_test"][index], "y_test": parts["y_test"][index]}
    return parts


def _stratified(labels: np.ndarray) -> np.ndarray:
    """An order of ``labels`` (N,) in which every class comes once before any comes again; within a class as before."""
    turn = np.empty(len(labels), int)
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    return np.lexsort((labels, turn))


def digest_of(parts: dict[str, np.ndarray], levels: int) -> str:
    """sha256 over names, types, shapes and bytes of the split arrays, and the levels."""
    total = hashlib.sha256(f"levels {levels}\n".encode())
    for name in sorted(parts):
        array = np.ascontiguousarray(parts[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def save_prepared(folder: str | Path, source: Source, settings: Data) -> dict[str, Any]:
    """Split, fit the Gaussians, write the folder; the manifest is written last and returned."""
    folder = Path(folder)
    parts = split(source, settings)
    images = _images(parts["x_train"], source.levels)
    mixture = fit_mixture(images, torch.from_numpy(parts["y_train"]).long())
    files.write_npz(folder / ARRAYS, parts, compress=False)
    save_mixture(folder / GAUSSIANS, mixture)
    manifest = {
        "schema": 1,
        "dataset": source.name,
        "digest": digest_of(parts, source.levels),
        "levels": source.levels,
        "shape": list(images.shape[1:]),
        "split_seed": settings.split_seed,
        "counts": {name: len(parts[f"y_{name}"]) for name in SPLITS},
        "class_counts": {name: np.bincount(parts[f"y_{name}"], minlength=CLASSES).tolist() for name in SPLITS},
        "files": {name: files.file_hash(folder / name) for name in (ARRAYS, GAUSSIANS)},
    }
    files.write_json(folder / MANIFEST, manifest)
    return manifest


def load_prepared(folder: str | Path) -> Prepared:
    """Read and verify a folder written by :func:`save_prepared`.

    Raises:
        UserError: a file is missing, damaged, or not of this manifest.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path} is missing: prepare the data of this profile (`dvc repro prepare`)")
    manifest = files.read_json(path)
    if not isinstance(manifest, dict) or not {"digest", "levels"} <= manifest.keys():
        raise UserError(f"{path} lacks digest or levels: run the stage prepare again")
    parts = files.read_npz(folder / ARRAYS, "run the stage prepare")
    actual = digest_of(parts, manifest["levels"])
    if actual != manifest["digest"]:
        raise UserError(
            f"{folder / ARRAYS}: expected digest {manifest['digest']}, got {actual}: run the stage prepare again"
        )
    images = {f"x_{name}": _images(parts[f"x_{name}"], manifest["levels"]) for name in SPLITS}
    labels = {f"y_{name}": torch.from_numpy(parts[f"y_{name}"]).long() for name in SPLITS}
    return Prepared(**images, **labels, digest=actual, gaussians=folder / GAUSSIANS, levels=manifest["levels"])


def _images(stored: np.ndarray, levels: int) -> torch.Tensor:
    return torch.from_numpy(stored).float().div_(levels)


def _check_count(name: str, what: str, wanted: int, available: int) -> None:
    if wanted > available:
        raise UserError(f"{name}: data.{what} ask for {wanted} images, only {available} exist")


def _check_arrays(name: str, images: np.ndarray, labels: np.ndarray, levels: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"{name}: expected images (N, 1 or 3, H, W) of uint8, got {images.shape} of {images.dtype}")
    if labels.shape != images.shape[:1] or labels.dtype != np.uint8:
        raise UserError(f"{name}: expected {len(images)} labels of uint8, got {labels.shape} of {labels.dtype}")
    if len(images) == 0:
        raise UserError(f"{name}: no images")
    if int(labels.max()) >= CLASSES:
        raise UserError(f"{name}: expected labels 0 to {CLASSES - 1}, got {int(labels.max())}")
    if int(images.max()) > levels:
        raise UserError(f"{name}: expected pixel levels 0 to {levels}, got {int(images.max())}")
