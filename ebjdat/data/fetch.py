"""Files from elsewhere: where they are kept, how they are verified, how a tool is asked for them."""

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

from ebjdat.errors import UserError


class Unavailable(Exception):
    """A source cannot be reached here; the next one may."""


def cache_folder() -> Path:
    """Folder for verified downloads, shared by all profiles and checkouts.

    ``EBJDAT_CACHE`` if set, else ``ebjdat`` in the user's cache folder (XDG). It is only a copy: everything in it is
    verified at each use and may be deleted at any time.
    """
    chosen = os.environ.get("EBJDAT_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebjdat"


def verify_file(path: str | Path, algorithm: str, expected: str) -> None:
    """Check a file's hash, md5 or sha256 in lower-case hex.

    UserError: missing, unreadable or of another hash; names file, expected and actual hash.
    """
    path = Path(path)
    try:
        with path.open("rb") as handle:
            # usedforsecurity: md5 is what the owner publishes; a FIPS build of OpenSSL would refuse it.
            actual = hashlib.file_digest(handle, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path} is missing, expected a file of {algorithm} {expected}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if actual == expected:
        return
    with path.open("rb") as handle:
        is_page = handle.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    reason = " (it is a web page, as a failed download leaves behind)" if is_page else ""
    raise UserError(f"{path}: expected {algorithm} {expected}, got {actual}{reason}: fetch the file again")


def members(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """Files of a tar or zip by name. Nothing is unpacked, so no path or link of the archive leads anywhere.

    Raises:
        UserError: it is missing, damaged or truncated, or lacks a file.
    """
    found: dict[str, bytes] = {}
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                found = {name: opened.read(name) for name in names}
        else:
            with tarfile.open(archive) as tar:
                for entry in tar:
                    if entry.name in names and entry.isreg():
                        found[entry.name] = tar.extractfile(entry).read()  # type: ignore[union-attr]
    except Exception as error:  # the readers throw nearly anything at damaged bytes
        raise UserError(f"{archive} is not a whole archive: {error}") from None
    if missing := sorted(set(names) - set(found)):
        raise UserError(f"{archive} lacks {missing[0]}")
    return found


def ask_torchvision(code: str, arguments: Sequence[str], folder: Path, seconds: float) -> None:
    """Run a download of torchvision, which knows the owner's address, in a process of its own (see :func:`ask_tool`).

    A connection that hangs must not hold the stage.
    """
    limited = f"import socket, sys; socket.setdefaulttimeout(20.0); {code}"
    ask_tool([sys.executable, "-c", limited, *arguments], folder, seconds)


def verify_bytes(name: str, content: bytes, md5: str) -> None:
    """Check the owner's md5 of a file's content. UserError: it is another one."""
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != md5:
        raise UserError(f"{name}: expected md5 {md5}, got {actual}: the source does not hold the official images")


def ask_tool(command: Sequence[str], folder: Path, seconds: float) -> None:
    """Run a downloader in ``folder`` without a shell.

    Raises:
        Unavailable: not installed, failed, or longer than ``seconds``; the message has its last line.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, timeout=seconds, capture_output=True, text=True, errors="replace", check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"no answer within {seconds:g} s") from None
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise Unavailable(lines[-1][:200] if lines else f"exit status {done.returncode}")
