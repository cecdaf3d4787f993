"""AutoAttack (Croce & Hein, ICML 2020, arXiv:2003.01690) by its official code, unmodified, through one adapter.

The code is the package ``pyautoattack``, or an upstream ``autoattack`` install. Its random starts depend
on the place of an image in the batch, so it is called per fixed slice of images, the whole slice being
one batch and every attack being seeded alike; calling the package directly on a slice gives the same
flags. What the adapter adds: settings per attack, the robust images after each attack of a cascade, its
warnings as data, audits, and a memory for the queries of Square (:mod:`ebjdat.attacks.memory`).
:mod:`ebjdat.attacks.slices` runs many jobs and keeps their outcomes.

Images are float32 (N,C,H,W) in [0, 1], eps in pixel units, labels int64 (N,).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebjdat.attacks.audit import check_images, guarded
from ebjdat.attacks.memory import remembered
from ebjdat.errors import AuditError, UserError

CASCADE = ("apgd-ce", "apgd-t", "fab-t", "square")
"""Attacks of the version ``standard``, in their order."""
CASCADE_START = CASCADE[:2]
"""Its first two attacks alone: most of what it finds, at a fraction of its cost."""
PACKAGES = ("pyautoattack", "autoattack")

_OBJECTS = {"apgd-ce": "apgd", "apgd-dlr": "apgd", "apgd-t": "apgd_targeted", "fab-t": "fab", "square": "square"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One attack, or the cascade, on the images ``first`` to ``last`` - 1 of a protocol.

    Attributes:
        attack: a name of the official code, ``cascade`` for its version ``standard``, or ``cascade-start``.
        steps: iterations, or queries of Square; of each attack of the cascade: its standard.
        eps: pixel units.
    """

    protocol: str
    attack: str
    steps: int
    targets: int
    eps: float
    seed: int
    first: int
    last: int
    checkpoint: str = "best"

    @property
    def label(self) -> str:
        """For messages and file names."""
        of = "" if self.checkpoint == "best" else f"{self.checkpoint}-"
        return f"{self.protocol}-{of}{self.attack}-{self.first}-{self.last}"

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks that it runs, in their order."""
        return {"cascade": CASCADE, "cascade-start": CASCADE_START}.get(self.attack, (self.attack,))

    @property
    def is_standard(self) -> bool:
        """Whether every attack keeps the settings of version ``standard``."""
        return self.attack in ("cascade", "cascade-start")


@dataclass(frozen=True)
class Outcome:
    """What a job found.

    Attributes:
        right: (n,) bool, classified correctly without an attack.
        robust: per attack in the order run, (n,) bool, still correct after it; in a cascade after it and all before.
            Its first is what that attack finds alone, because both start from the same batch and seed.
        audit: measured properties of the final images.
        warnings: texts of the official code with how often they came.
    """

    right: np.ndarray
    robust: dict[str, np.ndarray]
    audit: dict[str, Any]
    warnings: dict[str, int]

    @property
    def final(self) -> np.ndarray:
        """(n,) bool, correct after every attack of the job."""
        return self.robust[next(reversed(self.robust))]


def package() -> str:
    """Name of the installed official package; UserError where there is none."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            return name
    raise UserError("AutoAttack is not installed: install the package pyautoattack (make env does)")


def package_version() -> str:
    """Name and version of the official package, for identities."""
    name = package()
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} without a version"


def official(model: nn.Module, job: Job) -> Any:
    """The official ``AutoAttack`` object for a job; ``custom`` alone would keep five restarts and 100 iterations."""
    kind = importlib.import_module(package()).AutoAttack
    accepted = inspect.signature(kind).parameters
    options: dict[str, Any] = {"norm": "Linf", "eps": job.eps, "seed": job.seed, "device": str(device_of(model))}
    if job.is_standard:
        options["version"] = "standard"
    else:
        options |= {"version": "custom", "attacks" if "attacks" in accepted else "attacks_to_run": [job.attack]}
    if "verbose" in accepted:
        options["verbose"] = False
    adversary = kind(model, **options)
    adversary.verbose = False
    if job.is_standard:
        adversary.attacks_to_run = list(job.attacks)
    else:
        _configure(getattr(adversary, _OBJECTS[job.attack]), job)
    return adversary


def _configure(attack: Any, job: Job) -> None:
    """Steps, targets and one restart, where the attack has them."""
    attack.n_restarts = 1
    if job.attack == "square":
        attack.n_queries = job.steps
        return
    attack.n_iter = job.steps
    if job.targets:
        attack.n_target_classes = job.targets
    if job.attack.startswith("apgd"):
        # Its constructor derives the checkpoints of the step size from the number of iterations.
        attack.n_iter_orig = job.steps
        attack.n_iter_2, attack.n_iter_min, attack.size_decr = (
            max(int(share * job.steps), 1) for share in (0.22, 0.06, 0.03)
        )


