"""Table 2: transfer attacks from the surrogates, under both protocols; worst case per image."""

from dataclasses import replace

from ebjdat import command
from stages.arguments import setup_from_arguments


def main() -> None:
    """Write the record ``transfer``."""
    setup = setup_from_arguments(__doc__)

    from ebjdat.evaluation.transfer import evaluate, load_crafted
    from stages.evaluating import begin

    task = begin("transfer", setup)
    runs = [replace(task.run, model=name) for name in task.setup.surrogates]
    radius = task.setup.evaluation.radius
    crafted = {
        run.model: load_crafted(run.crafted(), run.model_dir / "best.pt", task.x, task.y, radius) for run in runs
    }
    task.finish(evaluate(task.run.model, task.model(), crafted, task.cases, batches=task.batches, label=task.label))


if __name__ == "__main__":
    command.run(main)
