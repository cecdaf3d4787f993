"""Export of a trained model for others: weights, configuration, the chains' start and a model card.

The folder follows the conventions of Hugging Face's Hub mixin (``config.json``, ``model.safetensors``,
a ``README.md`` with metadata), so it can be uploaded as it is; ``ebjdat.load(folder)`` opens it.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from ebjdat import files, provenance
from ebjdat.api import load
from ebjdat.config import Params, load_params
from ebjdat.errors import UserError
from ebjdat.model import exported
from ebjdat.model.store import Architecture, read_payload
from ebjdat.protocols import PROTOCOLS, as_fraction
from ebjdat.reporting.lookup import Numbers, load_numbers, show_percent, show_value
from ebjdat.reporting.tables import generation_names
from ebjdat.subject import Subject

CARD = "README.md"
GAUSSIANS = "gaussians.npz"
_PAPER = "https://arxiv.org/abs/2505.19459"


def export(
    source: str | Path, folder: str | Path, *, numbers: Numbers | None = None, params: Params | None = None
) -> Path:
    """Write the best checkpoint of a trained model for others; returns the folder.

    Args:
        source: a model's folder, such as ``models/digits/ebjdat-jempp``.
        folder: where ``config.json``, ``model.safetensors``, ``README.md`` and, for chains that start
            from them, ``gaussians.npz`` go; files of these names are replaced.
        numbers: of the model card; None: from the ledger of the model's profile.
        params: today's parameters; None: ``params.yaml``.

    Raises:
        UserError: the model or its description is missing or damaged, the Gaussians are not those that
            it was trained with, or today's parameters, data or code are not, so that the card would lie.
    """
    source, folder = Path(source), Path(folder)
    model = load(source)
    described = model.description
    if described is None:
        raise UserError(f"{source} has no model.json: train the model again with this version")
    params = dataclasses.replace(params or load_params(), profile=described.profile)
    numbers = numbers or load_numbers(params)
    subject = Subject(described.profile, described.method, described.variant, described.seed)
    if described.identity != subject.identity(params, "train", described.data):
        raise UserError(
            f"{source} was trained with parameters or code other than today's, which the model card would name: train "
            "it again, or check out the commit that it was trained at"
        )
    architecture = Architecture(**read_payload(source / "best.pt")["architecture"])
    if described.gaussians is not None:
        files.write_text(folder / CARD, "")  # makes the folder, or says why not
        shutil.copyfile(model.gaussians_file(), folder / GAUSSIANS)
        described = dataclasses.replace(described, gaussians=GAUSSIANS)
    exported.write(folder, model.network, architecture, described)
    files.write_text(folder / CARD, card(numbers, subject, provenance.file_hash(source / "best.pt")))
    return folder


def card(numbers: Numbers, subject: Subject, model: str) -> str:
    """The model card as Markdown with the Hub's metadata; every number comes from the ledger.

    Args:
        model: SHA-256 of the checkpoint; only records about this file count.
    """
    profile = numbers.profile
    data, network = profile.data, profile.network
    name = f"{subject.name} on {data.dataset}, seed {subject.seed}"
    schedule = subject.schedule(numbers.params)
    recipe = subject.recipe(numbers.params)
    lines = [
        "---",
        "license: mit",
        "library_name: ebjdat",
        "pipeline_tag: image-classification",
        "tags: [adversarial-robustness, energy-based-model, ebjdat]",
        "---",
        "",
        f"# {name}",
        "",
        f"A classifier of a reproduction of EB-JDAT ({_PAPER}): {_METHODS.get(subject.method, subject.method)}.",
        "",
        "```python",
        "import ebjdat",
        "",
        'model = ebjdat.load("path/to/this/folder")',
        f"logits = model(images)             # float32 (N, {_shape(data.dataset)}) in [0, 1]",
        *([] if recipe is None else ["samples = model.sample(16, y=3)"]),
        "```",
        "",
        "## Data and recipe",
        "",
        f"- {data.dataset}: {data.train:,} training, {data.validation:,} validation and {data.test:,} test images; "
        f"digest of images, labels and splits `{numbers.digest}`",
        f"- WideResNet-{network.depth}-{network.width}; images in [0, 1], mapped to [-1, 1] by the model itself",
        f"- {schedule.optimiser}, learning rate {schedule.lr:g}, {schedule.epochs} epochs, batches of "
        f"{schedule.batch_size}, training radius {as_fraction(schedule.train_eps)} in pixel units",
        *_recipe_lines(numbers.params, subject),
        f"- checkpoint (SHA-256) `{model}`",
        "",
        "## Numbers",
        "",
        *_number_lines(numbers, subject, model),
        "",
        "## Limits",
        "",
        "- Robust accuracies hold for L-inf attacks of the stated radius and for the attacks that were run; a "
        "stronger attack can only lower them.",
        "- Intervals are about the test images, not about other training runs.",
        *_limits(data.dataset),
        "",
    ]
    return "\n".join(lines)


_METHODS = {
    "ebjdat": "trained with the energy term between clean, adversarial and generated images",
    "base": "the plain joint energy model, without adversarial training",
    "control": "EB-JDAT without its energy term",
    "pgd_at": "adversarial training with PGD, a baseline",
    "trades": "TRADES, a baseline",
    "undefended": "trained on clean images, a baseline",
}


def _shape(dataset: str) -> str:
    return "1, 8, 8" if dataset == "digits" else "3, 32, 32"


def _recipe_lines(params: Params, subject: Subject) -> list[str]:
    recipe = subject.recipe(params)
    if recipe is None:
        return ["- no generative term: this model does not sample"]
    return [
        f"- JEM variant {subject.variant}: chains start {recipe.chain_start}, {recipe.steps} steps per iteration in "
        f"training, {params.current.evaluation.generation.chain_steps} in evaluation",
        f"- reading of the adversarial term: {recipe.reading}, weight {recipe.w_energy:g}",
    ]


def _number_lines(numbers: Numbers, subject: Subject, model: str) -> list[str]:
    """A table of accuracies per protocol, and of distances; or the sentence that there are none."""
    wanted: Sequence[tuple[str, str, str]] = [
        ("clean accuracy", "clean", "{p}/clean"),
        ("PGD-20", "clean", "{p}/pgd-20"),
        ("union of AutoAttack's attacks", "autoattack", "{p}/union"),
        ("AutoAttack cascade", "autoattack", "{p}/autoattack"),
        ("transfer, worst case", "transfer", "{p}/transfer/worst"),
    ]
    rows = []
    for name, protocol in PROTOCOLS.items():
        radius = as_fraction(protocol.radius(numbers.profile.evaluation.radius))
        for label, stage, metric in wanted:
            shown = _cell(numbers, subject, model, stage, metric.format(p=name), percent=True)
            if shown:
                rows.append(f"| {label} | {name} | {radius} | {shown} |")
    distance = generation_names(numbers)[0]
    shown = _cell(numbers, subject, model, "generate", f"generation/{distance}", percent=False)
    if shown:
        rows.append(f"| {distance} of samples, lower is better | standard |  | {shown} |")
    if not rows:
        return ["None recorded for this checkpoint with today's parameters and code."]
    head = ["| Measure | Protocol | L-inf radius (pixel units) | Value |", "| --- | --- | ---: | ---: |"]
    note = "Accuracies in percent with their 95 % Wilson interval and the number of test images."
    return [note, "", *head, *rows]


def _cell(numbers: Numbers, subject: Subject, model: str, stage: str, metric: str, *, percent: bool) -> str:
    record = numbers.record(subject, stage)
    if record is None or record["model"] != model:
        return ""
    cell = numbers.cell(subject, stage, metric)
    mine = dataclasses.replace(cell, readings=tuple(one for one in cell.readings if one.seed == subject.seed))
    if mine.state != "value" or not mine.readings:
        return ""
    entry = show_percent(mine) if percent else show_value(mine)
    count = f"n = {mine.n}" if mine.n else f"n = {record['n']}"
    return f"{entry.text} {entry.interval}".strip() + f", {count}"


def _limits(dataset: str) -> list[str]:
    if dataset == "digits":
        return ["- Digits are small and easy: nothing here speaks for or against the published CIFAR-10 numbers."]
    return []
