"""Files that are whole or absent: written aside, flushed, then moved into place.

A kill at any moment leaves the old file or the new one. A full disk or a read-only folder is the
user's to mend, so it is told in one sentence and the earlier file stays.
"""

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ebjdat.errors import UserError


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary handle whose content appears at ``path`` when the block ends without an error.

    Parent folders are made. After an error the old file is untouched and nothing is left over.

    UserError: the disk is full, read-only or not permitted; the message names the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} could not be written: {reason}; mend that and run the same command again") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush_folder(path: str | Path) -> None:
    """Make renames inside a folder last through a power failure, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with ``\\n`` line ends (errors: see :func:`atomic`)."""
    with atomic(path) as handle:
        handle.write(text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write readable JSON with sorted keys, innermost sections and lists on a line each: equal values, equal bytes.

    Raises:
        UserError: a number is NaN or infinite, which JSON does not have; also see :func:`atomic`.
    """
    try:
        text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{path} was not written: a value is NaN or infinite ({error})") from None
    text = _INNERMOST.sub(lambda found: re.sub("\n *", " ", found[0]), text)  # JSON has no line break inside a string
    write_text(path, f"{text}\n")


_INNERMOST = re.compile(r"(?<= )[{\[]\n[^{}\[\]]*\n *[}\]]")


def digest(value: Any, length: int = 16) -> str:
    """SHA-256 of a value as JSON with sorted keys, so many hex characters of it. ValueError: a number is NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level with dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    parts = [flat(item, f"{prefix}.{name}" if prefix else name) for name, item in value.items()]
    return {name: item for part in parts for name, item in part.items()}


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hex characters. UserError: the file cannot be read."""
    try:
        with Path(path).open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run `dvc repro` to make it") from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file. UserError: the file is missing, unreadable or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro` to make it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); delete it and run `dvc repro` again") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray], *, compress: bool = True) -> None:
    """Write arrays as ``.npz``; equal arrays give equal bytes (fixed order and dates, no pickles).

    Args:
        arrays: plain numeric or boolean arrays by name.
        compress: deflate the members; switch it off for large float arrays, which hardly shrink.

    Raises:
        UserError: see :func:`atomic`.
        ValueError: an array holds Python objects.
    """
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with atomic(path) as handle, zipfile.ZipFile(handle, "w", method) as archive:
        for name in sorted(arrays):
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = method
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(arrays[name]), allow_pickle=False)


def read_npz(path: str | Path, again: str) -> dict[str, np.ndarray]:
    """All arrays of a file of :func:`write_npz`; ``again``: what makes it, for the message.

    Raises:
        UserError: the file is missing or damaged, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {again}") from None
    except Exception as error:  # NumPy throws nearly anything at damaged bytes
        raise UserError(f"{path} is damaged ({str(error).split('. ')[0]}): {again} again") from None


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Write uint8 pixels (height, width) grey or (height, width, 3) as PNG. UserError: see :func:`atomic`."""
    from PIL import Image

    with atomic(path) as handle:
        Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).save(handle, "PNG")


def main_checkout() -> Path:
    """The repository that the person works in, also from a copy of it.

    DVC runs queued and ``--temp`` experiments in a copy below its own folder and names the main
    checkout in ``DVC_ROOT``. Otherwise: the nearest folder upwards with a ``.dvc``, or the current one.
    """
    named = os.environ.get("DVC_ROOT")
    if named:
        return Path(named).resolve()
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def commit() -> str:
    """The commit that is checked out, with ``-dirty`` where files differ from it; empty outside git."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def scratch(*parts: str) -> Path:
    """A path below ``.scratch/`` in the main checkout, for what goes on from there and never into git.

    Training state, outcomes of attacks, times and hosts; ``EBJDAT_SCRATCH`` names another folder.
    """
    named = os.environ.get("EBJDAT_SCRATCH")
    return Path(named).resolve().joinpath(*parts) if named else main_checkout().joinpath(".scratch", *parts)


@contextlib.contextmanager
def hold(path: str | Path, what: str) -> Iterator[None]:
    """Keep ``path`` as the lock of ``what`` while the block runs; a dead holder's lock is free.

    The operating system ends a lock with its process, so nothing has to be cleaned up by hand.

    Raises:
        UserError: another process holds it; the message names the process.
    """
    import filelock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    note = path.with_name(path.name + ".holder")
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        holder = note.read_text(encoding="utf-8").strip() if note.is_file() else "an unknown process"
        raise UserError(f"{what} is in use by {holder}: wait for it or stop it") from None
    try:
        write_text(note, f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()
