"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017, arXiv:1708.07747): 28x28 grey pictures of clothes, official split.

Sources, in this order: a folder named by the parameter ``data.folder`` or by the environment variable
``EBJDAT_FASHION``; the folder of Debian's package dataset-fashion-mnist; torchvision's download, kept in the cache.
Files may be packed (``.gz``) or not; unpacked, each must have the md5 of the owner's file.
"""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np

from ebjdat import files
from ebjdat.data.fetch import Unavailable, ask_torchvision, cache_folder, verify_bytes
from ebjdat.data.source import Source
from ebjdat.errors import UserError

ENVIRONMENT = "EBJDAT_FASHION"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
DOWNLOAD_SECONDS = 600.0
MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
"""Of the unpacked files."""
IMAGES_HEADER, LABELS_HEADER = 16, 8
"""Bytes before the values of an IDX file."""
_DOWNLOAD = "from torchvision.datasets import FashionMNIST; FashionMNIST(sys.argv[1], download=True)"


def load_fashion(folder: str | None = None) -> Source:
    """Fashion-MNIST in the official order.

    Args:
        folder: that of the parameter ``data.folder``; None: see the module.

    Returns:
        60,000 training and 10,000 test images, (1, 28, 28) uint8 in 0..255, labels 0..9.

    Raises:
        UserError: a file is missing, damaged or not the official one, or no source can be reached.
    """
    named, kept = folder or os.environ.get(ENVIRONMENT), cache_folder() / "fashion-mnist"
    if named:
        found = Path(named).expanduser()
    else:
        whole = (place for place in (DEBIAN, kept) if all(_path(place, name).is_file() for name in MD5))
        found = next(whole, None) or _fetched(kept)
    images, labels, test_images, test_labels = (_read(found, name) for name in MD5)
    print(f"Fashion-MNIST: official files from {found}")
    shape = (-1, 1, 28, 28)
    return Source("fashion", images.reshape(shape), labels, test_images.reshape(shape), test_labels, levels=255)


def _read(folder: Path, name: str) -> np.ndarray:
    """The values of an IDX file, uint8 (N,)."""
    path = _path(folder, name)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{folder} lacks {name} (parameter data.folder, environment variable {ENVIRONMENT})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole file: {error}") from None
    verify_bytes(f"{path}, unpacked", content, MD5[name])
    return np.frombuffer(content, np.uint8, offset=LABELS_HEADER if "labels" in name else IMAGES_HEADER)


def _path(folder: Path, name: str) -> Path:
    """A file of the data set, packed where it is there packed."""
    packed = folder / f"{name}.gz"
    return packed if packed.is_file() else folder / name


def _fetched(kept: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix="ebjdat-fashion-") as scratch:
        try:
            ask_torchvision(_DOWNLOAD, [scratch], Path(scratch), DOWNLOAD_SECONDS)
        except Unavailable as error:
            raise UserError(
                f"Fashion-MNIST cannot be fetched here ({error}): install Debian's dataset-fashion-mnist, or name a "
                f"folder with {next(iter(MD5))} by the parameter data.folder or the environment variable {ENVIRONMENT}"
            ) from None
        for name in MD5:
            with files.atomic(kept / name) as handle:
                handle.write(Path(scratch, "FashionMNIST", "raw", name).read_bytes())
    return kept
