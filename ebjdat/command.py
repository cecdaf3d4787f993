"""What every stage does around its ``main``: one clear line for a user's mistake, and an exit code."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from ebjdat.errors import Interrupted, UserError

STARTED = time.monotonic()
"""When this process began its work; a stage's duration is measured from here."""

INTERRUPTED = 130
PARSER = "stages.arguments"
"""The module whose parser evaluation stages share."""


def _refuse_arguments(main: Callable[[], object]) -> None:
    """Print what a command that reads no arguments is for, where --help asks; refuse anything else.

    Raises:
        UserError: there are arguments, and nothing would read them.
    """
    module, given = sys.modules[main.__module__], sys.argv[1:]
    if not given or module.__name__ != "__main__" or hasattr(module, "argparse") or PARSER in sys.modules:
        return
    if given[0] in ("-h", "--help"):
        print(f"{module.__doc__}\nIt takes no arguments; params.yaml says what it works on.")
        sys.exit(0)
    raise UserError(
        f"{Path(sys.argv[0]).stem} takes no arguments, got {' '.join(given)}; params.yaml says what it does"
    )


def run(main: Callable[[], object]) -> None:
    """Call ``main``; a :class:`UserError` becomes one line on stderr and its own exit code.

    A command without a parser of its own answers --help and refuses arguments. Ctrl-C ends with 130. Anything else is a
    fault of the program and keeps its traceback.
    """
    try:
        _refuse_arguments(main)
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
