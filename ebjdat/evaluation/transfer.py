"""Table 2: adversarial examples crafted on a surrogate, tried on the model.

Metrics are ``<protocol>/transfer/<surrogate>/<attack>``, with ``/neighbours-<N>`` after VMI and VNI, which sample N
images around the iterate. ``<protocol>/transfer/<surrogate>/worst`` counts an image as robust when no attack from
that surrogate changes its class, ``<protocol>/transfer/worst`` when none from any surrogate but the model itself
does. A surrogate of the model's own name is white-box.

The images of a surrogate are crafted once: per protocol, attack and input noise, because the ball lies around the
images with the noise of the model that they are tried on.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebjdat import files
from ebjdat.attacks.audit import check_images, run_guarded
from ebjdat.attacks.batches import Batches, correct
from ebjdat.attacks.linf import MIFGSM, PGD, VMIFGSM, VNIFGSM, SignAttack
from ebjdat.attacks.outcomes import NOTHING, Outcomes, slice_hash
from ebjdat.errors import UserError
from ebjdat.evaluation import selftest
from ebjdat.evaluation.cases import Case, make_case, rate, stream
from ebjdat.progress import Progress
from ebjdat.protocols import PROTOCOLS, Protocol
from ebjdat.statistics import Rate, Result

UNDEFENDED = "undefended"
"""The surrogate that the harness must be able to break; see :mod:`ebjdat.evaluation.selftest`."""
MANIFEST = "manifest.json"


def craft(
    folder: Path,
    name: str,
    model: nn.Module,
    weights: str,
    x: Tensor,
    y: Tensor,
    *,
    nominal: float,
    trained_with: Iterable[float],
    batches: Batches,
    done: Outcomes = NOTHING,
    label: str = "craft",
) -> dict[str, Any]:
    """Craft everything on a surrogate; ``folder`` gets a file per attack, and last a manifest, which is returned.

    Args:
        name, weights: of the surrogate, and the sha256 of its file.
        x, y: images (N,C,H,W) in [0, 1], labels (N,).
        nominal: the profile's radius, pixel units.
        trained_with: noises that labelled images of the models to be tried had, network scale.
        done: what a killed run has crafted.

    Raises:
        AuditError: an attack broke a property.
    """
    place = folder if done.folder is None else done.folder / "images"
    cases = [
        make_case(protocol, x, y, nominal, noise)
        for protocol in PROTOCOLS.values()
        for noise in sorted({protocol.input_noise(noise) for noise in (0.0, *trained_with)})
    ]
    jobs = [(case, *job) for case in cases for job in attacks_of(case.protocol, case.radius, batches).items()]
    found: dict[str, Any] = {}
    with Progress(sum(attack.steps * _passes(attack) for *_, attack in jobs), label, unit="pass") as progress:
        for case, attack_name, attack in jobs:
            key, passes = _key(case, attack_name), _passes(attack)
            counted = replace(attack, tick=partial(progress.advance, passes))
            work = partial(_craft, place / f"{key}.npz", model, case, counted)
            _, found[key] = done.once(key, work, progress, attack.steps * passes)
            progress.advance(0, robust=found[key]["accuracy"])
    manifest = _decided_by(x, y, nominal) | {"model": name, "weights": weights, "found": found}
    if name == UNDEFENDED:
        seed = PROTOCOLS["standard"].seed
        manifest["self-test"] = selftest.undefended(model, x, y, nominal, seed, batches)
    if place != folder:
        shutil.rmtree(folder, ignore_errors=True)  # files of earlier protocols and noises
        shutil.copytree(place, folder)
    files.write_json(folder / MANIFEST, manifest)
    return manifest


def _craft(path: Path, model: nn.Module, case: Case, attack: SignAttack) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Write the images of one attack; their audit, and the surrogate's own accuracy on them."""
    generator = stream(case.protocol.seed, "transfer")
    start = attack.start(case.x, generator)
    x_adv, audit = run_guarded(
        path.stem, model, case.x, case.radius, lambda: attack(model, case.x, case.y, generator, start)
    )
    files.write_npz(path, {"x_adv": x_adv.cpu().numpy()}, compress=False)
    accuracy = float(correct(model, x_adv, case.y, attack.batches).float().mean())
    return {}, {"audit": audit.plain(), "accuracy": accuracy}


def attacks_of(protocol: Protocol, radius: float, batches: Batches) -> dict[str, SignAttack]:
    """The attacks of Table 2 by the last part of their metric."""
    recipe = protocol.transfer
    common: dict[str, Any] = {"eps": radius, "step": recipe.step * radius, "steps": recipe.steps, "batches": batches}
    attacks: dict[str, SignAttack] = {}
    for name in recipe.attacks:
        if name == "pgd":
            attacks[name] = PGD(**common, random_start=True)
        elif name == "mi-fgsm":
            attacks[name] = MIFGSM(**common, decay=recipe.decay)
        else:
            kind = VMIFGSM if name == "vmi-fgsm" else VNIFGSM
            tuned = common | {"decay": recipe.decay, "beta": recipe.beta}
            attacks |= {f"{name}/neighbours-{n}": kind(**tuned, neighbours=n) for n in recipe.neighbours}
    return attacks


