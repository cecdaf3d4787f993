"""Which model a stage is about: its paths, the parameters that made it, and its identity.

The identity of a record is known before the run: it hashes the profile, the model, its seed, every
parameter that can change the result, the data and the code that trains and evaluates. Tables look
numbers up by it from today's ``params.yaml``, so a number of an older recipe cannot slip in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebjdat import files, provenance
from ebjdat.config import BASELINES, METHODS, VARIANTS, Params, Schedule, Variant, to_plain
from ebjdat.errors import UserError

EVALUATIONS = ("clean", "autoattack", "transfer", "sweep", "eot", "generate", "masking")
"""Stages that write a record, in the order of the pipeline."""

SURROGATES = ("pgd_at", "undefended")
"""Baselines whose adversarial examples the transfer stage uses, besides those of EB-JDAT variants."""

MASKING_INPUTS = ("clean", "autoattack", "transfer", "sweep", "eot")
"""Records that the masking report decides from."""

EXTERNAL = "external-"
"""Start of the method, and so of the name, of a model that was not trained here."""

_SECTIONS = {stage: stage for stage in EVALUATIONS} | {"generate": "generation"}


@dataclass(frozen=True, slots=True)
class Subject:
    """One trained model of one profile.

    Attributes:
        profile: name of the profile.
        method: ebjdat, base or control (no energy term), the name of a baseline, or ``external-<name>``.
        variant: the JEM variant; None for a baseline.
        seed: seed of the training run; for an external model, that of the surrogates it meets.
        fingerprint: digest of an external model's weights and code (see :mod:`ebjdat.evaluation.external`),
            which stand in the identity where others have a recipe; None for a model trained here.
    """

    profile: str
    method: str
    variant: str | None
    seed: int
    fingerprint: str | None = None

    @classmethod
    def current(cls, params: Params) -> Subject:
        """The model that ``params.yaml`` selects."""
        return cls(params.profile, params.method, params.variant, params.seed)

    @classmethod
    def baseline(cls, params: Params, name: str) -> Subject:
        """A baseline of the selected profile and seed.

        Raises:
            UserError: no such baseline.
        """
        if name not in BASELINES:
            raise UserError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")
        return cls(params.profile, name, None, params.seed)

    @classmethod
    def external(cls, params: Params, method: str) -> Subject:
        """A model that ``stages.evaluate_model`` has put into the models of the selected profile.

        Raises:
            UserError: there is none of this name, or its description is damaged.
        """
        unknown = cls(params.profile, method, None, params.seed)
        path = unknown.model_dir / "external.json"
        if not path.is_file():
            raise UserError(f"{path} is missing: `python -m stages.evaluate_model` makes it from a factory")
        try:
            return dataclasses.replace(unknown, fingerprint=str(files.read_json(path)["fingerprint"]))
        except (KeyError, TypeError):
            raise UserError(f"{path} names no fingerprint: run `python -m stages.evaluate_model` again") from None

    @property
    def name(self) -> str:
        """``ebjdat-jempp``, ``base-jem``, ``control-jempp``, ``pgd_at``, ..."""
        return self.method if self.variant is None else f"{self.method}-{self.variant}"

    @property
    def run_name(self) -> str:
        """Name of the MLflow run: the name and the seed."""
        return f"{self.name}-{self.seed}"

    @property
    def is_baseline(self) -> bool:
        """Whether no JEM recipe belongs to it."""
        return self.variant is None

    @property
    def is_external(self) -> bool:
        """Whether it was not trained here."""
        return self.method.startswith(EXTERNAL)

    @property
    def model_dir(self) -> Path:
        """Folder of best.pt, last.pt, model.json, buffer.npz and history.jsonl."""
        return Path("models") / self.profile / self.name

    @property
    def surrogate_dir(self) -> Path:
        """Folder of the model as a transfer surrogate, which is there whatever model is the current one."""
        return self.model_dir if self.is_baseline else self.model_dir.parent / "surrogates" / self.name

    @property
    def results_dir(self) -> Path:
        """Folder of its records."""
        return Path("results") / self.profile / self.name

    @property
    def data_dir(self) -> Path:
        """Folder of the profile's prepared data."""
        return Path("data") / self.profile

    @property
    def training_module(self) -> str:
        """The stage that trains it; for an external model, the one that takes it in."""
        if self.is_external:
            return "stages.evaluate_model"
        return "stages.baseline" if self.is_baseline else "stages.train"

    def schedule(self, params: Params) -> Schedule:
        """Optimiser and schedule; the control shares that of ebjdat, for the comparison to be fair."""
        training = params.profiles[self.profile].training
        if self.variant is None:
            return getattr(training, self.method)
        return getattr(training.base if self.method == "base" else training.ebjdat, self.variant)

    def recipe(self, params: Params) -> Variant | None:
        """The JEM recipe as this method uses it; None for a baseline.

        ``control`` keeps all but the energy term. ``base`` is the plain variant: its own number of
        chain steps, both remaining weights 1, no adversarial terms.
        """
        if self.variant is None:
            return None
        recipe = params.variants[self.variant]
        if self.method == "ebjdat":
            return recipe
        without_energy = dataclasses.replace(recipe, reading="none", w_energy=0.0)
        if self.method == "control":
            return without_energy
        return dataclasses.replace(without_energy, steps=recipe.base_steps, w_px=1.0, w_clean=1.0, w_adversarial=0.0)

    def resolved(self, params: Params, stage: str) -> dict[str, Any]:
        """Exactly the parameters that can change the record of ``stage`` (``train``: the model).

        Left out on purpose: the device, and the folder of the data files, whose content is verified.

        Raises:
            UserError: no such stage.
        """
        profile = params.profiles[self.profile]
        data = to_plain(profile.data)
        del data["folder"]
        plain: dict[str, Any] = {
            "method": self.method,
            "seed": self.seed,
            "data": data,
        }
        if self.is_external:
            plain["fingerprint"] = self.fingerprint
        else:
            plain |= {
                "network": to_plain(profile.network),
                "shared": to_plain(profile.training.shared),
                "schedule": to_plain(self.schedule(params)),
            }
        recipe = self.recipe(params)
        if recipe is not None:
            plain |= {"variant": self.variant, "recipe": _used(recipe)}
        if stage != "train":
            plain["evaluation"] = _evaluation_part(params, self.profile, stage)
        if recipe is not None and stage in ("clean", "masking"):
            # The energies of fresh chains are measured there.
            plain["evaluation"]["chain_steps"] = profile.evaluation.generation.chain_steps
        return provenance.plain(plain)

    def training_identity(self, params: Params, data_digest: str, hash_of: HashOf) -> str:
        """Identity of the trained model, 16 hex characters."""
        return provenance.digest(
            {
                "profile": self.profile,
                "name": self.run_name,
                "params": self.resolved(params, "train"),
                "data": data_digest,
                "code": None if self.is_external else hash_of(self.training_module),
            }
        )

    def identity(
        self,
        params: Params,
        stage: str,
        data_digest: str,
        hash_of: HashOf = provenance.closure_hash,
    ) -> str:
        """Identity of the record of ``stage``, 16 hex characters, known before the run.

        Args:
            params: today's parameters.
            stage: ``train`` or one of :data:`EVALUATIONS`.
            data_digest: digest of the prepared data (see :func:`data_digest`).
            hash_of: code hash by module name; give a cached one when asking for many.
        """
        training = self.training_identity(params, data_digest, hash_of)
        if stage == "train":
            return training
        return provenance.digest(
            {
                "training": training,
                "stage": stage,
                "params": self.resolved(params, stage),
                "code": hash_of(f"stages.{stage}"),
                "upstream": self._upstream(params, stage, data_digest, hash_of),
            }
        )

    def surrogates(self, params: Params) -> list[Subject]:
        """Models of the same seed whose adversarial examples its transfer stage uses; it may be one of them."""
        variants = params.profiles[self.profile].evaluation.transfer.surrogates
        baselines = [Subject(self.profile, name, None, self.seed) for name in SURROGATES]
        return baselines + [Subject(self.profile, "ebjdat", variant, self.seed) for variant in variants]

    def modules(self, stage: str) -> tuple[str, ...]:
        """The modules whose code is part of the identity of ``stage``, sorted."""
        found = {f"stages.{stage}"} if self.is_external else {self.training_module, f"stages.{stage}"}
        if stage == "transfer":
            found |= {"stages.baseline", "stages.train"}
        if stage == "masking":
            found.update(name for part in MASKING_INPUTS for name in self.modules(part))
        return tuple(sorted(found))

    def _upstream(self, params: Params, stage: str, data_digest: str, hash_of: HashOf) -> dict[str, str]:
        """Identities of other models and records that the stage reads."""
        if stage == "transfer":
            return {
                surrogate.name: surrogate.training_identity(params, data_digest, hash_of)
                for surrogate in self.surrogates(params)
            }
        if stage == "masking":
            return {name: self.identity(params, name, data_digest, hash_of) for name in MASKING_INPUTS}
        return {}


