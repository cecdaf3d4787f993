"""Run the rows of a study, most valuable first, within a time budget; run again to continue."""

from __future__ import annotations

import argparse
from pathlib import Path

from ebjdat import command
from ebjdat.campaign import Campaign, log_records, read_study
from ebjdat.errors import UserError


def main() -> None:
    """Run what is left of a study and log what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="YAML file of stages and rows, such as studies/digits.yaml")
    parser.add_argument("--minutes", type=float, help="stop cleanly after that long; default: no limit")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time, one thread each when more than one")
    parser.add_argument("--no-log", action="store_true", help="leave records in files, where MLflow is not installed")
    arguments = parser.parse_args()
    rows = read_study(arguments.study)
    root = Path(".campaign").resolve()
    states = Campaign(root, minutes=arguments.minutes, jobs=arguments.jobs).run(rows)
    if not arguments.no_log:
        log_records(rows, root)
    for name, state in states.items():
        print(f"{name}: {state}")
    left = [name for name, state in states.items() if state != "done"]
    if left:
        raise UserError(f"{len(left)} of {len(rows)} rows are not done; run the same command again to continue")


if __name__ == "__main__":
    command.run(main)
