"""Run a study: rows of parameter overrides in a file, which is committed before it runs.

Each row, with what `every` says of all rows, is written into params.yaml as `dvc exp run -S` would, `stages.repro` runs
the study's stages (or the row's own `stages`) for its models, and params.yaml is put back. A model whose record is here
already, in git for example, is left out, so the same command goes on. Afterwards `python -m stages.repro` puts the new
records into the tables.
"""

import argparse
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebjdat import command, files
from ebjdat.config import PARAMS, load_params, read_yaml, resolve
from ebjdat.errors import UserError
from ebjdat.record import STAGES, older_protocols, outdated, read_record
from stages.repro import read_choices, repro


def read_study(path: Path) -> list[tuple[list[str], dict[str, Any]]]:
    """Stages and parameters of each row of a study. UserError: the file is no study."""
    study = read_yaml(path)
    found = study if isinstance(study, dict) else {}
    stages, every, rows = found.get("stages"), found.get("every", {}), found.get("rows")
    if not isinstance(stages, list) or not isinstance(every, dict) or not isinstance(rows, list):
        raise UserError(f"{path}: expected `stages`, a list of names, and `rows`, a list of parameters by name")
    read = []
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("stages", []), list):
            raise UserError(f"{path}: expected a row of parameters by name, got {row!r}")
        read.append((row.get("stages", stages), every | {name: row[name] for name in row if name != "stages"}))
    return read


def override(row: Mapping[str, Any]) -> None:
    """Write a row into params.yaml. UserError: params.yaml has no such parameter."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    try:
        apply_overrides(PARAMS, [f"{key}={json.dumps(value)}" for key, value in row.items()])
    except DvcException as error:
        raise UserError(f"{dict(row)} does not fit params.yaml: {error.__cause__ or error}") from None


def missing(stages: list[str]) -> list[str]:
    """Those of ``stages``, for the runs of params.yaml, whose record is not here or answers an older question."""
    params, found = load_params(), []
    for run in params.runs():
        setup = resolve(params, run)
        for stage in stages:
            baseline, source = setup.recipe is None, run.model in params.sources
            if (baseline and stage == "generate") or (source and stage not in ("train", "clean")):
                continue
            if stage in STAGES and run.record(stage).is_file():
                record = read_record(run.record(stage))
                if not outdated(record, setup) and not older_protocols(record):
                    continue
            found.append(f"{stage}@{run.model}-{run.seed}")
    return found


def main() -> None:
    """Run the rows one after the other; a row that fails is told, and the next one goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="for example studies/digits-headline.yaml")
    parser.add_argument("--profile", help="run every row with this profile")
    arguments, how = read_choices(parser)
    rows = read_study(arguments.file)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # params.yaml is put back first
    before, failed = PARAMS.read_bytes(), 0
    for place, (stages, row) in enumerate(rows, 1):
        print(f"row {place} of {len(rows)}: {', '.join(stages)}; {row}", flush=True)
        try:
            override(row | ({"profile": arguments.profile} if arguments.profile else {}))
            targets = missing(stages)
            if not targets:
                print("its records are here")
                continue
            repro(targets, **how)
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
