"""Fashion-MNIST from each source, on a miniature of it with its own hashes."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from ebjdat.data import fashion
from ebjdat.data.fetch import Unavailable
from ebjdat.errors import UserError

IMAGES = np.arange(3 * 784, dtype=np.int64).astype(np.uint8)
CONTENT = {
    name: b"\0" * (8 if "labels" in name else 16) + (bytes([0, 9, 4]) if "labels" in name else IMAGES.tobytes())
    for name in fashion.MD5
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    hashes = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(fashion, "MD5", hashes)
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("EBJDAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(fashion.ENVIRONMENT, raising=False)
    (tmp_path / "plain").mkdir()
    (tmp_path / "packed").mkdir()
    for name, content in CONTENT.items():
        (tmp_path / "plain" / name).write_bytes(content)
        (tmp_path / "packed" / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


def offline(*_: object) -> None:
    raise Unavailable("no network")


@pytest.mark.parametrize("source", ["parameter", "environment", "debian", "download"])
def test_every_source_gives_the_official_images_in_their_order(
    source: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(code: str, arguments: list[str], scratch: Path, seconds: float) -> None:
        (scratch / "FashionMNIST").mkdir()
        (folder / "plain").rename(scratch / "FashionMNIST" / "raw")

    monkeypatch.setattr(fashion, "ask_torchvision", download if source == "download" else offline)
    if source == "environment":
        monkeypatch.setenv(fashion.ENVIRONMENT, str(folder / "packed"))
    if source == "debian":
        (folder / "packed").rename(folder / "debian")
    found = fashion.load_fashion(str(folder / "plain") if source == "parameter" else None)
    assert found.images.shape == (3, 1, 28, 28) and np.array_equal(found.images.ravel(), IMAGES)
    assert list(found.labels) == [0, 9, 4] and found.test_images is not None and found.levels == 255
    if source == "download":  # what a killed run left is fetched again; what is whole needs no network
        next((folder / "cache").rglob("t10k-labels*")).rename(folder / "gone")
        (folder / "plain").mkdir()
        for name, content in CONTENT.items():
            (folder / "plain" / name).write_bytes(content)
        fashion.load_fashion()
        monkeypatch.setattr(fashion, "ask_torchvision", offline)
        assert np.array_equal(fashion.load_fashion().images, found.images)


def test_what_is_missing_damaged_or_another_file_is_refused_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "t10k-labels-idx1-ubyte"
    monkeypatch.setattr(fashion, "ask_torchvision", offline)
    with pytest.raises(UserError, match=r"cannot be fetched here \(no network\): install Debian's dataset-fashion"):
        fashion.load_fashion()
    packed = folder / "packed" / f"{name}.gz"
    content = packed.read_bytes()
    for damaged in (content[:20], content[:12] + b"\xff\xff" + content[14:]):
        packed.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name}.gz is not a whole file"):
            fashion.load_fashion(str(folder / "packed"))
    (folder / "plain" / name).write_bytes(b"\0" * 11)
    with pytest.raises(UserError, match=f"{name}, unpacked: expected md5 .* does not hold the official images"):
        fashion.load_fashion(str(folder / "plain"))
    (folder / "plain" / name).unlink()
    with pytest.raises(UserError, match=f"plain lacks {name}"):
        fashion.load_fashion(str(folder / "plain"))
