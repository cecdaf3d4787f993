"""Studies: which runs a campaign makes, as rows over params.yaml.

A study is a YAML file: the evaluation stages to run and a list of rows, most valuable first. A row
is a mapping of parameter keys to values over params.yaml, where ``${profile}`` in a key stands for
the row's profile; the key ``model`` names a baseline instead of the current model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ebjdat import provenance
from ebjdat.config import BASELINES, Params, parse_params
from ebjdat.errors import UserError
from ebjdat.subject import EVALUATIONS, Subject

SHARED_KEYS = ("method", "variant", "model")
"""Rows that differ in nothing else share their models."""
NO_BASELINE = ("generate",)


@dataclass(frozen=True)
class Row:
    """One model of a study: its parameters, its name, and the stages that it still needs."""

    name: str
    overrides: dict[str, Any]
    raw: dict[str, Any]
    params: Params
    subject: Subject
    group: str
    stages: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """What evaluation stages are told about the model."""
        return ["--model", self.subject.name] if self.subject.is_baseline else []

    @property
    def commands(self) -> list[list[str]]:
        """The stage modules with their arguments, in order."""
        train = [self.subject.training_module, *self.arguments]
        return [train, *[[f"stages.{stage}", *self.arguments] for stage in self.stages]]

    @property
    def surrogates(self) -> list[tuple[Subject, list[str]]]:
        """Other models that the row's stages need, with the command that trains each."""
        if "transfer" not in self.stages:
            return []
        others = [one for one in self.subject.surrogates(self.params) if one != self.subject or not one.is_baseline]
        baseline, variant = ["stages.baseline", "--model"], ["stages.surrogate", "--variant"]
        return [(one, [*baseline, one.name] if one.variant is None else [*variant, one.variant]) for one in others]


def read_study(
    path: Path,
    params_file: Path = Path("params.yaml"),
    *,
    profile: str | None = None,
    stages: Sequence[str] | None = None,
) -> list[Row]:
    """The rows of a study over today's params.yaml.

    Args:
        path: the study.
        params_file: what its rows are mappings over.
        profile: of rows that name none; None: the one of ``params_file``.
        stages: instead of the study's; empty: train only.

    Raises:
        UserError: the file is missing or malformed, or a row names an unknown key, value or stage.
    """
    try:
        study = yaml.safe_load(path.read_text(encoding="utf-8"))
        base = yaml.safe_load(params_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as a study ({' '.join(str(error).split())})") from None
    if not isinstance(study, dict) or set(study) != {"stages", "rows"} or not isinstance(study["rows"], list):
        raise UserError(f"{path}: expected the keys `stages` and `rows`")
    if not isinstance(study["stages"], list):
        raise UserError(f"{path}: stages: expected a list such as [clean, autoattack], got {study['stages']!r}")
    wanted = study["stages"] if stages is None else list(stages)
    unknown = [stage for stage in wanted if stage not in EVALUATIONS]
    if unknown:
        raise UserError(f"{path}: unknown stage {unknown[0]!r}; known: {', '.join(EVALUATIONS)}")
    if profile is not None:
        base["profile"] = profile
    return [_row(f"{path}, row {i + 1}", row, base, wanted) for i, row in enumerate(study["rows"])]


def _row(where: str, overrides: Any, base: dict[str, Any], stages: list[str]) -> Row:
    if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
        raise UserError(f"{where}: expected a mapping of parameter keys to values, got {overrides!r}")
    raw = copy.deepcopy(base)
    profile = str(overrides.get("profile", raw.get("profile")))
    overrides = {key.replace("${profile}", profile): value for key, value in overrides.items()}
    for key, value in overrides.items():
        if key != "model":
            _set(raw, key, value, where)
    try:
        params = parse_params(raw)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if raw["profiles"][profile]["data"] != base["profiles"][profile]["data"]:
        raise UserError(f"{where}: all rows of a profile share data/{profile}; change its settings in params.yaml")
    model = overrides.get("model")
    if model is not None and model not in BASELINES:
        raise UserError(f"{where}: unknown baseline {model!r}; known: {', '.join(BASELINES)}")
    subject = Subject.current(params) if model is None else Subject.baseline(params, model)
    others = {key: value for key, value in overrides.items() if key not in SHARED_KEYS}
    group = provenance.digest({"profile": params.profile, **others}, 8)
    wanted = tuple(stage for stage in stages if model is None or stage not in NO_BASELINE)
    return Row(f"{subject.run_name}-{group}", overrides, raw, params, subject, group, wanted)


def _set(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    *path, last = key.split(".")
    node: Any = raw
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        raise UserError(f"{where}: {key} is no key of params.yaml")
    node[last] = value
