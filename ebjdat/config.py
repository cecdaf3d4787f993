"""params.yaml and params/<profile>.yaml as frozen pydantic models, and what they say about one run.

Unknown keys, wrong types and values out of range are refused in one line with the full name of the key.
Radii may be written as fractions (``8/255``), ``1e-4`` is a number, and an integral float (``1e3``) is a whole
number where one is expected. Files are read as YAML 1.2, as DVC reads them; a key that stands twice is refused.

Units: radii and attack steps in pixel units of images in [0, 1]; chain values (``step_size``, ``chain_noise``,
``gradient_clamp``, ``px_noise``, ``labelled_noise``) in the network's [-1, 1] scale, as the JEM papers print them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from ebjdat import files
from ebjdat.errors import UserError
from ebjdat.protocols import REVISIONS
from ebjdat.run import BASELINES, HELPER, METHODS, Run

PARAMS = Path("params.yaml")
PROFILES = Path("params")
"""Folder of the profiles, one file each."""
IMPORTED = "external.json"
"""In the folder of an external model: its fingerprint, and the variant of an imported checkpoint."""


def _number(value: Any) -> Any:
    """Fractions and numbers written as text become numbers; booleans and endless digits are no numbers."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    if isinstance(value, int) and abs(value) > 2**63:
        raise ValueError(f"expected a number of at most 19 digits, got one of {value.bit_length()} bits")
    if isinstance(value, str):
        try:
            top, *bottom = map(float, value.split("/", 1))
            value = top / bottom[0] if bottom else top
        except (ValueError, ZeroDivisionError):
            raise ValueError("expected a number or a fraction such as 8/255") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def _devices(value: Any) -> Any:
    if value == "auto":
        return value
    number = _number(value)
    if not isinstance(number, (int, float)) or number != number // 1 or not 1 <= number <= 1024:
        raise ValueError("expected auto or a whole number from 1 to 1024")
    return int(number)


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Radius = Annotated[Real, Field(gt=0.0, le=1.0)]
"""Pixel units, in (0, 1]."""
Count = Annotated[Whole, Field(ge=1)]
Flag = Annotated[bool, Strict()]
Weight = Annotated[Real, Field(ge=0.0, le=100.0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**31)]
Reading = Literal["energy", "cross_entropy", "committed", "none"]
Gap = Literal["mean_hinge", "mean", "sample_hinge", "sample_absolute", "mean_absolute"]