def _passes(attack: SignAttack) -> int:
    """Gradients per step."""
    return 1 + getattr(attack, "neighbours", 0)


def _key(case: Case, attack: str) -> str:
    """Name of a file of crafted images."""
    return f"{case.name}-noise-{case.noise:g}-{attack.replace('/', '-')}"


def _decided_by(x: Tensor, y: Tensor, nominal: float) -> dict[str, Any]:
    """What crafted images depend on besides the surrogate."""
    settings = {name: [one.scale, one.seed, asdict(one.transfer)] for name, one in PROTOCOLS.items()}
    return {"images": slice_hash(x, y), "radius": nominal, "protocols": files.digest(settings)}


@dataclass(frozen=True)
class Crafted:
    """Adversarial images of one surrogate, in ``folder``; ``manifest`` as :func:`craft` returns it."""

    folder: Path
    manifest: Mapping[str, Any]

    def read(self, case: Case, attack: str) -> tuple[Tensor, float]:
        """Adversarial images (N,C,H,W) of a case on its device, and the surrogate's own accuracy on them.

        Raises:
            UserError: they were not crafted for this input noise, or the file is damaged.
        """
        key = _key(case, attack)
        path = self.folder / f"{key}.npz"
        if key not in self.manifest["found"]:
            raise UserError(f"{path} is missing: no recipe had this input noise then; {_how(self.folder)}")
        try:
            with np.load(path, allow_pickle=False) as stored:
                x_adv = torch.from_numpy(stored["x_adv"]).to(case.x.device)
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is missing or damaged ({error}): {_how(self.folder)}") from None
        return x_adv, self.manifest["found"][key]["accuracy"]


def _how(folder: Path) -> str:
    return f"run `python -m stages.craft --model {folder.name} --seed {folder.parent.name}`"


def load_crafted(folder: Path, weights: Path, x: Tensor, y: Tensor, nominal: float) -> Crafted:
    """Images that :func:`craft` left in ``folder`` (``.../<seed>/<surrogate>``), for these images and radius.

    Args:
        weights: file of the surrogate; where it is there, the images must be crafted on it.

    Raises:
        UserError: they are missing, or of other images, another radius, other weights or other protocols.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path} is missing: {_how(folder)} (a surrogate needs the stages prepare and train before)")
    manifest = files.read_json(path)
    wanted = _decided_by(x, y, nominal) | ({"weights": files.file_hash(weights)} if weights.is_file() else {})
    other = [name for name, value in wanted.items() if not isinstance(manifest, dict) or manifest.get(name) != value]
    if other:
        raise UserError(f"{folder} was crafted for other {', '.join(other)}: {_how(folder)}")
    return Crafted(folder, manifest)


def evaluate(
    name: str,
    model: nn.Module,
    surrogates: Mapping[str, Crafted],
    cases: list[Case],
    *,
    batches: Batches,
    label: str = "transfer",
) -> Result:
    """Everything of the stage ``transfer``.

    Args:
        name: of the model; the surrogate of this name is marked white-box.
        model: whose predictions count.
        surrogates: crafted images by the surrogate's name.
        cases: both protocols on the model's images.

    Raises:
        AuditError: crafted images break a property. UserError: see :meth:`Crafted.read`.
    """
    rates: dict[str, Rate] = {}
    values: dict[str, float] = {}
    audits: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {"white-box": [surrogate for surrogate in surrogates if surrogate == name]}
    attacks = {case.name: list(attacks_of(case.protocol, case.radius, batches)) for case in cases}
    with Progress(len(surrogates) * sum(map(len, attacks.values())), label, unit="attack") as progress:
        for case in cases:
            right = correct(model, case.x, case.y, batches)
            rates[f"{case.name}/clean"] = rate(right)
            worst = dict.fromkeys(surrogates, right)
            for surrogate, crafted in surrogates.items():
                for attack in attacks[case.name]:
                    key = f"{case.name}/transfer/{surrogate}/{attack}"
                    x_adv, values[f"{key}/on-surrogate"] = crafted.read(case, attack)
                    audits[key] = check_images(key, case.x, x_adv, case.radius).plain()
                    robust = right & correct(model, x_adv, case.y, batches)
                    rates[key] = rate(robust)
                    worst[surrogate] = worst[surrogate] & robust
                    progress.advance(robust=float(worst[surrogate].float().mean()))
                rates[f"{case.name}/transfer/{surrogate}/worst"] = rate(worst[surrogate])
            others = [robust for surrogate, robust in worst.items() if surrogate != name]
            if others:
                rates[f"{case.name}/transfer/worst"] = rate(torch.stack(others).all(0))
            settings[case.name] = case.settings("transfer")
    if UNDEFENDED in surrogates:
        values["self-test/undefended"] = surrogates[UNDEFENDED].manifest["self-test"]
        radius = min(1.0, selftest.WIDE * cases[0].radius)
        settings["self-test"] = {"radius": radius, "steps": selftest.STEPS}
    return Result(n=len(cases[0].x), rates=rates, values=values, audits=audits, settings=settings)
