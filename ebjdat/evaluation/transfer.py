"""Table 2: adversarial examples crafted on a surrogate, tried on the model.

Metrics are ``<protocol>/transfer/<surrogate>/<attack>``, with ``/neighbours-<N>`` after VMI and VNI, which
sample N images around the iterate. ``<protocol>/transfer/<surrogate>/worst`` counts an image as robust when
no attack from that surrogate changes its class, ``<protocol>/transfer/worst`` when none from any surrogate
but the model itself does. A surrogate of the model's own name is white-box.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ebjdat.attacks.batches import Batches, correct
from ebjdat.attacks.linf import MIFGSM, PGD, VMIFGSM, VNIFGSM, SignAttack
from ebjdat.evaluation import selftest
from ebjdat.evaluation.cases import Case, arrays_of, attack_case, opened, rate, stream
from ebjdat.evaluation.outcomes import NOTHING, Outcome, Outcomes
from ebjdat.evaluation.statistics import Rate, Result
from ebjdat.protocols import PROTOCOLS, Protocol

UNDEFENDED = "undefended"
"""The surrogate that the harness must be able to break; see :mod:`ebjdat.evaluation.selftest`."""


def evaluate(
    name: str,
    model: nn.Module,
    surrogates: Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    nominal: float,
    variant: str | None,
    batches: Batches | None = None,
    done: Outcomes = NOTHING,
) -> Result:
    """Everything of the stage ``transfer``.

    Args:
        name: of the model; the surrogate of this name is marked white-box.
        model: whose predictions count.
        surrogates: models by name that the examples are crafted on.
        x, y: images (N,C,H,W) in [0, 1], labels (N,).
        nominal: the profile's radius, pixel units.
        variant: JEM variant of the model, for the protocol's input noise; None for a baseline.
        done: outcomes of attacks that an earlier, killed evaluation has finished.

    Raises:
        AuditError: an attack broke a property.
    """
    cases, batches = opened(x, y, nominal, variant, batches)
    rates: dict[str, Rate] = {}
    values: dict[str, float] = {}
    audits: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {"white-box": [surrogate for surrogate in surrogates if surrogate == name]}
    flags: dict[str, Tensor] = {}
    for case in cases:
        right = correct(model, case.x, case.y, batches)
        rates[f"{case.name}/clean"] = rate(right)
        worst = dict.fromkeys(surrogates, right.cpu())
        for surrogate, source in surrogates.items():
            for label, attack in attacks_of(case.protocol, case.radius, batches).items():
                key = f"{case.name}/transfer/{surrogate}/{label}"
                found, plain = done.once(key, partial(_transfer, key, attack, source, model, case, batches))
                robust, audits[key], values[f"{key}/on-surrogate"] = found["robust"], plain["audit"], plain["source"]
                rates[key], flags[key] = rate(robust), robust
                worst[surrogate] = worst[surrogate] & robust
            rates[f"{case.name}/transfer/{surrogate}/worst"] = rate(worst[surrogate])
        others = [robust for surrogate, robust in worst.items() if surrogate != name]
        if others:
            rates[f"{case.name}/transfer/worst"] = rate(torch.stack(others).all(0))
        settings[case.name] = case.settings("transfer")
    if UNDEFENDED in surrogates:
        seed = PROTOCOLS["standard"].seed
        values["self-test/undefended"] = selftest.undefended(surrogates[UNDEFENDED], x, y, nominal, seed, batches)
        settings["self-test"] = {"radius": min(1.0, selftest.WIDE * nominal), "steps": selftest.STEPS}
    return Result(n=len(x), rates=rates, values=values, audits=audits, settings=settings, arrays=arrays_of(flags, y))


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
            for neighbours in recipe.neighbours:
                attacks[f"{name}/neighbours-{neighbours}"] = kind(
                    **common, decay=recipe.decay, beta=recipe.beta, neighbours=neighbours
                )
    return attacks


def _transfer(
    key: str, attack: SignAttack, source: nn.Module, model: nn.Module, case: Case, batches: Batches
) -> Outcome:
    """Robust images of ``model``, the audit, and the surrogate's own accuracy on the same images."""
    generator = stream(case.protocol.seed, "transfer")
    attacked = attack_case(
        key,
        source,
        case.x,
        case.y,
        case.radius,
        lambda x, y, begin: attack(source, x, y, generator, begin),
        start=attack.start(case.x, generator),
        judge=model,
        everyone=True,
        batches=batches,
    )
    on_surrogate = correct(source, attacked.x_adv, case.y, batches)
    plain = {"audit": attacked.audit.plain(), "source": float(on_surrogate.float().mean())}
    return {"robust": attacked.robust}, plain