class Section(BaseModel):
    """Base of all sections: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return self.model_dump(mode="json", by_alias=True)


Kind = TypeVar("Kind", bound=Section)


class Variant(Section):
    """Recipe of a JEM variant: what is special about JEM, JEM++ and SADAJEM, as data."""

    label: str = ""
    """Name in tables; the recipe's own name where it is empty."""
    like: str = ""
    """The variant whose values this one takes over; it states what differs."""
    norm: Literal["none", "batch"]
    """Normalisation layers of the network."""
    chain_start: Literal["uniform", "informative"]
    """Where chains start: uniform pixels, or class-conditional Gaussians of the train split."""
    steps: Whole = Field(ge=1, le=1000)
    """Chain steps per iteration; for PYLD the outer steps M."""
    base_steps: Whole = Field(ge=1, le=1000)
    """The same for the plain variant."""
    base_px_noise: Real = Field(ge=0.0, le=1.0)
    """``px_noise`` of the plain variant."""
    inner_steps: Whole = Field(ge=1, le=100)
    """PYLD's inner steps N; 1 elsewhere."""
    step_size: Real = Field(gt=0.0, le=1e3)
    """Step per inner step, network scale."""
    chain_noise: Real = Field(ge=0.0, le=10.0)
    """Standard deviation of the noise per outer step, network scale."""
    gradient_clamp: Annotated[Real, Field(gt=0.0)] | None
    """Element-wise bound on the accumulated step, in units of the gradient in network scale."""
    clamp_pixels: Flag
    """Whether chain states are clamped to the image range after each step."""
    chain_statistics: Literal["running", "batch"]
    """BatchNorm statistics that chain forwards see; they never update running statistics."""
    reinit: Real = Field(ge=0.0, le=1.0)
    """Share of chains started afresh instead of from the replay buffer."""
    px_augmented: Flag
    """Whether images of the p(x) term are augmented."""
    px_noise: Real = Field(ge=0.0, le=1.0)
    """Noise on p(x) images, network scale."""
    labelled_noise: Real = Field(ge=0.0, le=1.0)
    """Noise on labelled images, network scale."""
    sharpness: Real = Field(ge=0.0, le=10.0)
    """rho of adaptive SAM; 0 switches it off."""
    reading: Reading
    """Reading of the adversarial term (see ``ebjdat.training.objective``)."""
    gap: Gap
    """Form of the energy gap; used by the reading ``energy`` only."""
    w_px: Weight
    """w1, the weight of the maximum-likelihood term of p(x)."""
    w_clean: Weight
    """Weight of the clean cross-entropy."""
    w_energy: Weight
    """w2, the weight of the energy term of p(x_adv | x)."""
    w_adversarial: Weight
    """w3, the weight of the adversarial cross-entropy."""
    attack_steps: Whole = Field(ge=1, le=100)
    """Sign steps of the training adversary (K)."""
    attack_step: Real = Field(gt=0.0, le=2.0)
    """Size of a sign step as a fraction of train_eps."""
    project: Flag
    """Project the adversary onto the eps ball; false clamps to [0, 1] only."""

    def used(self) -> dict[str, Any]:
        """The recipe as records hold it: without names, and without what its method and reading never look at."""
        unused = {"label", "like", "base_steps", "base_px_noise"}  # resolved into steps and px_noise
        if self.reading in ("cross_entropy", "committed", "none") or not self.w_energy:
            unused.add("gap")
        if not self.w_adversarial and not self.w_energy:
            unused |= {"reading", "attack_steps", "attack_step", "project"}
        return {name: value for name, value in self.plain().items() if name not in unused}


class Data(Section):
    """Which images, and how many of each split."""

    dataset: Literal["digits", "cifar10", "fashion"]
    folder: str | None = None
    """Where the official files lie already; null: see ``ebjdat.data.cifar10`` and ``fashion`` for the order."""
    split_seed: Seed
    train: Count
    validation: Count
    test: Count
    stratified: Flag = False
    """Whether test images are ordered so that the first n have all classes equally often, whatever n."""


class Network(Section):
    """Pre-activation WideResNet of ``depth`` = 6 n + 4 layers."""

    depth: Whole = Field(ge=10, le=100)
    width: Whole = Field(ge=1, le=20)


class Debiasing(Section):
    """Switches of DHAT (see ``ebjdat.training.dhat``); the defaults are those of its released code."""

    alignment: Literal["code", "paper"] = "code"
    """Direction of the divergence between adversarial and debiased predictions."""
    floe: Literal["code", "paper_bounded"] = "code"
    """Form of the term on inverse and background logits."""
    mask: Literal["helper", "random", "none"] = "helper"
    """Foreground that is blanked: the helper network's, a random one of the same area, or none."""
    omega: Real = Field(default=0.1, ge=0.0, lt=1.0)
    """Grad-CAM values above it, on a map in [0, 1], are foreground."""
    eps_inverse: Real = Field(default=0.5, gt=0.0, le=1.0)
    """Radius of the inverse adversary as a fraction of train_eps."""
    w_alignment: Weight = 1.0
    w_floe: Weight = 1.0
    detach_target: Flag = False
    """Whether the divergence leaves the debiased logits alone."""


