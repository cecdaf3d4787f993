"""Samples of the current model: Fréchet and kernel distances, classes, nearest training images, pictures."""

from __future__ import annotations

from pathlib import Path

from ebjdat import command, files
from ebjdat.config import load_params
from ebjdat.data.prepared import load_prepared
from ebjdat.device import choose_device
from ebjdat.errors import UserError
from ebjdat.evaluation.generation import draw_samples, measure
from ebjdat.evaluation.pictures import draw_chains, draw_grid
from ebjdat.evaluation.reference import load_reference
from ebjdat.evaluation.samples import read_buffer
from ebjdat.model.store import load_model
from ebjdat.reporting.records import write_record
from ebjdat.subject import Subject


def main() -> None:
    """Write the record, ``samples.npz``, ``samples.png`` and ``chains.png`` of the current model."""
    params = load_params()
    subject = Subject.current(params)
    recipe = subject.recipe(params)
    if recipe is None:
        raise UserError(f"{subject.name} is a baseline: it has no chains to generate with")
    settings, device = params.current.evaluation.generation, choose_device(params.device)
    prepared = load_prepared(subject.data_dir)
    reference = load_reference(Path("models") / params.profile / "reference", prepared, settings, device)
    model = load_model(subject.model_dir / "best.pt", device)
    buffer = read_buffer(subject.model_dir / "buffer.npz", prepared.shape)
    samples = draw_samples(model, recipe, prepared, buffer, settings, subject.seed)
    result = measure(model, samples, prepared, reference, subject.seed)
    folder = subject.results_dir
    files.write_npz(folder / "samples.npz", samples.arrays())
    draw_grid(folder / "samples.png", samples, subject.run_name)
    draw_chains(folder / "chains.png", samples, subject.run_name)
    write_record(subject, params, "generate", result)
    name = reference.extractor.distance
    print(
        f"{subject.run_name}: {name} {result.values[f'generation/{name}']:.4g} (start "
        f"{result.values[f'generation/start-{name}']:.4g}, test images {result.values[f'generation/test-{name}']:.4g}, "
        f"n {result.n}), released {result.values[f'generation/released-{name}']:.4g}"
    )


if __name__ == "__main__":
    command.run(main)
