"""What lies beside a model's weights so that they can be used without ``params.yaml``.

``model.json`` names the model, how it was made, the images it takes, and how its chains start and run: the recipe of
its variant and the class Gaussians. Those of CIFAR-10 have 189 MB, so the folder of a trained model refers to the
prepared data's file, by path and hash; an exported model has its own.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ebjdat import files
from ebjdat.config import Section, Setup, Variant, build
from ebjdat.data.prepared import Prepared
from ebjdat.errors import UserError
from ebjdat.protocols import REVISIONS
from ebjdat.run import Run

NAME = "model.json"


class Description(Section):
    """A model without its weights.

    Attributes:
        profile, model, seed: the run.
        params: the parameters that it was trained with, as records hold them.
        revision: of training.
        data: digest of the prepared data.
        shape: (C, H, W) of an image.
        classes: number of logits.
        recipe: the JEM recipe as it was run; None for a model that does not generate.
        chain_steps: outer steps of a fresh chain in the profile's evaluation.
        gaussians: path of the class Gaussians, relative to this file's folder or to one above it; None where chains
            start elsewhere.
        gaussians_sha256: of that file.
    """

    form: Literal[2] = Field(alias="schema")
    profile: str
    model: str
    seed: int
    params: dict[str, Any]
    revision: int
    data: str
    shape: tuple[int, int, int]
    classes: int
    recipe: Variant | None
    chain_steps: int
    gaussians: str | None = None
    gaussians_sha256: str | None = None

    @property
    def run(self) -> Run:
        """Which run it is."""
        return Run(self.profile, self.model, self.seed)


def describe(setup: Setup, data: Prepared) -> Description:
    """The description of a model that was just trained."""
    run, place, digest = setup.run, None, None
    if setup.recipe is not None and setup.recipe.chain_start == "informative" and isinstance(data.gaussians, Path):
        place, digest = data.gaussians.as_posix(), files.file_hash(data.gaussians)
    return Description(
        schema=2,
        profile=run.profile,
        model=run.model,
        seed=run.seed,
        params=setup.recorded("train"),
        revision=REVISIONS["train"],
        data=data.digest,
        shape=data.shape,
        classes=len(data.y_train.unique()),
        recipe=setup.recipe,
        chain_steps=setup.evaluation.generation.chain_steps,
        gaussians=place,
        gaussians_sha256=digest,
    )


def check(described: Description, setup: Setup, data: Prepared) -> None:
    """Refuse a model that was not trained as today's parameters say: its numbers would stand under a wrong name.

    Raises:
        UserError: naming what differs.
    """
    now, then = setup.recorded("train") | {"revision": REVISIONS["train"]}, described.params
    then = then | {"revision": described.revision}
    differing = sorted(name for name in {*now, *then} if now.get(name) != then.get(name))
    differing += ["the prepared images"] if described.data != data.digest else []
    if differing:
        raise UserError(
            f"{setup.run.model_dir} was trained with other parameters ({', '.join(differing)}): train it again, "
            f"`python -m stages.train --model {setup.run.model} --seed {setup.run.seed}` or `dvc repro --force`"
        )


def parse(value: Any, where: str) -> Description:
    """A description from JSON values. UserError: a field is missing, unknown or not valid; the message says where."""
    try:
        return build(Description, value, f"{where}: ")
    except UserError as error:
        raise UserError(f"{error}: this describes no model of this project, train or export it again") from None


def read(folder: Path) -> Description:
    """The description in a model's folder. UserError: missing or damaged."""
    return parse(files.read_json(folder / NAME), str(folder / NAME))
