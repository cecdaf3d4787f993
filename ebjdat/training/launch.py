"""How many processes train a model, and their start by torchrun, one per device.

``devices: auto`` is one process; several are there for the asking, also on a CPU (gloo). The parent process is torchrun
itself: it passes signals on to its processes and ends all of them when one fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from ebjdat.config import Setup
from ebjdat.device import choose_device, processors
from ebjdat.errors import Interrupted, UserError
from ebjdat.training import parallel

GRACE_SECONDS = 300
"""How long a process may take to write its checkpoint after a signal."""


def processes(setup: Setup) -> int:
    """How many processes train a run, one per device.

    Raises:
        UserError: more devices are asked for than exist, or they do not divide the batches.
    """
    asked = 1 if setup.devices == "auto" else int(setup.devices)
    wanted = int(os.environ["WORLD_SIZE"]) if parallel.launched() else asked
    if setup.devices not in ("auto", wanted):
        raise UserError(f"devices: {asked} were asked for, but torchrun started {wanted} processes")
    cuda = choose_device(setup.device).type == "cuda"
    exist, kind = (torch.cuda.device_count(), "CUDA devices") if cuda else (processors(), "processors")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", wanted)) if parallel.launched() else wanted
    if here > exist:
        raise UserError(f"devices: {here} were asked for, but this machine shows {exist} {kind}")
    training = setup.training
    assert training is not None
    sizes = {"batch_size": training.batch_size}
    if setup.recipe is not None:
        sizes["px_batch_size"] = min(training.px_batch_size, training.buffer_size)
    if training.bn_parts > 1:
        sizes["bn_parts"] = training.bn_parts
    for name, size in sizes.items():
        if size % wanted:
            raise UserError(f"devices: {wanted} do not divide {name} {size} into equal shares")
    return wanted


def start(count: int, arguments: Sequence[str], module: str = "") -> None:
    """Run ``python -m module arguments`` in ``count`` processes of this machine, to the end.

    Without a module it is the one that runs now, as ``python -m`` started it.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came and was passed on.
        SystemExit: a process failed; with its exit code.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_SECONDS))
    running = sys.modules["__main__"].__spec__
    name = module or (running.name if running else "")
    options = ["--standalone", "--nproc-per-node", str(count), "--module", name, *arguments]
    try:
        torchrun.run(torchrun.parse_args(options))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        # A process that lost its partner dies of that (1 or a signal); the cause has a code of its own.
        code = max(codes, key=lambda code: (code > 1, code == 1))
        sys.exit(code if code > 0 else 128 - code)
    except SignalException as stop:
        raise Interrupted(128 + stop.sigval) from None
