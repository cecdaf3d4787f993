"""Prepared data: fixed splits of verified images."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ebjdat import files
from ebjdat.config import Data
from ebjdat.data import digits
from ebjdat.data.gaussians import JITTER, Mixture, fit_mixture, load_mixture, save_mixture
from ebjdat.data.prepared import digest_of, load_prepared, save_prepared, split
from ebjdat.data.source import Source
from ebjdat.errors import UserError

SETTINGS = Data(dataset="digits", folder=None, split_seed=0, train=300, validation=60, test=90)


def changed(**values: object) -> Data:
    return SETTINGS.model_copy(update=values)


@lru_cache(maxsize=1)
def real_digits() -> Source:
    return digits.load_digits()


def numbered(n: int = 60, tests: int = 20) -> Source:
    """A data set with an official test set, whose images carry their own number."""
    labels = np.arange(n).astype(np.uint8) % 10

    def images(first: int, count: int) -> np.ndarray:
        number = np.arange(first, first + count).astype(np.uint8)
        return np.broadcast_to(number[:, None, None, None], (count, 3, 2, 2)).copy()

    return Source("cifar10", images(0, n), labels, images(100, tests), labels[:tests], 255)


def numbers(images: np.ndarray) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_the_digits_are_the_1797_published_ones() -> None:
    source = real_digits()
    assert source.images.shape == (1797, 1, 8, 8) and source.images.dtype == np.uint8
    assert int(source.images.max()) == source.levels == 16
    assert np.bincount(source.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_changed_digits_are_refused_with_both_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "LABELS_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"labels: expected sha256 0{64}, got 8ba4f891"):
        digits.load_digits()


def test_the_splits_are_disjoint_and_cover_all_images() -> None:
    source = real_digits()
    settings = changed(train=1200, validation=200, test=397)
    parts = split(source, settings)
    together = np.concatenate([parts[f"x_{name}"] for name in ("train", "val", "test")])
    assert len(together) == 1797
    as_rows = {
        name: sorted(map(bytes, array.reshape(len(array), -1)))
        for name, array in (("a", together), ("b", source.images))
    }
    assert as_rows["a"] == as_rows["b"]


def test_the_split_seed_alone_decides_the_split() -> None:
    first, again = split(real_digits(), SETTINGS), split(real_digits(), SETTINGS)
    other = split(real_digits(), changed(split_seed=1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["x_test"], other["x_test"])


def test_the_test_order_of_digits_depends_on_no_other_count() -> None:
    few = split(real_digits(), changed(train=10, validation=10))
    assert np.array_equal(few["x_test"], split(real_digits(), SETTINGS)["x_test"])
    more = split(real_digits(), changed(test=200))
    assert np.array_equal(more["x_test"][:90], few["x_test"])


def test_stratified_test_images_have_all_classes_equally_often_in_any_first_n() -> None:
    plain, ordered = split(real_digits(), SETTINGS), split(real_digits(), changed(stratified=True))
    for n in (10, 25, 40):
        counts = np.bincount(ordered["y_test"][:n], minlength=10)
        assert counts.max() - counts.min() <= 1
    same = [sorted(map(bytes, parts["x_test"].reshape(len(parts["x_test"]), -1))) for parts in (plain, ordered)]
    assert same[0] == same[1]
    assert np.array_equal(plain["x_train"], ordered["x_train"])


def test_an_official_test_set_stays_apart_from_training_and_is_reordered_once() -> None:
    settings = changed(dataset="cifar10", train=40, validation=15, test=20)
    parts = split(numbered(), settings)
    train, validation = set(numbers(parts["x_train"])), set(numbers(parts["x_val"]))
    assert len(train) == 40 and len(validation) == 15 and not train & validation
    assert max(train | validation) < 60
    assert sorted(numbers(parts["x_test"])) == list(range(100, 120))
    fewer = split(numbered(), settings.model_copy(update={"test": 5, "train": 30}))
    assert numbers(fewer["x_test"]) == numbers(parts["x_test"])[:5]
    assert all(parts["y_train"] == parts["x_train"][:, 0, 0, 0] % 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((60, 2, 2, 3), np.uint8)}, r"expected images \(N, 1 or 3, H, W\)"),
        ({"images": np.zeros((60, 3, 2, 2), np.float32)}, "of uint8, got .* of float32"),
        ({"labels": np.zeros(59, np.uint8)}, "expected 60 labels"),
        ({"labels": np.zeros(60, np.int64)}, "labels of uint8"),
        ({"labels": np.full(60, 10, np.uint8)}, "expected labels 0 to 9, got 10"),
        ({"levels": 16}, "expected pixel levels 0 to 16, got 59"),
        ({"test_labels": np.full(20, 200, np.uint8)}, "test set: expected labels 0 to 9, got 200"),
        ({"images": np.zeros((0, 3, 2, 2), np.uint8), "labels": np.zeros(0, np.uint8)}, "no images"),
    ],
    ids=["layout", "dtype", "count", "label-dtype", "label", "range", "test-label", "empty"],
)
def test_wrong_labels_shapes_and_ranges_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    source = dataclasses.replace(numbered(), **change)  # type: ignore[arg-type]
    settings = changed(train=40, validation=15, test=20)
    with pytest.raises(UserError, match=message):
        save_prepared(tmp_path / "data", source, settings)
    assert not (tmp_path / "data").exists()


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="ask for 2390 images, only 1797 exist"):
        split(real_digits(), changed(train=2240))


def test_prepared_images_come_back_as_floats_in_the_unit_range(tmp_path: Path) -> None:
    manifest = save_prepared(tmp_path, real_digits(), SETTINGS)
    data = load_prepared(tmp_path)
    stored = split(real_digits(), SETTINGS)
    assert data.x_train.dtype == torch.float32 and data.y_train.dtype == torch.int64
    assert torch.equal(data.x_test * 16, torch.from_numpy(stored["x_test"]).float())
    assert float(data.x_train.max()) == 1.0 and data.shape == (1, 8, 8)
    assert (len(data.x_train), len(data.x_val), len(data.x_test)) == (300, 60, 90)
    assert data.digest == manifest["digest"]
    assert manifest["class_counts"]["test"] == np.bincount(stored["y_test"], minlength=10).tolist()


def test_the_gaussians_are_fitted_on_the_raw_train_split_only(tmp_path: Path) -> None:
    save_prepared(tmp_path, real_digits(), SETTINGS)
    data = load_prepared(tmp_path)
    expected = fit_mixture(data.x_train, data.y_train)
    assert torch.equal(data.mixture.mean, expected.mean) and torch.equal(data.mixture.chol, expected.chol)


def test_preparing_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_prepared(tmp_path / name, real_digits(), SETTINGS)
    for file in ("arrays.npz", "gaussians.npz", "manifest.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_digest_covers_every_image_label_and_split() -> None:
    parts = split(real_digits(), SETTINGS)
    digest = digest_of(parts, 16)
    assert digest == digest_of({name: parts[name].copy() for name in reversed(parts)}, 16)
    for name in parts:
        changed = {key: array.copy() for key, array in parts.items()}
        changed[name].flat[0] ^= 1
        assert digest_of(changed, 16) != digest
    assert digest_of(parts, 255) != digest


def test_missing_damaged_and_swapped_files_are_named(tmp_path: Path) -> None:
    save_prepared(tmp_path / "a", real_digits(), SETTINGS)
    save_prepared(tmp_path / "b", real_digits(), changed(split_seed=1))
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        load_prepared(tmp_path / "none")
    arrays = tmp_path / "a" / "arrays.npz"
    arrays.write_bytes((tmp_path / "b" / "arrays.npz").read_bytes())
    with pytest.raises(UserError, match=r"arrays\.npz: expected digest"):
        load_prepared(tmp_path / "a")
    arrays.write_bytes(arrays.read_bytes()[:500])
    with pytest.raises(UserError, match=r"arrays\.npz is damaged"):
        load_prepared(tmp_path / "a")
    arrays.unlink()
    with pytest.raises(UserError, match=r"arrays\.npz is missing"):
        load_prepared(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text(json.dumps({"levels": 16}))
    with pytest.raises(UserError, match="lacks digest or levels"):
        load_prepared(tmp_path / "a")


# Class-conditional Gaussians: the informative start of chains


def images_near(centre: float, spread: float, n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated 1x3x3 images of two classes, well inside [0, 1], so that clamping changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(9, 9, generator=generator) / 3
    flat = centre + spread * torch.randn(n, 9, generator=generator) @ mixing
    labels = torch.arange(n) % 2
    flat[labels == 1] += 0.1
    return flat.view(n, 1, 3, 3), labels


def test_the_fit_is_each_class_s_mean_and_covariance_plus_the_jitter() -> None:
    images, labels = images_near(0.4, 0.05)
    mixture = fit_mixture(images, labels, classes=2)
    for label in range(2):
        flat = images[labels == label].flatten(1).double().numpy()
        covariance = np.cov(flat, rowvar=False, bias=True) + JITTER * np.eye(9)
        chol = mixture.chol[label].double()
        assert np.allclose(mixture.mean[label].numpy(), flat.mean(0), atol=1e-6)
        assert np.allclose((chol @ chol.T).numpy(), covariance, atol=1e-8)
        assert torch.equal(chol, chol.tril())


def test_the_jitter_is_1e_4_in_the_scale_of_the_network() -> None:
    constant = torch.full((4, 1, 2, 2), 0.5)
    chol = fit_mixture(constant, torch.tensor([0, 0, 1, 1]), classes=2).chol[0]
    in_network_scale = 4 * (chol @ chol.T)
    assert torch.allclose(in_network_scale, 1e-4 * torch.eye(4), atol=1e-9)


def test_samples_have_the_moments_of_their_class() -> None:
    images, labels = images_near(0.4, 0.02)
    mixture = fit_mixture(images, labels, classes=2)
    wanted = torch.ones(20_000, dtype=torch.int64)
    drawn, given = mixture.sample(20_000, torch.Generator().manual_seed(1), wanted)
    assert torch.equal(given, wanted)
    flat = drawn.flatten(1).double()
    target = mixture.chol[1].double() @ mixture.chol[1].double().T
    assert torch.allclose(flat.mean(0), mixture.mean[1].double(), atol=1e-3)
    assert torch.allclose(torch.cov(flat.T), target, atol=0.05 * float(target.diagonal().max()))


def test_each_image_follows_the_label_in_its_place_and_labels_are_uniform_when_none_are_given() -> None:
    images, labels = images_near(0.4, 0.001)
    mixture = fit_mixture(images, labels, classes=2)
    wanted = torch.tensor([0, 1, 1, 0, 1])
    drawn, _ = mixture.sample(5, torch.Generator().manual_seed(0), wanted)
    assert torch.equal(torch.cdist(drawn.flatten(1), mixture.mean).argmin(1), wanted)
    _, free = mixture.sample(4000, torch.Generator().manual_seed(0))
    assert abs(float(free.double().mean()) - 0.5) < 0.03


def test_samples_are_clamped_to_the_image_range() -> None:
    images, labels = images_near(0.9, 0.5)
    drawn, _ = fit_mixture(images, labels, classes=2).sample(500, torch.Generator().manual_seed(0))
    assert float(drawn.min()) == 0.0 and float(drawn.max()) == 1.0


def test_a_class_with_one_image_is_refused() -> None:
    images, labels = images_near(0.4, 0.05, n=4)
    labels[:] = torch.tensor([0, 0, 0, 1])
    with pytest.raises(UserError, match="class 1 has 1 training images"):
        fit_mixture(images, labels, classes=2)


def test_a_saved_mixture_comes_back_exactly_from_half_the_bytes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    chol = torch.randn(10, 48, 48, generator=generator).tril()
    mixture = Mixture(torch.rand(10, 48, generator=generator), chol, (3, 4, 4))
    path = tmp_path / "gaussians.npz"
    save_mixture(path, mixture)
    back = load_mixture(path)
    assert torch.equal(back.mean, mixture.mean) and torch.equal(back.chol, chol) and back.shape == (3, 4, 4)
    assert path.stat().st_size < 0.6 * chol.numel() * 4
    first = path.read_bytes()
    save_mixture(path, mixture)
    assert path.read_bytes() == first


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        load_mixture(tmp_path / "gaussians.npz")
    (tmp_path / "gaussians.npz").write_bytes(b"not a zip")
    with pytest.raises(UserError, match=r"gaussians\.npz is damaged .*: run the stage prepare again"):
        load_mixture(tmp_path / "gaussians.npz")
    files.write_npz(tmp_path / "gaussians.npz", {"other": np.zeros(3)})
    with pytest.raises(UserError, match="not a file of class Gaussians"):
        load_mixture(tmp_path / "gaussians.npz")
