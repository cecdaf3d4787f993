"""Which accuracies of the records here lie inside the 95 % intervals of those of a commit, and which do not."""

import argparse
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from ebjdat import command
from ebjdat.config import load_params
from ebjdat.errors import UserError
from ebjdat.record import Record, rates_of, read_records, run_of, validate


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the records of the working tree with those of another commit, metric by metric."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="a commit, such as HEAD")
    parser.add_argument("--profile", help="default: the one that params.yaml selects")
    arguments = parser.parse_args(argv)
    profile = arguments.profile or load_params().profile
    theirs = {_place(record): record for record in records_of_commit(arguments.revision, profile)}
    ours = {_place(record): record for record in read_records(profile)}
    both = sorted(set(ours) & set(theirs))
    compared, outside = 0, list[str]()
    for place in both:
        for metric, rate in rates_of(ours[place]).items():
            other = rates_of(theirs[place]).get(metric)
            if other is None:
                continue
            compared += 1
            low, high = other.interval()
            if not low <= rate.accuracy <= high:
                there = f"{100 * other.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
                outside.append(f"{place}: {metric} {100 * rate.accuracy:.1f} %, there {there}")
    print(*outside, sep="\n", end="\n" if outside else "")
    same = sum(ours[place] == theirs[place] for place in both)
    print(
        f"{profile}: {compared - len(outside)} of {compared} accuracies lie inside the 95 % intervals of "
        f"{arguments.revision}; {same} of {len(both)} records are equal, {len(ours) - len(both)} are only here, "
        f"{len(theirs) - len(both)} only there"
    )


def _place(record: Record) -> str:
    return f"{run_of(record)} {record['stage']}"


def records_of_commit(revision: str, profile: str) -> Iterator[Record]:
    """The records of a profile in a commit.

    Raises:
        UserError: no such commit, it has no records of the profile, or one is damaged.
    """
    folder = Path("results", profile, "records").as_posix()
    names = _git("ls-tree", "-r", "--name-only", revision, "--", folder).split()
    if not names:
        raise UserError(f"{revision} has no records of profile {profile}")
    for name in names:
        try:
            record = json.loads(_git("show", f"{revision}:./{name}"))
        except ValueError as error:
            raise UserError(f"{revision}:{name} is not readable JSON ({error})") from None
        yield validate(record, f"{revision}:{name}")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    command.run(main)
