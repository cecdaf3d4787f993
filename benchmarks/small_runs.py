"""What a campaign's own training times imply for the full profile: measured rates against the predicted cost.

    python -m benchmarks.small_runs results/cifar10-cpu/times.jsonl --profile cifar10-cpu

Measured: seconds of each training command, start of the process, selection and checkpoints included. Counted: the
forwards of its recipe (an input-gradient backward counts 1, a full one 2) and the FLOPs of a forward. Implied, and
never measured: time of EB-JDAT in profile cifar10 at the same rate. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from ebjdat import command, files
from ebjdat.config import Params, load_params
from ebjdat.model.store import Architecture, new_model
from ebjdat.subject import Subject
from ebjdat.training.recipes import recipe

FULL, SMALL = "cifar10", "cifar10-small"
PEAKS = {"A100": 312e12, "H100 SXM, H200": 989e12}
"""Dense bfloat16 peak in FLOP/s by the vendor's data sheets."""
SHARES = (0.10, 0.25, 0.40)
"""Assumed."""
BUSY = 0.5
"""Share of the best row's rate below which a row's core was busy with something else."""


def image_forwards(params: Params, subject: Subject) -> float:
    """Forwards that one labelled image costs in one epoch of a subject's training."""
    plan = recipe(params, subject)
    if plan.variant is None:
        attack = getattr(plan.objective, "steps", 0)
        reference = subject.method == "trades"
        return 2 * attack + reference + 3 * (2 if reference else 1)
    share = plan.schedule.px_batch_size / plan.schedule.batch_size
    labelled = 2 if plan.adversarial else 1
    passes = 3 * (labelled + 2 * share) * (2 if plan.variant.sharpness else 1)
    crafting = 1 + 2 * plan.variant.attack_steps if plan.adversarial else 0
    return 2 * plan.variant.steps * share + crafting + passes


def epoch_forwards(params: Params, subject: Subject) -> float:
    """Forwards per epoch: iterations, re-estimated statistics and selection."""
    profile = params.profiles[subject.profile]
    shared, plan = profile.training.shared, recipe(params, subject)
    attacked = {"clean": 0, "adversarial": shared.bn_images, "both": shared.bn_images // 2}[plan.sees]
    selection = profile.data.validation * (2 * shared.validation_steps + 2)
    return profile.data.train * image_forwards(params, subject) + 20 * attacked + shared.bn_images + selection


def forward_flops(params: Params, subject: Subject) -> float:
    """FLOPs of a forward of one image of the profile's network."""
    network = params.profiles[subject.profile].network
    norm = recipe(params, subject).norm
    model = new_model(Architecture(depth=network.depth, width=network.width, channels=3, classes=10, norm=norm), 0)
    return harness.forward_flops(model.train(), torch.rand(2, 3, 32, 32)) / 2


def training_flops(params: Params, subject: Subject) -> float:
    """FLOPs of a whole training."""
    epochs = recipe(params, subject).schedule.epochs
    return epochs * epoch_forwards(params, subject) * forward_flops(params, subject)


def rows_of(params: Params, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per trained model; a training that was stopped counts with all its calls."""
    seconds: dict[str, float] = {}
    for line in lines:
        module, *arguments = line["command"]
        if module == "stages.baseline":
            name = arguments[-1]
        elif module == "stages.train":
            name = line["row"].rsplit("-", 2)[0]
        else:
            continue
        seconds[name] = seconds.get(name, 0.0) + line["seconds"]
    rows = []
    for name, taken in seconds.items():
        method, _, variant = name.partition("-")
        subject = Subject(params.profile, method, variant or None, params.seed)
        flops = training_flops(params, subject)
        rows.append({"model": name, "seconds": taken, "flops": flops, "flop_per_second": flops / taken})
    return rows


def table(rows: list[dict[str, Any]], profile: str, plans: dict[str, float]) -> str:
    """The page: measured rates, then what they and assumed shares of a GPU's peak imply."""
    lines = [
        f"# What the runs of {profile} cost, and what they imply",
        "",
        f"Measured: seconds of each training on one core, two at a time, start of the process included. Counted: "
        f"FLOPs. Implied: EB-JDAT-JEM++ of profile {FULL}, {plans[FULL]:.2g} FLOP, at the same rate; of rows below "
        f"{BUSY:.0%} of the best rate, whose core was shared with other work, nothing is implied. Made by "
        "`python -m benchmarks.small_runs`.",
        "",
        "| Model | seconds | TFLOP | GFLOP/s | implied hours on such a core |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['model']} | {row['seconds']:.0f} | {row['flops'] / 1e12:.1f} | {row['flop_per_second'] / 1e9:.1f} | "
        f"{'shared core' if row['implied_core_hours'] is None else format(row['implied_core_hours'], ',.0f')} |"
        for row in rows
    ]
    lines += ["", "Predicted, not measured: hours of EB-JDAT-JEM++ at an assumed share of a GPU's bfloat16 peak.", ""]
    lines += [f"| GPU | share of the peak | {' | '.join(plans)} |", f"| --- | ---: |{' ---: |' * len(plans)}"]
    for name, peak in PEAKS.items():
        for share in SHARES:
            hours = " | ".join(f"{flops / (share * peak) / 3600:.2f}" for flops in plans.values())
            lines.append(f"| {name} | {share:.0%} | {hours} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print measured rates and what they imply."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("times", type=Path, help="times.jsonl of a campaign")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--out", type=Path, help="also write the last line to this file")
    parser.add_argument("--table", type=Path, help="also write a page in Markdown")
    arguments = parser.parse_args()
    params = dataclasses.replace(load_params(), profile=arguments.profile)
    rows = rows_of(params, [json.loads(line) for line in arguments.times.read_text(encoding="utf-8").splitlines()])
    plans = {name: training_flops(params, Subject(name, "ebjdat", "jempp", 0)) for name in (FULL, SMALL)}
    best = max(row["flop_per_second"] for row in rows)
    for row in rows:
        alone = row["flop_per_second"] >= BUSY * best
        row["implied_core_hours"] = plans[FULL] / row["flop_per_second"] / 3600 if alone else None
    page = table(rows, arguments.profile, plans)
    print(page)
    if arguments.table is not None:
        files.write_text(arguments.table, page)
    harness.finish({"profile": arguments.profile, "planned_flops": plans, "rows": rows}, arguments.out)


if __name__ == "__main__":
    command.run(main)
