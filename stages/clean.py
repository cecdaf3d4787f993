"""Clean accuracy and PGD-20 of both checkpoints, energies of clean, attacked and generated images, calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebjdat import command
from ebjdat.progress import Progress
from stages.arguments import setup_from_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from ebjdat.evaluation.clean import Adversary
    from stages.evaluating import Task


def adversary_of(task: Task) -> Adversary | None:
    """The attack that the model was trained with, and how far it can get; None where nobody knows."""
    from ebjdat.evaluation.clean import Adversary
    from ebjdat.training.recipes import objective_of

    if task.run.is_external:
        return None
    objective = objective_of(task.setup)
    return None if objective.sees == "clean" else Adversary(objective.craft, objective.reach)


def generated_by(task: Task) -> dict[str, Tensor] | None:
    """The replay buffer, and as many fresh chains as test images; None for a model that does not generate."""
    from ebjdat.evaluation.clean import GENERATED
    from ebjdat.evaluation.samples import fresh, read_buffer
    from ebjdat.model.store import load_model

    recipe = task.setup.recipe
    if recipe is None:
        return None
    path, found = task.run.model_dir / "buffer.npz", {}
    if path.is_file() or not task.run.is_external:  # an imported checkpoint may come without its replay buffer
        found[GENERATED] = read_buffer(path, task.prepared.shape).clamp(0.0, 1.0).to(task.device)
    model = load_model(task.run.model_dir / "best.pt", task.device)
    steps = task.setup.evaluation.generation.chain_steps
    with Progress(len(task.x), f"{task.label} chains", unit="chain") as progress:
        chains = fresh(model, recipe, task.prepared, len(task.x), steps, task.run.seed, progress)
    return found | {f"{GENERATED}-fresh": chains}


def main() -> None:
    """Write the record ``clean``."""
    setup = setup_from_arguments(__doc__)

    from ebjdat.evaluation.clean import evaluate
    from stages.evaluating import begin

    task = begin("clean", setup)
    models = {checkpoint: task.model(checkpoint) for checkpoint in task.checkpoints}
    generated, adversary = generated_by(task), adversary_of(task)
    result = evaluate(
        models, task.cases, generated=generated, adversary=adversary, batches=task.batches, label=task.label
    )
    task.finish(result)


if __name__ == "__main__":
    command.run(main)
