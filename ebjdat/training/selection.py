"""What happens to a model before it is compared or evaluated: fresh BatchNorm statistics, then its validation score.

The exponential average of training mixes statistics of many past weights, so running statistics are computed afresh,
as a cumulative average over training images of the kinds that the method trains on. PGD robust accuracy on the
validation split then selects the checkpoint, by one rule for every method (robust overfitting: Rice et al., ICML 2020,
arXiv:2002.11569). The test split is never seen here.
"""

import torch
from torch import Tensor, nn

from ebjdat.config import Setup
from ebjdat.model.energy import EnergyModel
from ebjdat.model.wideresnet import BatchNorm, statistics
from ebjdat.seeds import derive
from ebjdat.training import parallel
from ebjdat.training.adversary import pgd, uniform_start
from ebjdat.training.recipes import OBJECTIVES, stream_of


def renew_statistics(model: EnergyModel, setup: Setup, x: Tensor, y: Tensor) -> None:
    """Estimate BatchNorm statistics from training images x (N,C,H,W) in [0, 1] with labels y (N,).

    As ``training.bn_estimate`` says clean, adversarial (PGD-10), or both in equal parts; clean where the objective sees
    no adversarial images.
    """
    training, sees = setup.training, OBJECTIVES[setup.run.method].sees
    assert training is not None
    x, y = x[: training.bn_images], y[: training.bn_images]
    which = "clean" if sees == "clean" else training.bn_estimate
    if which != "clean":
        generator = torch.Generator(x.device).manual_seed(derive(setup.run.seed, stream_of(setup.run), "statistics"))
        half = len(x) // 2 if which == "both" else 0
        parts = zip(x[half:].split(training.batch_size), y[half:].split(training.batch_size), strict=True)
        x_adv = torch.cat([_attacked(model, a, b, training.train_eps, 10, generator) for a, b in parts])
        # Interleaved, so that equal weights per batch are equal weights per kind.
        x = torch.stack([x[: len(x_adv)], x_adv], 1).flatten(0, 1) if half else x_adv
    estimate_statistics(model, x, training.batch_size)


@torch.no_grad()
def estimate_statistics(model: nn.Module, images: Tensor, batch_size: int) -> None:
    """Replace running statistics by the cumulative average over ``images`` (N,C,H,W) in [0, 1].

    Batches are equal parts of at most ``batch_size`` images and are seen whole, whatever ``parts`` training cuts them
    into; the model's mode is restored.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    if not norms:
        return
    training, before = model.training, [(norm.momentum, norm.parts) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.parts = 1
    model.train()
    for number, batch in enumerate(images.chunk(max(1, -(-len(images) // batch_size))), 1):
        for norm in norms:
            norm.momentum = 1 / number  # None would do the same, but ask the device for the number at each layer
        model(parallel.share(batch))
    model.train(training)
    for norm, (momentum, parts) in zip(norms, before, strict=True):
        norm.momentum, norm.parts = momentum, parts


def validate(model: EnergyModel, setup: Setup, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Clean and PGD robust accuracy, in [0, 1], on validation images x (N,C,H,W) in [0, 1] with labels y (N,)."""
    assert setup.training is not None
    generator = torch.Generator(x.device).manual_seed(derive(setup.run.seed, "validation"))
    eps, steps = setup.training.train_eps, setup.training.validation_steps
    clean = robust = 0
    with statistics(model, "running"):
        for images, labels in zip(x.split(512), y.split(512), strict=True):
            x_adv, own = _attacked(model, images, labels, eps, steps, generator), parallel.share(labels)
            with torch.no_grad():
                right = model(parallel.share(images)).argmax(1) == own
                clean += int(right.sum())
                robust += int((right & (model(parallel.share(x_adv)).argmax(1) == own)).sum())
    clean, robust = parallel.total(torch.tensor([clean, robust])).tolist()
    return clean / len(y), robust / len(y)


def _attacked(model: EnergyModel, x: Tensor, y: Tensor, eps: float, steps: int, generator: torch.Generator) -> Tensor:
    """PGD; the same images are given to all processes and come back to all of them, each attacks its share."""
    start = parallel.share(uniform_start(x, eps, generator))
    return parallel.whole(pgd(model, parallel.share(x), parallel.share(y), start, eps, steps), len(x))
