"""Iteration by iteration: a healthy run and one that diverges, side by side.

    python -m benchmarks.health

JEM on digits (method ``base``, variant ``jem``), seed 0, two epochs, at the recipe's learning rate and at 30 times
that, both without the supervisor's interventions. Writes ``benchmarks/results/health.json`` and
``docs/pictures/health.png``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.divergence import Unsupervised
from benchmarks.harness import setup_of
from ebjdat import command, files
from ebjdat.data.prepared import load_prepared
from ebjdat.errors import DivergenceError
from ebjdat.training.loop import Trainer
from ebjdat.training.supervisor import Supervisor

RESULT = Path(__file__).parent / "results" / "health.json"
PICTURE = Path("docs") / "pictures" / "health.png"
FACTORS = {"healthy": 1.0, "unhealthy": 30.0}
EPOCHS = 2


def trace(factor: float) -> list[dict[str, float]]:
    """What the supervisor sees in every iteration at a learning rate of ``factor`` times the recipe's."""
    torch.set_num_threads(1)
    rate = setup_of("digits", "base-jem").training.lr  # type: ignore[union-attr]
    setup = setup_of("digits", "base-jem", epochs=EPOCHS, lr=factor * rate)
    supervisor, data = Unsupervised(), load_prepared(Path("data/digits"))
    trainer = Trainer(setup, data, device=torch.device("cpu"), supervisor=supervisor)
    try:
        trainer.run()
    except DivergenceError as error:
        print(f"factor {factor:g}: {error}")
    return [dict(row) for row in supervisor.trace]


def draw(result: dict[str, Any]) -> None:
    """Gap and loss over iterations, both runs, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    axes: Any = figure.subplots(1, 2)
    for place, (key, label) in enumerate({"energy_gap_px": "|E(x_p) - E(x_gen)| (nats)", "loss": "|loss|"}.items()):
        for (name, rows), style in zip(result["runs"].items(), ("-", "--"), strict=True):
            values = [max(abs(row[key]), 1e-3) for row in rows]
            axes[place].semilogy(range(1, len(values) + 1), values, style, label=name)
        axes[place].set_xlabel("iteration")
        axes[place].set_ylabel(label)
        axes[place].grid(alpha=0.3)
    axes[0].axhline(result["limit"], color="grey", linewidth=0.8, linestyle=":", label="limit of the supervisor")
    axes[0].legend(frameon=False, fontsize=8)
    with files.atomic(PICTURE) as handle:
        FigureCanvasAgg(figure).print_png(handle, metadata={"Software": None})


def main() -> None:
    """Run both, write numbers and picture."""
    runs = {name: trace(factor) for name, factor in FACTORS.items()}
    result = {"epochs": EPOCHS, "factors": FACTORS, "limit": Supervisor().gap_limit, "runs": runs}
    files.write_json(RESULT, result)
    draw(result)


if __name__ == "__main__":
    command.run(main)
