"""Where a number comes from: hashes of files, of values and of the code that a stage imports.

A record cannot hold the commit that will contain it, so records carry the hash of the modules that
made them: every file of this repository that the stage imports, directly or not, early or late,
save the :data:`PLUMBING`. An edit to one of them changes the hash, and the record no longer answers
to its old identity.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ebjdat.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
"""The checkout whose code is running; DVC's queue runs a copy, whose own files count."""


PLUMBING = frozenset(
    {
        "ebjdat/__init__.py",
        "ebjdat/command.py",
        "ebjdat/errors.py",
        "ebjdat/files.py",
        "ebjdat/progress.py",
        "ebjdat/provenance.py",
        "ebjdat/reporting/records.py",
        "ebjdat/reporting/tracking.py",
    }
)
"""Modules that carry results about and decide none: messages, files, progress, tracking.

An edit to them leaves identities as they are. DVC lists them among a stage's deps all the same and
runs it again; if the edit changed a number after all, the ledger shows two contents of one identity.
"""


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hex characters.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run `dvc repro` to make it") from None


def canonical(value: Any) -> bytes:
    """One byte string per value: JSON with sorted keys and no spaces; NaN is refused with ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any, length: int = 16) -> str:
    """The first ``length`` hex characters of the SHA-256 of :func:`canonical`."""
    return hashlib.sha256(canonical(value)).hexdigest()[:length]


def plain(value: Any) -> Any:
    """The value as it comes back from JSON (tuples become lists), so that both compare equal."""
    return json.loads(canonical(value))


def import_closure(module: str, root: Path = ROOT) -> tuple[str, ...]:
    """Files of the repository that ``module`` imports, itself included.

    Imports inside functions count, and so do the ``__init__`` files of every package on the way.
    Imports from outside the repository do not: pinned requirements answer for them.

    Args:
        module: dotted name, for example ``stages.train``.
        root: folder that holds the packages.

    Returns:
        Sorted paths relative to ``root``, with forward slashes.

    Raises:
        UserError: the module is not in the repository, or a file does not parse.
    """
    found: set[Path] = set()
    waiting = _files_of(module, root)
    if not waiting:
        raise UserError(f"module {module} is not in this repository")
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in _imported(path, root):
            waiting.extend(_files_of(name, root))
    return tuple(sorted(path.relative_to(root).as_posix() for path in found))


def closure_hash(module: str, root: Path = ROOT) -> str:
    """Hash of the names and contents of :func:`import_closure` without :data:`PLUMBING`, 16 hex characters.

    Line endings are normalised: a checkout on another system has the same code.
    """
    parts = {
        name: hashlib.sha256((root / name).read_bytes().replace(b"\r\n", b"\n")).hexdigest()
        for name in import_closure(module, root)
        if name not in PLUMBING
    }
    return digest(parts)


def _files_of(module: str, root: Path) -> list[Path]:
    """The module's file and the ``__init__`` files above it; empty when it is not ours."""
    parts = module.split(".")
    folder = root.joinpath(*parts)
    own = [path for path in (folder.with_suffix(".py"), folder / "__init__.py") if path.is_file()]
    if not own and not folder.is_dir():
        return []
    parents = (root.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts)))
    return own + [path for path in parents if path.is_file()]


def _imported(path: Path, root: Path) -> Iterator[str]:
    """Dotted names that a file may import; a name that is no module is dropped by the caller."""
    try:
        imports = _parse_imports(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"{path.relative_to(root).as_posix()} does not parse: {error}") from None
    package = path.relative_to(root).parent.parts
    for level, name in imports:
        base = package[: len(package) - level + 1] if level else ()
        yield ".".join((*base, name)) if name else ".".join(base)


@lru_cache(maxsize=512)
def _parse_imports(source: str) -> tuple[tuple[int, str], ...]:
    """(relative level, dotted name) of every import statement, wherever it stands."""
    names: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names.append((node.level, base))
            names += [(node.level, f"{base}.{alias.name}".lstrip(".")) for alias in node.names]
    return tuple(names)
