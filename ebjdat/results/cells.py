"""How one number becomes the text of a cell, and what a table is; docs/statistics.md says how to read them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ebjdat.protocols import Protocol, as_fraction
from ebjdat.results.frame import Results
from ebjdat.results.names import COMPARED, display_name, generates
from ebjdat.statistics import wilson

Column = tuple[str, str]
"""Heading of a group of columns, and of the column; a column of no group may be given by its heading alone."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts.

    Attributes:
        label: short name, for pages that show it.
        title: one line, shown as heading.
        caption: data, protocol, images and seeds; about two lines, what needs more words stands in docs/statistics.md.
        body: rows by label, columns by :data:`Column`.
    """

    label: str
    title: str
    caption: str
    body: pd.DataFrame

    @property
    def heads(self) -> list[str]:
        """Headings of the columns, each after that of its group."""
        return [": ".join(filter(None, column)) for column in self.body.columns]

    @property
    def has_numbers(self) -> bool:
        """Whether any cell holds one."""
        return bool(self.body.map(lambda text: any(map(str.isdigit, text))).to_numpy().any())

    def markdown(self) -> str:
        """The caption and a pipe table, without heading."""
        if self.body.empty:
            return f"{self.caption}\n"
        heads = list(map(_escape_bar, self.heads))
        plain = self.body.set_axis(heads, axis=1).map(_escape_bar).rename(index=_escape_bar)
        aligned = ("left", *("right" for _ in heads))
        return f"{self.caption}\n\n{plain.to_markdown(colalign=aligned, disable_numparse=True)}\n"


def _escape_bar(text: str) -> str:
    return text.replace("|", "\\|")


def grid(head: str, columns: Iterable[Column | str], rows: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The body of a table; ``head`` is the heading of the row labels."""
    heads = pd.MultiIndex.from_tuples([("", one) if isinstance(one, str) else one for one in columns])
    return pd.DataFrame.from_dict(dict(rows), orient="index", columns=heads).rename_axis(head)


def pivot(
    results: Results,
    label: str,
    title: str,
    models: Iterable[str] | Mapping[str, str],
    columns: Mapping[Any, str],
    *,
    protocol: Protocol | None = None,
    extra: str = "",
    show: Callable[[Results, str, str], str] | None = None,
) -> Table:
    """Models as rows (or by the label of their row), metrics ``<stage>/<metric>`` as columns.

    Args:
        protocol: which the metrics belong to, for the caption.
        extra: the end of the caption.
        show: makes the text of a cell; default: :func:`either`.
    """
    cell = show or either
    if not isinstance(models, Mapping):
        models = {display_name(results.params, model): model for model in models}
    rows = {name: [cell(results, model, metric) for metric in columns.values()] for name, model in models.items()}
    text = caption(results, models.values(), list(columns.values()), protocol, extra)
    return Table(label, title, text, grid("Model", columns, rows))


def accuracy_text(values: pd.Series, n: int) -> str:
    """Accuracies by seed in percent: mean, deviation, number of seeds, 95 % Wilson interval of the mean at n images.

    Seeds share their test images, so more seeds do not narrow what the images leave open.
    """
    many = n >= 1000
    low, high = (f"{100 * end:.{1 if many else 0}f}" for end in wilson(min(values.mean() * n, n), n))
    return f"{_with_spread(values, 100.0, 2 if many else 1)} [{low}, {high}]"


def value_text(values: pd.Series) -> str:
    """Plain numbers by seed, such as distances: mean, deviation, number of seeds."""
    size = max(abs(values.mean()), values.std() if len(values) > 1 else 0.0)  # near 0 the spread decides
    digits = 2 if size >= 0.1 or size == 0 else 2 - math.floor(math.log10(size))
    return _with_spread(values, 1.0, min(digits, 6))


def _with_spread(values: pd.Series, scale: float, digits: int) -> str:
    text = f"{scale * values.mean():.{digits}f}"
    return text if len(values) == 1 else f"{text} ±{scale * values.std():.{digits}f} ({len(values)})"


