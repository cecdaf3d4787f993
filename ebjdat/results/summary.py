"""The results in a minute: a few sentences, and one line to check a reproduction against.

Every sentence is chosen by its interval and says which images and seeds it rests on; docs/statistics.md explains both.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator

from scipy import stats

from ebjdat.results.cells import per_seed
from ebjdat.results.frame import Results
from ebjdat.results.names import COMPARED, display_name
from ebjdat.results.statistics import Difference, count_seeds, seed_interval
from ebjdat.statistics import spread, wilson

GAP = "clean/energy/gap-adversarial"
"""Mean E(x_adv) - E(x) over test images, nats: the quantity that the paper's energy term is to lower."""
AUTOATTACK = COMPARED["AutoAttack"]
SAMPLES, START = "generate/generation/classifier-frechet", "generate/generation/start-classifier-frechet"


def texts(results: Results) -> dict[str, str]:
    """Markdown by the label that pages use: all sentences, those about the energy term, and the line to check."""
    variant = results.params.variant
    rest = [*_gaps(results), *_samples(results)]
    everything = [*_robustness(results, [f"base-{variant}", f"control-{variant}", "pgd_at"]), *rest]
    of_the_term = [*_robustness(results, [f"control-{variant}"]), *rest]
    return {"answers": _listed(everything), "short": _listed(of_the_term), "check": f"{wrapped(check(results))}\n"}


def _listed(sentences: Iterable[str]) -> str:
    return "".join(f"{wrapped(f'- {sentence}')}\n" for sentence in sentences)


def wrapped(text: str) -> str:
    """Lines of at most 120 characters, those after the first of a list's item indented."""
    return textwrap.fill(text, 120, subsequent_indent="  " if text.startswith("- ") else "", break_on_hyphens=False)


def _mean(values: Iterable[float], digits: int) -> str:
    over = spread(list(values))
    return f"{over.mean:.{digits}f}" + (f" ± {over.deviation:.{digits}f}" if over.seeds > 1 else "")


def check(results: Results) -> str:
    """What another machine should find for the first seed, whose trained weights differ there."""
    model, seed = f"ebjdat-{results.params.variant}", results.params.seeds[0]
    values = 100 * results.values(model, AUTOATTACK)
    if seed not in values:
        return f"No record of {display_name(results.params, model)} under AutoAttack."
    low, high = _next(list(values), min(results.images(model, AUTOATTACK)))
    return (
        f"You should see AutoAttack {low:.0f} to {high:.0f} % for {display_name(results.params, model)}, seed {seed} "
        f"(ours: {values[seed]:.1f} %; 95 % range for one new training, from {count_seeds(len(values))})."
    )


def _next(values: list[float], n: int) -> tuple[float, float]:
    """95 % range of one more training run on the same images, in per cent; of one run, its Wilson interval."""
    over = spread(values)
    if over.seeds == 1:
        low, high = wilson(over.mean * n / 100, n)
        return 100 * low, 100 * high
    half = float(stats.t.ppf(0.975, over.seeds - 1)) * over.deviation * math.sqrt(1 + 1 / over.seeds)
    return max(0.0, over.mean - half), min(100.0, over.mean + half)


def _robustness(results: Results, rivals: Iterable[str]) -> Iterator[str]:
    """A sentence or two per rival: one where AutoAttack and PGD-20 say the same."""
    ours = f"ebjdat-{results.params.variant}"
    for rival in rivals:
        claims = _claims(display_name(results.params, ours), display_name(results.params, rival), rival)
        said: dict[str, list[str]] = {}
        for name in ("AutoAttack", "PGD-20"):
            pairs = results.pairs(ours, rival, COMPARED[name])
            if pairs:
                found = Difference.of(list(pairs.values()))
                said.setdefault(claims[found.verdict.partition(",")[0]], []).append(f"{name} {_points(found)}")
        if said:
            yield " ".join(f"{words}: {'; '.join(numbers)}." for words, numbers in said.items())


def _claims(ours: str, other: str, rival: str) -> dict[str, str]:
    """What each verdict says."""
    if rival.startswith("control-"):
        return {
            "yes": "The default energy term raises robustness",
            "no": "The default energy term lowers robustness",
            "open": "No benefit of the default energy term for robustness was found",
        }
    return {
        "yes": f"{ours} is more robust than {other}",
        "no": f"{ours} is less robust than {other}",
        "open": f"No difference in robustness between {ours} and {other} was found",
    }


def _points(found: Difference) -> str:
    low, high = 100 * found.low, 100 * found.high
    seeds = "one seed: this pair of models only" if found.seeds == 1 else count_seeds(found.seeds)
    mean = f"{100 * found.mean:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0")
    return f"{mean} points, 95 % interval {low:+.1f} to {high:+.1f} ({found.n} images, {seeds})"


def _gaps(results: Results) -> Iterator[str]:
    """The mean gap with the default term and with the paper's equation, each against the control."""
    variant = results.params.variant
    control = f"control-{variant}"
    for model, term in (
        (f"ebjdat-{variant}", "the default term"),
        (f"ebjdat-{variant}_energy", "the paper's equation"),
    ):
        differences = per_seed(results, model, control, GAP) if len(results.values(model, GAP)) else []
        if differences:
            ours, without = (spread(list(results.values(name, GAP))).mean for name in (model, control))
            verb, difference = _direction(differences)
            behind = f"{_images(results, model)}{count_seeds(len(differences))}"
            yield (
                f"Gap E(x_adv) - E(x): {term}{_reading(results, model)} {verb} it, {ours:.2f} nats against "
                f"{without:.2f} of the control, {difference} ({behind})."
            )


def _reading(results: Results, model: str) -> str:
    recipe = results.setup(model).recipe
    return "" if recipe is None else f" ({recipe.reading}, w2 = {recipe.w_energy:g})"


def _direction(differences: list[float]) -> tuple[str, str]:
    mean = spread(differences).mean
    verb = "widens" if mean > 0 else "narrows"
    if len(differences) < 2:
        return verb, f"{mean:+.2f}"
    low, high = seed_interval(differences)
    clear = low > 0 or high < 0
    return verb if clear else "neither widens nor narrows", f"{mean:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}"


def _images(results: Results, model: str) -> str:
    counts = results.images(model, COMPARED["clean accuracy"])
    return f"{min(counts)} images, " if counts else ""


def _samples(results: Results) -> Iterator[str]:
    """Whether samples are nearer to the data than the start of their chains."""
    variant, parts = results.params.variant, []
    for model in (f"ebjdat-{variant}", f"ebjdat-{variant}_energy"):
        samples, start = results.values(model, SAMPLES), results.values(model, START)
        if len(samples):
            nearer = f"samples nearer in {sum(samples < start)} of {len(samples)} seeds"
            name = display_name(results.params, model)
            parts.append(f"{name} {_mean(samples, 2)}, start {_mean(start, 2)}, {nearer}")
    if parts:
        yield f"Fréchet distance to the data (lower: nearer), samples and their chains' start: {'; '.join(parts)}."
