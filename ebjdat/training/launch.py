"""How many devices train, and the start of one process for each by torchrun.

``devices: auto`` takes every GPU that PyTorch sees, or as many of them as divide the batches; on a CPU
it is 1, and several processes (gloo) are there for the asking. The parent process is torchrun itself:
it passes signals on to its processes and ends all of them when one fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from ebjdat.config import Params
from ebjdat.device import choose_device, processors
from ebjdat.errors import Interrupted, UserError
from ebjdat.subject import Subject
from ebjdat.training import parallel

GRACE_SECONDS = 300
"""How long a process may take to write its checkpoint after a signal."""


def processes(params: Params, subject: Subject) -> int:
    """How many processes train ``subject``, one per device.

    Raises:
        UserError: more devices are asked for than exist, or they do not divide the batches.
    """
    cuda = choose_device(params.device).type == "cuda"
    exist = torch.cuda.device_count() if cuda else processors()
    sizes = batches(params, subject)
    wanted = int(os.environ["WORLD_SIZE"]) if parallel.launched() else params.devices
    if wanted == "auto":
        return max(n for n in range(1, exist + 1 if cuda else 2) if not any(size % n for size in sizes.values()))
    if params.devices not in ("auto", wanted):
        raise UserError(f"devices: {params.devices} were asked for, but torchrun started {wanted} processes")
    if wanted > exist:
        kind = "CUDA devices" if cuda else "processors"
        raise UserError(f"devices: {wanted} were asked for, but this machine shows {exist} {kind}")
    for name, size in sizes.items():
        if size % wanted:
            raise UserError(f"devices: {wanted} do not divide {name} {size} into equal shares")
    return wanted


def batches(params: Params, subject: Subject) -> dict[str, int]:
    """What must divide into equal shares, by name."""
    schedule, shared = subject.schedule(params), params.profiles[subject.profile].training.shared
    sizes = {"batch_size": schedule.batch_size}
    if not subject.is_baseline:
        sizes["px_batch_size"] = min(schedule.px_batch_size, shared.buffer_size)
    if shared.bn_parts > 1:
        sizes["bn_parts"] = shared.bn_parts
    return sizes


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
