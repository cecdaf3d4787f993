"""Extraction of downloaded archives that trusts nothing in them.

Every member is looked at before the first byte is written: a path that leaves the target, an absolute path, a link, a
device or an archive that unpacks to more than the expected size is refused, and then nothing is written at all.
"""

from __future__ import annotations

import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

from ebjdat.data.fetch import looks_like_html
from ebjdat.errors import UserError

MEMBERS = 10_000
"""More members than any archive used here has."""

_FAULTS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,  # encrypted, or compressed by a method that Python lacks
    ValueError,
)
"""What the readers of tar and zip throw at damaged input."""


def extract(archive: str | Path, target: str | Path, limit: int) -> list[Path]:
    """Unpack a tar (plain, gzip, bzip2, xz) or zip file below ``target``.

    Args:
        archive: the file.
        target: folder; made if missing, files that exist already are not overwritten.
        limit: most bytes that all members may have together.

    Returns:
        Paths of the files, in the archive's order.

    Raises:
        UserError: the file is missing, is no archive, is damaged or truncated, or has a member that is refused; the
            message names the archive and the member.
    """
    archive, target = Path(archive), Path(target)
    with _opened(archive) as opened:
        written, total = [], 0
        for count, (name, size, kind) in enumerate(_members(opened)):
            windows = PureWindowsPath(name)
            if windows.drive or windows.root or ".." in windows.parts or "\0" in name:
                raise UserError(f"{archive}: member {name!r} would be written outside the target folder")
            if kind not in ("file", "folder"):
                raise UserError(f"{archive}: member {name!r} is a {kind}, only files and folders are unpacked")
            total += size
            if total > limit:
                raise UserError(f"{archive}: its members exceed {limit:,} bytes, more than this data set has")
            if count >= MEMBERS:
                raise UserError(f"{archive}: more than {MEMBERS:,} members")
            if kind == "file":
                written.append(target / name)
        for path in written:
            if path.exists():
                raise UserError(f"{archive}: {path} exists already and is not overwritten")
        if isinstance(opened, tarfile.TarFile):
            opened.extractall(target, filter="data")
        else:
            opened.extractall(target)
    return written


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    if not archive.is_file():
        raise UserError(f"{archive} is missing")
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as opened:
            yield opened
    except _FAULTS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{archive} could not be unpacked: {error.strerror}") from None
        page = " (it is a web page: a failed download?)" if looks_like_html(archive) else ""
        raise UserError(f"{archive} is not a whole archive{page}: {error}") from None


def _members(opened: tarfile.TarFile | zipfile.ZipFile) -> Iterator[tuple[str, int, str]]:
    """Name, size in bytes and kind of every member."""
    if isinstance(opened, tarfile.TarFile):
        for entry in opened:
            other = "link" if entry.issym() or entry.islnk() else "device"
            yield entry.name, entry.size, "file" if entry.isreg() else "folder" if entry.isdir() else other
        return
    for info in opened.infolist():
        link = stat.S_ISLNK(info.external_attr >> 16)
        yield info.filename, info.file_size, "folder" if info.is_dir() else "link" if link else "file"
