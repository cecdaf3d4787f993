"""params.yaml as typed, frozen dataclasses.

Unknown keys, wrong types and values out of range are refused with the full name of the key.
Radii may be written as fractions (``8/255``); ``1e-4`` is a number although YAML 1.1 reads it
as a string, and an integral float (``1e3``) is accepted where a whole number is expected,
because that is what ``dvc exp run -S seed=1e3`` writes.

Units: radii and attack steps in pixel units of images in [0, 1]; chain values (``step_size``,
``chain_noise``, ``gradient_clamp``, ``px_noise``, ``labelled_noise``) in the network's [-1, 1]
scale, the scale in which the JEM papers print them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from ebjdat.errors import UserError

Method = Literal["ebjdat", "base", "control"]
VariantName = Literal["jem", "jempp", "sadajem"]
SurrogateVariant = Literal["jempp", "sadajem"]
Reading = Literal["energy", "cross_entropy", "released", "none"]
Gap = Literal["mean_hinge", "mean", "sample_hinge", "sample_absolute", "mean_absolute"]

METHODS: tuple[str, ...] = typing.get_args(Method)
VARIANTS: tuple[str, ...] = typing.get_args(VariantName)
BASELINES = ("pgd_at", "trades", "undefended")
SURROGATE_VARIANTS: tuple[str, ...] = typing.get_args(SurrogateVariant)


def number(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float = -math.inf,
    hint: str = "",
) -> Any:
    """Field bounds: low <= value <= high, and value > above."""
    return field(metadata={"low": low, "high": high, "above": above, "hint": hint})


def radius() -> Any:
    """A radius in pixel units, in (0, 1]."""
    return number(above=0.0, high=1.0, hint="a radius is in pixel units of [0, 1]: write 8/255, not 8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Recipe of a JEM variant: what is special about JEM, JEM++ and SADAJEM, as data."""

    norm: Literal["none", "batch"]
    """Normalisation layers of the network."""
    chain_start: Literal["uniform", "informative"]
    """Where chains start: uniform pixels, or class-conditional Gaussians of the train split."""
    steps: int = number(1, 1000)
    """Chain steps per iteration; for PYLD the outer steps M."""
    base_steps: int = number(1, 1000)
    """The same for the plain variant."""
    inner_steps: int = number(1, 100)
    """PYLD's inner steps N; 1 elsewhere."""
    step_size: float = number(above=0.0, high=1e3)
    """Step per inner step, network scale."""
    chain_noise: float = number(0.0, 10.0)
    """Standard deviation of the noise per outer step, network scale."""
    gradient_clamp: float | None = number(above=0.0)
    """Element-wise bound on the accumulated step, in units of the gradient in network scale."""
    clamp_pixels: bool
    """Whether chain states are clamped to the image range after each step."""
    chain_statistics: Literal["running", "batch"]
    """BatchNorm statistics that chain forwards see; they never update running statistics."""
    reinit: float = number(0.0, 1.0)
    """Share of chains started afresh instead of from the replay buffer."""
    px_augmented: bool
    """Whether images of the p(x) term are augmented."""
    px_noise: float = number(0.0, 1.0)
    """Noise on p(x) images, network scale."""
    labelled_noise: float = number(0.0, 1.0)
    """Noise on labelled images, network scale."""
    sharpness: float = number(0.0, 10.0)
    """rho of adaptive SAM; 0 switches it off."""
    reading: Reading
    """Reading of the adversarial term (see ``ebjdat.training.objective``)."""
    gap: Gap
    """Form of the energy gap; used by the reading ``energy`` only."""
    w_px: float = number(0.0, 100.0)
    w_clean: float = number(0.0, 100.0)
    w_energy: float = number(0.0, 100.0)
    """w2, the weight of the energy term of p(x_adv | x)."""
    w_adversarial: float = number(0.0, 100.0)
    attack_steps: int = number(1, 100)
    """Sign steps of the training adversary (K)."""
    attack_step: float = number(above=0.0, high=2.0)
    """Size of a sign step as a fraction of train_eps."""
    project: bool
    """Project the adversary onto the eps ball; false clamps to [0, 1] only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Which images, and how many of each split."""

    dataset: Literal["digits", "cifar10"]
    folder: str | None
    """Where the official files lie already; null: see ``ebjdat.data.cifar10`` for the order."""
    split_seed: int = number(0, 2**31 - 1)
    train: int = number(1)
    validation: int = number(1)
    test: int = number(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Pre-activation WideResNet of ``depth`` = 6 n + 4 layers."""

    depth: int = number(10, 100)
    width: int = number(1, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Training values that every method of a profile shares."""

    buffer_size: int = number(2, 10_000_000)
    pad: int = number(0, 16)
    """Reflect padding before the random crop; 0: no crop."""
    flip: bool
    gradient_clip: float | None = number(above=0.0)
    """Largest gradient norm; null: no clipping."""
    warmup: int = number(0)
    """Iterations of linear warm-up."""
    bn_momentum: float = number(above=0.0, high=1.0)
    bn_parts: int = number(1, 1024)
    """Equal parts of a training batch that BatchNorm normalises apart. 1: the whole batch, gathered from
    all devices. With as many parts as devices nothing is gathered, which is faster and another experiment."""
    bn_estimate: Literal["both", "clean", "adversarial"]
    """Images that re-estimate BatchNorm statistics before selection and evaluation, for methods
    that train on adversarial images; the others always use clean images."""
    bn_images: int = number(2)
    """How many training images re-estimate them."""
    validation_steps: int = number(1, 1000)
    """Steps of the PGD that selects the checkpoint."""
    precision: Literal["float32", "bfloat16", "auto"]
    """What convolutions of training compute in (see ``ebjdat.model.compute``); ``auto`` depends on the
    hardware, so two machines may train two different models. Evaluation is float32."""
    compile: bool
    """Compile the network; where that fails, training says so and runs eagerly. So it does where BatchNorm
    gathers statistics from several devices."""
    threads: int | None = number(1, 1024)
    """CPU threads of training; fixed where a run on the CPU is to be repeated to the byte. null: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Optimiser and schedule of one recipe in one profile."""

    optimiser: Literal["sgd", "adam"]
    """sgd has momentum 0.9."""
    lr: float = number(above=0.0, high=10.0)
    weight_decay: float = number(0.0, 1.0)
    epochs: int = number(1, 100_000)
    batch_size: int = number(2, 65536)
    """Labelled images per iteration."""
    px_batch_size: int = number(2, 65536)
    """Images of the p(x) term, and chains, per iteration."""
    policy: Literal["step", "one_cycle"]
    milestones: tuple[int, ...]
    """Epochs at which ``step`` multiplies the rate by gamma."""
    gamma: float = number(above=0.0, high=1.0)
    train_eps: float = radius()
    """Radius of the training adversary, pixel units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerVariant:
    """One schedule per JEM variant."""

    jem: Schedule
    jempp: Schedule
    sadajem: Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Schedules of a profile; the method ``control`` uses those of ``ebjdat``."""

    shared: Shared
    ebjdat: PerVariant
    base: PerVariant
    pgd_at: Schedule
    trades: Schedule
    undefended: Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """How many test images an evaluation uses: the first n of the fixed test order."""

    images: int = number(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoAttackImages:
    """Images of Table 1, attacked in fixed slices because random starts depend on the place in a batch."""

    images: int = number(1)
    slice: int = number(1)
    last_images: int = number(0)
    """The first of them, in whole slices, on which the cascade's start attacks the last checkpoint; 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferImages:
    """Images of Table 2, and whose adversarial examples are tried besides those of the baselines."""

    images: int = number(1)
    surrogates: tuple[SurrogateVariant, ...]
    """EB-JDAT variants; each is trained once more where it is not the current model. May be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Samples and the features that compare them with real images."""

    samples: int = number(2)
    features: Literal["classifier", "inception"]
    """classifier: a small network trained on the real images (where Inception makes no sense)."""
    chain_steps: int = number(1, 100_000)
    """Steps of a fresh chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Sizes of the evaluations and the nominal radius r that protocols scale."""

    radius: float = radius()
    batch_size: int = number(1)
    clean: Images
    autoattack: AutoAttackImages
    transfer: TransferImages
    sweep: Images
    eot: Images
    generation: Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A scale of the same experiment: data, network, budget, evaluation sizes."""

    data: Data
    network: Network
    training: Training
    evaluation: Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """The whole of params.yaml, validated."""

    variant: VariantName
    method: Method
    profile: str
    seed: int = number(0, 2**31 - 1)
    device: Literal["auto", "cpu", "cuda"]
    devices: Literal["auto"] | int = number(1, 1024)
    """Processes that train one model, one per device; auto: every GPU, one on a CPU. No part of the result."""
    variants: dict[str, Variant]
    profiles: dict[str, Profile]

    @property
    def current(self) -> Profile:
        """The selected profile."""
        return self.profiles[self.profile]


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate the whole of ``params.yaml``.

    Raises:
        UserError: the file is missing or not YAML, or a key is unknown, missing, of the wrong
            type or out of range; the message names the full key.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the repository root") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates and huge numbers: ValueError
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    return parse_params(raw)


def parse_params(raw: object) -> Params:
    """Validate an already parsed ``params.yaml`` (see :func:`load_params`)."""
    params: Params = _build(Params, raw, "")
    _known("variants", params.variants, VARIANTS)
    if params.profile not in params.profiles:
        raise UserError(
            f"profile: unknown profile {params.profile!r}; known: "
            f"{', '.join(params.profiles)}{_nearest(params.profile, params.profiles)}"
        )
    for name, profile in params.profiles.items():
        _check_profile(f"profiles.{name}", profile)
    return params


def variant_from(raw: object, key: str) -> Variant:
    """Validate a recipe on its own, as it lies beside a trained model; ``key`` names it in messages.

    Raises:
        UserError: see :func:`load_params`.
    """
    variant: Variant = _build(Variant, raw, key)
    return variant


def to_plain(value: Any) -> Any:
    """A dataclass of this module as plain dicts, lists and numbers, for JSON and hashing."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def _known(key: str, mapping: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in mapping:
            raise UserError(f"{key}.{name} is missing: params.yaml needs a recipe for each of {', '.join(names)}")


def _check_profile(key: str, profile: Profile) -> None:
    if (profile.network.depth - 4) % 6:
        raise UserError(f"{key}.network.depth: expected 6 n + 4 (10, 16, 22, 28, 34), got {profile.network.depth}")
    _check_parts(f"{key}.training", profile.training)
    evaluation = profile.evaluation
    for name in ("clean", "autoattack", "transfer", "sweep", "eot"):
        images = getattr(evaluation, name).images
        if images > profile.data.test:
            raise UserError(
                f"{key}.evaluation.{name}.images: {images} images asked for, "
                f"but {key}.data.test has {profile.data.test}"
            )
    surrogates = evaluation.transfer.surrogates
    if len(set(surrogates)) < len(surrogates):
        raise UserError(f"{key}.evaluation.transfer.surrogates: a variant is named twice: {', '.join(surrogates)}")


def _check_parts(key: str, section: Any) -> None:
    """``bn_parts`` divides every batch."""

    def check(key: str, value: Any, parts: int) -> None:
        for f in fields(value):
            item = getattr(value, f.name)
            if dataclasses.is_dataclass(item) and not isinstance(item, Shared):
                check(_join(key, f.name), item, parts)
            elif f.name in ("batch_size", "px_batch_size") and item % parts:
                raise UserError(f"{key}.{f.name}: {item} does not divide into bn_parts = {parts} equal parts")

    check(key, section, section.shared.bn_parts)


_FRACTION = re.compile(r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*/\s*([\d.]+(?:[eE][-+]?\d+)?)\s*")


def _as_number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UserError(f"{key}: expected a number, got {_show(value)}")
    if isinstance(value, int) and abs(value) > 2**63:
        raise UserError(f"{key}: expected a number of at most 19 digits, got one of {value.bit_length()} bits")
    if isinstance(value, str):
        try:
            fraction = _FRACTION.fullmatch(value)
            if fraction:
                return float(fraction[1]) / float(fraction[2])
            return float(value)
        except (ValueError, ZeroDivisionError):
            raise UserError(f"{key}: expected a number or a fraction such as 8/255, got {_show(value)}") from None
    return value


def _show(value: object) -> str:
    try:
        text = "null" if value is None else repr(value)
    except ValueError:  # Python refuses to print very long numbers
        text = "a very long number"
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(name: object, names: Any) -> str:
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _build(kind: Any, raw: object, key: str) -> Any:
    """One dataclass from a mapping; ``key`` is the full name so far."""
    if not isinstance(raw, dict):
        raise UserError(f"{key or 'params.yaml'}: expected a section with keys, got {_show(raw)}")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    for name in raw:
        if name not in names:
            raise UserError(f"{_join(key, name)}: unknown key{_nearest(name, names)}; known: {', '.join(names)}")
    values = {}
    for f in fields(kind):
        full = _join(key, f.name)
        if f.name not in raw:
            raise UserError(f"{full}: missing key, expected {_describe(hints[f.name])}")
        values[f.name] = _convert(hints[f.name], raw[f.name], full, f.metadata)
    return kind(**values)


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _convert(hint: Any, raw: object, key: str, bounds: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if raw is None and type(None) in typing.get_args(hint):
            return None
        for choices in (a for a in typing.get_args(hint) if typing.get_origin(a) is Literal):
            if raw in typing.get_args(choices):
                return raw
        hint = next(a for a in typing.get_args(hint) if a is not type(None) and typing.get_origin(a) is not Literal)
        return _convert(hint, raw, key, bounds)
    if origin is Literal:
        choices = typing.get_args(hint)
        if raw not in choices or isinstance(raw, bool):
            raise UserError(
                f"{key}: unknown value {_show(raw)}; known: {', '.join(map(str, choices))}{_nearest(raw, choices)}"
            )
        return raw
    if origin is dict:
        if not isinstance(raw, dict):
            raise UserError(f"{key}: expected a section with keys, got {_show(raw)}")
        inner = typing.get_args(hint)[1]
        return {str(name): _build(inner, value, _join(key, name)) for name, value in raw.items()}
    if origin is tuple:
        if not isinstance(raw, list):
            raise UserError(f"{key}: expected a list, got {_show(raw)}")
        inner = typing.get_args(hint)[0]
        return tuple(_convert(inner, value, f"{key}[{i}]", bounds) for i, value in enumerate(raw))
    if dataclasses.is_dataclass(hint):
        return _build(hint, raw, key)
    if hint is bool:
        if not isinstance(raw, bool):
            raise UserError(f"{key}: expected true or false, got {_show(raw)}")
        return raw
    if hint is str:
        if not isinstance(raw, str):
            raise UserError(f"{key}: expected text, got {_show(raw)}")
        return raw
    value = _as_number(raw, key)
    if hint is int:
        if not math.isfinite(value) or value != int(value):
            raise UserError(f"{key}: expected a whole number, got {_show(raw)}")
        value = int(value)
    else:
        value = float(value)
    _check_bounds(value, raw, key, bounds)
    return value


def _check_bounds(value: float, raw: object, key: str, bounds: Any) -> None:
    low, high = bounds.get("low", -math.inf), bounds.get("high", math.inf)
    above = bounds.get("above", -math.inf)
    if math.isfinite(value) and low <= value <= high and value > above:
        return
    lower = f"above {above:g}" if above > -math.inf else f"at least {low:g}" if low > -math.inf else ""
    upper = f"at most {high:g}" if high < math.inf else ""
    expected = " and ".join(part for part in (lower, upper) if part) or "finite"
    hint = f" ({bounds['hint']})" if bounds.get("hint") else ""
    raise UserError(f"{key}: expected a number {expected}, got {_show(raw)}{hint}")


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if hint in (int, float):
        return "a whole number" if hint is int else "a number"
    return "a section" if dataclasses.is_dataclass(hint) else str(getattr(hint, "__name__", hint))
