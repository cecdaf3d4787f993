"""What every stage does around its ``main``: one clear line for a user's mistake, and an exit code."""

import argparse
import os
import sys
import time
from collections.abc import Callable

from ebjdat.errors import Interrupted, UserError

STARTED = time.monotonic()
"""When this process began its work; a stage's duration is measured from here."""

INTERRUPTED = 130


def no_arguments(description: str | None) -> None:
    """For a command that reads none: answers --help and refuses anything else."""
    argparse.ArgumentParser(description=description).parse_args()


def processors() -> int:
    """Cores that this process may use; ``EBJDAT_CORES``, which ``stages.repro`` sets, is its share of them."""
    share = os.environ.get("EBJDAT_CORES", "")
    if share.isdigit() and int(share):
        return int(share)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(main: Callable[[], object]) -> None:
    """Call ``main``; a :class:`UserError` becomes one line on stderr and its own exit code.

    Ctrl-C ends with 130. Anything else is a fault of the program and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        print(f"{error.word}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Interrupted as stop:
        print("interrupted; the same command goes on from the checkpoint", file=sys.stderr)
        sys.exit(stop.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
