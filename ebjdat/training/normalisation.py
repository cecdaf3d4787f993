"""Re-estimation of BatchNorm running statistics by cumulative average.

The exponential average of training mixes statistics of many past weights. Before a checkpoint is
compared or evaluated, running statistics are computed afresh from training images, clean and
adversarial in equal parts for methods that train on both kinds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ebjdat.model.wideresnet import BatchNorm
from ebjdat.training import parallel


@torch.no_grad()
def estimate_statistics(model: nn.Module, images: Tensor, batch_size: int) -> None:
    """Replace running statistics by the cumulative average over ``images`` (N,C,H,W) in [0, 1].

    Batches are equal parts of at most ``batch_size`` images and are seen whole, whatever ``parts``
    training cuts them into; the model's mode is restored.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    if not norms:
        return
    training, before = model.training, [(norm.momentum, norm.parts) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # type: ignore[assignment]  # None is PyTorch's cumulative average
        norm.parts = 1
    model.train()
    for batch in images.chunk(max(1, -(-len(images) // batch_size))):
        model(parallel.share(batch))
    model.train(training)
    for norm, (momentum, parts) in zip(norms, before, strict=True):
        norm.momentum, norm.parts = momentum, parts
