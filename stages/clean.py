"""Clean accuracy and PGD-20 of both checkpoints, energies of clean, attacked and generated images, calibration."""

from __future__ import annotations

from ebjdat import command
from ebjdat.evaluation.clean import Adversary, evaluate, read_generated
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


def main() -> None:
    """Write the record ``clean`` of the model that ``--model`` names, or of the current one."""
    task = begin("clean", __doc__)
    buffer = task.subject.model_dir / "buffer.npz"
    generated = None if task.subject.is_baseline else read_generated(buffer, tuple(task.x.shape[1:])).to(task.device)
    checkpoints = ("best",) if task.subject.is_external else ("best", "last")
    models = {checkpoint: task.model(checkpoint) for checkpoint in checkpoints}
    result = evaluate(models, task.x, task.y, generated=generated, adversary=adversary_of(task), **task.common)
    task.finish(result)


if __name__ == "__main__":
    command.run(main)
