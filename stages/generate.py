"""Samples of a model: Fréchet and kernel distances, classes, nearest training images, pictures."""

from ebjdat import command, files
from ebjdat.errors import UserError
from ebjdat.run import reference_dir
from stages.arguments import setup_from_arguments


def main() -> None:
    """Write the record, ``arrays.npz``, ``samples.npz``, ``samples.png`` and ``chains.png``."""
    setup = setup_from_arguments(__doc__)

    from ebjdat.evaluation.generation import draw_samples, measure
    from ebjdat.evaluation.pictures import draw_chains, draw_grid
    from ebjdat.evaluation.reference import load_reference
    from ebjdat.evaluation.samples import read_buffer
    from ebjdat.model.store import load_model
    from stages.evaluating import begin

    task = begin("generate", setup)
    run, recipe, settings = task.run, task.setup.recipe, task.setup.evaluation.generation
    if recipe is None:
        raise UserError(f"{run} has no JEM recipe: it has no chains to generate with")
    reference = load_reference(reference_dir(run.profile), task.prepared, settings, task.device)
    model = load_model(run.model_dir / "best.pt", task.device)
    buffer = read_buffer(run.model_dir / "buffer.npz", task.prepared.shape)
    samples = draw_samples(model, recipe, task.prepared, buffer, settings, run.seed, task.label)
    result = measure(model, samples, task.prepared, reference, run.seed)
    files.write_npz(task.beside("samples.npz"), samples.arrays())
    title = f"{run.model}-{run.seed}"
    draw_grid(task.beside("samples.png"), samples, title)
    draw_chains(task.beside("chains.png"), samples, title)
    task.finish(result)
    name = reference.extractor.distance
    print(
        f"{run}: {name} {result.values[f'generation/{name}']:.4g} (start "
        f"{result.values[f'generation/start-{name}']:.4g}, test images {result.values[f'generation/test-{name}']:.4g}, "
        f"n {result.n}), released {result.values[f'generation/released-{name}']:.4g}"
    )


if __name__ == "__main__":
    command.run(main)
