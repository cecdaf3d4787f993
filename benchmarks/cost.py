"""How the cost of training grows, measured here, and what profile cifar10 would cost elsewhere, predicted.

    python -m benchmarks.cost

Measured: the engine's iteration (EB-JDAT-JEM++, batch 16) against width, chain length and image size, with
the forwards that it counts, so that time per forward shows what does not scale. Counted: FLOPs of a forward
of the profile's network and the bytes that its backward keeps. Predicted, and never measured: hours and
memory of the three variants on common GPUs, from vendors' peak rates and assumed shares of them. Writes
``benchmarks/results/cost.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness, step
from ebjdat import command
from ebjdat.config import Setup
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import Architecture, new_model

RESULT = harness.RESULTS / "cost.json"
GPUS = {
    "RTX 3090": (71e12, 24),
    "RTX 4090": (165e12, 24),
    "L40S": (362e12, 48),
    "A100 80 GB": (312e12, 80),
    "H100 SXM": (989e12, 80),
    "H200": (989e12, 141),
}
"""Dense bfloat16 peak with float32 accumulation in FLOP/s, and memory in GB, by the vendor's data sheets."""
SHARES = (0.25, 0.40)
"""Assumed shares of the peak."""
FLOAT32 = {"RTX 3090": 36e12, "RTX 4090": 83e12, "L40S": 92e12, "A100 80 GB": 19.5e12, "H100 SXM": 67e12, "H200": 67e12}
"""Peak in FLOP/s without TF32, in which evaluation computes, by the same data sheets."""
RIGHT, LEFT = 0.9, 0.65
"""Assumed shares of the images that AutoAttack's first attack meets, and the three after it."""
BASE: dict[str, Any] = {"network": "10-1", "size": 16, "batch": 16, "steps": 10}
"""Each measured series changes one of these."""
SERIES: dict[str, tuple[Any, ...]] = {"network": ("10-1", "10-2", "10-4"), "steps": (5, 10, 20), "size": (8, 16, 32)}


def measure(changes: dict[str, Any], precision: str, repeats: int) -> dict[str, Any]:
    """Seconds of an iteration with ``changes`` to the base, and what it counts."""
    chosen = BASE | changes
    device = torch.device("cpu")
    setting = step.Setting(chosen["network"], chosen["size"], chosen["batch"], "jempp", device)
    variant = setting.variant.model_copy(update={"steps": chosen["steps"]})
    setting.setup = dataclasses.replace(setting.setup, recipe=variant)
    run = step.EngineRun(setting, precision)
    wall, used = harness.medians({"engine": run.step}, repeats, device)["engine"]
    forwards = step.forward_equivalents(variant) * chosen["batch"]
    flops = forwards * harness.forward_flops(run.model, setting.x[:1])
    return chosen | {"precision": precision, "seconds": wall, "cpu_seconds": used, "forwards": forwards, "flops": flops}


def kept_bytes(model: EnergyModel, x: Tensor) -> int:
    """Bytes of activations that one forward of x keeps for its backward; parameters are not counted."""
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x).sum().backward()
    return sum(kept.values())


def epoch_forwards(setup: Setup) -> float:
    """Forwards per epoch: iterations, statistics and selection."""
    training, recipe, data = setup.training, setup.recipe, setup.data
    assert training is not None and recipe is not None
    share = training.px_batch_size / training.batch_size
    passes = 3 * (2 + 2 * share) * (2 if recipe.sharpness else 1)
    image = 2 * recipe.steps * share + 1 + 2 * recipe.attack_steps + passes
    statistics = (training.bn_images // 2) * 20 + training.bn_images
    return data.train * image + statistics + data.validation * (2 * training.validation_steps + 2)


def autoattack_forwards() -> float:
    """Forwards per image of the cascade of version standard; a backward to the input counts as one."""
    targets, steps, queries = 9, 100, 5000
    return RIGHT * 2 * steps + LEFT * (2 * 2 * targets * steps + queries)


def predict() -> dict[str, Any]:
    """Hours and memory of profile cifar10 by variant and GPU; hours of AutoAttack on one model."""
    rows, flops, images = [], {}, harness.setup_of("cifar10", "ebjdat-jempp").evaluation.autoattack.images
    for name in ("jem", "jempp", "sadajem"):
        setup = harness.setup_of("cifar10", f"ebjdat-{name}")
        training, recipe, network = setup.training, setup.recipe, setup.network
        assert training is not None and recipe is not None
        model = new_model(
            Architecture(depth=network.depth, width=network.width, channels=3, classes=10, norm=recipe.norm),
            0,
        ).train()
        x = torch.rand(2, 3, 32, 32)
        flops[name] = harness.forward_flops(model, x) / len(x)
        model.dtype = torch.bfloat16
        kept = (kept_bytes(model, torch.cat([x, x])) - kept_bytes(model, x)) / len(x)
        weights = sum(parameter.numel() for parameter in model.parameters())
        # Weights, gradients, momentum (Adam: two), SAM's copy and step; bfloat16 weights of a pass.
        copies = 3 + (training.optimiser == "adam") + 2 * (recipe.sharpness > 0)
        fixed = weights * (4 * copies + 2) + 4 * 3072 * training.buffer_size
        fixed += 4 * 3072 * (setup.data.train + 10 * 3072 * (name != "jem"))
        held = 2 * (training.batch_size + training.px_batch_size) * kept
        epoch = epoch_forwards(setup) * flops[name]
        rows.append(
            {
                "variant": name,
                "epochs": training.epochs,
                "flop_per_epoch": epoch,
                "memory_gb": (fixed + held) / 1e9,
                "hours": {
                    gpu: [training.epochs * epoch / peak / share / 3600 for share in SHARES]
                    for gpu, (peak, _) in GPUS.items()
                },
            }
        )
    whole = images * autoattack_forwards() * flops["jempp"]
    hours = {gpu: [whole / peak / share / 3600 for share in SHARES] for gpu, peak in FLOAT32.items()}
    attack = {"images": images, "flop": whole, "hours": hours}
    return {"profile": "cifar10", "shares": SHARES, "variants": rows, "autoattack": attack}


def main() -> None:
    """Measure, predict, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    series: dict[str, list[dict[str, Any]]] = {}
    for name, values in SERIES.items():
        series[name] = [measure({name: value}, "bfloat16", options.repeats) for value in values]
        for row in series[name]:
            per = 1e3 * row["cpu_seconds"] / row["forwards"]
            print(f"{name} {row[name]}: {row['cpu_seconds']:.3f} CPU s, {row['forwards']} forwards, {per:.3f} ms each")
    prediction = predict()
    result = {"base": BASE, "series": series, "prediction": prediction, **harness.machine(torch.device("cpu"))}
    harness.finish(result, RESULT)


if __name__ == "__main__":
    command.run(main)
