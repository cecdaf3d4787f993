"""Table 1: AutoAttack, each attack alone and the cascade, under both protocols.

Per protocol an accuracy per attack, and their union (robust against all of them, each run alone). ``standard`` also has
``autoattack``, the four attacks of version ``standard``: their cascade, in which each attack meets the images that are
left, or where a profile does without it the worst case per image over the four, each run alone on all images as in the
official ``run_standard_evaluation_individual``. The first attack of the cascade starts from the same batch and seed as
it does alone, so APGD-CE alone is read from the cascade.

The union under ``released`` leaves FAB out, because FAB changes no image in the released code at 327ea16 (it clamps
images in [-1, 1] to [0, 1]); ``union-with-fab`` stands beside it.

The last checkpoint meets the first two attacks of the cascade only (APGD-CE, APGD-T), which costs a tenth:
``<protocol>/apgd-ce-t-last``. ``<protocol>/apgd-ce-t`` is the best checkpoint after the same two attacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from ebjdat.attacks.audit import check_effect
from ebjdat.attacks.autoattack import CASCADE, CASCADE_START, Job, Outcome, package_version
from ebjdat.attacks.outcomes import NOTHING, Outcomes
from ebjdat.attacks.slices import Loaders, run_jobs
from ebjdat.evaluation.cases import Case
from ebjdat.evaluation.unreliable import KINDS, kind_of
from ebjdat.model.store import model_digest
from ebjdat.protocols import AutoAttackCell
from ebjdat.statistics import Rate, Result

STANDARD = AutoAttackCell(attack="apgd-ce", steps=100)
"""The first attack of the version ``standard``."""

Plan = dict[str, list[Job]]
"""Jobs by attack (or ``cascade``), in the order of the slices."""


def evaluate(
    load: Loaders,
    cases: list[Case],
    *,
    slice_size: int,
    alone: bool = True,
    cascade: bool = True,
    last_images: int = 0,
    done: Outcomes = NOTHING,
    workers: int = 1,
    label: str = "autoattack",
) -> Result:
    """Everything of the stage ``autoattack``.

    Args:
        load: makes the checkpoints ``best`` and, if there is one, ``last``; see
            :func:`ebjdat.attacks.slices.run_jobs` for it and for ``done``, ``workers`` and ``label``.
        cases: both protocols on the model's images.
        slice_size: images per slice; part of what the numbers are.
        alone, cascade: what is run, see the module.
        last_images: images for the last checkpoint, rounded up to whole slices; with the cascade only.

    Raises:
        AuditError: an attack broke a property, or finds almost nothing.
        UserError: foreign outcomes in ``done``.
    """
    last = _last_checkpoint(load) if last_images and cascade else "none"
    of_last = last_images if last == "other" else 0
    plans = {case.name: plan(case, slice_size, alone, cascade, of_last) for case in cases}
    cases = [case for case in cases if plans[case.name]]
    images = {
        job: (case.x[job.first : job.last], case.y[job.first : job.last])
        for case in cases
        for jobs in plans[case.name].values()
        for job in jobs
    }
    outcomes = run_jobs(list(images), load, images, done=done, workers=workers, label=label)
    parts = [_case_result(case, plans[case.name], outcomes, last_images if last == "same" else 0) for case in cases]
    settings: dict[str, Any] = {case.name: case.settings("table1") | {"slice": slice_size} for case in cases}
    if last != "none":
        settings["last"] = {
            "attacks": list(CASCADE_START),
            "images": last_images,
            "weights": "same as best" if last == "same" else "other than best",
        }
    return Result(
        n=len(cases[0].x),
        rates=_merged(part.rates for part in parts),
        values=_merged(part.values for part in parts),
        audits=_merged(part.audits for part in parts),
        warnings=_merged(part.warnings for part in parts),
        settings=settings | {"package": package_version()},
        arrays=_merged(part.arrays or {} for part in parts) | {"label": cases[0].y.cpu().numpy()},
    )


def _last_checkpoint(load: Loaders) -> Literal["none", "same", "other"]:
    """Whether there is a last checkpoint, and whether its weights are those of the best one."""
    if "last" not in load:
        return "none"
    return "same" if model_digest(load["best"]()) == model_digest(load["last"]()) else "other"


def plan(case: Case, slice_size: int, alone: bool = True, cascade: bool = True, last_images: int = 0) -> Plan:
    """The jobs of a protocol; arguments as in :func:`evaluate`."""
    cascade = cascade and case.protocol.table1.cascade
    cells: dict[str, AutoAttackCell] = {
        cell.attack: cell for cell in case.protocol.table1.alone if alone and not (cascade and cell == STANDARD)
    }
    jobs: Plan = {}
    if cascade:
        jobs["cascade"] = _slices(case, "cascade", STANDARD, slice_size)
        last = [job for job in jobs["cascade"] if job.first < last_images]
        if last:
            jobs["last"] = [replace(job, attack="cascade-start", checkpoint="last") for job in last]
    return jobs | {name: _slices(case, name, cell, slice_size) for name, cell in cells.items()}


def _slices(case: Case, attack: str, cell: AutoAttackCell, size: int) -> list[Job]:
    n = len(case.x)
    return [
        Job(
            protocol=case.name,
            attack=attack,
            steps=cell.steps,
            targets=cell.targets,
            eps=case.radius,
            seed=case.protocol.seed,
            first=first,
            last=min(first + size, n),
        )
        for first in range(0, n, size)
    ]


def _case_result(case: Case, jobs: Plan, outcomes: dict[Job, Outcome], last_is_best: int) -> Result:
    """One protocol's part of the result; ``last_is_best``: images of a last checkpoint that is the best one."""
    found = {name: [outcomes[job] for job in several] for name, several in jobs.items()}
    flags = _flags(case, found)
    right = np.concatenate([outcome.right for outcome in next(iter(found.values()))])
    if "fab-t" in flags:
        _check_fab(case, flags, right)
        flags |= _unions(case, flags)
    arrays = {f"{case.name}/{name}": robust for name, robust in flags.items()} | {f"{case.name}/clean": right}
    if "cascade" in found:
        flags["autoattack"] = np.concatenate([outcome.final for outcome in found["cascade"]])
        arrays[f"{case.name}/first-success"] = first_success(right, found["cascade"])
        flags |= _checkpoints(found, last_is_best)
    warnings = {f"{case.name}/{name}": _warnings(several) for name, several in found.items()}
    return Result(
        n=len(right),
        rates={f"{case.name}/{name}": Rate.of(robust) for name, robust in flags.items()}
        | {f"{case.name}/clean": Rate.of(right)},
        values=_counts(case.name, found),
        audits={f"{case.name}/{name}": _joined_audit(several) for name, several in found.items()},
        warnings={name: texts for name, texts in warnings.items() if texts},
        arrays=arrays,
    )


