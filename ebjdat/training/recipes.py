"""Methods and variants as data: which objective, schedule and sampler a name stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ebjdat.config import Params, Schedule, Variant
from ebjdat.subject import Subject
from ebjdat.training.objective import EBJDAT, PGDAT, TRADES, Objective, Undefended


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that distinguishes one training run from another of the same profile and seed."""

    name: str
    objective: Objective
    schedule: Schedule
    variant: Variant | None
    """The JEM variant as it is run; None for methods that do not generate."""
    norm: Literal["none", "batch"]
    adversarial: bool
    """Whether the labelled terms see adversarial images."""


def recipe(params: Params, subject: Subject) -> Recipe:
    """The recipe of a subject: its method over its variant, or a baseline."""
    schedule, variant = subject.schedule(params), subject.recipe(params)
    adversarial = subject.method not in ("base", "undefended")
    return Recipe(
        name=subject.name,
        objective=_objective(subject.method, schedule.train_eps, variant, adversarial),
        schedule=schedule,
        variant=variant,
        norm="batch" if variant is None else variant.norm,
        adversarial=adversarial,
    )


def _objective(method: str, eps: float, variant: Variant | None, adversarial: bool) -> Objective:
    if variant is not None:
        return EBJDAT(variant, eps, adversarial=adversarial)
    if method == "pgd_at":
        return PGDAT(eps)
    if method == "trades":
        return TRADES(eps)
    return Undefended()
