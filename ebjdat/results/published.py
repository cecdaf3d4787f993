"""Published numbers of EB-JDAT, read from published.yaml: no published number stands anywhere else."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ebjdat.config import read_yaml

Kind = Literal["robust", "transfer", "clean", "generation", "cost", "none"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One published number.

    Attributes:
        table: where it stands (``Table 1``, ``Section 3``, ``Headline`` ...).
        row, column: its place there.
        value, upper: as printed, in percent or a distance; both ends where sources give a range.
        model: our model that answers to the row; empty where there is none.
        metric: our ``<stage>/<metric>`` with ``{p}`` and ``{twin}``; empty where it is not measured here.
        dataset: data set it was measured on.
        second_hand: from notes about the paper, not from the paper.
    """

    table: str
    row: str
    column: str
    value: float
    upper: float
    model: str
    metric: str
    dataset: str
    second_hand: bool

    @property
    def kind(self) -> Kind:
        """What it measures, which decides what it may be compared with."""
        if self.metric.startswith("transfer/"):
            return "transfer"
        if self.metric.startswith("generate/"):
            return "generation"
        if not self.metric:
            return "cost" if self.column.startswith("hours") else "none"
        return "clean" if self.metric.endswith("/clean") else "robust"

    def metric_under(self, protocol: str) -> str:
        """Our metric under a protocol; empty without one."""
        return self.metric.format(p=protocol, twin="released-" if protocol == "released" else "")

    def text(self) -> str:
        """As printed."""
        return f"{self.value:.2f}" if self.upper == self.value else f"{self.value:.2f} to {self.upper:.2f}"


@functools.cache
def _content() -> dict[str, Any]:
    return dict(read_yaml(Path(__file__).with_suffix(".yaml")))


@functools.cache
def claims() -> tuple[Claim, ...]:
    """Every published number, in the order of the file."""
    found, content = [], _content()
    for section in ("claims", "second_hand"):
        for one in content[section]:
            metrics = content["metrics"].get(one["table"], content["metrics"]["elsewhere"])
            for column, printed in one["values"].items():
                value, upper = printed if isinstance(printed, list) else (printed, printed)
                place = one["table"], one["row"], column, value, upper
                where = one.get("dataset", "cifar10"), section == "second_hand"
                found.append(Claim(*place, one.get("model", ""), metrics[column] or "", *where))
    return tuple(found)


def in_table(table: str) -> list[Claim]:
    """The published numbers of one table or section."""
    return [claim for claim in claims() if claim.table == table]


def recipe(model: str) -> dict[str, Any]:
    """Epochs, reading and w2 that the released code's scripts train a model with; empty where they are not known."""
    return dict(_content()["recipes"].get(model, {}))


def notes(table: str) -> list[str]:
    """What a reader must know of a table's numbers."""
    return list(_content()["notes"].get(table, ()))
