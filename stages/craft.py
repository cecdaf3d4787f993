"""Adversarial images crafted on a surrogate, once for all models that transfer attacks are tried on."""

from ebjdat import command, files
from ebjdat.config import load_params
from ebjdat.record import write_times
from stages.arguments import setup_from_arguments


def main() -> None:
    """Write ``results/<profile>/crafted/<seed>/<model>/``."""
    setup = setup_from_arguments(__doc__)

    from ebjdat.evaluation.transfer import craft
    from stages.evaluating import begin

    task = begin("craft", setup)
    folder = task.run.crafted()
    with task.outcomes() as done:
        manifest = craft(
            folder,
            task.run.model,
            task.model(),
            files.file_hash(task.run.model_dir / "best.pt"),
            task.x,
            task.y,
            nominal=task.setup.evaluation.radius,
            trained_with={recipe.labelled_noise for recipe in load_params().variants.values()},
            batches=task.batches,
            done=done,
            label=task.label,
        )
    write_times(task.run, task.stage)
    for name, found in manifest["found"].items():
        print(f"{folder}/{name}.npz: {100 * found['accuracy']:.1f} % of {task.run.model} itself, n {len(task.x)}")


if __name__ == "__main__":
    command.run(main)
