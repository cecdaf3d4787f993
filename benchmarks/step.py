"""One training iteration: as released, lean, and with the engine, in one process and one run.

    python -m benchmarks.step --network 16-2 --batch 64 --variant jempp

Prints seconds, ratios and the memory of an iteration. First it checks that all modes come to the same loss and
gradients from the same random numbers; ``--check`` stops there. The last line is JSON.

On a GPU: python -m benchmarks.step --network 28-10 --batch 256 --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.plain import Batch, Plain
from ebjdat import command
from ebjdat.config import Setup, Training, Variant
from ebjdat.data.prepared import Prepared
from ebjdat.device import choose_device
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import Architecture, new_model
from ebjdat.seeds import derive
from ebjdat.training import objective, parallel
from ebjdat.training.loop import Trainer
from ebjdat.training.recipes import stream_of
from ebjdat.training.streams import Streams

MODES = ("released", "lean", "engine-float32", "engine-bfloat16")
LABELS = {
    "released": "(a) as released",
    "lean": "(b) lean",
    "engine-float32": "(c) engine, float32",
    "engine-bfloat16": "(c) engine, bfloat16",
}
BUFFER = 512


class Setting:
    """What all modes share: recipe, sizes, random images and Gaussians."""

    def __init__(self, network: str, size: int, batch: int, variant: str, device: torch.device) -> None:
        self.device, self.batch, self.shape = device, batch, (3, size, size)
        depth, width = harness.depth_and_width(network)
        self.setup = harness.setup_of(
            "cifar10", f"ebjdat-{variant}", depth=depth, width=width, batch_size=batch, px_batch_size=batch
        )
        self.mixture = harness.random_mixture(self.shape, device)
        self.architecture = Architecture(depth=depth, width=width, channels=3, classes=10, norm=self.variant.norm)
        self.y = torch.arange(batch, device=device) % 10
        self.x = harness.images(batch, size, 1, device)
        self.x_p = harness.images(batch, size, 2, device)

    @property
    def variant(self) -> Variant:
        """The JEM variant as it is run."""
        assert self.setup.recipe is not None
        return self.setup.recipe

    @property
    def training(self) -> Training:
        """How it trains."""
        assert self.setup.training is not None
        return self.setup.training

    def changed(self, **values: object) -> Setup:
        """The setup with values of its training replaced."""
        return replace(self.setup, training=self.training.model_copy(update=values))


class Run:
    """One mode, ready to iterate: ``step()`` does an iteration."""

    model: EnergyModel
    step: Callable[[], None]
    loss: Callable[[], float]


class PlainRun(Run):
    """As released, or lean."""

    def __init__(self, setting: Setting, *, released: bool, double: bool = False) -> None:
        stream = stream_of(setting.setup.run)
        # The same weights as the engine's trainer takes.
        self.model = new_model(setting.architecture, derive(0, stream, "init")).to(setting.device)
        streams = Streams(0, stream, setting.device)
        self.plain = Plain(
            self.model, setting.variant, setting.training, setting.mixture, BUFFER, streams, released=released
        )
        batch = Batch(setting.x.contiguous(), setting.y, setting.x_p.contiguous())
        if double:
            self.model.double()
            self.plain.buffer = self.plain.buffer.double()
            batch = Batch(batch.x.double(), batch.y, batch.x_p.double())
        for group in self.plain.optimiser.param_groups:
            group["lr"] = 0.0 if double else 1e-4
        self.step = lambda: self.plain.step(batch)
        self.loss = lambda: float(self.plain.loss)


class EngineRun(Run):
    """The product's own iteration."""

    def __init__(self, setting: Setting, precision: Any, *, compile: bool = False, double: bool = False) -> None:
        x = torch.cat([setting.x, setting.x_p])
        y = setting.y.repeat(2)
        data = Prepared(x, y, x[:1], y[:1], x[:1], y[:1], "random", setting.mixture, 255)
        setup = setting.changed(buffer_size=BUFFER, precision=precision, compile=compile, gradient_clip=None, warmup=0)
        trainer = Trainer(setup, data, device=setting.device)
        self.trainer, self.model = trainer, trainer.state.model
        trainer._loss = parallel.with_averaged_gradients(self.model, trainer.objective.loss)
        trainer.supervisor.gap_limit = float("inf")
        trainer.state.rate_cut = 0.0 if double else 1e-4 / setting.training.lr
        batch = objective.Batch(setting.x, setting.y, setting.x_p)
        if double:
            self.model.double()
            assert trainer.state.buffer is not None
            trainer.state.buffer.images = trainer.state.buffer.images.double()
            batch = objective.Batch(batch.x.double(), batch.y, setting.x_p.double())

        def step() -> None:
            trainer.state.sums = {}
            trainer._iteration(batch)

        self.step = step
        self.loss = lambda: float(trainer.state.sums["loss"])