def _flags(case: Case, found: dict[str, list[Outcome]]) -> dict[str, np.ndarray]:
    """Robust images (N,) per attack run alone."""
    flags: dict[str, np.ndarray] = {}
    for cell in case.protocol.table1.alone:
        source = found.get(cell.attack, found.get("cascade", []) if cell == STANDARD else [])
        if source:
            flags[cell.attack] = np.concatenate([outcome.robust[cell.attack] for outcome in source])
    return flags


def _unions(case: Case, alone: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Robust images (N,) against several attacks, each run alone; see the module."""
    left_out = case.protocol.table1.without_effect
    unions = {"union": np.logical_and.reduce([flags for name, flags in alone.items() if name not in left_out])}
    if left_out:
        unions["union-with-fab"] = np.logical_and.reduce(list(alone.values()))
    if alone.keys() >= set(CASCADE):
        unions["autoattack"] = np.logical_and.reduce([alone[name] for name in CASCADE])
    return unions


def _checkpoints(found: dict[str, list[Outcome]], last_is_best: int) -> dict[str, np.ndarray]:
    """Robust images of the best and the last checkpoint after the first two attacks of the cascade."""
    of_best = [outcome.robust[CASCADE_START[-1]] for outcome in found["cascade"]]
    flags = {"apgd-ce-t": np.concatenate(of_best)}
    if "last" in found:
        flags["apgd-ce-t-last"] = np.concatenate([outcome.final for outcome in found["last"]])
    elif last_is_best:
        slices = np.cumsum([0, *map(len, of_best)])[:-1]
        flags["apgd-ce-t-last"] = np.concatenate(
            [flags for flags, first in zip(of_best, slices, strict=True) if first < last_is_best]
        )
    return flags


def first_success(right: np.ndarray, outcomes: list[Outcome]) -> np.ndarray:
    """Per image (N,) int8: -1 misclassified before, 0 withstands the cascade, k broken by its k-th attack."""
    place = np.where(right, 0, -1).astype(np.int8)
    before = right.copy()
    for number, name in enumerate(CASCADE, start=1):
        after = np.concatenate([outcome.robust[name] for outcome in outcomes])
        place[before & ~after] = number
        before = after
    return place


def _check_fab(case: Case, flags: dict[str, np.ndarray], right: np.ndarray) -> None:
    """FAB returns its failures unchanged, so that only a comparison shows a broken one."""
    peer = "apgd-t" if "apgd-t" in flags else "apgd-dlr"
    robust = {name: torch.from_numpy(flags[name]) for name in ("fab-t", peer)}
    check_effect(f"{case.name}/fab-t", robust["fab-t"], peer, robust[peer], torch.from_numpy(right))


def _joined_audit(outcomes: list[Outcome]) -> dict[str, Any]:
    """One audit over all slices."""
    audits = [outcome.audit for outcome in outcomes]
    return {
        "images": sum(audit["images"] for audit in audits),
        "eps": audits[0]["eps"],
        "distance": max(audit["distance"] for audit in audits),
        "low": min(audit["low"] for audit in audits),
        "high": max(audit["high"] for audit in audits),
        "nan": sum(audit["nan"] for audit in audits),
        "changed": sum(audit["changed"] for audit in audits),
    }


def _warnings(outcomes: list[Outcome]) -> list[str]:
    """Distinct texts with how often they came."""
    counted: Counter[str] = Counter()
    for outcome in outcomes:
        counted.update(outcome.warnings)
    return [f"{text} ({number} times)" for text, number in sorted(counted.items())]


def _counts(name: str, found: dict[str, list[Outcome]]) -> dict[str, float]:
    """``<protocol>/warnings/<kind>``: how often each kind of warning came."""
    counted = dict.fromkeys(KINDS, 0)
    for outcome in (outcome for several in found.values() for outcome in several):
        for text, number in outcome.warnings.items():
            counted[kind_of(text)] += number
    return {f"{name}/warnings/{kind}": float(number) for kind, number in counted.items()}


def _merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        merged |= part
    return merged
