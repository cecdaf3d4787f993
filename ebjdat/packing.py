"""Files in small pieces, for a machine that nothing but small files reaches.

A pack is a folder with ``manifest.json`` and ``piece-000``, ``piece-001``, ...: one gzipped tar, cut.
Pieces may arrive one by one and in any order; unpacking verifies every piece and every file before
the first one is moved into place. Equal files give equal pieces, so that what has arrived already need
not be sent again. Needs the standard library and NumPy only.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import math
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any

from ebjdat import files
from ebjdat.data.archive import extract
from ebjdat.errors import UserError

SCHEMA = 1
PIECE_BYTES = 50_000_000
MANIFEST = "manifest.json"
PACKAGES = ("PyYAML", "filelock", "pyautoattack", "torch-fidelity", "tqdm")
"""Distributions in pure Python that training and evaluation import besides torch, torchvision and NumPy."""
PICTURES = ("datasets/images/china.jpg", "datasets/images/flower.jpg")
"""What evaluation reads of scikit-learn's folder."""


def piece_size(megabytes: float) -> int:
    """Bytes of a piece.

    Raises:
        UserError: less than a kilobyte, or no number.
    """
    if not 0.001 <= megabytes < math.inf:
        raise UserError(f"--piece-mb {megabytes:g}: expected megabytes, at least 0.001")
    return int(1e6 * megabytes)


