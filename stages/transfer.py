"""Table 2: transfer attacks from the surrogates, under both protocols; worst case per image."""

from __future__ import annotations

from ebjdat import command
from ebjdat.evaluation.transfer import evaluate
from ebjdat.model.store import load_model
from stages.evaluating import begin


def main() -> None:
    """Write the record ``transfer`` of the model that ``--model`` names, or of the current one."""
    task = begin("transfer", __doc__)
    surrogates = {
        surrogate.name: load_model(surrogate.surrogate_dir / "best.pt", task.device)
        for surrogate in task.subject.surrogates(task.params)
    }
    task.finish(evaluate(task.subject.name, task.model(), surrogates, task.x, task.y, **task.common))


if __name__ == "__main__":
    command.run(main)