class Training(Section):
    """How one model trains: optimiser, schedule, and what all methods of a profile share."""

    optimiser: Literal["sgd", "adam"]
    """sgd has momentum 0.9."""
    lr: Real = Field(gt=0.0, le=10.0)
    weight_decay: Real = Field(ge=0.0, le=1.0)
    epochs: Whole = Field(ge=1, le=100_000)
    batch_size: Whole = Field(ge=2, le=65536)
    """Labelled images per iteration."""
    px_batch_size: Whole = Field(ge=2, le=65536)
    """Images of the p(x) term, and chains, per iteration."""
    policy: Literal["step", "one_cycle"]
    milestones: tuple[Annotated[Whole, Field(ge=0)], ...] = ()
    """Epochs at which ``step`` multiplies the rate by gamma."""
    gamma: Real = Field(default=1.0, gt=0.0, le=1.0)
    train_eps: Radius
    """Radius of the training adversary, pixel units."""
    warmup: Whole = Field(ge=0)
    """Iterations of linear warm-up."""
    gradient_clip: Annotated[Real, Field(gt=0.0)] | None
    """Largest gradient norm; null: no clipping."""
    buffer_size: Whole = Field(ge=2, le=10_000_000)
    pad: Whole = Field(ge=0, le=16)
    """Reflect padding before the random crop; 0: no crop."""
    flip: Flag
    bn_momentum: Real = Field(gt=0.0, le=1.0)
    bn_parts: Whole = Field(ge=1, le=1024)
    """Equal parts of a training batch that BatchNorm normalises apart. 1: the whole batch, gathered from all
    devices. With as many parts as devices nothing is gathered, which is faster and another experiment."""
    bn_estimate: Literal["both", "clean", "adversarial"]
    """Images that re-estimate BatchNorm statistics before selection and evaluation, one rule for all methods that train
    on adversarial images; the others always use clean images."""
    bn_images: Whole = Field(ge=2)
    """How many training images re-estimate them."""
    validation_steps: Whole = Field(ge=1, le=1000)
    """Steps of the PGD that selects the checkpoint."""
    precision: Literal["float32", "bfloat16", "auto"]
    """What convolutions of training compute in (see ``ebjdat.model.compute``); ``auto`` depends on the hardware, so
    two machines may train two different models. Evaluation is float32."""
    compile: Flag
    """Compile the residual blocks; where that fails, training says so and runs eagerly."""
    threads: Annotated[Whole, Field(ge=1, le=1024)] | None
    """CPU threads of training; fixed where a run on the CPU is to be repeated to the byte. null: all."""
    norm: Literal["none", "batch"] = "batch"
    """Normalisation layers of a baseline; a JEM recipe states its own."""
    debiasing: Debiasing | None = None
    """Of DHAT alone."""

    def plain(self) -> dict[str, Any]:
        """As JSON values; without ``debiasing`` where there is none."""
        return {key: value for key, value in super().plain().items() if key != "debiasing" or value is not None}


class Images(Section):
    """How many test images an evaluation uses: the first n of the fixed test order."""

    images: Count


class AutoAttackImages(Images):
    """Images of Table 1, attacked in fixed slices because random starts depend on the place in a batch."""

    slice: Count
    alone: Flag
    """Each attack of Table 1 alone, under both protocols."""
    cascade: Flag
    """The cascade of version ``standard`` under protocol ``standard``, the literature's AutoAttack."""
    last_images: Whole = Field(ge=0)
    """The first of them, in whole slices, on which the cascade's start attacks the last checkpoint; 0: none."""


class Generation(Section):
    """Samples and the features that compare them with real images."""

    samples: Whole = Field(ge=2)
    features: Literal["classifier", "inception"]
    """classifier: a small network trained on the real images (where Inception makes no sense)."""
    chain_steps: Whole = Field(ge=1, le=100_000)
    """Steps of a fresh chain."""


class Evaluation(Section):
    """Sizes of the evaluations and the nominal radius r that protocols scale."""

    radius: Radius
    batch_size: Count
    clean: Images
    autoattack: AutoAttackImages
    transfer: Images
    sweep: Images
    eot: Images
    generation: Generation


class Profile(Section):
    """A scale of the same experiment: data, network, budget, evaluation sizes."""

    data: Data
    network: Network
    training: dict[str, dict[str, Any]]
    """``defaults``, and what differs by variant, method or model; see :meth:`Params.training`."""
    evaluation: Evaluation


