"""Clean accuracy and PGD-20 of both checkpoints, energies of clean, attacked and generated images, calibration."""

from __future__ import annotations

from torch import Tensor

from ebjdat import command
from ebjdat.data.prepared import load_prepared
from ebjdat.evaluation.clean import GENERATED, Adversary, evaluate
from ebjdat.evaluation.samples import fresh, read_buffer
from ebjdat.model.store import load_model
from ebjdat.training.recipes import recipe
from stages.evaluating import Task, begin


def adversary_of(task: Task) -> Adversary | None:
    """The attack that the subject was trained with, and how far it can get; None where nobody knows."""
    if task.subject.is_external:
        return None
    trained = recipe(task.params, task.subject)
    if not trained.adversarial:
        return None
    eps, variant = trained.schedule.train_eps, trained.variant
    free = variant is not None and not variant.project
    bound = eps * (1.0 + variant.attack_steps * variant.attack_step) if free and variant else eps
    return Adversary(trained.objective.craft, bound)  # type: ignore[attr-defined]  # every adversarial objective crafts


def generated_by(task: Task) -> dict[str, Tensor] | None:
    """The replay buffer, and as many fresh chains as test images; None for a model that does not generate."""
    recipe = task.subject.recipe(task.params)
    if recipe is None:
        return None
    prepared = load_prepared(task.subject.data_dir)
    buffer = read_buffer(task.subject.model_dir / "buffer.npz", prepared.shape).clamp(0.0, 1.0).to(task.device)
    model = load_model(task.subject.model_dir / "best.pt", task.device)
    steps = task.params.current.evaluation.generation.chain_steps
    chains = fresh(model, recipe, prepared, len(task.x), steps, task.subject.seed)
    return {GENERATED: buffer, f"{GENERATED}-fresh": chains}


def main() -> None:
    """Write the record ``clean`` of the model that ``--model`` names, or of the current one."""
    task = begin("clean", __doc__)
    checkpoints = ("best",) if task.subject.is_external else ("best", "last")
    models = {checkpoint: task.model(checkpoint) for checkpoint in checkpoints}
    result = evaluate(models, task.x, task.y, generated=generated_by(task), adversary=adversary_of(task), **task.common)
    task.finish(result)


if __name__ == "__main__":
    command.run(main)
