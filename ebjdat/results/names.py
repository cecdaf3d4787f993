"""What models are called in tables, in which order they stand, and which stand where."""

import functools
from pathlib import Path
from typing import Any

from ebjdat.config import Params, read_yaml
from ebjdat.results.frame import Results
from ebjdat.run import BASELINES, EXTERNAL, METHODS

BASELINE_NAMES = {"pgd_at": "PGD-AT", "trades": "TRADES", "dhat": "DHAT", "undefended": "Undefended"}
FORMS = {"cross_entropy": "code form", "energy": "equations"}
"""What the two readings of the paper's energy term are called."""
READING = ("reading", "w_energy", "gap")
"""What two recipes differ in that are two readings of one variant."""
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
        return f"EB-JDAT-{_with_form(params, variant, label)}"
    start = {"base": "", "control": "Control-"} | {name: f"{shown}-" for name, shown in BASELINE_NAMES.items()}
    return f"{start[method]}{label}"


def _with_form(params: Params, variant: str, label: str) -> str:
    """A label that says the form of the energy term; of a mere reading, that of its variant with form and w2."""
    recipe, like = params.variants[variant], reading_of(params, variant)
    form, said = FORMS.get(recipe.reading, ""), []
    if form and (like or not recipe.like):
        plain = params.variants[like or variant]
        usual = 1.0 if recipe.reading == "energy" else plain.w_energy
        label = plain.label or like or variant
        said += [f"w2 = {recipe.w_energy:g}"] if recipe.w_energy != usual else []
        said += [recipe.gap.replace("_", " ")] if recipe.gap != plain.gap else []
    elif not recipe.w_energy or form in label:
        return label
    name, _, rest = label.partition(" (")
    return f"{name} ({', '.join(filter(None, [form, *said, rest.removesuffix(')')]))})"


def reading_of(params: Params, variant: str) -> str:
    """The variant that this one is another reading of, which differs in nothing else; empty where there is none."""
    like = params.variants[variant].like
    if not like:
        return ""
    ours, theirs = params.variants[variant], params.variants[like]
    rest = {"label", "like", *READING}
    training = [params.training(f"ebjdat-{name}") for name in (variant, like)]
    same = ours.model_dump(exclude=rest) == theirs.model_dump(exclude=rest) and training[0] == training[1]
    return like if same and any(getattr(ours, name) != getattr(theirs, name) for name in READING) else ""


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
    loss = (*READING, "w_px", "w_clean", "w_adversarial")
    mine = params.variants[params.variant]
    like = [
        f"{params.method}-{name}"
        for name, recipe in params.variants.items()
        if recipe.like == params.variant and all(getattr(recipe, part) == getattr(mine, part) for part in loss)
    ]
    return next((model for model in (params.model, *like) if model in has), params.model)


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
    wanted = {*results.params.baselines, *results.params.sources, *(model for model, _ in results.frame.index)}
    return [model for model in BASELINES if model in wanted]


def all_models(results: Results) -> list[str]:
    """Every model that may have numbers, in the order of the tables; external ones last."""
    jem_models = [f"{method}-{variant}" for method in METHODS for variant in variants(results)]
    return [*jem_models, *baselines(results), *external_models(results)]