def pack(entries: Mapping[str, Path], folder: Path, piece_bytes: int = PIECE_BYTES) -> dict[str, Any]:
    """Write files as a pack; returns its manifest, which is written last.

    Args:
        entries: name inside the pack, with forward slashes -> file.
        folder: of the pack; pieces of an earlier one are removed.
        piece_bytes: size of a piece; the last one may be smaller.

    Raises:
        UserError: a file cannot be read, or a piece cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / MANIFEST, *folder.glob("piece-*")):
        old.unlink(missing_ok=True)
    hashes, total = {}, 0
    writer = _Pieces(folder, piece_bytes)
    try:
        with (
            writer,
            gzip.GzipFile("", "wb", 6, writer, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in sorted(entries):
                with entries[name].open("rb") as source:
                    member = tarfile.TarInfo(name)
                    member.size = entries[name].stat().st_size
                    reader = _Hashing(source)
                    archive.addfile(member, reader)  # type: ignore[arg-type]  # it is only read from
                hashes[name], total = reader.digest.hexdigest(), total + member.size
    except OSError as error:
        raise UserError(f"{folder}: the pack could not be written ({error.strerror or error})") from error
    manifest = {"schema": SCHEMA, "pieces": writer.pieces, "files": hashes, "bytes": total}
    files.write_json(folder / MANIFEST, manifest)
    return manifest


class _Hashing(io.RawIOBase):
    """Reads on, keeping the hash of what was read."""

    def __init__(self, source: Any) -> None:
        self.source, self.digest = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content: bytes = self.source.read(size)
        self.digest.update(content)
        return content


class _Pieces(io.RawIOBase):
    """Writes a stream as files of one size."""

    def __init__(self, folder: Path, piece_bytes: int) -> None:
        self.folder, self.piece_bytes = folder, piece_bytes
        self.pieces: list[dict[str, Any]] = []
        self.waiting = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.waiting += content
        while len(self.waiting) >= self.piece_bytes:
            self._write_piece(bytes(self.waiting[: self.piece_bytes]))
            del self.waiting[: self.piece_bytes]
        return len(content)

    def close(self) -> None:
        if self.waiting:
            self._write_piece(bytes(self.waiting))
            self.waiting.clear()
        super().close()

    def _write_piece(self, content: bytes) -> None:
        name = f"piece-{len(self.pieces):03d}"
        with files.atomic(self.folder / name) as handle:
            handle.write(content)
        self.pieces.append({"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})


def missing(folder: Path) -> list[str]:
    """Names of the pieces of a pack that are not there, or not whole; of the manifest, while only that is known.

    Raises:
        UserError: there is no such folder, or the manifest is damaged.
    """
    if folder.is_dir() and not (folder / MANIFEST).is_file():
        return [MANIFEST]
    return [piece["name"] for piece in read_manifest(folder)["pieces"] if not _whole(folder / piece["name"], piece)]


def _whole(path: Path, piece: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == piece["bytes"] and _sha256(path) == piece["sha256"]


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a pack.

    Raises:
        UserError: it is missing, damaged or of another schema.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: no pack is here, or its {MANIFEST} has not arrived yet")
    manifest = files.read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or not {"pieces", "files"} <= set(manifest):
        raise UserError(f"{folder / MANIFEST} is no manifest of a pack of schema {SCHEMA}")
    return manifest


def unpack(folder: Path, target: Path) -> list[Path]:
    """Put the files of a pack below ``target``, over older ones; returns their paths.

    Raises:
        UserError: pieces are missing or damaged, or a file is not the one of the manifest; then nothing
            below ``target`` has changed.
    """
    manifest = read_manifest(folder)
    lacking = missing(folder)
    if lacking:
        raise UserError(
            f"{folder}: {len(lacking)} of {len(manifest['pieces'])} pieces are not whole: {', '.join(lacking)}"
        )
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target) as scratch:
        archive, content = Path(scratch) / "pack.tar.gz", Path(scratch) / "content"
        with archive.open("wb") as whole:
            for piece in manifest["pieces"]:
                with (folder / piece["name"]).open("rb") as part:
                    shutil.copyfileobj(part, whole)
        extract(archive, content, manifest["bytes"])
        found = {path.relative_to(content).as_posix(): path for path in content.rglob("*") if path.is_file()}
        wrong = sorted(set(found) ^ set(manifest["files"]))
        wrong += [name for name, path in found.items() if manifest["files"].get(name) != _sha256(path)]
        if wrong:
            raise UserError(f"{folder}: {wrong[0]} is not the file of the manifest")
        moved = []
        for name, path in sorted(found.items()):
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
            moved.append(place)
    return moved


def package_entries() -> dict[str, Path]:
    """Files of :data:`PACKAGES` and of scikit-learn's pictures below ``packages/``, licences included.

    Raises:
        UserError: a package is not installed here.
    """
    entries: dict[str, Path] = {}
    for name in PACKAGES:
        try:
            listed = metadata.distribution(name).files or []
        except metadata.PackageNotFoundError:
            raise UserError(f"the package {name} is not installed here, so it cannot be packed") from None
        for file in listed:
            told = file.suffix == ".py" or file.name == "METADATA" or "licenses" in file.parts
            if told and ".." not in file.parts and "examples" not in file.parts:
                entries[f"packages/{file.as_posix()}"] = Path(str(file.locate()))
    found = util.find_spec("sklearn")
    for folder in [] if found is None else found.submodule_search_locations or []:
        entries |= {f"packages/sklearn/{name}": Path(folder) / name for name in PICTURES}
    return entries


@contextlib.contextmanager
def data_entries(dataset: str, folder: str | None, features: str) -> Iterator[dict[str, Path]]:
    """Verified images and, where ``features`` is "inception", its weights, below ``cache/``.

    Both are fetched where this machine does not have them yet. Digits need nothing.

    Raises:
        UserError: they are not to be had or not the official ones.
    """
    from ebjdat.data import cifar10
    from ebjdat.data.fetch import cache_folder

    entries: dict[str, Path] = {}
    with tempfile.TemporaryDirectory(prefix="ebjdat-pack-") as scratch:
        if dataset == "cifar10":
            named = folder or os.environ.get(cifar10.ENVIRONMENT)
            place = cache_folder() / cifar10.BINARY_FOLDER
            if named:
                place = Path(scratch)
                for name, content in cifar10.read_folder(Path(named).expanduser()).items():
                    (place / name).write_bytes(content)
            else:
                cifar10.load_cifar10(None)
            entries |= {f"cache/{cifar10.BINARY_FOLDER}/{name}": place / name for name in cifar10.BINARY_MD5}
        if features == "inception":
            from ebjdat.evaluation.inception import find_weights

            weights = find_weights()
            entries[f"cache/{weights.path.name}"] = weights.path
        yield entries


def campaign_entries(root: Path, leave_out: tuple[str, ...] = ()) -> dict[str, Path]:
    """Everything that a campaign has made so far: records, samples, models, checkpoints, logs.

    Args:
        root: folder of the campaign.
        leave_out: glob patterns of paths below ``root`` that stay behind.
    """
    entries = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        linked = any((root / parent).is_symlink() for parent in (name, *name.parents))
        kept = path.is_file() and not linked and name.parts[0] not in ("inputs", "packed")
        if kept and path.suffix not in (".lock", ".holder") and not any(name.match(glob) for glob in leave_out):
            entries[name.as_posix()] = path
    return entries
