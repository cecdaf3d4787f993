"""Table 3: EOT-PGD on the plain model and with noise inside it."""

from __future__ import annotations

from ebjdat import command
from ebjdat.evaluation.eot import evaluate
from stages.evaluating import begin


def main() -> None:
    """Write the record ``eot`` of the model that ``--model`` names, or of the current one."""
    task = begin("eot", __doc__)
    with task.outcomes() as done:
        task.finish(evaluate(task.model(), task.x, task.y, **task.common, done=done))


if __name__ == "__main__":
    command.run(main)
