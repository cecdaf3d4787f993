"""How many runs that diverge for real finish with the supervisor, and how many without.

    python -m benchmarks.divergence [--seeds 20] [--factor 30]

JEM on digits (method ``base``, variant ``jem``) at a learning rate of ``factor`` times the recipe's, a few
epochs, once with the supervisor's checks and rollbacks and once without. A run is healthy when it ends with
finite values and a mean energy gap below the supervisor's limit. Writes ``benchmarks/results/divergence.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import setup_of
from ebjdat import command, files
from ebjdat.data.prepared import load_prepared
from ebjdat.device import processors
from ebjdat.errors import DivergenceError
from ebjdat.training.loop import Trainer
from ebjdat.training.state import State
from ebjdat.training.supervisor import Supervisor

RESULT = Path(__file__).parent / "results" / "divergence.json"
PAGE = Path(__file__).parents[1] / "docs" / "faults.md"
EPOCHS = 4


class Unsupervised(Supervisor):
    """Looks and lets go on; a value that is not finite ends the run, as training would be lost there."""

    def check(self, state: State, values: dict[str, float]) -> None:
        """Keep the values."""
        self.trace.append({"epoch": state.epoch, "step": state.step, **values})
        if not all(map(math.isfinite, values.values())):
            raise DivergenceError("a value is not finite")


def run_once(seed: int, factor: float, *, supervised: bool) -> dict[str, Any]:
    """One run; what became of it."""
    torch.set_num_threads(1)
    setup = setup_of("digits", "base-jem", seed, epochs=EPOCHS)
    assert setup.training is not None
    setup = setup_of("digits", "base-jem", seed, epochs=EPOCHS, lr=factor * setup.training.lr)
    supervisor = Supervisor() if supervised else Unsupervised()
    data, device = load_prepared(Path("data/digits")), torch.device("cpu")
    trainer = Trainer(setup, data, device=device, supervisor=supervisor)
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


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    caption = (
        f"{result['model']} on {result['profile']}, {result['epochs']} epochs at {result['factor']:g} times the "
        f"recipe's rate, seeds 0 to {len(result['with']) - 1}."
    )
    lines = [
        "| supervisor | healthy at the end | above 50 % validation accuracy | median accuracy (%) | rollbacks a run |"
    ]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name in ("with", "without"):
        runs = result[name]
        healthy = sum(run["healthy"] for run in runs)
        rollbacks = sum(run["rollbacks"] for run in runs) / len(runs)
        accuracies = [run.get("val_clean", 0.0) for run in runs]
        useful, median = sum(accuracy > 0.5 for accuracy in accuracies), 100 * statistics.median(accuracies)
        lines.append(f"| {name} | {healthy} of {len(runs)} | {useful} | {median:.0f} | {rollbacks:.1f} |")
    note = "A run that was given up, or ended in a value that is not finite, counts as accuracy 0."
    return "\n".join([caption, "", *lines, "", note])


def fill_page() -> None:
    """Put the table into docs/faults.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split("<!-- divergence -->")
    after = rest.split("<!-- /divergence -->")[1]
    shown = table(files.read_json(RESULT))
    files.write_text(PAGE, f"{before}<!-- divergence -->\n{shown}\n<!-- /divergence -->{after}")


def main() -> None:
    """Run all seeds both ways and write the result, or only fill the page from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="only fill docs/faults.md from the last result")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--factor", type=float, default=30.0)
    options = parser.parse_args()
    if options.page:
        fill_page()
        return
    result: dict[str, Any] = {"model": "base-jem", "profile": "digits", "epochs": EPOCHS, "factor": options.factor}
    with ProcessPoolExecutor(processors()) as pool:
        for name, supervised in (("with", True), ("without", False)):
            once = partial(run_once, factor=options.factor, supervised=supervised)
            result[name] = list(pool.map(once, range(options.seeds)))
            healthy = sum(run["healthy"] for run in result[name])
            print(f"{name} supervisor: {healthy} of {options.seeds} healthy at the end", flush=True)
    files.write_json(RESULT, json.loads(json.dumps(result)))


if __name__ == "__main__":
    command.run(main)