class Params(Section):
    """params.yaml with its profile."""

    profile: str
    method: Literal["ebjdat", "base", "control"]
    variant: str
    seeds: tuple[Seed, ...] = Field(min_length=1)
    baselines: tuple[str, ...]
    sources: tuple[str, ...]
    """Baselines that are only crafted on: trained, and evaluated by ``clean`` alone."""
    surrogates: tuple[str, ...]
    """Models that transfer attacks are crafted on, each with the seed of the model that they are tried on."""
    device: Literal["auto", "cpu", "cuda"]
    devices: Annotated[int | str, BeforeValidator(_devices)]
    """Processes that train one model, one per device; auto: 1. No part of the result."""
    deterministic: Flag = False
    """On CUDA: kernels that give the same bits each time, some of them slower. No part of the result; a CPU does so
    anyway."""
    variants: dict[str, Variant]
    current: Profile
    """Not in the file: the profile that ``profile`` names."""

    @property
    def model(self) -> str:
        """The model that method and variant select."""
        return f"{self.method}-{self.variant}"

    def runs(self) -> list[Run]:
        """The runs that params.yaml names: the model of method and variant, baselines and sources, for every seed."""
        models = (self.model, *self.baselines, *self.sources)
        return [Run(self.profile, model, seed) for model in models for seed in self.seeds]

    @property
    def own_baselines(self) -> list[str]:
        """Baselines that the profile gives settings of their own, ``<baseline>-<name>``."""
        split = ((name, *name.partition("-")) for name in self.current.training)
        return [name for name, baseline, _, more in split if more and baseline in BASELINES]

    def training(self, model: str) -> Training:
        """How ``model`` trains: ``defaults``, then what the profile says of its variant, method and name.

        The control shares everything with ebjdat, for the comparison to be fair.
        """
        run = Run(self.profile, model, 0)
        names = [run.method if run.method != "control" else "ebjdat"]
        if run.method in BASELINES and run.method != model:
            names.append(model)
        if run.variant is not None:
            like = self.variants[run.variant].like
            names = [*([like] if like else []), run.variant, *names]
            names += [f"{names[-1]}-{variant}" for variant in names[:-1]]
        section = self.current.training
        places = [name for name in ("defaults", *names) if name in section]
        merged = {key: value for name in places for key, value in section[name].items()}
        if run.method == "dhat":
            merged.setdefault("debiasing", {})
        # A message names the section that a value came from: the last one that has it.
        home = {key: name for name in places for key in section[name]}
        return build(
            Training, merged, lambda key: f"params/{self.profile}.yaml: training.{home.get(key, 'defaults')}.{key}"
        )

    def recipe(self, model: str) -> Variant | None:
        """The JEM recipe as ``model`` uses it; None for a baseline.

        ``control`` keeps all but the energy term. ``base`` is the plain variant: its own number of chain steps, both
        remaining weights 1, no adversarial terms.
        """
        run = Run(self.profile, model, 0)
        if run.variant is None:
            return None
        recipe = self.variants[run.variant]
        if run.method == "ebjdat":
            return recipe
        changed: dict[str, Any] = {"reading": "none", "w_energy": 0.0}
        if run.method == "base":
            changed |= {"steps": recipe.base_steps, "px_noise": recipe.base_px_noise}
            changed |= {"w_px": 1.0, "w_clean": 1.0, "w_adversarial": 0.0}
        return recipe.model_copy(update=changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything that decides one run, resolved once at the door of a stage.

    Attributes:
        run: which run.
        data, network, evaluation: sections of its profile.
        training: None for an external model.
        recipe: the JEM recipe as the method uses it, of an imported checkpoint that of the plain variant; None for a
            model that does not generate.
        surrogates: models whose adversarial images its transfer stage meets, with a digest of how they trained.
        device, devices, deterministic: where and by which kernels it computes; no part of the result.
        helper: the network that is trained before this one, for its masks; None where it needs none.
    """

    run: Run
    data: Data
    network: Network
    training: Training | None
    recipe: Variant | None
    evaluation: Evaluation
    surrogates: Mapping[str, str]
    device: str
    devices: str | int
    deterministic: bool = False
    variant: str | None = None
    """Of an imported checkpoint; the name of any other model says it."""
    helper: Setup | None = None

    @property
    def input_noise(self) -> float:
        """Noise that labelled images had in training, which protocol ``released`` adds in evaluation; network scale."""
        return 0.0 if self.recipe is None else self.recipe.labelled_noise

    def recorded(self, stage: str) -> dict[str, Any]:
        """Exactly the parameters that can change the record of ``stage`` (``train``: the model), as JSON values.

        Left out on purpose: the device, and the folder of the data files, whose content is verified.
        """
        if stage not in REVISIONS:
            raise UserError(f"unknown stage {stage!r}; known: {', '.join(REVISIONS)}")
        data = self.data.plain()
        del data["folder"]
        plain: dict[str, Any] = {"data": data}
        if self.training is not None:
            plain |= {"network": self.network.plain(), "training": self.training.plain()}
            if self.recipe is not None:
                del plain["training"]["norm"]
        if self.helper is not None:
            plain["helper"] = files.digest(self.helper.recorded("train"))
        if self.recipe is not None:
            plain["recipe"] = self.recipe.used()
        if self.variant is not None:  # nobody here knows how it was trained; how its chains run decides numbers
            plain["recipe"] = {name: plain["recipe"][name] for name in CHAINS}
            plain["variant"] = self.variant
        if stage == "train":
            return plain
        named = {"masking": MASKING_INPUTS, "generate": ("generation",), "craft": ("transfer",)}
        found: dict[str, Any] = {name: getattr(self.evaluation, name).plain() for name in named.get(stage, (stage,))}
        if stage != "generate":  # noise inside a model is drawn per batch, so the batch size is part of some numbers
            found |= {"radius": self.evaluation.radius, "batch_size": self.evaluation.batch_size}
        if stage in ("clean", "masking") and self.recipe is not None:  # the energies of fresh chains are measured there
            found["chain_steps"] = self.evaluation.generation.chain_steps
        if stage in ("transfer", "masking"):
            found["surrogates"] = dict(self.surrogates)
        return plain | {"evaluation": found}


MASKING_INPUTS = ("clean", "autoattack", "transfer", "sweep", "eot")
"""Stages whose records decide the masking report."""
CHAINS = (
    "chain_start",
    "inner_steps",
    "step_size",
    "chain_noise",
    "gradient_clamp",
    "clamp_pixels",
    "chain_statistics",
    "labelled_noise",
)
"""What the evaluation of an imported checkpoint needs of a recipe."""


def resolve(params: Params, run: Run, variant: str | None = None, surrogates: Mapping[str, str] | None = None) -> Setup:
    """What params.yaml and its profile say about a run.

    Args:
        surrogates: None: those of params.yaml, each with a digest of what decided its training.
        variant: of an imported checkpoint whose folder is not here, as its records say.

    Raises:
        UserError: the model is unknown, or its training does not validate.
    """
    check_model(params, run.model)
    profile = params.current
    if surrogates is None:
        setups = {name: resolve(params, replace(run, model=name), surrogates={}) for name in params.surrogates}
        surrogates = {name: files.digest(setup.recorded("train")) for name, setup in setups.items()}
    if run.is_external:
        path = run.model_dir / IMPORTED
        said = files.read_json(path) if path.is_file() else {}
        variant = (said.get("variant") if isinstance(said, dict) else None) or variant
        if variant not in (None, *params.variants):
            raise UserError(f"{run} was imported as {variant}, which params.yaml has no longer: import it again")
    training = None if run.is_external else params.training(run.model)
    debiasing = None if training is None else training.debiasing
    masked = debiasing is not None and debiasing.mask != "none"
    return Setup(
        run=run,
        data=profile.data,
        network=profile.network,
        training=training,
        recipe=params.recipe(f"base-{variant}" if run.is_external and variant else run.model),
        evaluation=profile.evaluation,
        surrogates=surrogates,
        device=params.device,
        devices=params.devices,
        deterministic=params.deterministic,
        variant=variant if run.is_external else None,
        helper=resolve(params, replace(run, model=HELPER), surrogates={}) if masked else None,
    )


def check_model(params: Params, model: str, where: str = "") -> None:
    """Refuse a name that is no model. UserError: with the known names."""
    known = [*(f"{method}-{variant}" for method in METHODS for variant in params.variants), *BASELINES]
    known += params.own_baselines
    if model not in known and not model.startswith("external-"):
        raise UserError(f"{where}unknown model {model!r}{_among(model, known)}, external-<name>")


def load_params(folder: str | Path = ".", profile: str | None = None) -> Params:
    """Read and validate ``params.yaml`` of the repository's root and its profile's file, or that of another profile.

    Raises:
        UserError: a file is missing or not YAML, or a key is unknown, missing, of the wrong type or out of range; the
            message names the full key.
    """
    folder = Path(folder)
    raw = read_yaml(folder / PARAMS)
    if isinstance(raw, dict) and profile is not None:
        raw = raw | {"profile": profile}
    return parse_params(raw, lambda name: read_profile(folder, name))


def read_profile(folder: Path, name: str) -> Any:
    """The file of a profile, parsed. UserError: no such profile, or its file is not YAML."""
    known = sorted(path.stem for path in (folder / PROFILES).glob("*.yaml"))
    if name not in known:
        raise UserError(f"profile: unknown profile {name!r}{_among(name, known)}")
    return read_yaml(folder / PROFILES / f"{name}.yaml")


def parse_params(raw: Any, profile: Any) -> Params:
    """Validate already parsed files (see :func:`load_params`); ``profile``: content of a profile by its name."""
    if not isinstance(raw, dict):
        raise UserError(f"params.yaml: expected a section with keys, got {_show(raw)}")
    if "current" in raw:
        raise UserError("current: unknown key")
    name = raw.get("profile")
    if not isinstance(name, str):
        raise UserError(f"profile: expected the name of a profile, got {_show(name)}")
    current = build(Profile, profile(name), f"params/{name}.yaml: ")
    variants = raw.get("variants")
    if isinstance(variants, dict):
        raw = raw | {"variants": {key: _inherited(str(key), variants) for key in variants}}
    params = build(Params, raw | {"current": current}, "")
    _check(params)
    return params


def _inherited(name: str, variants: Mapping[str, Any]) -> Any:
    own = variants[name]
    like = own.get("like") if isinstance(own, dict) else None
    if not like:
        return own
    if isinstance(like, str) and like in variants and not isinstance(variants[like], dict):
        return own  # the other one is reported
    if not isinstance(like, str) or like not in variants or variants[like].get("like"):
        known = [key for key, value in variants.items() if isinstance(value, dict) and not value.get("like")]
        raise UserError(f"variants.{name}.like: expected one of {', '.join(map(str, known))}, got {_show(like)}")
    return {key: value for key, value in variants[like].items() if key != "label"} | own


def _check(params: Params) -> None:
    """What no field can say alone."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", params.profile):
        raise UserError(f"profile: expected a-z, 0-9 and hyphens, got {_show(params.profile)}")
    for name in params.variants:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise UserError(f"variants.{name}: a variant's name has a-z, 0-9 and _ only")
    if params.variant not in params.variants:
        raise UserError(f"variant: unknown variant {params.variant!r}{_among(params.variant, params.variants)}")
    for key in ("surrogates", "seeds"):
        values = getattr(params, key)
        if len(set(values)) < len(values):
            raise UserError(f"{key}: one of {', '.join(map(str, values))} is named twice")
    for key in ("baselines", "sources"):
        for name in getattr(params, key):
            if name.partition("-")[0] not in BASELINES:
                raise UserError(f"{key}: unknown baseline {name!r}{_among(name, BASELINES)}")
            check_model(params, name, f"{key}: ")
    both = [*params.baselines, *params.sources]
    if len(set(both)) < len(both):
        raise UserError(f"baselines, sources: one of {', '.join(both)} is named twice")
    for name in params.surrogates:
        check_model(params, name, "surrogates: ")
    place, profile = f"params/{params.profile}.yaml: ", params.current
    if not (profile.evaluation.autoattack.alone or profile.evaluation.autoattack.cascade):
        raise UserError(f"{place}evaluation.autoattack: alone or cascade must be true")
    if (profile.network.depth - 4) % 6:
        raise UserError(f"{place}network.depth: expected 6 n + 4 (10, 16, 22, 28, 34), got {profile.network.depth}")
    models = [f"{method}-{variant}" for method in ("ebjdat", "base") for variant in params.variants]
    names = ["defaults", *params.variants, *METHODS, *BASELINES, *models]
    for name in profile.training:
        if name not in names and name not in params.own_baselines:
            raise UserError(f"{place}training.{name}: unknown key{_among(name, names)}")
    for model in (*models, *BASELINES, *params.own_baselines):
        training = params.training(model)
        for key in ("batch_size", "px_batch_size"):
            size = getattr(training, key)
            if size % training.bn_parts:
                raise UserError(
                    f"{place}training for {model}: {key} {size} does not divide into bn_parts = {training.bn_parts}"
                )
    for name in MASKING_INPUTS:
        images = getattr(profile.evaluation, name).images
        if images > profile.data.test:
            raise UserError(
                f"{place}evaluation.{name}.images: {images} images asked for, but data.test has {profile.data.test}"
            )


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file. UserError: missing, unreadable, not YAML or with a key twice; it names file and line."""
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the repository root") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        text = re.sub(r"\s*(NOTE|To suppress).*", "", str(error), flags=re.DOTALL)
        raise UserError(f"{path} is not valid YAML: {' '.join(text.split())}") from None


def build(kind: type[Kind], raw: Any, where: str | Callable[[str], str]) -> Kind:
    """One section; the first thing wrong with it becomes a UserError of one sentence with the full name of the key.

    ``where`` is what stands before the key's name in this section, or makes its full name.
    """
    full = where if callable(where) else lambda key: f"{where}{key}"
    if not isinstance(raw, dict):
        raise UserError(f"{full('').rstrip(': ') or 'params.yaml'}: expected a section with keys, got {_show(raw)}")
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError(_sentence(kind, error.errors(include_url=False)[0], full)) from None


def _sentence(kind: type[Section], error: Any, full: Callable[[str], str]) -> str:
    places = error["loc"]
    key = full(str(places[0]))
    for part in places[1:]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    value, what = error["input"], error["type"]
    limits = error.get("ctx", {})
    if what == "extra_forbidden":
        for place in places[:-1]:
            inner = kind.model_fields[place].annotation if place in kind.model_fields else None
            sections = [one for one in (inner, *get_args(inner)) if isinstance(one, type) and issubclass(one, Section)]
            kind = next(iter(sections), kind)
        names = [field.alias or name for name, field in kind.model_fields.items() if name != "current"]
        return f"{key}: unknown key{_among(places[-1], names)}"
    if what == "missing":
        return f"{key}: missing key"
    if what == "literal_error":
        known = [one.strip("'") for one in re.split(", | or ", limits["expected"])]
        return f"{key}: unknown value {_show(value)}{_among(value, known)}"
    if what == "value_error":
        return f"{key}: {limits['error']}, got {_show(value)}"
    radius = places[-1] in ("train_eps", "radius") and "than" in what
    hint = " (a radius is in pixel units of [0, 1]: write 8/255, not 8)" if radius else ""
    expected = _WORDS.get(what.partition("_")[0]) or error["msg"].replace("Input should be ", "")
    return f"{key}: expected {expected}, got {_show(value)}{hint}"


_WORDS = {"int": "a whole number", "bool": "true or false", "tuple": "a list", "too": "at least one"}
_WORDS |= dict.fromkeys(("dict", "model"), "a section with keys")
"""Where a kind of pydantic's errors has better words than pydantic's."""


def _show(value: object) -> str:
    try:
        text = "null" if value is None else repr(value)
    except ValueError:  # Python refuses to print very long numbers
        text = "a very long number"
    return text if len(text) <= 60 else text[:57] + "..."


def _among(name: object, names: Iterable[object]) -> str:
    """`` (did you mean ...?)`` where a name is near, and the known ones."""
    known = [str(one) for one in names]
    close = difflib.get_close_matches(str(name), known, n=1)
    return (f" (did you mean {close[0]}?)" if close else "") + f"; known: {', '.join(known)}"
