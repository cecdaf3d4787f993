"""Several processes train one model: what each of them does of a batch, and what they agree on.

Every process draws the random numbers of the whole batch and works on its own equal share of it (PyTorch's
DistributedDataParallel averages the gradients), BatchNorm sees the statistics of the whole batch, and decisions are
taken from values that all processes share. So the number of devices is no part of the experiment: like the device
itself, it moves rounding and nothing else. Started by ``torchrun`` (see ``ebjdat.training.launch``); without it,
everything here does nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ebjdat.errors import DivergenceError, Interrupted
from ebjdat.model.wideresnet import BatchNorm

Result = TypeVar("Result")


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """Which of the processes this one is, from 0; 0 writes and speaks."""
    return int(os.environ["RANK"]) if launched() else 0


def world() -> int:
    """How many processes train together; 1 outside :func:`joined`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Inside, the processes that torchrun started form one group; yields this process's own device.

    NCCL between GPUs, gloo on the CPU. An end that all processes come to together, a diverged or an interrupted run, is
    told by the first of them alone. Without torchrun nothing is done.
    """
    if not launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    except (DivergenceError, Interrupted) as end:
        dist.destroy_process_group()
        if rank() == 0:
            raise
        sys.exit(end.code if isinstance(end, Interrupted) else end.exit_code)
    # After any other error the others may wait for this process for ever, and NCCL with them: torchrun ends them.
    dist.destroy_process_group()


def _end_with_parent(parent: int) -> None:
    """Without torchrun nobody would end the others when one fails: stop as if SIGTERM had come."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def share(batch: Tensor) -> Tensor:
    """This process's rows of a batch, as a view; shares differ by one row at most."""
    return batch.tensor_split(world())[rank() if world() > 1 else 0]


def whole(part: Tensor, count: int) -> Tensor:
    """The batch of ``count`` rows whose :func:`share` is ``part`` in each process, values as they are."""
    if world() == 1:
        return part
    batch = part.new_zeros(count, *part.shape[1:])
    share(batch).copy_(part)
    dist.all_reduce(batch)
    return batch


def total(value: Tensor) -> Tensor:
    """Sum over the processes, the same in each; no gradient."""
    if world() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def average(value: Tensor) -> Tensor:
    """Mean over the processes, the same in each; no gradient."""
    return total(value) / world() if world() > 1 else value


def mean(values: Tensor) -> Tensor:
    """Mean over the whole batch, of which ``values`` is this process's equal share; with gradient.

    Only what is not linear in a mean needs it: gradients are averaged over processes anyway.
    """
    return summed(values.mean()) / world()


def summed(value: Tensor) -> Tensor:
    """Sum over the processes, the same in each; with the gradient of the sum of all their losses."""
    return _Sum.apply(value) if world() > 1 else value  # type: ignore[no-any-return]


def agreed(number: int | None) -> int | None:
    """The largest number that any process holds, such as a signal that reached one of them."""
    if world() == 1:
        return number
    flag = torch.tensor(number or 0)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return int(flag) or None


def decided(answer: bool) -> bool:
    """The first process's answer, such as whether a checkpoint is due by its clock."""
    return bool(agreed(int(answer and rank() == 0)))


def told(read: Callable[[], Result]) -> Result:
    """What the first process reads, in every process: the others need not see its files."""
    if world() == 1:
        return read()
    found: list[Any] = [None if rank() else read()]
    dist.broadcast_object_list(found, device=torch.device("cpu"))
    return found[0]  # type: ignore[no-any-return]


class _Sum(torch.autograd.Function):
    """Sum over processes; each process's gradient is that of the sum of all their losses."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0].contiguous())


class SyncBatchNorm(BatchNorm):
    """BatchNorm over the batch of all processes, on any device; shares may differ in size.

    With ``parts`` above 1 each process normalises its share of them, and running statistics are averaged.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise this process's share (N,C,H,W)."""
        if not self.training or world() == 1:
            return super().forward(input)
        if self.parts > 1:
            return self.by_parts(input, self.parts // world())
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        centre, variance, count = self._moments(x)
        if self.track:
            self.update_running(centre.detach(), variance.detach() * (count / (count - 1)))
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - centre * scale
        return (x * scale[None, :, None, None] + shift[None, :, None, None]).to(input.dtype)

    def update_running(self, centre: Tensor, variance: Tensor) -> None:
        """As BatchNorm's; every process sees the same."""
        if self.parts > 1:
            centre, variance = average(torch.stack([centre, variance]))
        super().update_running(centre, variance)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance (C,) of all shares, and the number of values per channel."""
        count, channels = x.new_full((1,), x.numel() / x.shape[1]), x.shape[1]
        variance, centre = torch.var_mean(x, (0, 2, 3), correction=0) if len(x) else x.new_zeros(2, channels)
        place = torch.arange(world(), device=x.device) == rank()
        table = _Sum.apply(place[:, None] * torch.cat([centre, variance, count]))
        centres, variances, counts = table.split([channels, channels, 1], dim=1)
        weights = (counts / counts.sum()).detach()
        centre = (weights * centres).sum(0)
        return centre, (weights * (variances + (centres - centre).square())).sum(0), counts.sum().detach()


def synchronise(model: nn.Module) -> None:
    """Let the model's BatchNorm see the whole batch; parameters and buffers stay the same objects."""
    for module in model.modules():
        if world() > 1 and type(module) is BatchNorm:
            module.__class__ = SyncBatchNorm


def gathers(model: nn.Module) -> bool:
    """Whether forwards exchange statistics; compiled in some processes and eager in others, they might not match."""
    return any(isinstance(module, SyncBatchNorm) for module in model.modules())


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, loss: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, prepared: Any) -> Any:
        return self.loss(self.model, prepared)


def with_averaged_gradients(model: nn.Module, loss: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """``loss(model, .)`` whose backward leaves the mean gradient of all processes in the parameters.

    The loss is one forward of DistributedDataParallel, however often it calls the model, so one call belongs to one
    backward. Chains and attacks use the bare model. All processes start from the weights of the first.
    """
    if world() == 1:
        return lambda prepared: loss(model, prepared)
    return DistributedDataParallel(_Loss(model, loss))
