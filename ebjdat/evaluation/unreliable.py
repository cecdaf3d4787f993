"""When an accuracy under attack is no robustness figure, because the attack could not work on the model.

Two witnesses: the warnings of the official AutoAttack, by attack, and the share of test images whose cross-entropy has
no gradient, which the stage ``clean`` measures.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

LARGEST_ZERO_SHARE = 0.1
"""Share of images without a gradient above which attacks by gradients say nothing."""
_KINDS = {
    "randomised": "randomized defense",
    "zero-gradient": "zero gradient",
    "square-stronger": "Square Attack has decreased",
    "optimisation-at-inference": "dynamic defense",
    "probabilities": "probability distribution",
}
KINDS = (*_KINDS, "other")
"""Kinds of warnings of the official code; see :func:`kind_of`."""
_BY_CROSS_ENTROPY = re.compile(r"\w+/(pgd-\d+(-last)?|apgd-ce(/.*)?|eot-pgd/.*)")
_GIVES = {
    "cascade": ("autoattack", "apgd-ce", "apgd-ce-t"),
    "last": ("apgd-ce-t-last",),
    "apgd-dlr": ("apgd-dlr", "union", "union-with-fab"),
}
"""Accuracies that a job's warnings are about; of another attack also the worst case, where no cascade was run."""


def kind_of(warning: str) -> str:
    """Which of :data:`KINDS` a warning's text is."""
    return next((kind for kind, words in _KINDS.items() if words in warning), "other")


def remarks(record: Mapping[str, Any], clean: Mapping[str, Any] | None) -> dict[str, str]:
    """What has to stand beside accuracies of a record, by metric: the warnings about it with their counts.

    ``no robustness figure`` comes first where the outputs are probabilities, where more than
    :data:`LARGEST_ZERO_SHARE` of the images have no gradient, or where Square beats the gradient attacks. ``clean`` is
    the record of the stage ``clean`` of the same run, where there is one.
    """
    found = dict[str, str]()
    same = clean is not None and clean["weights"] == record["weights"]
    zero = (clean if clean and same else record)["values"].get("gradient/zero-share", 0.0)
    if zero > LARGEST_ZERO_SHARE:
        text = f"no robustness figure: zero gradient on {100 * zero:.0f} % of images"
        found |= {name: text for name in record["rates"] if _BY_CROSS_ENTROPY.fullmatch(name)}
        for name, rate in record["rates"].items():
            if name.endswith("-rescaled"):
                attack = name.removesuffix("-rescaled")
                found[attack] += f", {100 * rate['correct'] / rate['n']:.1f} % on rescaled logits"
    warnings: dict[str, list[str]] = {}
    for place, texts in record["warnings"].items():
        protocol, _, attack = place.partition("/")
        for name in _GIVES.get(attack, (attack, "union", "union-with-fab", "autoattack")):
            if (name, attack) == ("union", "fab-t") and f"{protocol}/union-with-fab" in record["rates"]:
                continue  # the protocol's union leaves FAB out
            if name == "autoattack" and attack != "cascade" and f"{protocol}/cascade" in record["audits"]:
                continue  # it is the cascade's, which has warnings of its own
            warnings.setdefault(f"{protocol}/{name}", []).extend(texts)
    for metric in warnings.keys() & record["rates"].keys():
        images = record["settings"].get(metric.partition("/")[0], {}).get("slice", record["n"])
        found[metric] = _remark(warnings[metric], images)
    return found


def _remark(texts: Sequence[str], images: int) -> str:
    """Warnings ``<text> (<n> times)`` of an attack on slices of so many images, by kind."""
    counted, serious = Counter[str](), False
    for text in texts:
        kind, times = kind_of(text), re.search(r"\((\d+) times\)$", text)
        counted[kind] += int(times[1]) if times else 1
        points = re.search(r"there are (\d+) points", text)
        few = points is not None and int(points[1]) <= LARGEST_ZERO_SHARE * images
        serious |= kind in ("probabilities", "square-stronger") or (kind == "zero-gradient" and not few)
    told = ", ".join(f"{kind.replace('-', ' ')} {number}" for kind, number in sorted(counted.items()))
    return f"{'no robustness figure' if serious else 'AutoAttack warns'}: {told}"
