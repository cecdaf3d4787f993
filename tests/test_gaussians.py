"""Class-conditional Gaussians: the informative start of chains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ebjdat import files
from ebjdat.data.gaussians import JITTER, Mixture, fit_mixture, load_mixture, save_mixture
from ebjdat.errors import UserError


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
