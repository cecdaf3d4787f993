"""What models are called in tables, in which order they stand, and which stand where."""

import functools
from pathlib import Path
from typing import Any

from ebjdat.config import Params, read_yaml
from ebjdat.results.frame import Results
from ebjdat.run import BASELINES, EXTERNAL, METHODS

BASELINE_NAMES = {"pgd_at": "PGD-AT", "trades": "TRADES", "dhat": "DHAT", "undefended": "Undefended"}
FORMS = {"cross_entropy": "code form", "energy": "equations", "committed": "as committed"}
"""What the readings of the paper's energy term are called."""
DISTANCES = {
    "fid": "FID",
    "kid": "KID",
    "classifier-frechet": "Fréchet distance",
    "classifier-kernel": "kernel distance",
}
"""Distances of samples, and their headings."""
COMPARED = {
    "clean accuracy": "clean/standard/clean",
    "PGD-20": "clean/standard/pgd-20",
    "AutoAttack": "autoattack/standard/autoattack",
}
"""Accuracies that models are compared by, under the protocol ``standard``."""
ENERGIES = {
    "clean": "clean",
    "adversarial": "adversarial",
    "targeted": "targeted",
    "training-adversary": "training-adversary",
    "generated": "buffer",
    "generated-fresh": "fresh chains",
}
"""Kinds of images whose energies the stage ``clean`` measures, and their headings."""


@functools.cache
def studies() -> dict[str, Any]:
    """studies.yaml."""
    return dict(read_yaml(Path(__file__).with_name("studies.yaml")))


def display_name(params: Params, model: str) -> str:
    """EB-JDAT-JEM++ (code form), JEM++, Control-JEM++, PGD-AT; of a baseline with its own settings
    the label in studies.yaml; of an external model its own name."""
    if model.startswith(EXTERNAL):
        return model.removeprefix(EXTERNAL)
    method, _, variant = model.partition("-")
    if not variant:
        return BASELINE_NAMES.get(model, model)
    if model in studies()["labels"]:
        return str(studies()["labels"][model])
    label = (params.variants[variant].label if variant in params.variants else "") or variant
    if method == "ebjdat":
        recipe = params.variants[variant]
        form = FORMS.get(recipe.reading, "") if recipe.w_energy else ""
        if form not in label:
            name, _, rest = label.partition(" (")
            label = f"{name} ({', '.join(filter(None, [form, rest.removesuffix(')')]))})"
        return f"EB-JDAT-{label}"
    start = {"base": "", "control": "Control-"} | {name: f"{shown}-" for name, shown in BASELINE_NAMES.items()}
    return f"{start.get(method, f'{method}-')}{label}"


def with_records(results: Results) -> set[str]:
    """Models that have a record, outdated or not."""
    return {model for model, *_ in (*results.records, *results.outdated)}


def variants(results: Results, *more: str) -> list[str]:
    """Variants with a place in every table: those that are like no other, the selected one, and of the rest what was
    run and has no table of its own; ``more``: models whose variant has a place all the same."""
    params, content = results.params, studies()
    elsewhere = {model for one in content["tables"].values() for model in one["models"]}
    run = {model.partition("-")[2] for model in with_records(results) - (elsewhere - set(more))}
    run |= {name for name in content["everywhere"] if f"ebjdat-{name}" in with_records(results)}
    return [name for name, one in params.variants.items() if not one.like or name == params.variant or name in run]


def ours(results: Results) -> str:
    """The model that stands for the current one: itself, or where it has no numbers one made like it, of its loss."""
    params, has = results.params, {model for model, _ in results.frame.index}
    loss = ("reading", "gap", "w_px", "w_clean", "w_energy", "w_adversarial")
    mine = params.variants[params.variant].model_dump(include=set(loss))
    same = (
        one
        for one in made_like(params, params.model)
        if params.variants[one.partition("-")[2]].model_dump(include=set(loss)) == mine
    )
    return next((model for model in same if model in has), params.model)


def made_like(params: Params, model: str) -> list[str]:
    """A model, and those of the same method whose variant is ``like`` its own."""
    method, _, variant = model.partition("-")
    return [
        model,
        *(f"{method}-{name}" for name, recipe in params.variants.items() if variant and recipe.like == variant),
    ]


def generates(model: str) -> bool:
    """Whether it is a JEM, which has samples."""
    return model.partition("-")[0] in METHODS


def by_variant(results: Results) -> list[str]:
    """EB-JDAT, plain and control of every variant, those of a variant side by side."""
    return [f"{method}-{variant}" for variant in variants(results) for method in METHODS]


def external_models(results: Results) -> list[str]:
    """Models with numbers that were not trained here, sorted."""
    return sorted({model for model, _ in results.frame.index if model.startswith(EXTERNAL)})


def baselines(results: Results) -> list[str]:
    """Baselines that params.yaml names or that have numbers."""
    wanted = {*results.params.baselines, *(model for model, _ in results.frame.index)}
    return [model for model in BASELINES if model in wanted]


def all_models(results: Results) -> list[str]:
    """Every model that may have numbers, in the order of the tables; external ones last."""
    jem_models = [f"{method}-{variant}" for method in METHODS for variant in variants(results)]
    return [*jem_models, *baselines(results), *external_models(results)]
