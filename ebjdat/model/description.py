"""What lies beside a model's weights so that they can be used without ``params.yaml``.

``model.json`` names the model, the images it takes, and how its chains start and run: the recipe of
its variant and the class Gaussians. Those of CIFAR-10 have 189 MB, so the folder of a trained model
refers to the prepared data's file, by path and hash; an exported model has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebjdat import files, provenance
from ebjdat.config import Params, Variant, to_plain, variant_from
from ebjdat.data.prepared import Prepared
from ebjdat.errors import UserError
from ebjdat.subject import Subject

NAME = "model.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A model without its weights.

    Attributes:
        name: as in tables' folders, such as ``ebjdat-jempp``.
        profile, method, variant, seed: the run; ``variant`` is None for a baseline.
        identity: training identity.
        dataset: ``digits`` or ``cifar10``.
        data: digest of the prepared data.
        shape: (C, H, W) of an image.
        classes: number of logits.
        recipe: the JEM recipe as it was run; None for a model that does not generate.
        chain_steps: outer steps of a fresh chain in the profile's evaluation.
        gaussians: path of the class Gaussians, relative to this file's folder or to one above it; None
            where chains start elsewhere.
        gaussians_sha256: of that file.
    """

    name: str
    profile: str
    method: str
    variant: str | None
    seed: int
    identity: str
    dataset: str
    data: str
    shape: tuple[int, int, int]
    classes: int
    recipe: Variant | None
    chain_steps: int
    gaussians: str | None = None
    gaussians_sha256: str | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {"schema": SCHEMA} | provenance.plain(to_plain(self))


def describe(params: Params, subject: Subject, data: Prepared, identity: str) -> Description:
    """The description of a model that was just trained."""
    recipe, place, digest = subject.recipe(params), None, None
    if recipe is not None and recipe.chain_start == "informative" and isinstance(data.gaussians, Path):
        place = data.gaussians.as_posix()
        digest = provenance.file_hash(data.gaussians)
    return Description(
        name=subject.name,
        profile=subject.profile,
        method=subject.method,
        variant=subject.variant,
        seed=subject.seed,
        identity=identity,
        dataset=params.profiles[subject.profile].data.dataset,
        data=data.digest,
        shape=data.shape,
        classes=len(data.y_train.unique()),
        recipe=recipe,
        chain_steps=params.profiles[subject.profile].evaluation.generation.chain_steps,
        gaussians=place,
        gaussians_sha256=digest,
    )


def parse(value: Any, where: str) -> Description:
    """A description from JSON values.

    Raises:
        UserError: a field is missing or unknown, or the recipe is not valid; the message says where.
    """
    try:
        fields = dict(value)
        if fields.pop("schema") != SCHEMA:
            raise ValueError(f"schema is not {SCHEMA}")
        channels, height, width = (int(side) for side in fields.pop("shape"))
        recipe = fields.pop("recipe")
        parsed = None if recipe is None else variant_from(recipe, f"{where}: recipe")
        return Description(**fields, shape=(channels, height, width), recipe=parsed)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} does not describe a model of this project ({error}): train or export it again"
        ) from None


def read(folder: Path) -> Description:
    """The description in a model's folder.

    Raises:
        UserError: missing or damaged.
    """
    return parse(files.read_json(folder / NAME), str(folder / NAME))
