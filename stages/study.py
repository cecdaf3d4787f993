"""Run a study: rows of parameter overrides in a file, which is committed before it runs.

Each row is written into params.yaml as `dvc exp run -S` would, `stages.repro` runs the study's stages, and params.yaml
is put back. What is up to date does nothing, so the same command goes on. Afterwards `python -m stages.repro` puts the
new records into the tables.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebjdat import command, files
from ebjdat.config import PARAMS, read_yaml
from ebjdat.errors import UserError
from stages.repro import repro


def read_study(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Stages and rows of a study. UserError: the file is no study."""
    study = read_yaml(path)
    stages, rows = (study.get(key) if isinstance(study, dict) else None for key in ("stages", "rows"))
    if not isinstance(stages, list) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected `stages`, a list of names, and `rows`, a list of parameters by name")
    return stages, rows


def override(row: Mapping[str, Any]) -> None:
    """Write a row into params.yaml. UserError: params.yaml has no such parameter."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    try:
        apply_overrides(PARAMS, [f"{key}={json.dumps(value)}" for key, value in row.items()])
    except DvcException as error:
        raise UserError(f"{dict(row)} does not fit params.yaml: {error.__cause__ or error}") from None


def main() -> None:
    """Run the rows one after the other; a row that fails is told, and the next one goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="for example studies/digits.yaml")
    parser.add_argument("--profile", help="run every row with this profile")
    parser.add_argument("--jobs", type=int, help="stages at once; see stages.repro")
    parser.add_argument("--dry-run", action="store_true", help="print what would run")
    arguments = parser.parse_args()
    stages, rows = read_study(arguments.file)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # params.yaml is put back first
    before, failed = PARAMS.read_bytes(), 0
    for place, row in enumerate(rows, 1):
        print(f"row {place} of {len(rows)}: {row}", flush=True)
        try:
            override(row | ({"profile": arguments.profile} if arguments.profile else {}))
            repro(stages, arguments.jobs, dry_run=arguments.dry_run)
        except SystemExit as ended:
            if ended.code != 1:
                raise
            failed += 1
        finally:
            files.write_text(PARAMS, before.decode("utf-8"))
    if failed:
        raise UserError(f"{failed} of {len(rows)} rows failed; mend the cause and run the same command again")


if __name__ == "__main__":
    command.run(main)
