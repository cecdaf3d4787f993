"""What models are called in tables, in which order they stand, and what they are compared with."""

from __future__ import annotations

from ebjdat.config import Params
from ebjdat.results.frame import Results
from ebjdat.run import BASELINES, EXTERNAL, METHODS, Run

BASELINE_NAMES = {"pgd_at": "PGD-AT", "trades": "TRADES", "dhat": "DHAT", "undefended": "Undefended"}
READING = ("reading", "w_energy", "gap")
"""What two recipes differ in that are two readings of one variant."""
COMPARED = {
    "clean accuracy": "clean/standard/clean",
    "PGD-20": "clean/standard/pgd-20",
    "AutoAttack": "autoattack/standard/autoattack",
}
"""What models are compared by, image by image, under the protocol ``standard``."""
RIVALS = {"base": "the plain variant", "control": "its control", "pgd_at": "PGD-AT"}
"""What EB-JDAT is compared with in the findings: method, and its name there."""
ENERGIES = {
    "clean": "clean",
    "adversarial": "adversarial",
    "targeted": "targeted",
    "training-adversary": "training-adversary",
    "generated": "buffer",
    "generated-fresh": "fresh chains",
}
"""Kinds of images whose energies the stage ``clean`` measures, and their headings."""


def display_name(params: Params, model: str) -> str:
    """EB-JDAT-JEM++, JEM++, Control-JEM++, PGD-AT; an external model's own name."""
    run = Run(params.profile, model, 0)
    if run.variant is None:
        return BASELINE_NAMES.get(model, model.removeprefix(EXTERNAL))
    label = params.variants[run.variant].label or run.variant
    return {"ebjdat": f"EB-JDAT-{label}", "base": label, "control": f"Control-{label}"}[run.method]


def variants(results: Results) -> list[str]:
    """Variants with a place in every table: all that stand for themselves, the selected one, and of those made
    ``like`` another one what has numbers and is no mere reading of it."""
    params = results.params
    run = {Run(results.profile, model, 0).variant for model, _ in results.frame.index}
    return [
        name
        for name, recipe in params.variants.items()
        if name == params.variant or not recipe.like or (name in run and not reading_of(params, name))
    ]


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


def rival(model: str, method: str) -> str:
    """What a model is compared with: a baseline, or another method of the same variant."""
    return method if method in BASELINES else f"{method}-{Run('', model, 0).variant}"


def ours_with_numbers(results: Results) -> list[str]:
    """The EB-JDAT models that have one of the numbers of :data:`COMPARED`."""
    models = [f"ebjdat-{variant}" for variant in variants(results)]
    return [model for model in models if any(len(results.values(model, key)) for key in COMPARED.values())]
