"""Table 3: EOT-PGD on the plain model and with noise inside it."""

from ebjdat import command
from stages.arguments import setup_from_arguments


def main() -> None:
    """Write the record ``eot``."""
    setup = setup_from_arguments(__doc__)

    from ebjdat.evaluation.eot import evaluate
    from stages.evaluating import begin

    task = begin("eot", setup)
    with task.outcomes() as done:
        task.finish(evaluate(task.model(), task.cases, batches=task.batches, done=done, label=task.label))


if __name__ == "__main__":
    command.run(main)
