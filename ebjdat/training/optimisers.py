"""Optimisers, learning-rate schedules and adaptive sharpness-aware minimisation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ebjdat.config import Training


def new_optimiser(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, or Adam, over all parameters, each step one fused pass."""
    common: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay, "fused": True}
    if training.optimiser == "adam":
        return torch.optim.Adam(model.parameters(), **common)
    return torch.optim.SGD(model.parameters(), momentum=0.9, **common)


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """Rate of iteration ``step`` (from 0).

    step: the rate times gamma for each milestone passed, after ``warmup`` linear iterations.
    one_cycle: cosine from lr/25 to lr over the first 30 %, then cosine to about 0 (Smith & Topin 2017,
    arXiv:1708.07120); ``warmup`` does not apply.
    """
    if training.policy == "one_cycle":
        progress = step / max(1, training.epochs * steps_per_epoch)
        if progress < 0.3:
            return training.lr * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * progress / 0.3)))
        return training.lr * 0.5 * (1 + math.cos(math.pi * (progress - 0.3) / 0.7))
    epoch = step // steps_per_epoch
    rate = training.lr * training.gamma ** sum(epoch >= milestone for milestone in training.milestones)
    return rate * min(1.0, (step + 1) / training.warmup) if training.warmup else rate


@contextmanager
def sharpest_neighbour(model: nn.Module, rho: float) -> Iterator[None]:
    """Inside, weights stand at ASAM's worst neighbour for the gradients at hand; then they return.

    Adaptive SAM (Kwon et al., ICML 2021, arXiv:2102.11600) with T_w = |w|:
    w + rho * w^2 * g / || |w| g ||. Gradients are cleared on entry.
    """
    parameters: list[torch.Tensor] = [p for p in model.parameters() if p.grad is not None]
    gradients: list[torch.Tensor] = [p.grad for p in parameters if p.grad is not None]
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        move = torch._foreach_mul(torch._foreach_abs(parameters), gradients)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(move)))
        torch._foreach_mul_(move, torch._foreach_abs(parameters))
        torch._foreach_mul_(move, rho / (norm + 1e-12))
        torch._foreach_add_(parameters, move)
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)
