"""Export of a trained model for others: weights, configuration, the chains' start and a model card.

The folder follows the conventions of Hugging Face's Hub mixin (``config.json``, ``model.safetensors``, a ``README.md``
with metadata), so it can be uploaded as it is; ``ebjdat.load(folder)`` opens it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ebjdat import files
from ebjdat.api import load
from ebjdat.errors import UserError
from ebjdat.model import exported
from ebjdat.model.description import Description
from ebjdat.model.wideresnet import Architecture, WideResNet
from ebjdat.protocols import PROTOCOLS, as_fraction
from ebjdat.record import Record, rates_of, read_records, run_of

CARD = "README.md"
GAUSSIANS = "gaussians.npz"
_PAPER = "https://arxiv.org/abs/2505.19459"
_MEASURES = {
    "clean": {"clean": "clean accuracy", "pgd-20": "PGD-20"},
    "autoattack": {"union": "union of AutoAttack's attacks", "autoattack": "AutoAttack"},
    "transfer": {"transfer/worst": "transfer, worst case"},
}
"""Accuracies of the card, by stage and by metric without the protocol's name."""


def export(source: str | Path, folder: str | Path) -> Path:
    """Write the best checkpoint of a trained model for others; returns the folder.

    Args:
        source: a model's folder, such as ``models/digits/ebjdat-jempp/0``.
        folder: where ``config.json``, ``model.safetensors``, ``README.md`` and, for chains that start from them,
            ``gaussians.npz`` go; files of these names are replaced. Numbers of the card are those of ``results/``.

    Raises:
        UserError: the model, its description or a record is missing or damaged, or the Gaussians are not those that it
            was trained with.
    """
    source, folder = Path(source), Path(folder)
    model = load(source)
    described = model.description
    if described is None:
        raise UserError(f"{source} has no model.json: train the model again with this version")
    weights, found = files.file_hash(source / "best.pt"), read_records(described.profile)
    mine = [record for record in found if run_of(record) == described.run and record["weights"] == weights]
    network = model.network
    assert isinstance(network, WideResNet)
    files.write_text(folder / CARD, card(described, network.architecture, weights, mine))
    if described.gaussians is not None:
        with files.atomic(folder / GAUSSIANS) as handle:  # either may be a link into DVC's cache
            handle.write(model.gaussians_file().read_bytes())
        described = described.model_copy(update={"gaussians": GAUSSIANS})
    exported.write(folder, network, described)
    return folder


def card(described: Description, architecture: Architecture, weights: str, records: Iterable[Record]) -> str:
    """The model card as Markdown with the Hub's metadata; ``weights``: SHA-256 of the checkpoint."""
    data, rows = described.params["data"], "\n".join(_rows(records))
    numbers = f"{_HEAD}\n{rows}" if rows else "None recorded for this checkpoint."
    limits = _LIMITS if data["dataset"] == "digits" else ""
    return f"""---
license: {"other" if described.run.is_external else "mit"}
library_name: ebjdat
pipeline_tag: image-classification
tags: [adversarial-robustness, energy-based-model, ebjdat]
---

# {described.model} on {data["dataset"]}, seed {described.seed}

A classifier of a reproduction of EB-JDAT ({_PAPER}): {described.run.about}.

```python
import ebjdat

model = ebjdat.load("path/to/this/folder")
logits = model(images)             # float32 (N, {", ".join(map(str, described.shape))}) in [0, 1]
{"" if described.recipe is None else "samples = model.sample(16, y=3)"}
```

## Data and recipe

- {data["dataset"]}: {data["train"]:,} training, {data["validation"]:,} validation and {data["test"]:,} test images; \
digest of images, labels and splits `{described.data}`
- WideResNet-{architecture.depth}-{architecture.width}; images in [0, 1], mapped to [-1, 1] by the model itself
{_recipe(described)}
- checkpoint (SHA-256) `{weights}`

## Numbers

{numbers}

## Limits

- Robust accuracies hold for L-inf attacks of the stated radius and for the attacks that were run; a stronger attack \
can only lower them.
- Intervals are about the test images, not about other training runs.{limits}
"""


_HEAD = """Accuracies in percent with their 95 % Wilson interval and the number of test images.

| Measure | Protocol | L-inf radius (pixel units) | Value |
| --- | --- | ---: | ---: |"""
_LIMITS = "\n- Digits are small and easy: nothing here speaks for or against the published CIFAR-10 numbers."


def _recipe(described: Description) -> str:
    """How the model was trained, as far as it was trained here, and how its chains run."""
    lines, training, recipe = "", described.params.get("training"), described.recipe
    if training is not None:
        lines = (
            f"- {training['optimiser']}, learning rate {training['lr']:g}, {training['epochs']} epochs, batches of "
            f"{training['batch_size']}, training radius {as_fraction(training['train_eps'])} in pixel units\n"
        )
    if recipe is None:
        return f"{lines}- no generative term: this model does not sample"
    return (
        f"{lines}- chains start {recipe.chain_start}, {recipe.steps} steps per iteration in training, "
        f"{described.chain_steps} in evaluation; reading of the adversarial term: {recipe.reading}, weight "
        f"{recipe.w_energy:g}"
    )


def _rows(records: Iterable[Record]) -> Iterator[str]:
    """A row of the card's table for every accuracy and distance that is there."""
    found = {record["stage"]: record for record in records}
    for name, protocol in PROTOCOLS.items():
        for stage, measures in _MEASURES.items():
            if stage not in found:
                continue
            rates, radius = rates_of(found[stage]), protocol.radius(found[stage]["params"]["evaluation"]["radius"])
            for metric, label in measures.items():
                rate = rates.get(f"{name}/{metric}")
                if rate is not None:
                    low, high = (100 * end for end in rate.interval())
                    value = f"{100 * rate.accuracy:.1f} [{low:.1f}, {high:.1f}], n = {rate.n}"
                    yield f"| {label} | {name} | {as_fraction(radius)} | {value} |"
    if "generate" in found:
        metric = found["generate"]["settings"]["features"]["metric"]
        distance, n = found["generate"]["values"][f"generation/{metric}"], found["generate"]["n"]
        yield f"| {metric} of samples, lower is better | standard | | {distance:.4g}, n = {n} |"
