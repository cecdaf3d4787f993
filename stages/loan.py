"""One call on a borrowed machine: unpack what arrived, prepare the data, run rows until the time is up, pack results.

python3 -m stages.loan studies/cifar10.yaml --profile cifar10-small --minutes 9 --inputs IN --results OUT

Every step is skipped where it is done, so the next call is the same command. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

from ebjdat import command, files, packages, packing
from ebjdat.errors import Unfinished

PACKING_MINUTES = 1.5
"""Kept back from the time: a command may take a minute to write its checkpoint, then results are packed."""
UNPACKED = "unpacked"
"""Written into the unpacked inputs last: without it they are unpacked again."""


def main() -> None:
    """Run the steps that are left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--minutes", type=float, help="of the whole call; default: no limit")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    parser.add_argument("--root", type=Path, default=Path(".campaign"), help="folder of the campaign")
    parser.add_argument("--inputs", type=Path, help="folder where a pack of inputs gathers")
    parser.add_argument("--results", type=Path, help="folder for the pack of results")
    parser.add_argument("--piece-mb", type=float, default=packing.PIECE_BYTES / 1e6, help="of results")
    parser.add_argument("--leave-out", nargs="*", default=[], help="of results, patterns such as */buffer.npz")
    arguments = parser.parse_args()
    size = packing.piece_size(arguments.piece_mb)
    if arguments.inputs is not None:
        _take_inputs(arguments.inputs, arguments.root)
    packages.use(arguments.root / "inputs")
    from ebjdat.campaign.run import Campaign, check_done
    from ebjdat.campaign.study import read_study

    rows = read_study(arguments.study, profile=arguments.profile)
    spent = (time.monotonic() - command.STARTED) / 60 + PACKING_MINUTES
    minutes = None if arguments.minutes is None else max(arguments.minutes - spent, 0.0)
    campaign = Campaign(arguments.root.resolve(), minutes=minutes, jobs=arguments.jobs)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, campaign.stop)
    states = campaign.run(rows)
    for name, state in states.items():
        print(f"{name}: {state}")
    if arguments.results is not None:
        entries = packing.campaign_entries(arguments.root, tuple(arguments.leave_out))
        manifest = packing.pack(entries, arguments.results, size)
        print(f"{arguments.results}: {len(manifest['files'])} files in {len(manifest['pieces'])} pieces")
    check_done(states)


def _take_inputs(inputs: Path, root: Path) -> None:
    """Unpack the inputs once.

    Raises:
        Unfinished: pieces are still to come, which are named; nothing else is done before they are here.
    """
    mark = root / "inputs" / UNPACKED
    if mark.is_file():
        return
    lacking = packing.missing(inputs)
    if lacking:
        raise Unfinished(f"{inputs}: still to come: {', '.join(lacking)}; the same command goes on when they are here")
    packing.unpack(inputs, root / "inputs")
    files.write_text(mark, "")


if __name__ == "__main__":
    command.run(main)