HashOf = Callable[[str], str]
"""Code hash of a module by its dotted name, such as :func:`ebjdat.provenance.closure_hash`."""


def _used(recipe: Variant) -> dict[str, Any]:
    """The recipe without what its method and reading never look at."""
    unused = {"base_steps"}  # resolved into `steps`
    if recipe.reading != "energy":
        unused.add("gap")
    if not recipe.w_adversarial and not recipe.w_energy:
        unused |= {"reading", "attack_steps", "attack_step", "project"}
    return {name: value for name, value in to_plain(recipe).items() if name not in unused}


def _evaluation_part(params: Params, profile: str, stage: str) -> dict[str, Any]:
    if stage not in EVALUATIONS:
        raise UserError(f"unknown stage {stage!r}; known: train, {', '.join(EVALUATIONS)}")
    evaluation = params.profiles[profile].evaluation
    stages = MASKING_INPUTS if stage == "masking" else (stage,)
    sections = {_SECTIONS[name]: to_plain(getattr(evaluation, _SECTIONS[name])) for name in stages}
    if stage == "generate":
        return sections
    # Noise inside a model is drawn per batch, so the batch size is part of some numbers.
    return {"radius": evaluation.radius, "batch_size": evaluation.batch_size} | sections


def data_digest(profile: str) -> str:
    """Digest of the prepared data of a profile: images, labels and splits.

    Raises:
        UserError: the data are not prepared, or the manifest is damaged.
    """
    path = Path("data") / profile / "manifest.json"
    try:
        return str(files.read_json(path)["digest"])
    except (KeyError, TypeError):
        raise UserError(f"{path} names no digest; run `dvc repro prepare` again") from None


def known_subjects(params: Params, seeds: Sequence[int] | None = None) -> list[Subject]:
    """Every model that the selected profile can have: methods x variants, and the baselines."""
    chosen = (params.seed,) if seeds is None else tuple(seeds)
    jems = [Subject(params.profile, m, v, s) for m in METHODS for v in VARIANTS for s in chosen]
    baselines = [Subject(params.profile, name, None, s) for name in BASELINES for s in chosen]
    return jems + baselines
