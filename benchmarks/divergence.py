"""How many runs that diverge for real finish with the supervisor, and how many without.

    python -m benchmarks.divergence [--seeds 20] [--factor 30]    # then: python -m benchmarks.pages
    python -m benchmarks.divergence --picture                     # a healthy run and one that diverges, side by side

JEM on digits (method ``base``, variant ``jem``) at a learning rate of ``factor`` times the recipe's, a few
epochs, once with the supervisor's checks and rollbacks and once without. A run is healthy when it ends with
finite values and a mean energy gap below the supervisor's limit. Writes ``benchmarks/results/divergence.json``;
with ``--picture`` iterations of seed 0 to ``benchmarks/results/health.json`` and ``docs/pictures/health.png``.
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import RESULTS, ROOT, setup_of
from ebjdat import command, files
from ebjdat.data.prepared import load_prepared
from ebjdat.device import processors
from ebjdat.errors import DivergenceError
from ebjdat.training.loop import Trainer
from ebjdat.training.state import State
from ebjdat.training.supervisor import Supervisor

EPOCHS, TRACED_EPOCHS = 4, 2
FACTORS = {"healthy": 1.0, "unhealthy": 30.0}
"""Of the picture: learning rates as multiples of the recipe's."""
TRACED = {"energy_gap_px": "|E(x_p) - E(x_gen)| (nats)", "loss": "|loss|"}
"""What the picture shows of each iteration."""


class Unsupervised(Supervisor):
    """Looks and lets go on; a value that is not finite ends the run, as training would be lost there."""

    def check(self, state: State, values: dict[str, float]) -> None:
        """Keep the values."""
        self.trace.append({"epoch": state.epoch, "step": state.step, **values})
        if not all(map(math.isfinite, values.values())):
            raise DivergenceError("a value is not finite")


def trainer_of(seed: int, factor: float, epochs: int, supervisor: Supervisor) -> Trainer:
    """A run at ``factor`` times the recipe's learning rate."""
    torch.set_num_threads(1)
    rate = setup_of("digits", "base-jem", seed).training.lr  # type: ignore[union-attr]
    setup = setup_of("digits", "base-jem", seed, epochs=epochs, lr=factor * rate)
    return Trainer(setup, load_prepared(Path("data/digits")), device=torch.device("cpu"), supervisor=supervisor)


def run_once(seed: int, factor: float, *, supervised: bool) -> dict[str, Any]:
    """One run; what became of it."""
    supervisor = Supervisor() if supervised else Unsupervised()
    trainer = trainer_of(seed, factor, EPOCHS, supervisor)
    try:
        outcome = trainer.run()
    except DivergenceError as error:
        causes = [event["cause"] for event in trainer.state.events]
        return {"seed": seed, "healthy": False, "rollbacks": len(causes), "causes": causes, "end": str(error)}
    last = outcome.history[-1]
    gap = abs(last["energy_data"] - last["energy_generated"])
    return {
        "seed": seed,
        "healthy": gap < supervisor.gap_limit,
        "rollbacks": len(outcome.events),
        "causes": [event["cause"] for event in outcome.events],
        "gap": gap,
        "val_clean": last["val_clean"],
        "end": "all epochs done",
    }


def trace(factor: float) -> list[dict[str, float]]:
    """What the supervisor sees in every iteration of seed 0, without its interventions."""
    supervisor = Unsupervised()
    try:
        trainer_of(0, factor, TRACED_EPOCHS, supervisor).run()
    except DivergenceError as error:
        print(f"factor {factor:g}: {error}")
    return [{key: float(f"{row[key]:.5g}") for key in TRACED} for row in supervisor.trace]


def draw(result: dict[str, Any], picture: Path) -> None:
    """Gap and loss over iterations, both runs, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    axes: Any = figure.subplots(1, 2)
    for place, (key, label) in enumerate(TRACED.items()):
        for (name, rows), style in zip(result["runs"].items(), ("-", "--"), strict=True):
            values = [max(abs(row[key]), 1e-3) for row in rows]
            axes[place].semilogy(range(1, len(values) + 1), values, style, label=name)
        axes[place].set_xlabel("iteration")
        axes[place].set_ylabel(label)
        axes[place].grid(alpha=0.3)
    axes[0].axhline(result["limit"], color="grey", linewidth=0.8, linestyle=":", label="limit of the supervisor")
    axes[0].legend(frameon=False, fontsize=8)
    with files.atomic(picture) as handle:
        FigureCanvasAgg(figure).print_png(handle, metadata={"Software": None})


def main() -> None:
    """Run all seeds both ways and write the result, or draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--factor", type=float, default=30.0)
    parser.add_argument("--picture", action="store_true", help="only trace and draw two runs")
    options = parser.parse_args()
    if options.picture:
        runs = {name: trace(factor) for name, factor in FACTORS.items()}
        traced = {"epochs": TRACED_EPOCHS, "factors": FACTORS, "limit": Supervisor().gap_limit, "runs": runs}
        files.write_json(RESULTS / "health.json", traced)
        return draw(traced, ROOT / "docs" / "pictures" / "health.png")
    result: dict[str, Any] = {"model": "base-jem", "profile": "digits", "epochs": EPOCHS, "factor": options.factor}
    with ProcessPoolExecutor(processors()) as pool:
        for name, supervised in (("with", True), ("without", False)):
            once = partial(run_once, factor=options.factor, supervised=supervised)
            result[name] = list(pool.map(once, range(options.seeds)))
            healthy = sum(run["healthy"] for run in result[name])
            print(f"{name} supervisor: {healthy} of {options.seeds} healthy at the end", flush=True)
    files.write_json(RESULTS / "divergence.json", result)


if __name__ == "__main__":
    command.run(main)
