"""What bfloat16 does to accuracy: digits trained in float32 and in bfloat16, several seeds.

    python -m benchmarks.precision [--seeds 3] [--variant jempp]

Every training is that of params.yaml but for the precision. Both models are evaluated in float32 on
all test images: clean accuracy, and PGD-20 at the profile's radius (step a quarter of it, random
start), on the prepared digits. Writes ``benchmarks/results/precision.json``; a finished training is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import RESULTS, setup_of
from ebjdat import command, files
from ebjdat.attacks.batches import correct
from ebjdat.attacks.linf import PGD
from ebjdat.data.prepared import Prepared, load_prepared
from ebjdat.model.energy import EnergyModel
from ebjdat.training.loop import Trainer

RESULT = RESULTS / "precision.json"
PRECISIONS = ("float32", "bfloat16")


def train_once(data: Prepared, variant: str, precision: Any, seed: int) -> dict[str, Any]:
    """Train and evaluate one model; accuracies in per cent."""
    torch.set_num_threads(1)
    setup = setup_of("digits", f"ebjdat-{variant}", seed, precision=precision)
    trainer = Trainer(setup, data, device=torch.device("cpu"))
    started = time.process_time()
    outcome = trainer.run()
    seconds = time.process_time() - started
    chosen = outcome.history[outcome.best_epoch - 1]
    return {
        "variant": variant,
        "precision": precision,
        "seed": seed,
        "cpu_seconds": seconds,
        "best_epoch": outcome.best_epoch,
        "rollbacks": len(outcome.events),
        "validation clean": 100 * chosen["val_clean"],
        "validation robust": 100 * chosen["val_robust"],
        **evaluate(outcome.best.eval(), data, setup.evaluation.radius),
    }


def evaluate(model: EnergyModel, data: Prepared, radius: float) -> dict[str, float]:
    """Clean accuracy and PGD-20 in float32 on the test images, in per cent."""
    x, y = data.x_test, data.y_test
    attack = PGD(eps=radius, step=radius / 4, steps=20, random_start=True)
    x_adv = attack(model, x, y, torch.Generator().manual_seed(0))
    clean, robust = correct(model, x, y), correct(model, x_adv, y)
    return {"clean": 100 * float(clean.float().mean()), "pgd20": 100 * float((clean & robust).float().mean())}


def main() -> None:
    """Train what is missing and write the result after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variant", default="jempp")
    options = parser.parse_args()
    data = load_prepared(Path("data/digits"))
    runs: list[dict[str, Any]] = files.read_json(RESULT)["runs"] if RESULT.is_file() else []
    done = {(run["variant"], run["precision"], run["seed"]) for run in runs}
    wanted = [(options.variant, precision, seed) for seed in range(options.seeds) for precision in PRECISIONS]
    for run in [run for run in wanted if run not in done]:
        runs.append(train_once(data, *run))
        files.write_json(RESULT, {"profile": "digits", "images": len(data.y_test), "runs": runs})
    print(json.dumps(runs))


if __name__ == "__main__":
    command.run(main)
