"""Table 2: transfer attacks from the surrogates, under both protocols; worst case per image."""

from __future__ import annotations

from ebjdat import command
from ebjdat.evaluation.transfer import evaluate
from ebjdat.model.store import load_model
from stages.evaluating import begin


def main() -> None:
    """Write the record ``transfer`` of the model that ``--model`` names, or of the current one."""
    task = begin("transfer", __doc__)
    paths = {found.name: found.surrogate_dir / "best.pt" for found in task.subject.surrogates(task.params)}
    surrogates = {name: load_model(path, task.device) for name, path in paths.items()}
    with task.outcomes(*paths.values()) as done:
        task.finish(evaluate(task.subject.name, task.model(), surrogates, task.x, task.y, **task.common, done=done))


if __name__ == "__main__":
    command.run(main)
