"""What each stage of dvc.yaml depends on, derived from the real imports. `python -m tests.stage_deps` prints it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT

PLUMBING = {
    f"ebjdat/{name}.py" for name in ("__init__", "command", "errors", "files", "progress", "record", "run", "tracking")
} | {"stages/__init__.py", "stages/arguments.py"}
"""Carries results about and decides no number: an edit there must not cost a training, so it is no dependency, and
neither is what it imports."""


def expected(script: str, root: Path = ROOT) -> set[str]:
    """Deps of ``stages/<script>.py``: its own files and those directly in ebjdat/, and packages as folders."""
    return {_dependency(path.relative_to(root)) for path in closure(root / "stages" / f"{script}.py", root)}


def _dependency(path: Path) -> str:
    return "/".join(path.parts[:2])


def closure(start: Path, root: Path = ROOT) -> set[Path]:
    """Files that ``start`` imports, early or late, by way of others too, itself included; plumbing left out.

    Of ``config`` and of the raising of a revision nothing follows: see :func:`imported`.
    """
    found, waiting = {start}, [start]
    while waiting:
        for path in imported(waiting.pop(), root):
            if path not in found and path.relative_to(root).as_posix() not in PLUMBING:
                found.add(path)
                waiting.append(path)
    return found


def imported(path: Path, root: Path = ROOT) -> set[Path]:
    """Files of this repository that one file imports anywhere in it.

    An import of nothing but REVISIONS is left out: whoever raises a revision has changed a folder that is listed.
    """
    found = set()
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found |= {file for name in _names(node, package) if (file := _file(name, root))}
    return found


def _names(node: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] != ["REVISIONS"]:
        base = package[: len(package) - node.level + 1] if node.level else ()
        module = ".".join([*base, *([node.module] if node.module else [])])
        yield module
        yield from (f"{module}.{alias.name}" for alias in node.names)


def _file(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


if __name__ == "__main__":
    for stage in sorted((ROOT / "stages").glob("[a-z]*.py")):
        print(f"{stage.stem}: {', '.join(sorted(expected(stage.stem)))}")
