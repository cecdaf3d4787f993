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
    stream: str
    """Name that random streams derive from: the control draws the same numbers as ebjdat."""
    objective: Objective
    schedule: Schedule
    variant: Variant | None
    """The JEM variant as it is run; None for methods that do not generate."""
    norm: Literal["none", "batch"]
    sees: Literal["clean", "adversarial", "both"]
    """Which kinds of images the labelled terms see, and so BatchNorm in training."""
    selected_by: Literal["robust", "clean"]
    """Validation accuracy that selects the checkpoint: PGD robust accuracy, by one rule for all methods that
    are compared; clean for the undefended network, which robust accuracy would stop at its first epochs."""

    @property
    def adversarial(self) -> bool:
        """Whether the labelled terms see adversarial images."""
        return self.sees != "clean"


def recipe(params: Params, subject: Subject) -> Recipe:
    """The recipe of a subject: its method over its variant, or a baseline."""
    schedule, variant = subject.schedule(params), subject.recipe(params)
    sees: Literal["clean", "adversarial", "both"] = "both"
    if subject.method in ("base", "undefended"):
        sees = "clean"
    elif subject.method == "pgd_at":
        sees = "adversarial"
    return Recipe(
        name=subject.name,
        stream=subject.name.replace("control-", "ebjdat-"),
        objective=_objective(subject.method, schedule.train_eps, variant, sees != "clean"),
        schedule=schedule,
        variant=variant,
        norm="batch" if variant is None else variant.norm,
        sees=sees,
        selected_by="clean" if subject.method == "undefended" else "robust",
    )


def _objective(method: str, eps: float, variant: Variant | None, adversarial: bool) -> Objective:
    if variant is not None:
        return EBJDAT(variant, eps, adversarial=adversarial)
    if method == "pgd_at":
        return PGDAT(eps)
    if method == "trades":
        return TRADES(eps)
    return Undefended()
