"""Table 1: the official AutoAttack code, each attack alone and the cascade, under both protocols."""

from __future__ import annotations

import shutil

from ebjdat import command, files, provenance
from ebjdat.device import evaluators
from ebjdat.evaluation.robustness import evaluate
from ebjdat.subject import data_digest
from stages.evaluating import begin


def main() -> None:
    """Write the record ``autoattack`` of the model that ``--model`` names, or of the current one."""
    task = begin("autoattack", __doc__)
    subject, evaluation = task.subject, task.params.current.evaluation
    checkpoints = ("best",) if subject.is_external else ("best", "last")
    identity = subject.identity(task.params, "autoattack", data_digest(subject.profile))
    folder = files.scratch("autoattack", identity)
    made_by = {name: provenance.file_hash(subject.model_dir / f"{name}.pt") for name in checkpoints}
    made_by |= {
        "code": provenance.closure_hash("stages.autoattack"),
        "device": task.device.type,
    }
    with files.hold(folder.with_suffix(".lock"), f"AutoAttack on {subject.name}"):
        result = evaluate(
            {name: task.opener(name) for name in checkpoints},
            task.x,
            task.y,
            nominal=evaluation.radius,
            variant=subject.variant,
            slice_size=evaluation.autoattack.slice,
            last_images=min(evaluation.autoattack.last_images, evaluation.autoattack.images),
            folder=folder,
            made_by=made_by,
            workers=evaluators(task.device, task.params.devices),
        )
        task.finish(result)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    command.run(main)