def new_run(setting: Setting, mode: str, *, compile: bool = False, double: bool = False) -> Run:
    """The mode of that name."""
    if mode.startswith("engine-"):
        return EngineRun(setting, mode.removeprefix("engine-"), compile=compile, double=double)
    run = PlainRun(setting, released=mode == "released", double=double)
    return _with_tf32(run) if mode == "lean" else run


def _with_tf32(run: Run) -> Run:
    """On a GPU the lean iteration may round to TF32, as PyTorch's users let it."""
    step = run.step

    def rounded() -> None:
        _allow_tf32(True)
        step()
        _allow_tf32(False)

    run.step = rounded
    return run


def _allow_tf32(wanted: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = wanted


def forward_equivalents(variant: Variant) -> int:
    """What a lean iteration costs per image, in forwards of one image, with p(x) batches as large as labelled ones.

    An input-gradient backward counts 1, a full one 2.
    """
    passes = 4 * 3 * (2 if variant.sharpness else 1)
    return 2 * variant.steps + (1 + 2 * variant.attack_steps) + passes


def check(setting: Setting) -> dict[str, dict[str, float]]:
    """Relative differences of loss and gradient from the released mode's, from the same random numbers.

    float64 but for logits and Gaussians, which are float32 in all modes; ``engine-bfloat16`` from float32 weights.

    Raises:
        SystemExit: a mode that should agree does not.
    """
    found: dict[str, tuple[float, Tensor]] = {}
    for mode in MODES:
        run = new_run(setting, mode, double=mode != "engine-bfloat16")
        run.step()
        gradients = [p.grad.double().flatten() for p in run.model.parameters() if p.grad is not None]
        found[mode] = (run.loss(), torch.cat(gradients))
    loss, gradient = found["released"]
    differences = {
        mode: {
            "loss": abs(found[mode][0] - loss) / abs(loss),
            "gradient": float((found[mode][1] - gradient).norm() / gradient.norm()),
        }
        for mode in MODES[1:]
    }
    for mode in ("lean", "engine-float32"):
        # A gradient near zero may step either way in an attack, so a pixel may differ.
        if differences[mode]["loss"] > 1e-3 or differences[mode]["gradient"] > 1e-2:
            raise SystemExit(f"{mode} does not compute what the released algorithm computes: {differences[mode]}")
    return differences


def _memory(options: argparse.Namespace, mode: str) -> float:
    arguments = [f"--{name}={getattr(options, name)}" for name in ("network", "size", "batch", "variant", "device")]
    arguments += [f"--memory={mode}"] + [f"--threads={options.threads}"] * bool(options.threads)
    return harness.in_child("benchmarks.step", arguments + ["--compile"] * options.compile)["peak_memory_mb"]


def summary(times: dict[str, tuple[float, float]], memory: dict[str, float]) -> dict[str, dict[str, float]]:
    """A row of numbers per mode."""
    table: dict[str, dict[str, float]] = {}
    for mode, (wall, used) in times.items():
        table[mode] = {"seconds": wall, "cpu_seconds": used, "peak_memory_mb": memory[mode]}
        for other in ("released", "lean"):
            table[mode] |= {f"ratio_{other}": times[other][0] / wall, f"cpu_ratio_{other}": times[other][1] / used}
    return table


def line(mode: str, row: dict[str, float]) -> str:
    """One mode for a reader."""
    return (
        f"{LABELS[mode]:21} {row['seconds']:8.3f} s  {row['ratio_released']:6.2f} x (a)  "
        f"{row['ratio_lean']:6.2f} x (b)  {row['peak_memory_mb']:8.0f} MiB"
    )


def main() -> None:
    """Check, time, and print."""
    parser = harness.options((__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only check that all modes compute the same")
    parser.add_argument("--memory", choices=MODES, help="only the memory of one iteration of one mode")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    before_mb = harness.resident_mb("VmRSS")
    setting = Setting(options.network, options.size, options.batch, options.variant, device)
    if options.memory:
        run = new_run(setting, options.memory, compile=options.compile)
        return harness.finish({"peak_memory_mb": harness.peak_of(run.step, device, before_mb)}, None)
    # The check needs no full batch: what differs between modes differs for eight images.
    differences = check(Setting(options.network, options.size, min(8, options.batch), options.variant, device))
    for mode, difference in differences.items():
        print(f"{LABELS[mode]}: loss {difference['loss']:.1e}, gradient {difference['gradient']:.1e} from (a)")
    if options.check:
        return harness.finish({"differences": differences}, options.out)
    memory = {mode: _memory(options, mode) for mode in MODES}
    runs = {mode: new_run(setting, mode, compile=options.compile) for mode in MODES}
    times = harness.medians({mode: run.step for mode, run in runs.items()}, options.repeats, device)
    table = summary(times, memory)
    for mode, row in table.items():
        print(line(mode, row))
    settings = {name: getattr(options, name) for name in ("network", "size", "batch", "variant", "repeats", "compile")}
    found = settings | {"modes": table, "differences": differences}
    harness.finish(found | harness.machine(device), options.out)


if __name__ == "__main__":
    command.run(main)
