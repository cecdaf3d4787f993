"""Table 3: APGD-CE over radius and iterations, one step, an unbounded radius, uniform noise."""

from ebjdat import command
from stages.arguments import setup_from_arguments


def main() -> None:
    """Write the record ``sweep``."""
    setup = setup_from_arguments(__doc__)

    from ebjdat.evaluation.sweep import evaluate
    from stages.evaluating import begin

    task = begin("sweep", setup)
    with task.outcomes() as done:
        task.finish(evaluate(task.model(), task.cases, batches=task.batches, done=done, label=task.label))


if __name__ == "__main__":
    command.run(main)