def short(results: Results, model: str, metric: str) -> str:
    """The paper's form of a number: mean, and ± deviation where there are several seeds."""
    text = _plain(results, model, metric)
    return remarked(results, model, metric, text.split(" [")[0].split(" (")[0].replace(" ±", " ± "))


def remarked(results: Results, model: str, metric: str, text: str) -> str:
    """A cell with what has to stand beside its number."""
    return ", ".join(filter(None, (text, results.remark(model, metric))))


def either(results: Results, model: str, metric: str) -> str:
    """An accuracy or a plain number, or the reason why there is none; empty where a model generates no samples."""
    return remarked(results, model, metric, _plain(results, model, metric))


def _plain(results: Results, model: str, metric: str) -> str:
    values, images = results.values(model, metric), results.images(model, metric)
    if values.empty:
        return "" if metric.startswith("generate/") and not generates(model) else results.missing(model, metric)
    return accuracy_text(values, min(images)) if images else value_text(values)


_STAGES = {
    "clean": "clean and PGD-20",
    "autoattack": "AutoAttack and its attacks",
    "transfer": "transfer",
    "sweep": "APGD-CE",
    "eot": "EOT-PGD",
    "generate": "samples",
}


def caption(
    results: Results,
    models: Iterable[str],
    metrics: Sequence[str],
    protocol: Protocol | None = None,
    extra: str = "",
) -> str:
    """Data set, network, protocol, radius, images and seeds behind the cells of these models and metrics."""
    counts: dict[str, set[int]] = {}
    seeds: dict[str, set[int]] = {}
    for model in models:
        for metric in metrics:
            stage = metric.partition("/")[0]
            seeds.setdefault(stage, set()).update(results.values(model, metric).index)
            counts.setdefault(stage, set()).update(results.images(model, metric))
    parts = [about(results, protocol)]
    if any(counts.values()):
        parts.append(f"n = {_counts({stage: found for stage, found in counts.items() if found})}")
    every = set().union(*seeds.values())
    fewer = {stage: found for stage, found in seeds.items() if found and found != every}
    told = [f"{_STAGES.get(stage, stage)}: {seeds_text(found)}" for stage, found in fewer.items()]
    parts.append(seeds_text(every) + (f" ({'; '.join(told)})" if told else ""))
    text = f"{'; '.join(parts)}. {extra}".strip()
    if COMPARED["AutoAttack"] in metrics and not results.params.current.evaluation.autoattack.cascade:
        return text.replace(_STAGES["autoattack"], "AutoAttack: worst case of its attacks")
    return text


def about(results: Results, protocol: Protocol | None = None) -> str:
    """Data set, network and profile, and the protocol with its radius in pixel units."""
    current = results.params.current
    dataset = {"cifar10": "CIFAR-10", "fashion": "Fashion-MNIST"}.get(current.data.dataset, current.data.dataset)
    network = f"WRN-{current.network.depth}-{current.network.width}"
    text = f"{dataset[0].upper()}{dataset[1:]}, {network}, profile {results.profile}"
    if protocol is None:
        return text
    return f"{text}; protocol {protocol.name} at {as_fraction(protocol.radius(current.evaluation.radius))}"


def seeds_text(seeds: Iterable[int]) -> str:
    """``seed 0``, ``seeds 0 to 5``, ``seeds 0, 2``."""
    found = sorted(seeds)
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"seeds {found[0]} to {found[-1]}"
    if not found:
        return "no seed yet"
    return f"seed{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"


def _counts(by_stage: Mapping[str, set[int]]) -> str:
    """Test images behind the cells; where stages differ, each with its own; unequal n in one column is said aloud."""
    if len(set.union(*by_stage.values())) == 1:
        return str(min(set.union(*by_stage.values())))
    parts = []
    for stage, found in by_stage.items():
        span = str(min(found)) if len(found) == 1 else f"{min(found)} to {max(found)}, UNEQUAL"
        parts.append(f"{span} ({_STAGES.get(stage, stage)})")
    return ", ".join(parts)