def run_job(model: nn.Module, x: Tensor, y: Tensor, job: Job) -> Outcome:
    """Run a job on its slice x, y; the model stays on its device and comes back as it was.

    Raises:
        AuditError: the images leave the ball or the range, or the model was changed.
    """
    x, y = x.to(device_of(model)), y.to(device_of(model))
    counted: Counter[str] = Counter()
    with guarded(job.label, model), _unseeded(x), _listening(counted), _untraced():
        adversary = official(model, job)
        _redirect_upstream(adversary, counted)
        if "square" in job.attacks:
            adversary.square.predict = remembered(model, x)
        watch = _Watch(y, job.attacks)
        watch.attach(adversary)
        x_adv, robust = _evaluate(adversary, x, y)
    if not torch.equal(robust, watch.robust):
        raise AuditError(
            f"{job.label}: AutoAttack counts {int(robust.sum())} robust images, its attacks {int(watch.robust.sum())}"
        )
    audit = check_images(job.label, x, x_adv, job.eps)
    return Outcome(watch.right, watch.outcome(), audit.plain(), dict(sorted(counted.items())))


def _evaluate(adversary: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Adversarial images and which images withstood, by the official evaluation."""
    accepted = inspect.signature(adversary.run_standard_evaluation).parameters
    options: dict[str, Any] = {"batch_size" if "batch_size" in accepted else "bs": len(x)}
    if "return_labels" in accepted:
        options["return_labels"] = True
    x_adv, y_adv = adversary.run_standard_evaluation(x, y, **options)
    return x_adv, y_adv == y


class _Watch:
    """Which images are robust after each attack, read from the evaluation's own forward passes.

    The official evaluation predicts the whole slice last before its first attack, and the result of every
    attack right after it; both go through ``get_logits``, which the attacks themselves do not use.
    """

    def __init__(self, y: Tensor, attacks: Sequence[str]) -> None:
        self.y, self.attacks = y, attacks
        self.robust = torch.ones_like(y, dtype=torch.bool)
        self.right = self.robust.cpu().numpy()
        self.after: dict[str, np.ndarray] = {}
        self.running = ""

    def attach(self, adversary: Any) -> None:
        """Wrap methods of this object; classes stay as they are."""
        adversary.get_logits = partial(self._predict, adversary.get_logits)
        for name in self.attacks:
            attack = getattr(adversary, _OBJECTS[name])
            attack.perturb = partial(self._attack, name, attack.perturb)

    def _attack(self, name: str, perturb: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
        x_adv = perturb(*arguments, **options)
        self.running = name
        return x_adv

    def _predict(self, get_logits: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        logits = get_logits(x)
        if self.running:
            attacked = self.robust.nonzero().squeeze(1)
            self.robust[attacked] = logits.max(1)[1] == self.y[attacked]
            self.after[self.running] = self.robust.cpu().numpy().copy()
        else:
            self.robust = logits.max(1)[1] == self.y
            self.right = self.robust.cpu().numpy().copy()
        return logits

    def outcome(self) -> dict[str, np.ndarray]:
        """Per attack the robust images after it; attacks that had no image left found nothing to do."""
        final = self.robust.cpu().numpy()
        return {name: self.after.get(name, final) for name in self.attacks}


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters lie."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


@contextmanager
def _unseeded(x: Tensor) -> Iterator[None]:
    """The official code seeds the global generators: they are put back afterwards."""
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        yield


@contextmanager
def _untraced() -> Iterator[None]:
    """The official check for optimisation at inference replaces the trace function and keeps its counts."""
    counts = importlib.import_module(f"{package()}.checks").funcs
    before = sys.gettrace()
    counts.update(dict.fromkeys(counts, 0))
    try:
        yield
    finally:
        sys.settrace(before)


class _Listener(logging.Handler):
    """Counts warnings of the official logger; also stands in for the upstream package's own logger, which prints."""

    def __init__(self, counted: Counter[str]) -> None:
        super().__init__(logging.WARNING)
        self.counted = counted

    def emit(self, record: logging.LogRecord) -> None:
        self.counted[record.getMessage()] += 1

    def log(self, text: str) -> None:
        """Count warnings, drop progress."""
        if text.startswith("Warning: "):
            self.counted[text.removeprefix("Warning: ")] += 1


@contextmanager
def _listening(counted: Counter[str]) -> Iterator[None]:
    """Count the warnings of the official logger instead of printing them."""
    logger = logging.getLogger("auto-attack")
    listener, propagate = _Listener(counted), logger.propagate
    logger.addHandler(listener)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate


def _redirect_upstream(adversary: Any, counted: Counter[str]) -> None:
    if isinstance(getattr(adversary, "logger", None), logging.Logger):
        return
    for holder in (adversary, adversary.apgd, adversary.apgd_targeted):
        holder.logger = _Listener(counted)
