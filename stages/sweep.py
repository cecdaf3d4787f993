"""Table 3: APGD-CE over radius and iterations, one step, an unbounded radius, uniform noise."""

from __future__ import annotations

from ebjdat import command
from ebjdat.evaluation.sweep import evaluate
from stages.evaluating import begin


def main() -> None:
    """Write the record ``sweep`` of the model that ``--model`` names, or of the current one."""
    task = begin("sweep", __doc__)
    with task.outcomes() as done:
        task.finish(evaluate(task.model(), task.x, task.y, **task.common, done=done))


if __name__ == "__main__":
    command.run(main)
