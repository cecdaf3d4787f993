"""Module dependencies of dvc.yaml's stages, derived from the real imports.

`python -m tests.stage_deps` rewrites them; a test compares.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ebjdat.provenance import ROOT, import_closure

MODULE = re.compile(r"python -m (stages\.\w+)")


def expected(command: str) -> list[str]:
    """Python files that a stage's command imports, sorted, without empty package markers."""
    found = MODULE.match(command)
    assert found, f"a stage's command starts with `python -m stages.<name>`, got {command!r}"
    return [path for path in import_closure(found[1]) if (ROOT / path).stat().st_size]


def listed(stage: dict[str, Any]) -> list[str]:
    """Python files among a stage's deps."""
    return [dep for dep in stage["deps"] if str(dep).endswith(".py")]


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def read(path: Path = ROOT / "dvc.yaml") -> dict[str, Any]:
    """dvc.yaml, with its comments."""
    return _yaml().load(path.read_text(encoding="utf-8"))


def rewrite(path: Path = ROOT / "dvc.yaml") -> None:
    """Replace the modules among all deps by the real ones."""
    pipeline = read(path)
    for stage in pipeline["stages"].values():
        others = [dep for dep in stage["deps"] or [] if not str(dep).endswith(".py")]
        stage["deps"] = others + expected(stage["cmd"])
    stream = io.StringIO()
    _yaml().dump(pipeline, stream)
    path.write_text(stream.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    rewrite()
