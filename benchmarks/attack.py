"""Attacks: the training adversary and PGD-20, as released, lean, and with the engine.

    python -m benchmarks.attack --attack adversary --network 16-2 --batch 64

``adversary`` is the inner problem of EB-JDAT: (a) in chunks of two with doubled forwards, (b) one batch,
(c) the engine's. ``pgd20`` is the evaluation attack: (a) a plain loop in chunks of two, (b) the same in one
batch, (c) ``ebjdat.attacks``, in float32 only, as evaluation is. All start from the same random numbers
and must move the same pixels but for a few whose gradient is near zero. The last line is JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import harness, step
from benchmarks.plain import CHUNK, Batch
from ebjdat import command
from ebjdat.attacks.linf import PGD
from ebjdat.device import choose_device
from ebjdat.model.energy import EnergyModel
from ebjdat.training.objective import EBJDAT

MODES = {
    "adversary": step.MODES,
    "pgd20": ("released", "lean", "engine-float32"),
}
STEPS = 20
ALLOWED = 0.01
"""Share of pixels that may differ between modes of float32."""


def plain_pgd(model: EnergyModel, x: Tensor, y: Tensor, eps: float, noise: Tensor, size: int) -> Tensor:
    """PGD on the cross-entropy, step eps / 4, in chunks of ``size``; ``noise`` is uniform in [-1, 1]."""
    done = []
    for part, label, start in zip(x.split(size), y.split(size), noise.split(size), strict=True):
        low, high = (part - eps).clamp_min(0.0), (part + eps).clamp_max(1.0)
        x_adv = (part + eps * start).clamp(low, high)
        for _ in range(STEPS):
            x_adv = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), label, reduction="sum"), x_adv)
            x_adv = (x_adv.detach() + eps / 4 * gradient.sign()).clamp(low, high)
        done.append(x_adv.detach())
    return torch.cat(done)


def new_call(setting: step.Setting, attack: str, mode: str, *, compile: bool = False) -> Callable[[], Tensor]:
    """A function that attacks the setting's images from the same start each time."""
    eps = setting.recipe.schedule.train_eps
    run = step.new_run(setting, mode, compile=compile)
    model = run.model if attack == "adversary" else run.model.eval().requires_grad_(False)

    def generator() -> torch.Generator:
        return torch.Generator(setting.device).manual_seed(3)

    if attack == "pgd20" and mode.startswith("engine"):
        pgd = PGD(eps=eps, step=eps / 4, steps=STEPS, random_start=True)
        return lambda: pgd(model, setting.x, setting.y, generator())
    if attack == "pgd20":
        x = setting.x.contiguous()
        size = CHUNK if mode == "released" else len(x)
        return lambda: plain_pgd(model, x, setting.y, eps, _noise(x, generator()), size)
    if isinstance(run, step.PlainRun):
        batch = Batch(setting.x.contiguous(), setting.y, setting.x_p)

        def craft() -> Tensor:
            run.plain.streams.attack.manual_seed(3)
            return run.plain.craft(batch)

        return craft
    objective = EBJDAT(setting.variant, eps)
    return lambda: objective.craft(model, setting.x, setting.y, generator())


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator, device=x.device).mul_(2.0).sub_(1.0)


def differing(setting: step.Setting, attack: str) -> dict[str, float]:
    """Share of pixels in which each mode's result differs from the released mode's by more than rounding.

    Raises:
        SystemExit: a mode of float32 computes another attack.
    """
    expected = new_call(setting, attack, "released")()
    shares = {}
    for mode in MODES[attack][1:]:
        shares[mode] = float(((new_call(setting, attack, mode)() - expected).abs() > 1e-6).float().mean())
        if "bfloat16" not in mode and shares[mode] > ALLOWED:
            raise SystemExit(f"{mode} does not compute the released attack: {shares[mode]:.1%} of pixels differ")
    return shares


def forward_equivalents(setting: step.Setting, attack: str) -> int:
    """Forwards of one image that the lean attack costs."""
    return 2 * STEPS if attack == "pgd20" else 1 + 2 * setting.variant.attack_steps


def _memory(options: argparse.Namespace, mode: str) -> float:
    arguments = [
        f"--{name}={getattr(options, name)}" for name in ("network", "size", "batch", "variant", "device", "attack")
    ]
    arguments += [f"--memory={mode}"] + [f"--threads={options.threads}"] * bool(options.threads)
    return harness.in_child("benchmarks.attack", arguments + ["--compile"] * options.compile)["peak_memory_mb"]


def main() -> None:
    """Check, time, and print."""
    parser = harness.options((__doc__ or "").splitlines()[0])
    parser.add_argument("--attack", choices=tuple(MODES), default="adversary")
    parser.add_argument("--memory", choices=step.MODES, help="only the memory of one attack of one mode")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    before_mb = harness.resident_mb("VmRSS")
    setting = step.Setting(options.network, options.size, options.batch, options.variant, device)
    if options.memory:
        call = new_call(setting, options.attack, options.memory, compile=options.compile)
        return harness.finish({"peak_memory_mb": harness.peak_of(call, device, before_mb)}, None)
    small = step.Setting(options.network, options.size, min(8, options.batch), options.variant, device)
    differences = differing(small, options.attack)
    for mode, share in differences.items():
        print(f"{step.LABELS[mode]}: {share:.2%} of pixels differ from (a)")
    modes = MODES[options.attack]
    memory: dict[str, float | None] = {mode: _memory(options, mode) for mode in modes}
    calls = {mode: new_call(setting, options.attack, mode, compile=options.compile) for mode in modes}
    per_forward = harness.forward_flops(step.new_run(setting, "lean").model, setting.x)
    flops = forward_equivalents(setting, options.attack) * per_forward
    ceilings = {name: harness.matmul_ceiling(device, getattr(torch, name)) for name in ("float32", "bfloat16")}
    table = step.summary(harness.medians(calls, options.repeats, device), memory, flops, options.batch, ceilings)
    for mode, row in table.items():
        print(step.line(mode, row))
    extra: dict[str, Any] = {"attack": options.attack, "differences": differences, "ceilings": ceilings}
    harness.finish(step.headline(table, modes[-1], options) | harness.machine(device) | extra, options.out)


if __name__ == "__main__":
    command.run(main)
