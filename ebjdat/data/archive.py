"""Extraction of downloaded archives that trusts nothing in them.

Every member is looked at before the first byte is written: a path that leaves the target, an
absolute path, a link, a device or an archive that unpacks to more than the expected size is
refused, and then nothing is written at all.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from ebjdat.data.fetch import looks_like_html
from ebjdat.errors import UserError

MEMBERS = 10_000
"""More members than any archive used here has."""


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    kind: str
    handle: Any


def extract(archive: str | Path, target: str | Path, limit: int) -> list[Path]:
    """Unpack a tar (plain, gzip, bzip2, xz) or zip file below ``target``.

    Args:
        archive: the file.
        target: folder; made if missing, files that exist already are not overwritten.
        limit: most bytes that all members may have together.

    Returns:
        Paths of the files, in the archive's order.

    Raises:
        UserError: the file is missing, is no archive, is damaged or truncated, or has a member that
            is refused; the message names the archive and the member.
    """
    archive, target = Path(archive), Path(target)
    with _opened(archive) as opened:
        members = _checked(archive, opened, limit)
        written = []
        for member in members:
            path = target.joinpath(*PurePosixPath(member.name).parts)
            if member.kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with _content(opened, member) as source, path.open("xb") as sink:
                shutil.copyfileobj(source, sink)
            written.append(path)
    return written


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


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    if not archive.is_file():
        raise UserError(f"{archive} is missing")
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as opened:
            yield opened
    except FileExistsError as error:
        raise UserError(f"{archive}: {error.filename} exists already and is not overwritten") from None
    except _FAULTS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{archive} could not be unpacked: {error.strerror}") from None
        page = " (it is a web page: a failed download?)" if looks_like_html(archive) else ""
        raise UserError(f"{archive} is not a whole archive{page}: {error}") from None


def _checked(archive: Path, opened: tarfile.TarFile | zipfile.ZipFile, limit: int) -> list[_Member]:
    members: list[_Member] = []
    total = 0
    for member in _members(opened):
        _refuse_path(archive, member.name)
        if member.kind not in ("file", "folder"):
            raise UserError(
                f"{archive}: member {member.name!r} is a {member.kind}, only files and folders are unpacked"
            )
        total += member.size
        if total > limit:
            raise UserError(f"{archive}: its members exceed {limit:,} bytes, more than this data set has")
        members.append(member)
        if len(members) > MEMBERS:
            raise UserError(f"{archive}: more than {MEMBERS:,} members")
    return members


def _refuse_path(archive: Path, name: str) -> None:
    windows = PureWindowsPath(name)
    if windows.is_absolute() or windows.drive or windows.root or ".." in windows.parts or "\0" in name:
        raise UserError(f"{archive}: member {name!r} would be written outside the target folder")


def _members(opened: tarfile.TarFile | zipfile.ZipFile) -> Iterator[_Member]:
    if isinstance(opened, tarfile.TarFile):
        for entry in opened:
            yield _Member(entry.name, entry.size, _tar_kind(entry), entry)
        return
    for info in opened.infolist():
        mode = info.external_attr >> 16
        kind = "folder" if info.is_dir() else "link" if stat.S_ISLNK(mode) else "file"
        yield _Member(info.filename, info.file_size, kind, info)


def _tar_kind(entry: tarfile.TarInfo) -> str:
    if entry.isreg():
        return "file"
    if entry.isdir():
        return "folder"
    return "link" if entry.issym() or entry.islnk() else "device"


def _content(opened: tarfile.TarFile | zipfile.ZipFile, member: _Member) -> IO[bytes]:
    content = opened.extractfile(member.handle) if isinstance(opened, tarfile.TarFile) else opened.open(member.handle)
    assert content is not None, "a regular member has content"
    return content
