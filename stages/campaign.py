"""Run the rows of a study, most valuable first, within a time budget; run again to continue."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from ebjdat import packages

packages.use(packages.INPUTS)

from ebjdat import command  # noqa: E402  # after the path is complete
from ebjdat.campaign.run import Campaign, check_done, log_records  # noqa: E402
from ebjdat.campaign.study import read_study  # noqa: E402
from ebjdat.campaign.workspace import take_in  # noqa: E402


def main() -> None:
    """Run what is left of a study and log what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="YAML file of stages and rows, such as studies/digits.yaml")
    parser.add_argument("--profile", help="profile of rows that name none; default: the one of params.yaml")
    parser.add_argument("--stages", nargs="*", help="only these stages after training; none named: train only")
    parser.add_argument("--minutes", type=float, help="stop cleanly after that long; default: no limit")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time, one thread each when more than one")
    parser.add_argument("--no-log", action="store_true", help="leave records in files, where MLflow is not installed")
    parser.add_argument("--take", action="store_true", help="copy models and results to where `dvc commit` looks")
    parser.add_argument("--root", type=Path, default=Path(".campaign"), help="folder of the campaign")
    arguments = parser.parse_args()
    rows = read_study(arguments.study, profile=arguments.profile, stages=arguments.stages)
    campaign = Campaign(arguments.root.resolve(), minutes=arguments.minutes, jobs=arguments.jobs)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, campaign.stop)
    states = campaign.run(rows)
    for name, state in states.items():
        print(f"{name}: {state}", flush=True)
    if arguments.take:
        done = [row for row in rows if states[row.name] == "done"]
        print(f"taken in: {', '.join(take_in(done, campaign.root)) or 'nothing'}", flush=True)
    if not arguments.no_log:
        log_records(rows, campaign.root)
    check_done(states)


if __name__ == "__main__":
    command.run(main)
