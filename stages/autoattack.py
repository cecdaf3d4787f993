"""Table 1: the official AutoAttack code, each attack alone and the cascade, under both protocols."""

from ebjdat import command
from stages.arguments import setup_from_arguments


def main() -> None:
    """Write the record ``autoattack``."""
    setup = setup_from_arguments(__doc__)

    from ebjdat.device import evaluators
    from ebjdat.evaluation.robustness import evaluate
    from stages.evaluating import begin

    task = begin("autoattack", setup)
    settings = task.setup.evaluation.autoattack
    with task.outcomes(*task.checkpoints) as done:
        result = evaluate(
            {name: task.opener(name) for name in task.checkpoints},
            task.cases,
            slice_size=settings.slice,
            alone=settings.alone,
            cascade=settings.cascade,
            last_images=min(settings.last_images, settings.images),
            done=done,
            workers=evaluators(task.device, task.setup.devices),
            label=task.label,
        )
        task.finish(result)


if __name__ == "__main__":
    command.run(main)
